"""Pictures of a localisation: confusion matrices, the parts that carried decisions, the best and the worst images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.debug.confusion import Confusion
from lrp_onnx.debug.heat_table import heat_table, most_columns
from lrp_onnx.debug.parts import ALL_CLASSES, BACKGROUND, NONE, OBJECT, REST, PartRow
from lrp_onnx.debug.placed_regions import PlacedRegions
from lrp_onnx.debug.regions import Mask
from lrp_onnx.hudd.samples import Samples
from lrp_onnx.render import SheetItem, contact_sheet
from lrp_onnx.render.figures import enlarge

if TYPE_CHECKING:
    from lrp_onnx.debug.localisation_report import ImageResult

RGB = NDArray[np.uint8]  # (H, W, 3)
MOST_ROWS, MOST_ON_SHEET = 40, 24
_CELL = 208  # pixels
_REGION, _PART, _EDGE = (255, 214, 0), (0, 200, 215), (20, 20, 20)
_COLUMNS = ("TP: right and shown", "FN: right, not shown", "FP: wrong but shown", "TN: wrong, not shown")


def matrices_chart(matrices: Mapping[str, tuple[Confusion, Confusion]], margin: float) -> RGB:
    """Both confusion matrices, a row a class, in shares of its images; uint8 (H, 1200, 3)."""
    shown = _most_images(matrices)
    cells = np.array([[_shares(matrix) for matrix in matrices[group]] for group in shown])  # (groups, 2, 4)
    names = [f"{group} ({sum(vars(matrices[group][0]).values()):g})" for group in shown]
    return heat_table(
        [("macro: share of the images", cells[:, 0]), ("micro: weighted by the red share of the region", cells[:, 1])],
        names,
        _COLUMNS,
        title="Decision (right or wrong) against what the heatmap shows",
        subtitle=f"macro: the object is shown when at least {margin:.0%} of its region is red, and not everything; "
        "in brackets: images" + _left_out(len(matrices), len(shown)),
    )


def _most_images(matrices: Mapping[str, tuple[Confusion, Confusion]]) -> list[str]:
    order = sorted(matrices, key=lambda group: (group != ALL_CLASSES, -sum(vars(matrices[group][0]).values())))
    return order[:MOST_ROWS]


def _shares(matrix: Confusion) -> NDArray[np.float64]:
    counts = np.array([matrix.tp, matrix.fn, matrix.fp, matrix.tn])
    return counts / counts.sum() if counts.sum() else np.full(4, np.nan)


def parts_chart(parts: Sequence[PartRow], factor: float) -> RGB:
    """Which part carried how many decisions, a row a class and decision; uint8 (H, 1200, 3)."""
    cells = {((row.group, row.decision), row.part): row for row in parts}
    images = {(row.group, row.decision): row.images for row in parts if row.part == NONE}
    groups = sorted(images, key=lambda group: (group[0] != ALL_CLASSES, -images[group]))[:MOST_ROWS]
    names = list(dict.fromkeys(row.part for row in parts if row.part not in (OBJECT, REST, BACKGROUND, NONE)))
    others = [part for part in (OBJECT, REST, BACKGROUND, NONE) if any(row.part == part for row in parts)]
    named = names[: most_columns(1) - len(others)]
    columns = [*named, *others]
    panels = [("share of the decisions that it carried", "share")]
    if len(columns) <= most_columns(3):
        panels += [("share of the relevance", "mass"), ("share of the picture", "area")]
    elif len(columns) <= most_columns(2):
        panels += [("share of the relevance", "mass")]
    return heat_table(
        [
            (heading, [[getattr(cells.get((group, part)), column, np.nan) for part in columns] for group in groups])
            for heading, column in panels
        ],
        [f"{group}, {decision} ({images[group, decision]})" for group, decision in groups],
        columns,
        title="Which part carried the decision",
        subtitle=f"the densest in positive relevance, if {factor:g} times as dense as the rest; in brackets: images"
        + _left_out(len(images), len(groups))
        + (f"; {len(names) - len(named)} more parts in parts.csv" if len(named) < len(names) else ""),
    )


def _left_out(all_rows: int, shown: int) -> str:
    return f"; {all_rows - shown} more rows in the table" if shown < all_rows else ""


def localisation_sheet(samples: Samples, placed: PlacedRegions, images: Sequence[ImageResult]) -> RGB:
    """The images with most and with least relevance in their region, outlined on photograph and overlay."""
    ordered = sorted(images, key=lambda image: -np.nan_to_num(image.found.mass, nan=-1.0))
    half = MOST_ON_SHEET // 2
    best, worst = (ordered, []) if len(ordered) <= MOST_ON_SHEET else (ordered[:half], ordered[-half:])
    about = f"{len(images)} images · region yellow, named parts blue"
    items = [_item(samples, placed, image, "most relevance in the region" if worst else "") for image in best]
    items += [_item(samples, placed, image, "least relevance in the region") for image in worst]
    return contact_sheet(items, title="Heatmaps and regions", subtitle=about, cell=_CELL, columns=3)


def _item(samples: Samples, placed: PlacedRegions, image: ImageResult, heading: str) -> SheetItem:
    marked, found = placed.at(image.row), image.found
    pictures: list[NDArray[Any]] = [enlarge(picture, _CELL) for picture in samples.pictures(image.row)]
    if marked is not None:
        for place, picture in enumerate(pictures):
            picture = _outlined(picture, marked.region, _REGION)
            for part in marked.parts.values():
                picture = _outlined(picture, part, _PART, inset=2)  # beside the region's line where both end
            pictures[place] = picture
    caption = [
        "no positive relevance"
        if np.isnan(found.mass)
        else f"relevance in region {found.mass:.0%}, chance {found.area:.0%}",
        f"red area {found.size}, score {image.score03} of 3",
        NONE if image.carried.part == NONE else f"carried by {image.carried.part}",
        samples.verdict(image.row),
        samples.name(image.row),
    ]
    return SheetItem(pictures, caption, image.decision == "wrong", heading)


def _outlined(picture: RGB, mask: Mask, colour: tuple[int, int, int], inset: int = 0) -> RGB:
    from PIL import Image
    from scipy.ndimage import binary_erosion

    height, width = picture.shape[:2]
    large = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    outer = binary_erosion(large, iterations=inset) if inset else large
    drawn = picture.copy()
    drawn[outer & ~binary_erosion(outer, iterations=3)] = _EDGE
    drawn[outer & ~binary_erosion(outer, iterations=2)] = colour
    return drawn
