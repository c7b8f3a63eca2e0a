"""Class scores over the time of a clip: collected in memory that does not grow with it, and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lrp_onnx.render.charts import label, scale, ticks

WIDTH, HEIGHT = 1200, 520  # pixels
MOST_BINS = 1024  # about as many as the chart has columns
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 36, 150, 66
_PAPER, _INK, _FAINT, _GRID, _MARK = "#ffffff", "#1f2328", "#6a737d", "#e4e8ec", "#c62828"
COLOURS = ("#1f5fa8", "#c6622d", "#2e7d4f", "#8e44ad", "#b8860b", "#16858f", "#c2407c", "#5d6d7e")
_TEXT, _TITLE = 17, 25
_FINER = 2  # drawn so much larger, then reduced: Pillow's lines are not smooth otherwise


@dataclass(frozen=True)
class Peak:
    """The frame in which a class scores highest; the first one of several.

    Attributes
    ----------
    name : str
        The class.
    frame : int
        Its number in the clip, from 0.
    time : float
        Seconds from the clip's first frame.
    score : float
    """

    name: str
    frame: int
    time: float
    score: float


class ScoreHistory:
    """The scores of all classes over time: lowest and highest of each of at most `MOST_BINS` equally many frames.

    Parameters
    ----------
    classes : int
        K.
    """

    def __init__(self, classes: int) -> None:
        self._width, self._count, self._filled = 1, 0, 0  # frames a bin, in the last bin, bins
        self._lowest = np.full((MOST_BINS, classes), np.inf, np.float32)
        self._highest = np.full((MOST_BINS, classes), -np.inf, np.float32)
        self._times = np.zeros((MOST_BINS, 2))  # of the first and the last frame

    def add(self, time: float, scores: NDArray[np.float64]) -> None:
        """Take in the next frame; scores (K,)."""
        if self._count == self._width or not self._filled:
            if self._filled == MOST_BINS:
                self._merge()
            self._times[self._filled] = time
            self._filled, self._count = self._filled + 1, 0
        place = self._filled - 1
        self._times[place, 1] = time
        np.minimum(self._lowest[place], scores, out=self._lowest[place])
        np.maximum(self._highest[place], scores, out=self._highest[place])
        self._count += 1

    def _merge(self) -> None:
        half = MOST_BINS // 2
        self._lowest[:half] = np.minimum(self._lowest[::2], self._lowest[1::2])
        self._highest[:half] = np.maximum(self._highest[::2], self._highest[1::2])
        self._times[:half] = np.stack([self._times[::2, 0], self._times[1::2, 1]], axis=1)
        self._lowest[half:], self._highest[half:] = np.inf, -np.inf
        self._filled, self._width = half, 2 * self._width

    def of_class(self, index: int) -> NDArray[np.float64]:
        """Time, lowest and highest score of a class in each bin, (bins, 3)."""
        filled = slice(self._filled)
        columns = (self._times[filled].mean(axis=1), self._lowest[filled, index], self._highest[filled, index])
        return np.stack(columns, axis=1)


def timeline_chart(
    history: Sequence[tuple[str, NDArray[np.float64]]], peaks: Sequence[Peak], *, title: str, subtitle: str = ""
) -> NDArray[np.uint8]:
    """Draw the scores of some classes over time, their peaks marked.

    Parameters
    ----------
    history : sequence of (str, (bins, 3))
        Class names and `ScoreHistory.of_class`; at most as many as there are `COLOURS`.
    peaks : sequence of Peak
        Those to mark, of classes in `history`.
    title, subtitle : str

    Returns
    -------
    ndarray
        uint8 (520, 1200, 3).
    """
    page = _Page()
    page.text((24, 16), page.cut(title, WIDTH - 48, _TITLE), _INK, "lt", _TITLE)
    page.text((24, 52), page.cut(subtitle, WIDTH - 48), _FAINT, "lt")
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    values = np.concatenate([line for _, line in history])
    times = (float(values[:, 0].min()), float(values[:, 0].max()))
    if times[0] == times[1]:
        times = (times[0] - 0.5, times[1] + 0.5)
    scores = (min(0.0, float(values[:, 1].min())), float(values[:, 2].max()))
    scores = (scores[0], 1.0 if 0 < scores[1] <= 1 else scores[1] if scores[1] > scores[0] else scores[0] + 1)
    scores = (scores[0], scores[1] + 0.12 * (scores[1] - scores[0]))  # room for what is written over a peak
    x_of, y_of = scale(times, (_LEFT, right)), scale(scores, (bottom, _TOP))
    for score in ticks(scores, 5):
        page.line([(_LEFT, y_of(score)), (right, y_of(score))], _GRID, 1)
        page.text((_LEFT - 10, y_of(score)), label(score), _FAINT, "rm")
    for time in ticks(times, 12):
        page.line([(x_of(time), bottom), (x_of(time), bottom + 6)], _FAINT, 1)
        page.text((x_of(time), bottom + 10), label(time), _FAINT, "mt")
    page.line([(_LEFT, _TOP), (_LEFT, bottom), (right, bottom)], _FAINT, 1)
    page.text((24, _TOP - 12), "score, as the model gives it", _INK, "lb")
    page.text(((_LEFT + right) / 2, HEIGHT - 12), "time in the clip, s", _INK, "mb")
    for (_, line), colour in zip(history, COLOURS, strict=False):
        low = [(x_of(time), y_of(value)) for time, value in line[:, :2].tolist()]
        high = [(x_of(time), y_of(value)) for time, value in line[:, ::2].tolist()]
        page.area([*high, *reversed(low)], colour)
        page.line(high, colour, 2)
    _legend(page, [name for name, _ in history])
    for peak in peaks:
        _mark(page, peak, (x_of(peak.time), y_of(peak.score)), bottom)
    return page.done()


def _legend(page: _Page, names: Sequence[str]) -> None:
    room = (WIDTH - 48) / min(4, len(names))
    for place, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        x, y = 24 + place % 4 * room, 84 + place // 4 * 24
        page.line([(x, y), (x + 24, y)], colour, 4)
        page.text((x + 32, y), page.cut(name, room - 44), _INK, "lm")


def _mark(page: _Page, peak: Peak, at: tuple[float, float], bottom: float) -> None:
    page.dashes((at[0], bottom), at, _MARK)
    page.dot(at, 6, _MARK)
    said = page.cut(f"{peak.name} {peak.score:.3g} at {peak.time:.2f} s", 420)
    half = page.width_of(said) / 2
    x = min(max(at[0], _LEFT + half + 8), WIDTH - _RIGHT - half)
    page.box((x, at[1] - 12), said, _MARK, "mb")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size * _FINER)  # ships with Pillow, so charts look alike on every machine


class _Page:
    """White paper, addressed in pixels of the finished picture."""

    def __init__(self) -> None:
        self._image = Image.new("RGB", (WIDTH * _FINER, HEIGHT * _FINER), _PAPER)
        self._draw = ImageDraw.Draw(self._image, "RGBA")

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: int) -> None:
        if len(points) > 1:
            self._draw.line([_finer(p) for p in points], fill=colour, width=width * _FINER, joint="curve")
        elif points:
            self.dot(points[0], 4, colour)

    def area(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        if len(points) > 2:
            self._draw.polygon([_finer(p) for p in points], fill=f"{colour}66")

    def dashes(self, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
        one, other = np.array(start), np.array(end)
        steps = max(1, int(np.hypot(*(other - one)) // 12))
        for i in range(steps):
            here, there = (tuple(one + (other - one) * part / steps) for part in (i, i + 0.6))
            self.line([here, there], colour, 2)

    def dot(self, centre: tuple[float, float], radius: float, colour: str) -> None:
        self._draw.circle(_finer(centre), radius * _FINER, fill=colour)

    def text(self, at: tuple[float, float], text: str, colour: str, anchor: str, size: int = _TEXT) -> None:
        self._draw.text(_finer(at), text, fill=colour, font=_font(size), anchor=anchor)

    def box(self, at: tuple[float, float], text: str, colour: str, anchor: str) -> None:
        left, top, right, bottom = self._draw.textbbox(_finer(at), text, font=_font(_TEXT), anchor=anchor)
        self._draw.rectangle((left - 8, top - 6, right + 8, bottom + 6), fill="#ffffffb0")
        self.text(at, text, colour, anchor)

    def width_of(self, text: str, size: int = _TEXT) -> float:
        return float(_font(size).getlength(text)) / _FINER

    def cut(self, text: str, width: float, size: int = _TEXT) -> str:
        while len(text) > 1 and self.width_of(text, size) > width:
            text = f"{text.removesuffix('…')[:-1]}…"
        return text

    def done(self) -> NDArray[np.uint8]:
        return np.asarray(self._image.reduce(_FINER))


def _finer(point: tuple[float, float]) -> tuple[float, float]:
    return point[0] * _FINER, point[1] * _FINER
