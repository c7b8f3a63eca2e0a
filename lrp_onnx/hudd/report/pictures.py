"""Samples and mean heatmaps as pictures inside the report, each with words for those who cannot see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.hudd.report.contrast import MeanHeatmap
from lrp_onnx.hudd.samples import Samples
from lrp_onnx.render import bar_strip, robust_max, to_rgb
from lrp_onnx.render.page import Picture, picture
from lrp_onnx.render.unit_heatmaps import is_picture
from lrp_onnx.store import HeatmapStore

_MOST_WORSENED, _WORSENED = 8, 110  # pictures, and their height
_STRIP = (110, 320)  # height and width of bars


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


def mean_picture(values: NDArray[Any], alt: str, height: int, largest: float) -> Picture:
    """A mean heatmap, (H, W) or (D,), whose strongest colour stands for `largest`."""
    if values.ndim == 1:
        bars = bar_strip(values, vmax=largest, height=_STRIP[0], width=_STRIP[1])
        return picture(bars, alt, min(height, _STRIP[0]), drawing=True)
    return picture(to_rgb(values, vmax=largest), alt, height)


def largest_of(*heatmaps: MeanHeatmap) -> float:
    """The |relevance| that the strongest colour stands for, the same for all of them."""
    return max(robust_max(one.values) for one in heatmaps)
