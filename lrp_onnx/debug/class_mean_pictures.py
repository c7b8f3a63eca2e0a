"""Pictures of generic heatmaps: a page a class or cluster, and all of them on one sheet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.render import SheetItem, contact_sheet, heatmap_figure, robust_max, to_rgb

if TYPE_CHECKING:
    from lrp_onnx.debug.class_mean import GenericHeatmap

RGB = NDArray[np.uint8]  # (H, W, 3)

_SPREAD = "viridis"
_HEIGHT, _CELL = 440, 150  # of a heatmap on its page and on the sheet
MOST_ON_SHEET = 40  # groups


def group_stem(place: int, name: str) -> str:
    """A file name that is unique by its number and safe everywhere."""
    return f"{place:04d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', name).strip('_')[:60]}".rstrip("-")


def group_page(found: Sequence[GenericHeatmap], cmap: str, *, by_region: bool) -> RGB:
    """Mean and spread of a group, of all its images and by decision, with their scales; uint8 (H, W, 3)."""
    mean, spread = _scales(found)
    items = []
    for one in found:
        figures = [heatmap_figure(one.mean, "mean density of relevance", cmap=cmap, vmax=mean, height=_HEIGHT)]
        if one.images > 1:
            figures.append(
                heatmap_figure(one.spread, "spread (standard deviation)", cmap=_SPREAD, vmax=spread, height=_HEIGHT)
            )
        caption = [
            f"{_images(one)}{_alike(one)}; {one.shown:.0%} of the relevance is in the frame",
            f"object at {one.x:.0%} ± {one.x_spread:.0%} of the width, {one.y:.0%} ± {one.y_spread:.0%} of the height; "
            f"size {one.size:.0%} ± {one.size_spread:.0%} of the shorter edge",
        ]
        items.append(SheetItem(figures, caption, heading=_heading(one)))
    aligned = "the marked objects" if by_region else "centre and spread of the |relevance|"
    about = f"aligned on {aligned}; the frame is twice as large as the object; 1: evenly spread relevance; "
    about += "alike: energy of the mean / mean energy"
    return contact_sheet(
        items, columns=1, title=found[0].group, subtitle=about, cmap=cmap, cell=items[0].pictures[0].shape[0]
    )


def small_pictures(found: Sequence[GenericHeatmap], cmap: str) -> list[SheetItem]:
    """Mean and spread of a group for `groups_sheet`."""
    mean, spread = _scales(found)
    return [
        SheetItem(
            [
                to_rgb(one.mean, cmap=cmap, vmax=mean),
                *([to_rgb(one.spread, cmap=_SPREAD, vmax=spread)] if one.images > 1 else []),
            ],
            [f"{one.decision}: {_images(one)}{_alike(one)}"],
            heading=one.group,
        )
        for one in found
    ]


def groups_sheet(groups: Sequence[Sequence[SheetItem]], number: int, model: str, cmap: str) -> RGB:
    """The first of so many groups, uint8 (H, W, 3).

    A row each, but where no group has right and wrong decisions, which would leave most of a row empty.
    """
    items = [item for group in groups for item in group]
    if len(items) == len(groups):
        items = [replace(item, caption=[item.heading, *item.caption], heading="") for item in items]
    more = f" · the first {len(groups)} of {number} groups" if len(groups) < number else ""
    return contact_sheet(
        items,
        title="Generic heatmaps",
        subtitle=f"{model} · mean, and its spread (dark: none, yellow: most) · one scale a group{more}",
        cmap=cmap,
        cell=_CELL,
    )


def _scales(found: Sequence[GenericHeatmap]) -> tuple[float, float]:
    """What the strongest colours stand for in a group: what they do for all its images, as few alone are noise."""
    return robust_max(found[0].mean), robust_max(found[0].spread)


def _heading(one: GenericHeatmap) -> str:
    return "all images" if one.decision == "all" else f"decision {one.decision}"


def _images(one: GenericHeatmap) -> str:
    return f"{one.images} image{'' if one.images == 1 else 's'}"


def _alike(one: GenericHeatmap) -> str:
    return f", {one.alike:.0%} alike" if one.images > 1 else ""
