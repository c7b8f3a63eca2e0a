"""Variations of a picture: how a photograph could have looked otherwise, each one a function with at most one value.

A variation that changes colours is a function ``(picture, value, scene) -> picture`` under `changes`; one that moves
points is a function ``(width, height, value) -> (matrix, size)`` under `moves`. Values are independent of the picture's
size. Nothing here depends on anything but the arguments.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from lrp_onnx.errors import DataError

RGB = NDArray[np.uint8]  # (H, W, 3)
Matrix = NDArray[np.float64]  # (3, 3)
Size = tuple[int, int]  # width, height

ORIGINAL = "original"
FILL = (128, 128, 128)  # what shows where a moved picture leaves its frame empty, and what occludes
_MODEL_EDGE = 256  # pixels; about what models see of a picture, the scale of grain and lines
_SHAPES = 150  # of clutter


@dataclass(frozen=True, eq=False)
class Scene:
    """What a variation may draw on beside the picture.

    Attributes
    ----------
    random : numpy.random.Generator
    mask : bool array (H, W), optional
        True on the object.
    background : uint8 array (h, w, 3), optional
        A picture of any size to put behind the object.
    """

    random: np.random.Generator
    mask: NDArray[np.bool_] | None = None
    background: RGB | None = None


Change = Callable[[RGB, float, Scene], RGB]
Move = Callable[[int, int, float], tuple[Matrix, Size]]


@dataclass(frozen=True)
class Variation:
    """One way to vary pictures.

    Attributes
    ----------
    name : str
    about : str
        What its value means, or what it does when it takes none.
    values : tuple of float
        Those it is made with unless others are asked for; empty when it takes none.
    low, high : float
        Between which values may lie.
    change, move : callable or None
        One of the two, see the module.
    needs_mask : bool
    """

    name: str
    about: str
    values: tuple[float, ...]
    low: float
    high: float
    change: Change | None = None
    move: Move | None = None
    needs_mask: bool = False


@dataclass(frozen=True)
class Chosen:
    """A variation with its value; call it to vary a picture."""

    variation: Variation
    value: float | None

    def __str__(self) -> str:
        return self.variation.name if self.value is None else f"{self.variation.name}={self.value:g}"

    def geometry(self, width: int, height: int) -> tuple[Matrix, Size]:
        """Where points of a picture go, and how large the varied picture is.

        Returns
        -------
        matrix : float64 (3, 3)
            Homography: ``matrix @ (x, y, 1)`` of the picture is, up to scale, (x, y, 1) of the varied one; coordinates
            as in `lrp_onnx.Preprocess.geometry`. The identity for variations of colour.
        size : (int, int)
            Width and height.
        """
        if self.variation.move is None:
            return np.eye(3), (width, height)
        return self.variation.move(width, height, self.value or 0.0)

    def __call__(self, picture: RGB, scene: Scene) -> RGB:
        """Vary a picture, uint8 (H, W, 3).

        Raises
        ------
        DataError
            When the variation needs a mask and the scene has none, or one of another size.
        """
        if self.variation.needs_mask and (scene.mask is None or scene.mask.shape != picture.shape[:2]):
            found = "none is given" if scene.mask is None else f"it has shape {scene.mask.shape}"
            raise DataError(f"variation {self} needs a mask of shape {picture.shape[:2]}, and {found}")
        if self.variation.change is not None:
            return self.variation.change(picture, self.value or 0.0, scene)
        matrix, size = self.geometry(picture.shape[1], picture.shape[0])
        return warp(picture, matrix, size)


VARIATIONS: dict[str, Variation] = {}


def changes(
    name: str,
    about: str,
    values: tuple[float, ...] = (),
    *,
    low: float = 0,
    high: float = math.inf,
    needs_mask: bool = False,
) -> Callable[[Change], Change]:
    """Register a variation that leaves every point where it is."""

    def register(change: Change) -> Change:
        VARIATIONS[name] = Variation(name, about, values, low, high, change=change, needs_mask=needs_mask)
        return change

    return register


def moves(
    name: str, about: str, values: tuple[float, ...] = (), *, low: float = 0, high: float = math.inf
) -> Callable[[Move], Move]:
    """Register a variation that moves points by a homography; the frame is filled with `FILL`."""

    def register(move: Move) -> Move:
        VARIATIONS[name] = Variation(name, about, values, low, high, move=move)
        return move

    return register


def choose(wanted: Sequence[str] | None = None) -> list[Chosen]:
    """The variations that texts such as "rotation=45" or "dark" name; a name alone means all its default values.

    Parameters
    ----------
    wanted : sequence of str, optional
        All variations with their default values when left out.

    Raises
    ------
    DataError
        For an unknown name, or a value that is no number, out of range, or not taken.
    """
    chosen: dict[str, Chosen] = {}  # by text, so that what is named twice is made once
    for text in VARIATIONS if wanted is None else wanted:
        name, equals, value = text.partition("=")
        variation = VARIATIONS.get(name.strip())
        if variation is None:
            raise DataError(f"no variation '{name}'; there are {', '.join(VARIATIONS)}")
        values: tuple[float | None, ...] = variation.values or (None,)
        if equals:
            values = (_value(variation, text, value),)
        for one in (Chosen(variation, value) for value in values):
            chosen.setdefault(str(one), one)
    if not chosen:
        raise DataError(f"no variation is named; there are {', '.join(VARIATIONS)}")
    return list(chosen.values())


def _value(variation: Variation, text: str, value: str) -> float:
    if not variation.values:
        raise DataError(f"variation {text}: {variation.name} takes no value ({variation.about})")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not variation.low <= number <= variation.high:
        raise DataError(
            f"variation {text}: expected a number from {variation.low:g} to {variation.high:g} ({variation.about})"
        )
    return number


def warp(picture: RGB, matrix: Matrix, size: Size) -> RGB:
    """Move a picture by a homography into a frame of `size` (width, height); empty places are `FILL`."""
    back = np.linalg.inv(matrix)
    coefficients = tuple((back / back[2, 2]).ravel()[:8].tolist())
    moved = Image.fromarray(picture).transform(
        size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC, fillcolor=FILL
    )
    return np.asarray(moved)


# Light and colour


@changes("dark", "share of the light that is left", (0.5, 0.2), high=1)
def dark(picture: RGB, value: float, scene: Scene) -> RGB:
    return _rounded(picture * value)


@changes("bright", "times as much light; what is too bright becomes white", (1.5, 2.5), low=1)
def bright(picture: RGB, value: float, scene: Scene) -> RGB:
    return _rounded(picture * value)


@changes("low-contrast", "share of the contrast that is left", (0.5, 0.2), high=1)
def low_contrast(picture: RGB, value: float, scene: Scene) -> RGB:
    mean = _grey(picture).mean()
    return _rounded(mean + (picture - mean) * value)


@changes("greyscale", "no colours")
def greyscale(picture: RGB, value: float, scene: Scene) -> RGB:
    return _rounded(np.repeat(_grey(picture)[..., None], 3, axis=2))


@changes("sketch", "dark lines at edges on white paper")
def sketch(picture: RGB, value: float, scene: Scene) -> RGB:
    return _rounded(np.repeat(255 * _lines(picture)[..., None], 3, axis=2))


@changes("cartoon", "levels of each colour, in flat areas between lines", (8, 4), low=2, high=256)
def cartoon(picture: RGB, value: float, scene: Scene) -> RGB:
    steps = round(value) - 1
    smooth = np.asarray(_blurred(picture, 2 * _line_width(picture)))
    flat = np.rint(smooth / 255 * steps) / steps * 255
    return _rounded(flat * _lines(picture)[..., None])


# Camera and transmission


@changes("blur", "standard deviation, % of the short edge", (1, 2.5), high=100)
def blur(picture: RGB, value: float, scene: Scene) -> RGB:
    return np.asarray(_blurred(picture, value / 100 * min(picture.shape[:2])))


@changes("noise", "standard deviation in grey levels of 0 to 255; grain: 1/256 of the short edge", (20, 50), high=255)
def noise(picture: RGB, value: float, scene: Scene) -> RGB:
    height, width = picture.shape[:2]
    grain = max(1, min(height, width) // _MODEL_EDGE)
    grains = scene.random.normal(0, value, (height // grain + 1, width // grain + 1, 3))
    return _rounded(picture + grains.repeat(grain, axis=0).repeat(grain, axis=1)[:height, :width])


@changes("jpeg", "quality of JPEG compression", (30, 8), low=1, high=95)
def jpeg(picture: RGB, value: float, scene: Scene) -> RGB:
    packed = io.BytesIO()
    Image.fromarray(picture).save(packed, format="JPEG", quality=round(value))
    return np.asarray(Image.open(packed).convert("RGB"))


# View


@moves("rotation", "degrees, anticlockwise about the centre; the frame keeps its size", (15, -30), low=-180, high=180)
def rotation(width: int, height: int, value: float) -> tuple[Matrix, Size]:
    cos, sin = math.cos(math.radians(value)), math.sin(math.radians(value))
    turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])  # rows of a picture run downwards
    return _about_centre(turn, width, height), (width, height)


@moves("mirror", "left becomes right")
def mirror(width: int, height: int, value: float) -> tuple[Matrix, Size]:
    return np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]]), (width, height)


@moves(
    "perspective", "degrees by which the picture is turned about its upright axis; the left comes nearer if positive",
    (30, -50), low=-80, high=80,
)  # fmt: skip
def perspective(width: int, height: int, value: float) -> tuple[Matrix, Size]:
    cos, sin = math.cos(math.radians(value)), math.sin(math.radians(value))
    turn = np.array([[cos, 0, 0], [0, 1, 0], [sin / max(width, height), 0, 1]])  # seen from one long edge away
    return _about_centre(turn, width, height), (width, height)


@moves(
    "tilt", "degrees by which the picture is turned about its level axis; the top comes nearer if positive",
    (30, -50), low=-80, high=80,
)  # fmt: skip
def tilt(width: int, height: int, value: float) -> tuple[Matrix, Size]:
    cos, sin = math.cos(math.radians(value)), math.sin(math.radians(value))
    turn = np.array([[1, 0, 0], [0, cos, 0], [0, sin / max(width, height), 1]])
    return _about_centre(turn, width, height), (width, height)


@moves("crop", "share of each edge that is kept, about the centre", (0.75, 0.5), low=0.01, high=1)
def crop(width: int, height: int, value: float) -> tuple[Matrix, Size]:
    wide, tall = max(1, round(width * value)), max(1, round(height * value))
    shift = np.array([[1.0, 0, -((width - wide) // 2)], [0, 1, -((height - tall) // 2)], [0, 0, 1]])
    return shift, (wide, tall)


# Surroundings


@changes("occlusion", "share of the area under a grey rectangle, somewhere", (0.1, 0.3), high=1)
def occlusion(picture: RGB, value: float, scene: Scene) -> RGB:
    height, width = picture.shape[:2]
    tall, wide = round(height * math.sqrt(value)), round(width * math.sqrt(value))
    top, left = scene.random.integers(height - tall + 1), scene.random.integers(width - wide + 1)
    covered = picture.copy()
    covered[top : top + tall, left : left + wide] = FILL
    return covered


@changes("clear-background", "white around the object", needs_mask=True)
def clear_background(picture: RGB, value: float, scene: Scene) -> RGB:
    return _behind(picture, np.full_like(picture, 255), scene)


@changes("cluttered-background", "another picture, or coloured shapes, around the object", needs_mask=True)
def cluttered_background(picture: RGB, value: float, scene: Scene) -> RGB:
    height, width = picture.shape[:2]
    if scene.background is not None:
        fitted = ImageOps.fit(Image.fromarray(scene.background), (width, height))
        return _behind(picture, np.asarray(fitted), scene)
    page = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(page)
    shapes = zip(scene.random.random((_SHAPES, 4)).tolist(), scene.random.integers(256, size=(_SHAPES, 3)), strict=True)
    for number, ((x, y, wide, tall), colour) in enumerate(shapes):
        x, y, wide, tall = (x - 0.2) * width, (y - 0.2) * height, wide * width / 2, tall * height / 2
        paint = draw.ellipse if number % 2 else draw.rectangle
        paint((x, y, x + wide, y + tall), fill=tuple(colour.tolist()))
    return _behind(picture, np.asarray(page), scene)


def _behind(picture: RGB, background: RGB, scene: Scene) -> RGB:
    assert scene.mask is not None  # `Chosen` has made sure of it
    return np.where(scene.mask[..., None], picture, background)


def _rounded(values: NDArray[np.floating]) -> RGB:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _grey(picture: RGB) -> NDArray[np.float64]:
    return picture @ np.array([0.299, 0.587, 0.114])


def _blurred(picture: RGB, deviation: float) -> Image.Image:
    return Image.fromarray(picture).filter(ImageFilter.GaussianBlur(deviation))


def _line_width(picture: RGB) -> float:
    return max(1.0, min(picture.shape[:2]) / _MODEL_EDGE)


def _lines(picture: RGB) -> NDArray[np.float64]:
    """1 for paper to 0 for the strongest edges, (H, W)."""
    from scipy.ndimage import gaussian_gradient_magnitude

    edges = gaussian_gradient_magnitude(_grey(picture), _line_width(picture))
    strongest = float(np.percentile(edges, 99)) or float(edges.max()) or 1.0
    return 1 - np.minimum(edges / strongest, 1)


def _about_centre(matrix: Matrix, width: int, height: int) -> Matrix:
    to_centre = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
    return np.linalg.inv(to_centre) @ matrix @ to_centre
