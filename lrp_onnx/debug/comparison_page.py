"""The page of a comparison: who is better and where, how alike the heatmaps are, and the images that show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from lrp_onnx import __version__
from lrp_onnx.debug.comparison_groups import (
    ALL,
    CLASS,
    LEVEL,
    PART,
    VARIATION,
    ComparedImage,
    GroupRow,
    disagreements,
)
from lrp_onnx.debug.comparison_pairs import Pairs
from lrp_onnx.debug.comparison_parts import PartComparison
from lrp_onnx.debug.comparison_pictures import Showcase, shown_pair
from lrp_onnx.render.page import colours, page_template

_TITLES = {CLASS: "By class", VARIATION: "By variation", PART: "By part that is marked on the image"}
_MOST_ROWS, _MOST_PAIRS, _MOST_NAMES = 60, 15, 20
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def comparison_page(
    pairs: Pairs,
    images: Sequence[ComparedImage],
    groups: Sequence[GroupRow],
    parts: Sequence[PartComparison],
    showcase: Showcase,
    summary: Mapping[str, Any],
) -> str:
    """The self-contained HTML page; `summary` is what summary.json holds."""
    everything, pairs_of = groups[0], disagreements(images)
    ranks = np.array([image.rank for image in images])
    ranks = ranks[np.isfinite(ranks)]
    tables = {title: [row for row in groups if row.kind == kind] for kind, title in _TITLES.items()}
    return page_template("debug/comparison_page.html.j2").render(
        models=summary["models"],
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        colours=colours(),
        notes=summary["notes"],
        all=everything,
        level=LEVEL,
        sentences=_sentences(groups, summary),
        tables={title: (_largest(rows), len(rows)) for title, rows in tables.items() if rows},
        disagreements=pairs_of[:_MOST_PAIRS],
        more_disagreements=len(pairs_of) - _MOST_PAIRS,
        quantiles=dict(zip(_QUANTILES, np.quantile(ranks, _QUANTILES).tolist(), strict=True)) if ranks.size else {},
        same=summary["same_explained"],
        other=summary["other_explained"],
        smooth=summary["smooth"],
        chance=summary["chance"],
        parts=parts,
        showcase=[(way, [shown_pair(pairs, image) for image in found]) for way, found in showcase],
        alone=[
            (model, paths[:_MOST_NAMES], len(paths))
            for model, paths in (("A", pairs.only_a), ("B", pairs.only_b))
            if paths
        ],
    )


def _largest(rows: Sequence[GroupRow]) -> list[GroupRow]:
    """All rows, or of many those in which one model gains most, in their order."""
    kept = sorted(range(len(rows)), key=lambda place: -abs(rows[place].only_a - rows[place].only_b))[:_MOST_ROWS]
    return [rows[place] for place in sorted(kept)]


def _sentences(groups: Sequence[GroupRow], summary: Mapping[str, Any]) -> list[str]:
    """What was found, the decisions first."""
    everything, found = groups[0], []
    if everything.accuracy_a is not None and everything.accuracy_b is not None and everything.p is not None:
        right_a = everything.both_right + everything.only_a
        right_b = everything.both_right + everything.only_b
        found.append(
            f"Of {everything.judged:,} images, A is right on {right_a:,} ({everything.accuracy_a:.1%}) and B on "
            f"{right_b:,} ({everything.accuracy_b:.1%}). "
            + (
                f"{everything.winner} is better, beyond chance"
                if everything.winner
                else "That says of neither that it is better"
            )
            + f" (exact McNemar test, p = {everything.p:.2g})."
        )
        found.append(
            f"Only A is right on {everything.only_a:,}, only B on {everything.only_b:,}, neither on "
            f"{everything.both_wrong:,}: whoever could choose the right one of the two each time would be right on "
            f"{(everything.judged - everything.both_wrong) / everything.judged:.1%}."
        )
    for model in ("A", "B"):
        won = [f"{row.kind} {row.name}" for row in groups if row.kind != ALL and row.winner == model]
        if won:
            more = f" and {len(won) - _MOST_PAIRS} more" if len(won) > _MOST_PAIRS else ""
            found.append(f"{model} wins beyond chance on {', '.join(won[:_MOST_PAIRS])}{more}.")
    if everything.same is not None:
        found.append(f"Both decide for the same class on {everything.same:.1%} of the images.")
    if everything.rank == everything.rank:
        same, other = summary["same_explained"], summary["other_explained"]
        parts = f"The heatmaps have a mean rank correlation of {everything.rank:.2f}"
        if other["images"] and same["images"]:
            parts += f": {same['rank']:.2f} where they explain the same class, {other['rank']:.2f} where they do not"
        chance = summary["chance"]
        found.append(parts + (f"; heatmaps of two different images have {chance:.2f}." if chance is not None else "."))
    return found
