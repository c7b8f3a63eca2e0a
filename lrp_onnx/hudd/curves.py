"""Scores of a layer for every number of clusters, and the number that they speak for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.hudd.tree import Cut, Floats, cuts

MOST_CLUSTERS = 500
GIVEN = "given"
KNEE = {
    "default": "knee (kneedle, convex, decreasing) of the weighted intra-cluster distance",
    "hudd": "knee (kneedle, concave, increasing) of the derivative of WICD",
}
NO_KNEE = "the curve has no knee: best mean silhouette"
IDENTICAL = "all heatmaps are identical"


@dataclass(frozen=True, eq=False)
class Curves:
    """Scores for each number of clusters asked for, arrays (m,).

    Profile `default` takes them on the distances D; profile `hudd` on S, D with each row divided by its maximum, and
    its silhouette on the distances between the rows of S.

    Attributes
    ----------
    k, clusters : int
        Clusters asked for, and clusters made: fewer where distances are equal.
    weighted_distance : float
        Σ_c (|c|/N) · (mean pairwise distance inside c), 0 for an image alone.
    wicd : float
        The same divided by the number of clusters: HUDD's WICD.
    gradient : float
        Derivative of `wicd`, as HUDD takes it.
    silhouette : float
        Mean over all images; NaN for a single cluster.
    """

    k: NDArray[np.int64]
    clusters: NDArray[np.int64]
    weighted_distance: Floats
    wicd: Floats
    gradient: Floats
    silhouette: Floats


def curves_of(distances: Sequence[Floats], tree: Floats, most: int, first: int = 2) -> Curves:
    """Scores for k = first to most: compactness on the first of two condensed distances, silhouettes on the second."""
    compactness, separation = distances
    scores: dict[int, list[float]] = {1: [1, float(compactness.mean()), math.nan]}
    for k, partition in cuts(compactness, tree, most):
        silhouettes = partition.silhouettes() if separation is compactness else np.array(math.nan)
        scores[k] = [partition.count, partition.weighted_distance, _mean_silhouette(partition, silhouettes)]
    if separation is not compactness:
        for k, partition in cuts(separation, tree, most):
            scores[k][2] = _mean_silhouette(partition, partition.silhouettes())
    ks = np.arange(first, most + 1)
    clusters, weighted, silhouette = np.array([scores[k] for k in ks.tolist()]).T
    wicd = weighted / clusters
    return Curves(ks, clusters.astype(np.int64), weighted, wicd, derivative(wicd), silhouette)


def _mean_silhouette(partition: Cut, silhouettes: Floats) -> float:
    return float(silhouettes.mean()) if partition.count > 1 else math.nan


def derivative(values: Floats) -> Floats:
    """Derivative as HUDD's toolset takes it, (m,): fourth-order central differences, plain ones for the two
    values at either end, all divided by a step of 4."""
    slope = np.zeros(len(values))
    if len(values) > 1:
        steps = np.diff(values)
        slope[2:-2] = (values[:-4] - 8 * values[1:-3] + 8 * values[3:-1] - values[4:]) / 12
        slope[:2] = steps[:2]
        slope[-2:] = steps[-2:]
    return slope / 4


def choose_k(curves: Curves, profile: str) -> tuple[int, str]:
    """A number of clusters, and in words how it was found."""
    if profile == "hudd":
        k = knee_of(curves.k, curves.gradient, curve="concave", direction="increasing")
    else:
        k = knee_of(curves.k, curves.weighted_distance, curve="convex", direction="decreasing")
    if k is not None:
        return k, KNEE[profile]
    if np.isnan(curves.silhouette).all():
        return int(curves.k[0]), NO_KNEE
    return int(curves.k[np.nanargmax(curves.silhouette)]), NO_KNEE


def knee_of(k: NDArray[np.int64], values: Floats, *, curve: str, direction: str) -> int | None:
    """Where kneedle (Satopää et al. 2011) sees the knee of a curve; None when it sees none."""
    from kneed import KneeLocator

    if len(k) < 3 or np.ptp(values) == 0:  # kneed would divide by 0
        return None
    knee = KneeLocator(k, values, curve=curve, direction=direction).knee
    return None if knee is None else int(knee)
