"""Figures for people: heatmaps with title and scale, bars, contact sheets; and PNG bytes that never vary."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from lrp_onnx.errors import DataError
from lrp_onnx.render.colours import RGB, colour_map, colour_table, finite, robust_max, to_rgb

_PAPER, _INK, _FAINT, _RED, _FRAME = "#ffffff", "#1f2328", "#6a737d", "#c62828", "#d0d7de"
_TEXT, _SMALL, _HEADING, _TITLE = 15, 12, 20, 26  # font sizes in pixels
_MARGIN = 28


@dataclass(frozen=True)
class SheetItem:
    """One sample on a contact sheet: its pictures side by side, the lines under them, and the class it stands under."""

    pictures: Sequence[NDArray[Any]]  # uint8 (H, W, 3) each
    caption: Sequence[str] = ()
    wrong: bool = False
    heading: str = ""


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)  # ships with Pillow, so pictures look alike on every machine


@cache
def _has_glyph(character: str) -> bool:
    missing = "\uffff"  # no font has this code point, so it shows the box that stands for what a font lacks
    return bytes(_font(_TITLE).getmask(character)) != bytes(_font(_TITLE).getmask(missing)) or character == " "


def _drawable(text: str) -> str:
    """Replace what Pillow's small font lacks: accents are dropped, other scripts become question marks."""
    plain = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(c if _has_glyph(c) else "?" for c in plain)


def _width(text: str, size: int) -> int:
    return int(np.ceil(_font(size).getlength(text)))


def _fit(text: str, size: int, width: int) -> str:
    """Cut text in its middle, where names and paths say least, until it is at most `width` pixels wide."""
    text = _drawable(" ".join(text.split()))
    if _width(text, size) <= width:
        return text
    kept = len(text) - 1
    while kept > 1 and _width(f"{text[: (kept + 1) // 2]}…{text[-(kept // 2) :]}", size) > width:
        kept -= 1
    return f"{text[: (kept + 1) // 2]}…{text[-(kept // 2) :] if kept > 1 else ''}"


def two_lines(text: str, width: int) -> list[str]:
    """Break a path-like name that is wider than `width` pixels behind its last separator that fits."""
    if _width(text, _TEXT) <= width:
        return [text]
    fits = [i for i in range(1, len(text)) if _width(text[:i], _TEXT) <= width]
    breaks = [i for i in fits if text[i - 1] in "/._:- "] or fits[-1:] or [1]
    return [text[: breaks[-1]], text[breaks[-1] :]]


def number(value: float) -> str:
    """Two significant digits, so that a scale stays readable from 1e-9 to 1e9."""
    return f"{value:.2g}" if value else "0"


def enlarge(picture: NDArray[Any], height: int) -> RGB:
    """Bring a picture (H, W, 3) to `height`, its pixels visible squares when it grows.

    Proportions are kept up to 4 : 1; a picture thinner than that is stretched, or nobody could see it.
    """
    old_height, old_width = picture.shape[:2]
    width = min(max(round(old_width * height / old_height), height // 4, 1), 4 * height)
    size, grows = (width, height), height > old_height
    return np.asarray(
        Image.fromarray(picture).resize(size, Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS)
    )


def png_bytes(picture: NDArray[Any]) -> bytes:
    """Encode uint8 (H, W, 3) as PNG; the same picture gives the same bytes, without time stamps or other metadata."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise DataError(f"a PNG needs a uint8 picture of shape (H, W, 3), got {picture.dtype} {picture.shape}")
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=6, optimize=False)
    return buffer.getvalue()


def save_png(picture: NDArray[Any], path: str | Path) -> Path:
    """Write uint8 (H, W, 3) as a PNG file, whole or not at all; folders are made. Returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(png_bytes(picture))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def colour_bar(height: int, *, vmax: float | None, cmap: str = "seismic") -> RGB:
    """Draw an upright colour scale with ticks.

    Parameters
    ----------
    height
        In pixels, at least 40.
    vmax
        The |relevance| at its end; 0 marks a heatmap without relevance. None writes "+", "0", "-" instead of numbers,
        for pictures that have a scale each.
    cmap
        A name in `COLOUR_MAPS`; signed ones run from −vmax to vmax, the others from 0.

    Returns
    -------
    ndarray
        uint8 (height, W, 3), W as wide as the ticks need.

    Raises
    ------
    DataError
        Unknown map or too little height.
    """
    if height < 40:
        raise DataError(f"a colour bar needs a height of at least 40 pixels, got {height}")
    signed = colour_map(cmap).signed
    if vmax is None:
        ticks = [(1.0, "+"), (0.5, "0"), (0.0, "-")] if signed else [(1.0, "+"), (0.0, "0")]
    elif vmax == 0:
        ticks = [(0.5 if signed else 0.0, "0")]
    elif signed:
        ticks = [(1.0, number(vmax)), (0.75, number(vmax / 2)), (0.5, "0")]
        ticks += [(0.25, number(-vmax / 2)), (0.0, number(-vmax))]
    else:
        ticks = [(1.0, number(vmax)), (0.5, number(vmax / 2)), (0.0, "0")]
    pad, bar = _SMALL // 2 + 2, 16
    width = bar + 10 + max(_width(text, _SMALL) for _, text in ticks) + 2
    page = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(page)
    length = height - 2 * pad
    strip = colour_table(cmap)[np.linspace(len(colour_table(cmap)) - 1, 0, length).round().astype(int)]
    page.paste(Image.fromarray(np.repeat(strip[:, None], bar, axis=1)), (0, pad))
    draw.rectangle((0, pad, bar - 1, pad + length - 1), outline=_FRAME)
    for position, text in ticks:
        y = pad + round((1 - position) * (length - 1))
        draw.line((bar, y, bar + 4, y), fill=_FAINT)
        draw.text((bar + 8, y), text, fill=_INK, font=_font(_SMALL), anchor="lm")
    return np.asarray(page)


def bar_strip(
    relevance: ArrayLike,
    *,
    cmap: str = "seismic",
    vmax: float | None = None,
    percentile: float = 99.5,
    height: int = 120,
    width: int = 480,
) -> RGB:
    """Draw relevance (D,) as bars from the zero line: up and down for signed maps, up by |relevance| for others.

    With more units than pixel columns, a column shows the strongest of its units. Parameters and errors as `to_rgb`.

    Returns
    -------
    ndarray
        uint8 (height, about width, 3).
    """
    values = finite(relevance)
    if values.ndim != 1 or not values.size:
        raise DataError(f"a bar strip needs relevance of shape (D,), got {values.shape}")
    scale = robust_max(values, percentile) if vmax is None else vmax
    groups = np.array_split(values, min(width, values.size))
    shown = np.array([group[np.abs(group).argmax()] for group in groups])
    signed = colour_map(cmap).signed
    page = Image.new("RGB", (max(1, width // len(shown)) * len(shown), height), _PAPER)
    draw = ImageDraw.Draw(page)
    step, colours = page.width // len(shown), to_rgb(shown[None], cmap=cmap, vmax=scale)[0]
    zero = height // 2 if signed else height - 1
    draw.line((0, zero, page.width, zero), fill=_FRAME)
    for i, value in enumerate(shown if signed else np.abs(shown)):
        reach = round(float(np.clip(value / scale, -1, 1)) * (zero - 1)) if scale else 0
        if reach:
            left, right = i * step, (i + 1) * step - (2 if step > 3 else 1)
            draw.rectangle((left, zero - max(reach, 0), right, zero - min(reach, 0)), fill=tuple(colours[i].tolist()))
    return np.asarray(page)


def heatmap_figure(
    relevance: ArrayLike,
    title: str = "",
    *,
    cmap: str = "seismic",
    vmax: float | None = None,
    percentile: float = 99.5,
    height: int = 320,
) -> RGB:
    """Draw relevance, (H, W) as a heatmap or (D,) as bars, under a title and beside its colour scale.

    Parameters
    ----------
    title
        One line; cut in its middle when wider than the figure.
    height
        Of the heatmap in pixels; its width follows from the proportions of the relevance.

    Returns
    -------
    ndarray
        uint8 (H, W, 3).

    Raises
    ------
    DataError
        As `to_rgb`.
    """
    values = finite(relevance)
    scale = robust_max(values, percentile) if vmax is None else vmax
    if values.ndim == 1:
        picture = bar_strip(values, cmap=cmap, vmax=scale, height=height, width=round(1.5 * height))
    else:
        picture = enlarge(to_rgb(values, cmap=cmap, vmax=scale), height)
    bar, pad, head = colour_bar(height + 16, vmax=scale, cmap=cmap), 14, _TEXT + 12 if title else 0
    page = Image.new("RGB", (picture.shape[1] + bar.shape[1] + 3 * pad, height + 2 * pad + head), _PAPER)
    draw = ImageDraw.Draw(page)
    text = _fit(title, _TEXT, page.width - 2 * pad)
    draw.text((pad, pad), text, fill=_INK, font=_font(_TEXT))
    _paste_framed(page, draw, picture, pad, pad + head)
    page.paste(Image.fromarray(bar), (picture.shape[1] + 2 * pad, pad + head - 8))
    return np.asarray(page)


def _paste_framed(page: Image.Image, draw: ImageDraw.ImageDraw, picture: NDArray[Any], x: int, y: int) -> None:
    page.paste(Image.fromarray(picture), (x, y))
    draw.rectangle((x - 1, y - 1, x + picture.shape[1], y + picture.shape[0]), outline=_FRAME)


def contact_sheet(
    items: Sequence[SheetItem],
    *,
    columns: int = 3,
    title: str = "",
    subtitle: str = "",
    cmap: str = "seismic",
    cell: int = 176,
) -> RGB:
    """Lay samples out in a grid: pictures side by side, captions below (red when wrong), a heading where one begins.

    Parameters
    ----------
    items
        In the order shown; a heading is drawn whenever an item's differs from the one before.
    columns
        Samples in a row.
    title, subtitle
        At the top of the page, with the colour scale at its right.
    cmap
        The map that the heatmaps were coloured with, for the scale.
    cell
        Height of each picture in pixels; widths follow from the proportions.

    Returns
    -------
    ndarray
        uint8 (H, W, 3).

    Raises
    ------
    DataError
        No items, no columns, or a picture that is not uint8 (H, W, 3).
    """
    if not items or columns < 1:
        raise DataError(f"a contact sheet needs items and at least one column, got {len(items)} and {columns}")
    for item in items:
        for picture in item.pictures:
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
                raise DataError(
                    f"a contact sheet shows uint8 pictures of shape (H, W, 3), got {picture.dtype} {picture.shape}"
                )
    gap, gutter, line = 6, 26, _TEXT + 6
    pictures = [[enlarge(picture, cell) for picture in item.pictures] for item in items]
    widths = [sum(p.shape[1] for p in row) + gap * (len(row) - 1) for row in pictures]
    slot = max(*widths, cell)
    caption_height = max(len(item.caption) for item in items) * line
    header = (_TITLE + 14 if title else 0) + (_TEXT + 10 if subtitle else 0)
    columns = min(columns, len(items))
    width = max(2 * _MARGIN + columns * slot + (columns - 1) * gutter, 520)

    positions, headings = [], []
    x_index, y = 0, _MARGIN + header
    for i, item in enumerate(items):
        starts = item.heading != (items[i - 1].heading if i else "")
        if x_index == columns or (starts and x_index):
            x_index, y = 0, y + cell + caption_height + gutter
        if starts:
            headings.append((y, item.heading))
            y += _HEADING + 16
        positions.append((_MARGIN + x_index * (slot + gutter), y))
        x_index += 1
    page = Image.new("RGB", (width, y + cell + caption_height + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(page)

    legend = _legend(cmap)
    room = width - 2 * _MARGIN - legend.width - gutter
    draw.text((_MARGIN, _MARGIN - 4), _fit(title, _TITLE, room), fill=_INK, font=_font(_TITLE))
    draw.text(
        (_MARGIN, _MARGIN - 4 + (_TITLE + 10 if title else 0)),
        _fit(subtitle, _TEXT, room if not title else width - 2 * _MARGIN),
        fill=_FAINT,
        font=_font(_TEXT),
    )
    if header:
        page.paste(legend, (width - _MARGIN - legend.width, _MARGIN))
    for top, heading in headings:
        draw.text((_MARGIN, top), _fit(heading, _HEADING, width - 2 * _MARGIN), fill=_INK, font=_font(_HEADING))
        draw.line((_MARGIN, top + _HEADING + 6, width - _MARGIN, top + _HEADING + 6), fill=_FRAME)
    for item, row, (x, top) in zip(items, pictures, positions, strict=True):
        left = x
        for picture in row:
            _paste_framed(page, draw, picture, left, top)
            left += picture.shape[1] + gap
        for i, caption in enumerate(item.caption):
            colour = _RED if item.wrong else _INK if i == 0 else _FAINT
            draw.text((x, top + cell + 6 + i * line), _fit(caption, _TEXT, slot), fill=colour, font=_font(_TEXT))
    return np.asarray(page)


def _legend(cmap: str) -> Image.Image:
    """The lying colour scale of a sheet, in words, because every picture on it has its own numbers."""
    left, right = ("speaks against", "speaks for") if colour_map(cmap).signed else ("no relevance", "most")
    bar, before = 140, _width(left, _SMALL) + 8
    image = Image.new("RGB", (before + bar + 8 + _width(right, _SMALL), 18), _PAPER)
    draw = ImageDraw.Draw(image)
    table = colour_table(cmap)
    strip = table[np.linspace(0, len(table) - 1, bar).round().astype(int)]
    image.paste(Image.fromarray(np.repeat(strip[None], 14, axis=0)), (before, 2))
    draw.rectangle((before, 2, before + bar - 1, 15), outline=_FRAME)
    draw.text((0, 9), left, fill=_FAINT, font=_font(_SMALL), anchor="lm")
    draw.text((before + bar + 8, 9), right, fill=_FAINT, font=_font(_SMALL), anchor="lm")
    return image
