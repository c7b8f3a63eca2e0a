"""Pictures of a comparison: the images where two models differ most side by side, and the table of groups in colour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.debug.comparison_groups import ALL, BOTH_RIGHT, ONLY_A, ONLY_B, ComparedImage, GroupRow
from lrp_onnx.debug.comparison_pairs import Pairs
from lrp_onnx.debug.heat_table import heat_table
from lrp_onnx.hudd.report.pictures import Shown
from lrp_onnx.render import SheetItem, contact_sheet
from lrp_onnx.render.page import picture

RGB = NDArray[np.uint8]  # (H, W, 3)
Showcase = Sequence[tuple[str, Sequence[ComparedImage]]]

DIFFER, UNALIKE = "different decisions", "same decision, heatmaps least alike"
_MOST, _MOST_ROWS = 6, 40
_CELL, _ON_PAGE = 170, 120  # heights of pictures on the sheet and on the page
_COLUMNS = {
    "accuracy_a": "A right",
    "accuracy_b": "B right",
    "same": "same decision",
    "rank": "heatmap rank",
    "cosine": "heatmap cosine",
}


def most_different(images: Sequence[ComparedImage], most: int = _MOST) -> Showcase:
    """Up to `most` images of each way in which models differ, with its name; ways without an image are left out.

    Where only one is right, and where both decide differently: the largest difference in confidence first. Where both
    decide alike, or decisions are no classes: the lowest rank correlation first.
    """
    differ = [one for one in images if one.same is False and one.outcome not in (ONLY_A, ONLY_B)]
    alike = [
        one for one in images if one.same is not False and one.outcome in ("", BOTH_RIGHT) and one.rank == one.rank
    ]
    ways = [
        *((outcome, sorted((i for i in images if i.outcome == outcome), key=_gap)) for outcome in (ONLY_A, ONLY_B)),
        ("both wrong, " + DIFFER if any(one.outcome for one in differ) else DIFFER, sorted(differ, key=_gap)),
        (UNALIKE, sorted(alike, key=lambda one: one.rank)),
    ]
    return [(name, found[:most]) for name, found in ways if found]


def _gap(image: ComparedImage) -> float:
    return -abs((image.confidence_a or 0.0) - (image.confidence_b or 0.0))


def comparison_sheet(pairs: Pairs, showcase: Showcase, names: Sequence[str]) -> RGB:
    """Image, heatmap of A and heatmap of B, side by side; uint8 (H, W, 3)."""
    items = [
        SheetItem(_pictures(pairs, image), _caption(pairs, image), heading=way)
        for way, images in showcase
        for image in images
    ]
    return contact_sheet(
        items,
        columns=2,
        title="Where two models differ most",
        subtitle=f"image · A: {names[0]} · B: {names[1]}; each heatmap has its own scale",
        cell=_CELL,
    )


def shown_pair(pairs: Pairs, image: ComparedImage) -> Shown:
    """The same for the page."""
    words = ["image", "heatmap of A", "heatmap of B"]
    drawn = _pictures(pairs, image)
    *lines, name = _caption(pairs, image)
    return Shown(
        [
            picture(pixels, f"{word}, {name}", _ON_PAGE, drawing=len(drawn) < 3)
            for word, pixels in zip(words[-len(drawn) :], drawn, strict=True)
        ],
        name,
        image.path,
        lines,
    )


def _pictures(pairs: Pairs, image: ComparedImage) -> list[RGB]:
    one, other = pairs.samples
    return [*one.pictures(image.row_a), other.pictures(image.row_b)[-1]]


def _caption(pairs: Pairs, image: ComparedImage) -> list[str]:
    expected = [f"expected {image.expected}"] if image.expected else []
    if image.variation:
        expected = [", ".join([*expected, image.variation])]
    rank = "" if image.rank != image.rank else f"rank correlation {image.rank:.2f}"
    return [
        *expected,
        _said("A", image.predicted_a, image.right_a, image.confidence_a, bool(image.expected)),
        _said("B", image.predicted_b, image.right_b, image.confidence_b, bool(image.expected)),
        rank,
        pairs.samples[0].name(image.row_a),
    ]


def _said(model: str, predicted: str, right: bool | None, confidence: float | None, labelled: bool) -> str:
    said = f"{model}: {predicted}" + ("" if right is None else ", right" if right else ", wrong")
    if confidence is None:
        return said
    return f"{said} ({'expected' if labelled else 'its'} class {confidence:.2f})"


def groups_chart(groups: Sequence[GroupRow], names: Sequence[str]) -> RGB:
    """Accuracies and agreement by group, the groups with the largest gap first; uint8 (H, 1200, 3)."""
    others = sorted((row for row in groups if row.kind != ALL), key=lambda row: -abs(row.only_a - row.only_b))
    kept = [row for row in groups if row.kind == ALL or row in others[: _MOST_ROWS - 1]]
    cells = [[_number(getattr(row, column)) for column in _COLUMNS] for row in kept]
    return heat_table(
        [("share of images; mean rank correlation and cosine of both heatmaps", cells)],
        [f"{row.name if row.kind == ALL else f'{row.kind} {row.name}'} ({row.images})" for row in kept],
        list(_COLUMNS.values()),
        title="Two models by group of images",
        subtitle=f"A: {names[0]} · B: {names[1]} · in brackets: images"
        + (f"; {len(groups) - len(kept)} more groups in the table" if len(kept) < len(groups) else ""),
    )


def _number(value: float | None) -> float:
    return np.nan if value is None else value
