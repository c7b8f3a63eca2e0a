"""An evaluation on disk: a row an image, mean curves, verdicts, and a chart of all of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.debug.evaluation_charts import Panel, line_panels
from lrp_onnx.debug.evaluation_verdicts import Verdict
from lrp_onnx.debug.faithfulness import Curve, mean_curve
from lrp_onnx.debug.randomisation import Randomised
from lrp_onnx.hudd.records import write_csv
from lrp_onnx.render import save_png

IMAGES, CURVES, LAYERS, SUMMARY, CHART = "images.csv", "curves.csv", "randomisation.csv", "summary.json", "curves.png"
_TITLES = {
    "flipping": "Pixel flipping: to noise",
    "road": "ROAD: to what surrounds them",
    "deletion": "Deletion: to the mean colour",
    "insertion": "Insertion: back into a blurred picture",
}
_NAMES = {"most": "most relevant first", "random": "random order", "least": "least relevant first"}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate_store` found and wrote.

    Attributes
    ----------
    folder : pathlib.Path
    verdicts : tuple of Verdict
        One a metric.
    curves : dict of str to dict of str to list of Curve
        By metric and order, one an image.
    ginis, sensitivities : float64 (n,)
        Of each image; empty where not asked for.
    layers : tuple of Randomised
    paths : tuple of str
        Of the images.
    skipped : dict of str to str
        Path and reason of each sample that could not be read.
    """

    folder: Path
    verdicts: tuple[Verdict, ...]
    curves: dict[str, dict[str, list[Curve]]]
    ginis: NDArray[np.float64]
    sensitivities: NDArray[np.float64]
    layers: tuple[Randomised, ...]
    paths: tuple[str, ...]
    skipped: dict[str, str]


def write_evaluation(folder: Path, found: Evaluation, about: Mapping[str, Any]) -> None:
    """Fill an empty folder; `about` goes into the summary."""
    columns: dict[str, list[Any]] = {"image": list(found.paths)}
    for metric, orders in found.curves.items():
        columns[f"{metric}_score"] = [curve.scores[-1 if metric == "insertion" else 0] for curve in orders["most"]]
        for order, curves in orders.items():
            columns[f"{metric}_area_{order}"] = [curve.area for curve in curves]
    for name, values in (("gini", found.ginis), ("max_sensitivity", found.sensitivities)):
        if len(values):
            columns[name] = values.tolist()
    write_csv(folder / IMAGES, list(columns), ([_cell(v) for v in row] for row in zip(*columns.values(), strict=True)))
    means = {(m, order): mean_curve(some) for m, orders in found.curves.items() for order, some in orders.items()}
    write_csv(
        folder / CURVES,
        ("metric", "order", "share_of_pixels", "mean_score"),
        (
            (*name, _cell(share), _cell(score))
            for name, mean in means.items()
            for share, score in zip(mean.fractions.tolist(), mean.scores.tolist(), strict=True)
        ),
    )
    if found.layers:
        write_csv(
            folder / LAYERS,
            ("layers_shuffled", "lowest_node", "mean_rank_correlation", "mean_rank_correlation_of_magnitudes"),
            ((one.layers, one.node, _cell(_mean(one.rank)), _cell(_mean(one.rank_abs))) for one in found.layers),
        )
    verdicts = [
        {**asdict(one), "numbers": {name: _json(value) for name, value in one.numbers.items()}}
        for one in found.verdicts
    ]
    summary = {**about, "images": len(found.paths), "skipped": found.skipped, "verdicts": verdicts}
    (folder / SUMMARY).write_text(json.dumps(summary, ensure_ascii=False, indent=1), encoding="utf-8")
    panels = _panels(found, about["score"])
    if panels:
        title = f"Faithfulness of {about['composite']} heatmaps"
        subtitle = f"{about['model']}, mean of {len(found.paths)} images"
        save_png(line_panels(panels, title=title, subtitle=subtitle), folder / CHART)


def _panels(found: Evaluation, score: str) -> list[Panel]:
    panels = []
    for metric, orders in found.curves.items():
        means = {_NAMES[order]: mean_curve(orders[order]) for order in _NAMES if order in orders}
        lines = {name: (one.fractions.tolist(), one.scores.tolist()) for name, one in means.items()}
        x_name = "share of the pixels " + ("put back" if metric == "insertion" else "replaced")
        panels.append(Panel(_TITLES[metric], x_name, f"mean of {score}", lines))
    if found.layers:
        depths = [float(one.layers) for one in found.layers]
        lines = {
            "relevance": (depths, [_mean(one.rank) for one in found.layers]),
            "its magnitude": (depths, [_mean(one.rank_abs) for one in found.layers]),
        }
        name = "Randomisation: weights shuffled from the output down"
        panels.append(Panel(name, "layers shuffled", "rank correlation with the model's heatmaps", lines))
    return panels


def _mean(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


def _cell(value: Any) -> Any:
    return value if not isinstance(value, float) else "" if math.isnan(value) else f"{value:.6g}"


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None
