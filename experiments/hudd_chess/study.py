"""From pictures with known parameters to clusters of the failing ones, and what those show of the parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.cluster.hierarchy import fcluster

from experiments.hudd_chess.squares import Parameters
from experiments.hudd_chess.variance import LEAST, NOISE, reductions, share_by_chance, share_explained, share_shifted
from lrp_onnx.engine import DEFAULT_COMPOSITE
from lrp_onnx.graph import Graph
from lrp_onnx.heatmaps import compute_heatmaps
from lrp_onnx.hudd import Clustering, Distances, cluster, compute_distances, write_clusters
from lrp_onnx.store import HeatmapStore

COMPOSITE = {"default": DEFAULT_COMPOSITE, "hudd": "hudd"}


@dataclass(frozen=True, eq=False)
class Causes:
    """Clusters of the n errors; of every error all parameters (n,) by name, and the predicted class (n,)."""

    clustering: Clustering
    columns: Mapping[str, np.ndarray]
    predicted: np.ndarray

    @property
    def without_class(self) -> Mapping[str, np.ndarray]:
        return {name: values for name, values in self.columns.items() if name != "label"}


class Scores(NamedTuple):
    """A clustering in figures: clusters, and shares of images or clusters."""

    clusters: float
    in_none: float  # of the failing images
    explained: float  # of the clusters, as the next three
    without_class: float
    by_chance: float  # without the class
    shifted: float  # of the clusters, those with such a parameter far from its mean over all errors
    images: float  # of the failing images, those in a cluster that is explained without the class
    one_class: float  # of the images in clusters, those with the prediction that is the most frequent in theirs


def find_root_causes(
    graph: Graph,
    manifest: Path,
    results: Path,
    parameters: list[Parameters],
    folder: Path,
    *,
    profile: str,
    reduce: str,
    pictures: bool,
) -> Causes:
    """Heatmaps of the failures in all layers, their distances and clusters, and `pictures` of these if wanted."""
    folder.mkdir()
    options: dict[str, Any] = {"composite": COMPOSITE[profile], "batch_size": 64}
    compute_heatmaps(graph, manifest, folder / "errors.h5", errors=results, layers="all", **options)
    with HeatmapStore(folder / "errors.h5") as store:
        compute_distances(store, folder / "distances.h5", profile=profile, reduce=reduce)
        with Distances(folder / "distances.h5") as distances:
            clustering = cluster(distances, profile)
            if pictures:
                write_clusters(store, distances, clustering, folder)
        index = store.samples["index"][store.done].tolist()
        predicted = np.array(store.classes)[store.prediction[:][store.done].argmax(axis=1)]
    rows = [asdict(parameters[place]) for place in index]
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return Causes(clustering, columns, predicted)


def score(causes: Causes, labels: np.ndarray, seed: int) -> Scores:
    """What clusters, `labels` (n,), show of the parameters; `seed` is of the random clusters."""
    columns, held = causes.without_class, labels != NOISE
    by_cluster = reductions(columns, labels)
    found = [one for one, by_name in by_cluster.items() if max(by_name.values()) >= LEAST]
    most = [Counter(causes.predicted[labels == one]).most_common(1)[0][1] for one in by_cluster]
    return Scores(
        clusters=len(by_cluster),
        in_none=1 - held.mean(),
        explained=share_explained(causes.columns, labels),
        without_class=share_explained(columns, labels),
        by_chance=share_by_chance(columns, labels, seed),
        shifted=share_shifted(columns, labels),
        images=np.isin(labels, found).mean(),
        one_class=sum(most) / max(held.sum(), 1),
    )


def alternatives(causes: Causes) -> dict[str, np.ndarray]:
    """Labels (n,) by layer, at the number of clusters that the profile finds there, if nothing were noise; and the
    clusters that cost nothing: one for each predicted class."""
    layers = causes.clustering.layers
    cuts = {name: fcluster(one.tree, one.k, "maxclust") for name, one in layers.items()}
    return cuts | {"predicted class": np.unique(causes.predicted, return_inverse=True)[1]}


def describe(causes: Causes) -> list[tuple[str, ...]]:
    """A row a cluster: number, images, most frequent confusion, and the parameters that characterise it."""
    clustering, columns = causes.clustering, causes.columns
    rows: list[tuple[str, ...]] = []
    for one, by_name in reductions(columns, clustering.labels).items():
        inside = clustering.labels == one
        pairs = Counter(zip(columns["label"][inside], causes.predicted[inside], strict=True))
        (expected, predicted), count = pairs.most_common(1)[0]
        telling = sorted((name for name in by_name if by_name[name] >= LEAST), key=by_name.__getitem__, reverse=True)
        words = [f"{name} {_in_words(columns[name], inside)} (−{by_name[name]:.0%})" for name in telling]
        confusion = f"{expected} → {predicted} ({count})"
        rows.append((str(one), str(inside.sum()), confusion, ", ".join(words) or "–"))
    return rows


def _in_words(values: np.ndarray, inside: np.ndarray) -> str:
    if values.dtype.kind == "f":
        return (
            f"{values[inside].mean():.2f} ± {values[inside].std():.2f} against {values.mean():.2f} ± {values.std():.2f}"
        )
    value, count = Counter(values[inside].tolist()).most_common(1)[0]
    return f"{value} {count / inside.sum():.0%}"
