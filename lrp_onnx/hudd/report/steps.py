"""What the other steps left on disk, read back for the report: test results, the unsafe set, the retraining."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrp_onnx.data.sources import IMAGE_COLUMN, LABEL_COLUMN
from lrp_onnx.data.table import read_table
from lrp_onnx.errors import DataError
from lrp_onnx.hudd.clusters import Clustering
from lrp_onnx.hudd.unsafe import SavedUnsafeSet, read_unsafe

FORMAT = "lrp-onnx-retraining"  # as `lrp_onnx.hudd.improve` has it, which would bring in everything that trains
_CLUSTER = ("size", "correct_before", "correct_after", "improved", "worsened")


@dataclass(frozen=True)
class TestResults:
    """Of a table of `lrp-onnx test`: images judged right or wrong, those judged wrong, the expected class of each image
    by its name in the table."""

    __test__ = False  # its name looks like a test to pytest

    judged: int
    failures: int
    labels: Mapping[str, str]

    @property
    def accuracy(self) -> float | None:
        """Share of the judged that is right, 0 to 1; None when nothing was judged."""
        return 1 - self.failures / self.judged if self.judged else None

    def label(self, path: str) -> str:
        """Expected class of an image by its path, which ends with its name in the table; empty where not known."""
        parts = path.replace("\\", "/").split("/")
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((self.labels[end] for end in ends if end in self.labels), "")


@dataclass(frozen=True)
class UnsafeCluster:
    """What one cluster selected: how many, of how many at most, and how far from its members they are."""

    cluster: int
    quota: int
    selected: int
    threshold: float | None
    nearest: float | None
    farthest: float | None


@dataclass(frozen=True)
class UnsafeSummary:
    """An unsafe set, how many of its images have a label, and what each cluster selected."""

    saved: SavedUnsafeSet
    labelled: int
    clusters: tuple[UnsafeCluster, ...]

    @property
    def selected(self) -> int:
        return len(self.saved.selected)

    def fits(self, clustering: Clustering) -> bool:
        """Whether it was selected by these clusters, as far as layer and sizes tell."""
        sizes, factor = clustering.sizes, self.saved.factor
        quotas = {cluster: math.ceil(factor * sizes.get(cluster, 0)) for cluster in self.saved.quotas}
        return self.saved.layer == clustering.layer and quotas == self.saved.quotas


def read_results(path: Path) -> TestResults:
    """Read a table of `lrp-onnx test`.

    Raises
    ------
    DataError
        When it cannot be read or has no column `correct`.
    """
    table = read_table(path, {IMAGE_COLUMN, LABEL_COLUMN, "correct"})
    if "correct" not in table.header:
        raise DataError(f"{path}: no column 'correct'; expected a table that `lrp-onnx test` wrote")
    verdicts = [row.get("correct", "") for _, row in table.rows]
    wrong = verdicts.count("0")
    labels = {row.get(IMAGE_COLUMN, ""): row.get(LABEL_COLUMN, "") for _, row in table.rows}
    return TestResults(wrong + verdicts.count("1"), wrong, labels)


def summarise_unsafe(folder: Path) -> UnsafeSummary:
    """Read an unsafe set, labelled or not.

    Raises
    ------
    DataError
        When there is none, or its table cannot be read.
    """
    saved = read_unsafe(folder)
    table = read_table(saved.table, {LABEL_COLUMN})
    distances: dict[int, list[float]] = {cluster: [] for cluster in saved.quotas}
    for one in saved.selected:
        distances[one.cluster].append(one.distance)
    return UnsafeSummary(
        saved,
        labelled=sum(bool(row.get(LABEL_COLUMN)) for _, row in table.rows),
        clusters=tuple(
            UnsafeCluster(
                cluster=cluster,
                quota=saved.quotas[cluster],
                selected=len(distances[cluster]),
                threshold=(saved.thresholds or {}).get(cluster),
                nearest=min(distances[cluster], default=None),
                farthest=max(distances[cluster], default=None),
            )
            for cluster in sorted(saved.quotas)
        ),
    )


def read_retraining(path: Path) -> dict[str, Any]:
    """Read retraining.json.

    To its verdict are added `chance`, see `chance_of_change`, and `elsewhere`: the images that are in no cluster, with
    the same numbers as a cluster.

    Raises
    ------
    DataError
        When it cannot be read or lacks something.
    """
    values = read_json(path)
    try:
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']}")
        for name in ("path", "sha256"):
            _ = values["model"][name], values["retrained"][name]
        _ = [values[name] for name in ("settings", "history", "notes", "difference", "route", "stopped", "best_epoch")]
        _ = [values[f"{name}_images"] for name in ("training", "labelled", "balanced", "validation")]
        judged = values["verdict"]
        if judged is not None:
            images, improved, worsened = judged["images"], len(judged["improved"]), len(judged["worsened"])
            _ = [judged[name] for name in ("measure", "better", "loss_before", "loss_after")]
            right = [round(judged[name] * images) for name in ("before", "after")]
            total = dict(zip(_CLUSTER, (images, *right, improved, worsened), strict=True))
            inside = {name: sum(one[name] for one in judged["clusters"]) for name in _CLUSTER}
            judged["elsewhere"] = {name: total[name] - inside[name] for name in _CLUSTER}
            judged["chance"] = chance_of_change(improved, worsened)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise DataError(f"{path}: cannot be used ({reason}); expected what `lrp-onnx retrain` wrote") from error
    return values


def chance_of_change(improved: int, worsened: int) -> float:
    """Chance of so uneven a change if images changed either way alike: exact McNemar test, two-sided p."""
    from scipy.stats import binomtest

    return float(binomtest(improved, improved + worsened).pvalue) if improved + worsened else 1.0


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    DataError
        When that is impossible.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected a JSON object")
    return values
