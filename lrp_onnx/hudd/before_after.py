"""The original and the retrained model on a test set: correct images, loss, and the same for each cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lrp_onnx.data import Dataset
from lrp_onnx.errors import DataError
from lrp_onnx.graph import Graph
from lrp_onnx.hudd.comparison import ClusterVerdict, verdict
from lrp_onnx.hudd.distances import Distances
from lrp_onnx.hudd.label_table import match_images
from lrp_onnx.hudd.records import read_clusters
from lrp_onnx.losses import Loss as Measure
from lrp_onnx.predictions import predict
from lrp_onnx.store import HeatmapStore

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TestVerdict:
    """The original and the retrained model on the test set.

    Attributes
    ----------
    images : int
    measure : {"accuracy", "within threshold"}
        What makes an image correct: its class, or a loss not above the threshold.
    before, after : float
        Share of correct images, 0 to 1.
    loss_before, loss_after : float or None
        Mean loss; None where it is not finite.
    improved, worsened : tuple of str
        Images that became right, and those that became wrong.
    clusters : tuple of ClusterVerdict
        The same for the images of each root-cause cluster.
    """

    __test__ = False  # the name does not make it a test for pytest

    images: int
    measure: str
    before: float
    after: float
    loss_before: float | None
    loss_after: float | None
    improved: tuple[str, ...]
    worsened: tuple[str, ...]
    clusters: tuple[ClusterVerdict, ...] = ()

    @property
    def better(self) -> bool:
        """Whether more images are correct than before."""
        return self.after > self.before


def clusters_of(dataset: Dataset, clusters: str | os.PathLike[str], store: str | os.PathLike[str] | None) -> np.ndarray:
    """Cluster of each image of the data set, -1 for none, int64 (n,)."""
    saved = read_clusters(clusters, store)
    with HeatmapStore(saved.store) as errors, Distances(saved.distances) as distances:
        paths = [str(errors.samples["path"][row]) for row in distances.rows]
    found = np.full(len(dataset), -1)
    places = match_images(paths, dataset.paths)
    for place, cluster in zip(places, saved.clustering.labels.tolist(), strict=True):
        if place is not None:
            found[place] = cluster
    if all(place is None for place in places):
        raise DataError(
            f"{dataset.root}: has none of the images in the clusters of {saved.folder}; is it another test set?"
        )
    return found


def judge_models(
    before: Graph,
    after: Graph,
    dataset: Dataset,
    report: Report,
    *,
    groups: np.ndarray | None = None,
    measure: Measure | None = None,
    threshold: float | None = None,
) -> TestVerdict:
    """Run both models on a test set.

    Parameters
    ----------
    before, after : Graph
    dataset : Dataset
    report : callable (step, done, total)
    groups : int (n,), optional
        Cluster of each image, from `clusters_of`.
    measure, threshold
        As in `predict`; for regression.

    Raises
    ------
    DataError
        Output and labels do not fit each other, or no image can be read.
    """
    done, total = 0, 2 * len(dataset)
    correct, losses = np.full((2, len(dataset)), -1), np.full((2, len(dataset)), np.nan)
    for place, graph in enumerate((before, after)):
        for batch in predict(graph, dataset, loss=measure, threshold=threshold):
            losses[place, batch.rows] = batch.verdict.loss
            correct[place, batch.rows] = batch.verdict.correct
            done += len(batch.rows)
            report("Judging", done, total)
    rows = np.flatnonzero((correct >= 0).all(axis=0))
    if not len(rows):
        raise DataError(f"{dataset.root}: the model's output cannot be judged by the labels of this test set")
    was, now = correct[:, rows] == 1
    found = verdict(was, now, None, None if groups is None else groups[rows])
    means = [float(value) if np.isfinite(value) else None for value in losses[:, rows].mean(axis=1)]
    return TestVerdict(
        images=found.images,
        measure="accuracy" if threshold is None else "within threshold",
        before=found.accuracy_before,
        after=found.accuracy_after,
        loss_before=means[0],
        loss_after=means[1],
        improved=tuple(dataset.paths[rows[row]] for row in found.improved),
        worsened=tuple(dataset.paths[rows[row]] for row in found.worsened),
        clusters=found.clusters,
    )
