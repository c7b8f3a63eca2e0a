"""The balanced unsafe set: images repeated at random until every root-cause cluster weighs the same in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.errors import DataError
from lrp_onnx.hudd.assign import Selected
from lrp_onnx.hudd.clusters import PROFILES


@dataclass(frozen=True, eq=False)
class Balanced:
    """Images to train on, clusters one after the other: first each image once, then the repetitions.

    Attributes
    ----------
    images, clusters : int arrays (total,)
        Row of the improvement set, and the cluster it stands for.
    size : int
        Images for each cluster.
    """

    images: NDArray[np.int64]
    clusters: NDArray[np.int64]
    size: int


def bootstrap(
    selected: Sequence[Selected], *, profile: str = "default", size: int | None = None, seed: int = 0
) -> Balanced:
    """Fill every cluster up with repetitions of its images.

    Profile `default` draws them evenly, up to the number of images of the largest cluster. Profile `hudd` draws images
    nearer to the cluster more often, up to the largest quota, max_c U_c: rounds over the images of a cluster, where
    image i is taken when a number drawn for the round is below 1 - d_i / Σ d (Fahmy et al.'s toolset). A single image,
    whose 1 - d / d is 0, is repeated.

    Parameters
    ----------
    selected : sequence of Selected
        `Assignment.selected`, or those of it that have a label.
    profile : {"default", "hudd"}
    size : int, optional
        Images for each cluster; needed by profile `hudd`, where it is `max(Assignment.quotas.values())`.
    seed : int
        The same seed gives the same images; what a cluster gets does not depend on other clusters.

    Raises
    ------
    DataError
        When options do not fit, or a cluster has more images than `size`.
    """
    if profile not in PROFILES:
        raise DataError(f"profile {profile!r}; expected one of {', '.join(PROFILES)}")
    by_cluster: dict[int, list[Selected]] = {}
    for one in selected:
        by_cluster.setdefault(one.cluster, []).append(one)
    largest = max(map(len, by_cluster.values()), default=0)
    if size is None:
        if profile == "hudd":
            raise DataError("profile hudd needs the size of the balanced clusters: the largest quota")
        size = largest
    if size < largest:
        raise DataError(f"clusters of {size} images, but the largest has {largest}; expected that or more")
    images, clusters = [], []
    for cluster, members in sorted(by_cluster.items()):
        random = np.random.default_rng([seed, cluster])
        more = _accepted if profile == "hudd" else _drawn
        rows = np.array([one.image for one in members], dtype=np.int64)
        distances = np.array([one.distance for one in members])
        images += [rows, rows[more(random, distances, size - len(rows))]]
        clusters += [np.full(size, cluster)]
    empty = np.zeros(0, dtype=np.int64)
    return Balanced(np.concatenate([empty, *images]), np.concatenate([empty, *clusters]), size)


def _drawn(random: np.random.Generator, distances: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    return random.integers(len(distances), size=count)


def _accepted(random: np.random.Generator, distances: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    total = distances.sum()
    if len(distances) == 1 or total == 0:
        return np.arange(count) % len(distances)
    acceptance = 1 - distances / total
    taken: list[int] = []
    while len(taken) < count:
        taken += np.flatnonzero(random.random() < acceptance).tolist()
    return np.array(taken[:count], dtype=np.int64)
