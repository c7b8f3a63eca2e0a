"""What charts are drawn with: paper with a title, scales, round numbers for the axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

RGB = NDArray[np.uint8]  # (H, W, 3)
WIDTH = 1200  # pixels
_PAPER, _INK, _FAINT = "#ffffff", "#1f2328", "#6a737d"
_TEXT, _TITLE = 18, 26
_FINER = 2  # drawn so much larger, then reduced: Pillow's lines are not smooth otherwise


def scale(values: tuple[float, float], pixels: tuple[float, float]) -> Callable[[float], float]:
    (low, high), (first, last) = values, pixels
    return lambda value: first + (value - low) / (high - low) * (last - first)


def range_of(values: ArrayLike) -> tuple[float, float]:
    found = np.asarray(values)
    if not found.size:
        return 0.0, 1.0
    low, high = float(found.min()), float(found.max())
    room = 0.06 * (high - low) or 0.5 * abs(high) or 0.5
    return low - room, high + room


def ticks(values: tuple[float, float], most: int, *, whole: bool = False) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) between two values, at most about `most`."""
    low, high = values
    rough = (high - low) / most
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    step = max(step, 1.0) if whole else step
    return [round(i * step, 12) for i in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]


def label(value: float) -> str:
    return f"{value:.4g}"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size * _FINER)  # ships with Pillow, so charts look alike on every machine


class Page:
    """White paper with a title, addressed in pixels of the finished picture."""

    def __init__(self, height: int, title: str, subtitle: str) -> None:
        self.image = Image.new("RGB", (WIDTH * _FINER, height * _FINER), _PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.text((24, 18), title, _INK, "lt", _TITLE)
        self.text((24, 52), subtitle, _FAINT, "lt")

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: int) -> None:
        if len(points) > 1:
            self.draw.line([_finer(p) for p in points], fill=colour, width=width * _FINER, joint="curve")

    def dashes(self, start: tuple[float, float], end: tuple[float, float], colour: str, dash: float = 8) -> None:
        one, other = np.array(start), np.array(end)
        length = float(np.hypot(*(other - one)))
        step = (other - one) / max(length, 1)
        for position in np.arange(0, length, 2 * dash):
            stop = min(position + dash, length)
            self.line([tuple(one + position * step), tuple(one + stop * step)], colour, 2)

    def dot(self, centre: tuple[float, float], radius: float, colour: str) -> None:
        self.draw.circle(_finer(centre), radius * _FINER, fill=colour)

    def text(self, at: tuple[float, float], text: str, colour: str, anchor: str, size: int = _TEXT) -> None:
        self.draw.text(_finer(at), text, fill=colour, font=_font(size), anchor=anchor)

    def width_of(self, text: str) -> float:
        return float(_font(_TEXT).getlength(text)) / _FINER

    def done(self) -> RGB:
        return np.asarray(self.image.reduce(_FINER))


def _finer(point: tuple[float, float]) -> tuple[float, float]:
    return point[0] * _FINER, point[1] * _FINER
