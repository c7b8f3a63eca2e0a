"""The HUDD loop on one split of the digits, and the two ways of spending the same labels that it is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.hudd_digits.digits import Digits
from lrp_onnx.data import Dataset
from lrp_onnx.engine import DEFAULT_COMPOSITE
from lrp_onnx.graph import Graph, load
from lrp_onnx.heatmaps import compute_heatmaps
from lrp_onnx.hudd import (
    Assignment,
    Clustering,
    Distances,
    assign_stores,
    bootstrap,
    cluster,
    compute_distances,
)
from lrp_onnx.hudd.retrain import retrain
from lrp_onnx.predictions import predict
from lrp_onnx.store import HeatmapStore

COMPOSITE = {"default": DEFAULT_COMPOSITE, "hudd": "hudd"}


@dataclass(frozen=True, eq=False)
class RootCauses:
    """Clusters of the errors, which are the rows `wrong` of the test set, and the unsafe set that they select."""

    wrong: np.ndarray
    clustering: Clustering
    unsafe: Assignment

    @property
    def labelled(self) -> np.ndarray:
        """Rows of the improvement set that a person labels."""
        return np.array([one.image for one in self.unsafe.selected])


def classes_of(graph: Graph, dataset: Dataset) -> np.ndarray:
    """What the model takes each image for, int64 (N,)."""
    return np.concatenate([batch.verdict.predicted for batch in predict(graph, dataset)])


def find_root_causes(
    graph: Graph, digits: Digits, wrong: np.ndarray, folder: Path, profile: str, factor: float
) -> RootCauses:
    """From the errors to the unsafe set: heatmaps, distances, clusters, heatmaps again, assignment."""
    options: dict[str, Any] = {"composite": COMPOSITE[profile], "batch_size": 64}
    errors, distances, improvement = (folder / name for name in ("errors.h5", "distances.h5", "improvement.h5"))
    compute_heatmaps(graph, digits.test.subset(wrong), errors, layers="all", **options)
    with HeatmapStore(errors) as of_errors:
        compute_distances(of_errors, distances, profile=profile)
        with Distances(distances) as between:
            clustering = cluster(between, profile)
            compute_heatmaps(graph, digits.improvement, improvement, layers=[clustering.layer], **options)
            with HeatmapStore(improvement) as candidates:
                unsafe = assign_stores(candidates, of_errors, clustering, between, factor=factor)
    return RootCauses(wrong, clustering, unsafe)


def chosen_rows(causes: RootCauses, failing: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Rows of the improvement set that each approach trains on, repetitions included, by its name.

    All label as many images and train on as many: HUDD's unsafe set, balanced; "random", images drawn evenly; and
    "failing", those of the same draw that the model has wrong (`failing`, bool (N,), is known once they are labelled).
    """
    unsafe, random = causes.unsafe, np.random.default_rng(seed)
    size = max(unsafe.quotas.values())
    hudd = bootstrap(unsafe.selected, profile=causes.clustering.profile, size=size, seed=seed).images
    drawn = random.choice(len(failing), len(unsafe.selected), replace=False)

    def filled(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([rows, random.choice(rows, len(hudd) - len(rows))])

    return {"HUDD": hudd, "random": filled(drawn), "failing": filled(drawn[failing[drawn]])}


def improve(graph: Graph, digits: Digits, rows: np.ndarray, seed: int, **options: Any) -> np.ndarray:
    """Retrain from the original weights on the training set and `rows`; what the new model says of the test set."""
    more = digits.improvement.subset(rows)
    model = retrain(graph, [digits.training, more], digits.validation, seed=seed, **options).model
    return classes_of(load(model), digits.test)
