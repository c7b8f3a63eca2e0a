"""What every self-contained HTML page is made of: one set of templates and filters, and pictures as data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lrp_onnx.render.colours import colour_table
from lrp_onnx.render.figures import png_bytes

if TYPE_CHECKING:
    from jinja2 import Template

_FINER = 1.5  # pixels for one on the page, for sharp screens and print
_SMALL = 96  # pixels a side; fewer are shown as squares, and JPEG would blur them
_QUALITY = 85


def page_template(name: str) -> Template:
    """A template by its path in this package, such as "debug/page.html.j2".

    What is put into it is escaped, and a name that it lacks is an error. Style and parts that pages share are
    "render/page_style.css.j2" and "render/page_parts.html.j2".
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(
        loader=PackageLoader("lrp_onnx", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["share"] = lambda value, digits=1: "–" if value is None else f"{value:.{digits}%}"
    pages.filters["fixed"] = lambda value, digits=2: "–" if value is None else f"{value:.{digits}f}"
    pages.filters["n"] = lambda value: f"{value:,}"
    pages.filters["number"] = lambda value: "–" if value is None else f"{value:.4g}"
    pages.filters["count"] = lambda value, noun: f"{value:,} {noun}{'' if value == 1 else 's'}"
    pages.filters["file_name"] = lambda path: PurePosixPath(str(path).replace("\\", "/")).name
    return pages.get_template(name)


@dataclass(frozen=True)
class Picture:
    """What an <img> needs: a data URI, words for it, its size on the page, whether its pixels are to stay squares."""

    uri: str
    alt: str
    width: int
    height: int
    squares: bool


def picture(pixels: NDArray[np.uint8], alt: str, height: int, *, drawing: bool = False) -> Picture:
    """A picture (H, W, 3) to be shown `height` pixels high; wider than 3 : 1 it is shown lower.

    A drawing has sharp edges, which are kept.
    """
    image = Image.fromarray(pixels)
    shown = max(1, min(height, round(3 * height * image.height / image.width)))
    width = max(1, round(image.width * shown / image.height))
    most = round(shown * _FINER)
    if image.height > most:
        image = image.resize((max(1, round(image.width * most / image.height)), most), Image.Resampling.LANCZOS)
    squares = max(image.size) <= _SMALL
    return Picture(_uri(image, squares or drawing), alt, width, shown, squares)


@cache
def colours(cmap: str = "seismic") -> str:
    """The colours of heatmaps from lowest to highest, one pixel high, as a data URI."""
    return _uri(Image.fromarray(colour_table(cmap)[None]), True)


def picture_file(path: Path, alt: str) -> Picture | None:
    """A PNG file as it is; None when there is none."""
    if not path.is_file():
        return None
    with Image.open(path) as image:
        return Picture(_png_uri(path.read_bytes()), alt, *image.size, False)


def _png_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"


def _uri(image: Image.Image, exact: bool) -> str:
    """PNG where every pixel counts, else JPEG."""
    if exact:
        return _png_uri(png_bytes(np.asarray(image)))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
