"""Pictures inside a page: as data URIs, not larger than they are shown, each with words for those who cannot see it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lrp_onnx.hudd.report.contrast import MeanHeatmap, is_picture
from lrp_onnx.hudd.samples import Samples
from lrp_onnx.render import bar_strip, png_bytes, robust_max, to_rgb
from lrp_onnx.render.colours import colour_table
from lrp_onnx.store import HeatmapStore

SEISMIC = "seismic"
_FINER = 1.5  # pixels for one on the page, for sharp screens and print
_SMALL = 96  # pixels a side; fewer are shown as squares, and JPEG would blur them
_QUALITY = 85
_MOST_WORSENED, _WORSENED = 8, 110  # pictures, and their height
_STRIP = (110, 320)  # height and width of bars


@dataclass(frozen=True)
class Picture:
    """What an <img> needs: a data URI, words for it, its size on the page, whether its pixels are to stay squares."""

    uri: str
    alt: str
    width: int
    height: int
    squares: bool


@dataclass(frozen=True)
class Scale:
    """The colours of a heatmap from `low` to `high`, in words."""

    low: str
    high: str


@dataclass(frozen=True)
class Shown:
    """A sample on the page: its pictures, its file's name and path, and the lines under it."""

    pictures: Sequence[Picture]
    name: str
    path: str
    lines: Sequence[str]


def shown(samples: Samples, row: int, height: int, *lines: str) -> Shown:
    """Image and heatmap of a sample over `lines` and what was expected and predicted.

    Of one that is no picture, or whose image cannot be read, only the heatmap is shown.
    """
    name, drawn, about = samples.name(row), samples.pictures(row), [*lines, *samples.lines(row)]
    bars = not is_picture(samples.store.attribution.shape[1:])
    pictures = [picture(drawn[-1], f"heatmap of {name}", height, drawing=bars)]
    if len(drawn) > 1 and samples.image(row) is not None:
        pictures.insert(0, picture(drawn[0], f"image {name}", height))
    elif len(drawn) > 1:
        about.append("its image could not be read")
    return Shown(pictures, name, samples.path(row), about)


def worsened_shown(store: HeatmapStore, paths: Sequence[str], label: Callable[[str], str]) -> list[Shown]:
    """A few of the images that retraining made wrong, spread over all; one that cannot be read by its name alone.

    `label` tells the expected class by the path, or nothing.
    """
    places = np.unique(np.linspace(0, len(paths) - 1, min(len(paths), _MOST_WORSENED)).round().astype(int))
    photographs, found = Samples(store).photographs, []
    for path in (paths[place] for place in places.tolist()):
        name, image = PurePosixPath(path.replace("\\", "/")).name, photographs.read(path)
        pictures = [] if image is None else [picture(image, f"image {name}", _WORSENED)]
        found.append(Shown(pictures, name, path, [f"expected {label(path)}"] if label(path) else []))
    return found


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


def mean_picture(values: NDArray[Any], alt: str, height: int, largest: float) -> Picture:
    """A mean heatmap, (H, W) or (D,), whose strongest colour stands for `largest`."""
    if values.ndim == 1:
        bars = bar_strip(values, vmax=largest, height=_STRIP[0], width=_STRIP[1])
        return picture(bars, alt, min(height, _STRIP[0]), drawing=True)
    return picture(to_rgb(values, vmax=largest), alt, height)


def largest_of(*heatmaps: MeanHeatmap) -> float:
    """The |relevance| that the strongest colour stands for, the same for all of them."""
    return max(robust_max(one.values) for one in heatmaps)


@cache
def colours() -> str:
    """The colours of heatmaps from lowest to highest, one pixel high, as a data URI."""
    return _uri(Image.fromarray(colour_table(SEISMIC)[None]), True)


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
