"""Regions that people marked on pictures: outlines, names, and the pixels that they cover."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lrp_onnx.errors import DataError

Mask = NDArray[np.bool_]  # (H, W)
Size = tuple[int, int]  # width, height


class Outline(Protocol):
    """Something that covers pixels of a picture.

    Coordinates are continuous, as in `Preprocess.geometry`: the pixel in column i and row j covers i..i+1 and j..j+1.
    A pixel is covered when its centre is.
    """

    def mask(self, size: Size) -> Mask:
        """Pixels covered of a picture of that width and height, bool (height, width)."""


@dataclass(frozen=True)
class Box:
    """A rectangle, from `left` to `right` and from `top` to `bottom`."""

    left: float
    top: float
    right: float
    bottom: float

    def mask(self, size: Size) -> Mask:
        width, height = size
        covered = np.zeros((height, width), dtype=bool)
        columns, rows = _centres(self.left, self.right), _centres(self.top, self.bottom)
        covered[rows, columns] = True
        return covered


@dataclass(frozen=True)
class Polygons:
    """The union of polygons, each a sequence of at least three corners (x, y)."""

    rings: Sequence[Sequence[tuple[float, float]]]

    def mask(self, size: Size) -> Mask:
        width, height = size
        covered = np.zeros((height, width), dtype=bool)
        for ring in self.rings:
            covered |= _inside(np.asarray(ring, dtype=np.float64), width, height)
        return covered


@dataclass(frozen=True)
class Runs:
    """Run lengths of a mask read column by column, as COCO has them: pixels not covered, covered, not covered, …"""

    counts: Sequence[int]
    size: Size

    def mask(self, size: Size) -> Mask:
        width, height = self.size
        values = np.arange(len(self.counts)) % 2 == 1
        return np.repeat(values, self.counts).reshape(width, height).T


@dataclass(frozen=True)
class MaskFile:
    """A picture whose pixels say what is covered: those of one `value`, or with None the bright ones."""

    path: Path
    value: int | None = None

    def mask(self, size: Size) -> Mask:
        values = read_mask(self.path)
        return values > values.max() / 2 if self.value is None else values == self.value


@dataclass(frozen=True)
class Region:
    """One marked region.

    Attributes
    ----------
    image : str
        The picture, as the file names it.
    name : str
        What is marked: a class, a part, or "class/part"; empty when the file does not say.
    part : str
        The part, where the file keeps it apart from the class.
    outline : Outline
    where : str
        File and entry, for errors.
    """

    image: str
    name: str
    part: str
    outline: Outline
    where: str

    def mask(self, size: Size) -> Mask:
        """Pixels covered of the upright picture of that width and height, bool (height, width).

        Raises
        ------
        DataError
            When it covers none.
        """
        covered = self.outline.mask(size)
        if not covered.any():
            raise DataError(
                f"{self.where}: covers no pixel of {self.image}, which is {size[0]} x {size[1]}; was it drawn on a "
                "picture of another size?"
            )
        return covered

    def meaning(self, classes: Sequence[str] | None) -> tuple[str, str]:
        """Class and part; either may be empty.

        A name is a class if the model has a class of that name or index; "class/part" is split; and any other name is
        a part of whatever the picture shows. Without class names a class is its index.
        """
        known = classes or ()
        name, part = self.name, self.part
        if not part and not _is_class(name, known):
            name, _, part = name.rpartition("/")
        is_index = bool(known) and name not in known and _is_class(name, known)
        return known[int(name)] if is_index else name, part


@dataclass(frozen=True)
class Regions:
    """All regions of a file or folder.

    Attributes
    ----------
    source : pathlib.Path
    regions : sequence of Region
    sizes : mapping of str to (int, int)
        Width and height by image, where the file says them.
    stems : bool
        Images are named without their extension.
    """

    source: Path
    regions: Sequence[Region]
    sizes: Mapping[str, Size] = field(default_factory=dict)
    stems: bool = False


def read_mask(path: Path) -> NDArray[np.int64]:
    """Values of a mask picture, int64 (height, width): indexes of a palette, grey values, or the brightest channel.

    Raises
    ------
    DataError
        When it cannot be read.
    """
    try:
        with Image.open(path) as image:
            values = np.asarray(image if image.mode in ("1", "L", "P") or image.mode.startswith("I") else _plain(image))
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's decoders raise all of them on broken files
        raise DataError(f"{path}: the mask cannot be read ({error})") from error
    return (values if values.ndim == 2 else values.max(axis=2)).astype(np.int64)


def _plain(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def _is_class(name: str, classes: Sequence[str]) -> bool:
    return name in classes or (name.isdecimal() and (not classes or int(name) < len(classes)))


def _centres(low: float, high: float) -> slice:
    """Pixels whose centre lies from `low` on and before `high`."""
    return slice(max(0, math.ceil(low - 0.5)), max(0, math.ceil(high - 0.5)))


def _inside(corners: NDArray[np.float64], width: int, height: int) -> Mask:
    """Pixels whose centre lies within a polygon (K, 2), by the even-odd rule; Pillow would add its outline."""
    (x, y), (next_x, next_y) = corners.T, np.roll(corners, -1, axis=0).T
    covered = np.zeros((height, width), dtype=bool)
    centres = np.arange(width) + 0.5
    rows = _centres(float(y.min()), float(y.max()))
    for row in range(*rows.indices(height)):
        level = row + 0.5
        crossing = (y <= level) != (next_y <= level)
        at = x + (level - y) * np.divide(next_x - x, next_y - y, out=np.zeros_like(x), where=crossing)
        passed = np.searchsorted(np.sort(at[crossing]), centres, side="right")
        covered[row] = passed % 2 == 1
    return covered
