"""The charts of the report: scores over the number of clusters, and training over its epochs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from lrp_onnx.hudd.records import SCORES, SavedClusters
from lrp_onnx.render.line_svg import line_chart

_CURVES = {
    "weighted_distance": "weighted intra-cluster distance",
    "wicd": "WICD",
    "gradient": "derivative of WICD",
    "silhouette": "mean silhouette",
}
_PROFILE_CURVES = {"hudd": ("wicd", "gradient", "silhouette")}
_OTHER_CURVES = ("weighted_distance", "silhouette")


def curve_charts(saved: SavedClusters) -> list[Markup]:
    """The scores of the chosen layer over the number of clusters; none of those for fewer than two numbers."""
    clustering, table = saved.clustering, saved.folder / SCORES
    if not table.is_file():
        return []
    with table.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["layer"] == clustering.layer]
    chosen = next((float(row["k"]) for row in rows if row["chosen_k"] == "1"), None)
    charts = []
    for column in _PROFILE_CURVES.get(clustering.profile, _OTHER_CURVES):
        points = [(float(row["k"]), float(row[column])) for row in rows if row[column]]
        if len(points) > 1:
            charts.append(line_chart(_CURVES[column], [("", points)], "number of clusters k", chosen))
    return charts


def training_charts(history: Sequence[Mapping[str, Any]], best: int) -> list[Markup]:
    """Loss, and accuracy where there is one, over the epochs; `best` is the epoch that was kept."""
    charts = []
    for column, title in (("loss", "loss"), ("accuracy", "accuracy")):
        sets = {"training": f"training_{column}", "validation": column}
        lines = [
            (name, [(one["epoch"], one[key]) for one in history if one[key] is not None]) for name, key in sets.items()
        ]
        lines = [(name, points) for name, points in lines if points]
        if lines:
            charts.append(line_chart(title, lines, "epoch", best))
    return charts
