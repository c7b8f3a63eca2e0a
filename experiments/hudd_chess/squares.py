"""Pictures of single chess squares, drawn with the themes of chessboard-image: all that makes a picture is recorded."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from experiments.hudd_chess.network import CLASSES

THEMES = "chessboard_image/theme.json"
SHADES = ("light", "dark")
SQUARE, PICTURE = 64, 32  # pixels: a square as drawn, and the picture that the network sees
BOARD = 9  # squares a side: as many as ever come into the picture
EMPTY, OCCLUDER = "xx", (200, 60, 40)
# Alone, with all others neutral, a value within these costs about a tenth of the pictures at most.
LIMITS = {
    "scale": 1.5,
    "rotation": 25.0,
    "shift_x": 0.25,
    "shift_y": 0.25,
    "occlusion": 0.25,
    "brightness": 1.6,
    "blur": 1.25,
    "noise": 0.15,
}
FACTORS, ONE_SIDED = ("scale", "brightness"), ("occlusion", "blur", "noise")
DRAWS = ("normal", "even")


@dataclass(frozen=True)
class Parameters:
    """What makes a picture.

    Attributes
    ----------
    label : str
        Class of the piece on the square.
    theme, square : str
        Piece set with its board colours, and which of the two colours the square has.
    scale, rotation, shift_x, shift_y : float
        Of the board: 1 when the square fills the picture, degrees, parts of the picture.
    occlusion, occlusion_x, occlusion_y : float
        A red disc in front of it: area and centre, parts of the picture.
    brightness : float
        Factor on all values.
    blur, noise : float
        Gaussian: standard deviations in pixels, and in parts of the range of values.
    """

    label: str
    theme: str
    square: str
    scale: float
    rotation: float
    shift_x: float
    shift_y: float
    occlusion: float
    occlusion_x: float
    occlusion_y: float
    brightness: float
    blur: float
    noise: float


class Painter:
    """Draws squares as chessboard-image does, without importing it: version 1.1.6 needs a setuptools before 82."""

    def __init__(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            themes = json.loads(archive.read(THEMES))
        self.themes = tuple(themes)
        self.boards = {
            (name, square): _board(*theme["board"][:: 1 if square == SHADES[0] else -1])
            for name, theme in themes.items()
            for square in SHADES
        }
        self.pieces = {
            (name, piece): _piece(url) for name, theme in themes.items() for piece, (url, *_) in theme["pieces"].items()
        }

    def paint(self, what: Parameters, random: np.random.Generator) -> Image.Image:
        """One picture, RGB, 32 x 32; `random` makes the noise."""
        picture = self._photograph(what)
        radius = SQUARE * math.sqrt(what.occlusion / math.pi)
        x, y = SQUARE * what.occlusion_x, SQUARE * what.occlusion_y
        ImageDraw.Draw(picture).ellipse((x - radius, y - radius, x + radius, y + radius), fill=OCCLUDER)
        picture = picture.filter(ImageFilter.GaussianBlur(what.blur * SQUARE / PICTURE))
        values = np.array(picture.resize((PICTURE, PICTURE), Image.Resampling.BOX)) * what.brightness
        values += random.normal(0, 255 * what.noise, values.shape)
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))

    def _photograph(self, what: Parameters) -> Image.Image:
        """The board around the square, seen in scale, turned and shifted; all other squares are empty."""
        board = self.boards[what.theme, what.square].copy()
        if what.label != EMPTY:
            piece = self.pieces[what.theme, what.label]
            board.paste(piece, (BOARD // 2 * SQUARE, BOARD // 2 * SQUARE), piece)
        cosine = math.cos(math.radians(what.rotation)) / what.scale
        sine = math.sin(math.radians(what.rotation)) / what.scale
        middle, x, y = BOARD * SQUARE / 2, SQUARE * (0.5 + what.shift_x), SQUARE * (0.5 + what.shift_y)
        to_board = (cosine, -sine, middle - cosine * x + sine * y, sine, cosine, middle - sine * x - cosine * y)
        return board.transform((SQUARE, SQUARE), Image.Transform.AFFINE, to_board, Image.Resampling.BICUBIC)


def draw_parameters(painter: Painter, count: int, draw: str, random: np.random.Generator) -> list[Parameters]:
    """Draw every parameter independently of the others.

    "normal": small deviations are frequent and large ones rare, as a normal distribution whose two standard deviations
    are the limit has them; "even": every value within the limits is as likely.
    """
    drawn = []
    for _ in range(count):
        choices = [random.choice(names).item() for names in (CLASSES, painter.themes, SHADES)]
        steps = random.normal(0, 0.5, len(LIMITS)) if draw == "normal" else random.uniform(-1, 1, len(LIMITS))
        numbers = {name: _value(name, step) for name, step in zip(LIMITS, steps.tolist(), strict=True)}
        drawn.append(_parameters(choices, numbers, random.uniform(size=2).tolist()))
    return drawn


def neutral_parameters(painter: Painter) -> list[Parameters]:
    """Every piece of every theme on both squares, with nothing that could make trouble."""
    numbers = {name: _value(name, 0.0) for name in LIMITS}
    return [_parameters(choices, numbers, (0.5, 0.5)) for choices in product(CLASSES, painter.themes, SHADES)]


def write_squares(painter: Painter, drawn: list[Parameters], folder: Path, random: np.random.Generator) -> Path:
    """Write pictures, and their parameters as `parameters.csv`, which also is the manifest of the data set."""
    folder.mkdir(parents=True)
    for number, one in enumerate(drawn):
        painter.paint(one, random).save(folder / f"{number}.png")
    manifest = folder / "parameters.csv"
    with manifest.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ["image", *asdict(drawn[0])], lineterminator="\n")
        table.writeheader()
        table.writerows({"image": f"{number}.png", **asdict(one)} for number, one in enumerate(drawn))
    return manifest


def _piece(url: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    return image.convert("RGBA").resize((SQUARE, SQUARE), Image.Resampling.LANCZOS)


def _board(own: str, other: str) -> Image.Image:
    """Empty squares; the middle one, and every second from there, has the colour `own`."""
    board = Image.new("RGB", (BOARD * SQUARE, BOARD * SQUARE), own)
    for place in range(1, BOARD * BOARD, 2):
        row, column = divmod(place, BOARD)
        board.paste(other, (column * SQUARE, row * SQUARE, (column + 1) * SQUARE, (row + 1) * SQUARE))
    return board


def _value(name: str, step: float) -> float:
    """The parameter at a part of the way from neutral, 0, to its limit, 1 or -1."""
    if name in FACTORS:
        return LIMITS[name] ** step
    return LIMITS[name] * (abs(step) if name in ONE_SIDED else step)


def _parameters(choices: Sequence[str], numbers: Mapping[str, float], occluder: Sequence[float]) -> Parameters:
    values: dict[str, Any] = dict(zip(("label", "theme", "square"), choices, strict=True)) | dict(numbers)
    return Parameters(**values, occlusion_x=occluder[0], occlusion_y=occluder[1])
