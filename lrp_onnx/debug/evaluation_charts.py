"""Charts of an evaluation: scores over the share of pixels, and rank correlation over the layers shuffled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lrp_onnx.render.charts import RGB, Page, label, scale, ticks

Line = tuple[Sequence[float], Sequence[float]]  # x, y

_COLOURS = ("#1f5fa8", "#6a737d", "#c6622d")
_INK, _FAINT, _GRID = "#1f2328", "#6a737d", "#e4e8ec"
_COLUMN, _PANEL, _BETWEEN, _TOP = 576, 260, 112, 150  # pixels; two columns make 1200 with the margins
_LEFT, _WIDTH, _SMALL, _NAME = 84, 470, 15, 18


@dataclass(frozen=True)
class Panel:
    """One chart: what it shows, the names of its axes, its lines by name, and the values at the ends of its y axis."""

    title: str
    x_name: str
    y_name: str
    lines: Mapping[str, Line]
    y_range: tuple[float, float] = (0.0, 1.0)


def line_panels(panels: Sequence[Panel], *, title: str, subtitle: str) -> RGB:
    """Charts in two columns; uint8 (H, 1200, 3). Lines that are called alike have one colour, at most three."""
    rows = (len(panels) + 1) // 2
    page = Page(_TOP + rows * (_PANEL + _BETWEEN) - 20, title, subtitle)
    for place, panel in enumerate(panels):
        _draw(page, panel, place % 2 * _COLUMN + _LEFT, _TOP + place // 2 * (_PANEL + _BETWEEN))
    return page.done()


def _draw(page: Page, panel: Panel, left: float, top: float) -> None:
    right, bottom = left + _WIDTH, top + _PANEL
    xs = [x for line in panel.lines.values() for x in line[0]]
    x_range = (min(xs), max(xs)) if min(xs) < max(xs) else (min(xs) - 0.5, max(xs) + 0.5)
    values = np.array([y for line in panel.lines.values() for y in line[1]])
    known = values[np.isfinite(values)]
    low, high = min([panel.y_range[0], *known]), max([panel.y_range[1], *known])
    x_of, y_of = scale(x_range, (left, right)), scale((low, high), (bottom, top))
    for value in ticks((low, high), 5):
        page.line([(left, y_of(value)), (right, y_of(value))], _GRID, 1)
        page.text((left - 8, y_of(value)), label(value), _FAINT, "rm", _SMALL)
    for value in ticks(x_range, 6, whole=x_range[1] > 1):
        page.text((x_of(value), bottom + 8), label(value), _FAINT, "mt", _SMALL)
    page.line([(left, top), (left, bottom), (right, bottom)], _FAINT, 1)
    page.text((left - 44, top - 40), panel.title, _INK, "ls", _NAME)
    page.text((left - 44, top - 12), panel.y_name, _FAINT, "ls", _SMALL)
    page.text(((left + right) / 2, bottom + 30), panel.x_name, _FAINT, "mt", _SMALL)
    for (name, (x, y)), colour, height in zip(panel.lines.items(), _COLOURS, (8, 28, 48), strict=False):
        points = [(x_of(a), y_of(b)) for a, b in zip(x, y, strict=True) if np.isfinite(b)]
        page.line(points, colour, 3)
        for point in points:
            page.dot(point, 3, colour)
        page.text((right - 6, top + height), name, colour, "rt", _SMALL)
