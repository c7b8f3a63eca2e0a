"""What one linkage says about every number of clusters: compactness and silhouettes, in one pass over the distances."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Cut:
    """A partition of n images into `count` clusters.

    Attributes
    ----------
    labels : int array (n,)
        0 to count - 1.
    sizes : float array (count,)
    means : array (count, n)
        Mean distance of every image to the members of every cluster, itself included.
    within : array (count,)
        Mean distance of the pairs inside each cluster, 0 for an image alone.
    """

    labels: Labels
    sizes: Floats
    means: Floats
    within: Floats

    @property
    def count(self) -> int:
        return len(self.sizes)

    @property
    def weighted_distance(self) -> float:
        """Σ_c (|c|/N) · (mean distance inside c): HUDD's WICD without its factor 1/K."""
        return float(self.sizes @ self.within / self.sizes.sum())

    @property
    def alone(self) -> float:
        """Share of the images that are alone in their cluster."""
        return float((self.sizes == 1).sum() / self.sizes.sum())

    def silhouettes(self) -> Floats:
        """(b - a) / max(a, b) of each image (Rousseeuw 1987); 0 for an image alone, and when there is one cluster."""
        everyone = np.arange(len(self.labels))
        own = self.means[self.labels, everyone]
        if self.count == 1:
            return np.zeros(len(own))
        self.means[self.labels, everyone] = np.inf
        nearest = self.means.min(axis=0)
        self.means[self.labels, everyone] = own
        members = self.sizes[self.labels]
        inside = own * members / np.maximum(members - 1, 1)  # without the distance of 0 to itself
        larger = np.maximum(inside, nearest)
        values = np.divide(nearest - inside, larger, out=np.zeros(len(own)), where=larger > 0)
        values[members == 1] = 0
        return values


def merges_for(tree: Floats, most: int) -> int:
    """How many merges of the linkage leave at most `most` clusters, all merges at the same height counted as one.

    So equal distances never decide by the order of the images; scipy's `fcluster(…, "maxclust")` does the same.
    """
    count = len(tree) + 1
    done = max(0, count - most)
    while 0 < done < len(tree) and tree[done, 2] <= tree[done - 1, 2]:
        done += 1
    return done


def labels_after(tree: Floats, done: int) -> Labels:
    """Clusters after the first `done` merges, (n,), numbered in order of their first image."""
    count = len(tree) + 1
    root = np.arange(count + done)
    for merge in range(done):
        root[tree[merge, :2].astype(np.int64)] = count + merge
    for node in range(count + done - 1, -1, -1):  # a parent has a higher number than its children
        root[node] = root[root[node]]
    _, first, labels = np.unique(root[:count], return_index=True, return_inverse=True)
    order = np.empty(len(first), dtype=np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return order[labels]


def cut(condensed: NDArray[Any], labels: Labels) -> Cut:
    """The partition that `labels` (0 to K - 1) describes, with its distances: one pass over them."""
    count, clusters = len(labels), int(labels.max()) + 1
    sums = np.zeros((clusters, count))
    start = 0
    for row in range(count - 1):
        distances = condensed[start : start + count - row - 1]
        sums[:, row] += np.bincount(labels[row + 1 :], distances, clusters)
        sums[labels[row], row + 1 :] += distances
        start += len(distances)
    sizes = np.bincount(labels, minlength=clusters).astype(np.float64)
    inside = np.bincount(labels, sums[labels, np.arange(count)], clusters) / 2
    return Cut(labels, sizes, sums / sizes[:, None], inside / np.maximum(sizes * (sizes - 1) / 2, 1))


def cuts(condensed: NDArray[Any], tree: Floats, most: int) -> Iterator[tuple[int, Cut]]:
    """Partitions of a linkage for k = most, most - 1, …, 2, each as (k, partition).

    Distances are summed up once, for the finest partition; merging two clusters then adds two rows. With ties a
    partition may have fewer than k clusters. A partition is overwritten by the next: use it before going on.
    """
    done = merges_for(tree, most)
    labels = labels_after(tree, done)
    finest = cut(condensed, labels)
    count = finest.count
    sums, sizes = finest.means * finest.sizes[:, None], finest.sizes
    pairs = finest.within * np.maximum(sizes * (sizes - 1) / 2, 1)
    place = _places(tree, done, labels)
    for k in range(most, 1, -1):
        for merge in range(done, merges_for(tree, k)):
            stays, goes = sorted(place.pop(int(node)) for node in tree[merge, :2])
            pairs[stays] += pairs[goes] + sums[goes, labels == stays].sum()
            sums[stays] += sums[goes]
            sizes[stays] += sizes[goes]
            labels[labels == goes] = stays
            count -= 1
            # the last cluster moves to the empty place, so that the clusters stay numbered without gaps
            sums[goes], sizes[goes], pairs[goes] = sums[count], sizes[count], pairs[count]
            labels[labels == count] = goes
            place = {node: goes if where == count else where for node, where in place.items()}
            place[len(tree) + 1 + merge] = stays
        done = max(done, merges_for(tree, k))
        held = sizes[:count]
        within = pairs[:count] / np.maximum(held * (held - 1) / 2, 1)
        yield k, Cut(labels, held, sums[:count] / held[:, None], within)


def _places(tree: Floats, done: int, labels: Labels) -> dict[int, int]:
    """Which label each node of the linkage has that is not merged yet."""
    count = len(tree) + 1
    place: dict[int, int] = {row: int(label) for row, label in enumerate(labels)}
    for merge in range(done):
        one, other = (int(node) for node in tree[merge, :2])
        place[count + merge] = place.pop(one)
        place.pop(other)
    return place


def distances_of(condensed: NDArray[Any], image: int) -> NDArray[Any]:
    """Distances (n,) of one image to all, itself included, out of the condensed ones."""
    count = image_count(condensed)
    before = np.arange(image)
    start = image * count - image * (image + 1) // 2
    above = condensed[before * count - before * (before + 1) // 2 + image - before - 1]
    return np.concatenate([above, [0], condensed[start : start + count - image - 1]])


def image_count(condensed: NDArray[Any]) -> int:
    """n, of which there are n (n - 1) / 2 distances."""
    return (1 + math.isqrt(1 + 8 * len(condensed))) // 2
