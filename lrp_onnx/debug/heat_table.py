"""Tables of numbers from 0 to 1 as a picture: a coloured cell a number, several tables side by side, one colour bar."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from lrp_onnx.errors import DataError
from lrp_onnx.render.colours import colour_table
from lrp_onnx.render.figures import colour_bar

WIDTH = 1200  # pixels
_PAPER, _INK, _FAINT, _EMPTY = "#ffffff", "#1f2328", "#6a737d", (236, 239, 242)
_TEXT, _HEADING, _TITLE = 15, 17, 24
_MARGIN, _BETWEEN, _ROW, _NARROWEST = 24, 28, 26, 44
_NAMES, _HEADERS = 230, 150  # pixels at most for names of rows and for upright names of columns
_CMAP = "viridis"


def most_columns(panels: int) -> int:
    """Columns that each of so many tables can have before numbers do not fit their cells."""
    room = WIDTH - 2 * _MARGIN - _NAMES - 60 - panels * _BETWEEN
    return room // panels // _NARROWEST


def heat_table(
    panels: Sequence[tuple[str, ArrayLike]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    subtitle: str = "",
) -> NDArray[np.uint8]:
    """Draw tables that share their rows and columns.

    Parameters
    ----------
    panels : sequence of (str, float (R, C))
        Heading and numbers of each table; colours run from 0 to 1, the number itself stands in the cell, and NaN is a
        grey cell.
    rows, columns : sequence of str
        R and C names.
    title, subtitle : str

    Returns
    -------
    ndarray
        uint8 (H, 1200, 3).

    Raises
    ------
    DataError
        When a table has another shape, no cells, or more columns than `most_columns`.
    """
    tables = [(heading, np.asarray(values, dtype=np.float64)) for heading, values in panels]
    shape = (len(rows), len(columns))
    if not all(shape) or not tables or len(columns) > most_columns(len(tables)):
        raise DataError(f"a heat table has rows and 1 to {most_columns(max(1, len(tables)))} columns, got {shape}")
    for heading, values in tables:
        if values.shape != shape:
            raise DataError(f"heat table '{heading}' has shape {values.shape}; expected {shape}")
    names = [_fit(name, _NAMES) for name in rows]
    left = _MARGIN + round(max(_font(_TEXT).getlength(name) for name in names)) + 12
    bar = colour_bar(max(120, len(rows) * _ROW), vmax=1.0, cmap=_CMAP)
    room = WIDTH - left - _MARGIN - bar.shape[1] - len(tables) * _BETWEEN
    cell = min(room // len(tables) // len(columns), 120)
    upright = any(_font(_TEXT).getlength(name) > cell - 6 for name in columns)
    headers = [_header(name, upright) for name in columns]
    top = _MARGIN + _TITLE + 12 + (_TEXT + 12 if subtitle else 0) + _HEADING + 14 + max(h.height for h in headers) + 6
    page = Image.new("RGB", (WIDTH, top + bar.shape[0] + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, _MARGIN), _fit(title, WIDTH - 2 * _MARGIN, _TITLE), fill=_INK, font=_font(_TITLE))
    draw.text((_MARGIN, _MARGIN + _TITLE + 12), _fit(subtitle, WIDTH - 2 * _MARGIN), fill=_FAINT, font=_font(_TEXT))
    for row, name in enumerate(names):
        draw.text((left - 12, top + (row + 0.5) * _ROW), name, fill=_INK, font=_font(_TEXT), anchor="rm")
    heading_y = top - 12 - max(h.height for h in headers)
    for heading, values in tables:
        shown = _fit(heading, cell * len(columns) + _BETWEEN - 8, _HEADING)
        draw.text((left, heading_y), shown, fill=_INK, font=_font(_HEADING), anchor="lb")
        for column, header in enumerate(headers):
            x = left + column * cell
            page.paste(header, (x + (cell - header.width) // 2, top - 6 - header.height))
            for row in range(len(rows)):
                _cell(draw, (x, top + row * _ROW, x + cell - 2, top + (row + 1) * _ROW - 2), values[row, column])
        left += cell * len(columns) + _BETWEEN
    page.paste(Image.fromarray(bar), (left, top))
    return np.asarray(page)


def _cell(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], value: float) -> None:
    known, table = bool(np.isfinite(value)), colour_table(_CMAP)
    colour = table[round(float(np.clip(value, 0, 1)) * (len(table) - 1))] if known else np.array(_EMPTY)
    draw.rectangle(box, fill=tuple(colour.tolist()))
    ink = "#ffffff" if colour @ np.array([0.299, 0.587, 0.114]) < 140 else _INK
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    draw.text(middle, f"{value:.2f}" if known else "-", fill=ink, font=_font(_TEXT), anchor="mm")


def _header(name: str, upright: bool) -> Image.Image:
    text = _fit(name, _HEADERS)
    image = Image.new("RGB", (round(_font(_TEXT).getlength(text)) + 2, _TEXT + 6), _PAPER)
    ImageDraw.Draw(image).text((1, image.height / 2), text, fill=_INK, font=_font(_TEXT), anchor="lm")
    return image.rotate(90, expand=True) if upright else image


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)  # ships with Pillow, so that tables look alike on every machine


def _fit(text: str, width: float, size: int = _TEXT) -> str:
    """Text cut at its end to so many pixels."""
    kept = len(text)
    while kept and _font(size).getlength(_cut(text, kept)) > width:
        kept -= 1
    return _cut(text, kept)


def _cut(text: str, kept: int) -> str:
    return text if kept == len(text) else f"{text[:kept]}…"
