"""Root-cause clusters: from the distances of every layer to one layer, a number of clusters, and their members."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.errors import DataError
from lrp_onnx.hudd.blocks import pairwise
from lrp_onnx.hudd.curves import GIVEN, IDENTICAL, MOST_CLUSTERS, Curves, choose_k, curves_of
from lrp_onnx.hudd.tree import Cut, Floats, Labels, cut, distances_of, image_count, labels_after, merges_for

PROFILES = ("default", "hudd")
FEATURES = "features"  # a third profile, which compares images otherwise, and the name of what it compares
LINKAGES = ("ward", "average", "complete", "single")
NOISE = -1
INPUT = "input"
# Members of a cluster must be closer to each other than this share of the mean distance between any two errors.
LOOSEST = 0.95

BEST_LAYER = {
    "default": "smallest weighted intra-cluster distance / mean distance, images alone counted as 1",
    "hudd": "smallest WICD on raw distances",
}


@dataclass(frozen=True, eq=False)
class LayerScores:
    """What clustering one layer gave.

    Attributes
    ----------
    k : int
        Clusters at the chosen cut; `how_k` says how it was chosen.
    tree : array (n - 1, 4)
        Linkage in scipy's form, for a dendrogram.
    mean_distance, weighted_distance, wicd : float
        On D at the chosen cut.
    silhouette : float
        Of the curve at the chosen cut.
    score : float
        What layers are compared by: smaller is better.
    """

    layer: str
    k: int
    how_k: str
    curves: Curves
    tree: Floats
    mean_distance: float
    weighted_distance: float
    wicd: float
    silhouette: float
    score: float


@dataclass(frozen=True, eq=False)
class Clustering:
    """Root-cause clusters of n error-inducing images.

    Attributes
    ----------
    profile, layer, linkage : str
    how_layer, how_k : str
        In words, how layer and number of clusters were found.
    labels : int array (n,)
        1 for the largest cluster, 2 for the next, …; -1 for noise.
    k : int
        Clusters at the chosen cut, those that turned out to be noise included.
    medoids : mapping of int to int
        The image of each cluster with the smallest summed distance to the others: its row in `labels`.
    distance_to_medoid : array (n,)
        NaN for noise.
    silhouettes : array (n,)
        On D, all clusters of the cut counted, so that it shows why noise is noise.
    noise : tuple of str
        Why each cluster that was marked as noise was, one sentence each.
    layers : mapping of str to LayerScores
        Every layer given, in order.
    thresholds : mapping of int to float, optional
        Where some errors stand for all: for each cluster the largest distance from a member to the nearest other
        that does.
    """

    profile: str
    layer: str
    how_layer: str
    linkage: str
    k: int
    how_k: str
    labels: Labels
    medoids: Mapping[int, int]
    distance_to_medoid: Floats
    silhouettes: Floats
    noise: tuple[str, ...]
    layers: Mapping[str, LayerScores] = field(repr=False)
    thresholds: Mapping[int, float] | None = None

    @property
    def sizes(self) -> dict[int, int]:
        """Images in each cluster, without noise."""
        return {label: int((self.labels == label).sum()) for label in self.medoids}


def cluster(
    distances: Mapping[str, NDArray[Any]],
    profile: str = "default",
    *,
    k: int | None = None,
    layer: str | None = None,
    linkage: str = "ward",
    min_size: int | None = None,
) -> Clustering:
    """Group images by the distances of their heatmaps, in the layer that separates them best.

    Profile `default`: linkage on the distances D (of heatmaps scaled to unit norm); for k = 1 to
    min(max(n/2, 2), 500), the knee of the weighted intra-cluster distance; the layer with the smallest weighted
    intra-cluster distance over mean distance, where an image alone counts as 1, like one in a layer without structure.
    A cluster is noise when it has fewer than `min_size` (2) images, or when the mean distance between them is 95 % or
    more of that between all errors: they have hardly more in common than any two.

    Profile `hudd`: Fahmy et al. 2021 with the details of their toolset. S = D, each row divided by its maximum; linkage
    on the Euclidean distances between the rows of S; for k = 2 to min(max(n/2, 2), 500), WICD on S (pairs above the
    diagonal); the knee of its derivative by fourth-order central differences; the layer with the smallest WICD on D.
    Nothing is noise unless `min_size` says so.

    In both, a curve without a knee is replaced by the best mean silhouette, and the input is chosen only when it is
    named or alone.

    Parameters
    ----------
    distances : mapping of str to array (n (n - 1) / 2,)
        Condensed distances by layer, such as an open `Distances`; one layer is in memory at a time.
    profile : {"default", "hudd"}
    k, layer : int, str, optional
        Given instead of found.
    linkage : {"ward", "average", "complete", "single"}
    min_size : int, optional

    Raises
    ------
    DataError
        When there are fewer than two images, or distances or options do not fit.
    """
    _check_options(distances, profile, layer, linkage)
    min_size = smallest(profile, min_size)
    layers: dict[str, LayerScores] = {}
    for name in distances:
        condensed = _condensed(distances[name], name)
        count = image_count(condensed)
        if layers and count != len(next(iter(layers.values())).tree) + 1:
            raise DataError(f"layer '{name}' has distances between {count} images, other layers between other numbers")
        layers[name] = _score_layer(name, condensed, profile, linkage, k)
    if layer is None:
        eligible = [name for name in layers if name != INPUT] or list(layers)
        chosen = layers[min(eligible, key=lambda name: layers[name].score)]
    else:
        chosen = layers[layer]
    condensed = _condensed(distances[chosen.layer], chosen.layer)
    partition = cut(condensed, labels_after(chosen.tree, merges_for(chosen.tree, chosen.k)))
    silhouettes = partition.silhouettes()
    loosest = LOOSEST * float(condensed.mean()) if profile == "default" else math.inf
    labels, noise = numbered_by_size(partition, min_size, loosest)
    medoids = medoids_of(partition, labels)
    return Clustering(
        profile=profile,
        layer=chosen.layer,
        how_layer=GIVEN if layer is not None else BEST_LAYER[profile],
        linkage=linkage,
        k=chosen.k,
        how_k=chosen.how_k,
        labels=labels,
        medoids=medoids,
        distance_to_medoid=distances_to(medoids, labels, condensed),
        silhouettes=silhouettes,
        noise=noise,
        layers=layers,
    )


def _check_options(distances: Mapping[str, Any], profile: str, layer: str | None, linkage: str) -> None:
    for word, value, known in (("profile", profile, PROFILES), ("linkage", linkage, LINKAGES)):
        if value not in known:
            raise DataError(f"{word} {value!r}; expected one of {', '.join(known)}")
    if not len(distances):
        raise DataError("no layer to cluster: the distances are empty")
    if layer is not None and layer not in distances:
        raise DataError(f"no distances of layer '{layer}'; there are those of {', '.join(list(distances)[:5])}")
    scaling = getattr(distances, "scaling", None)
    expected = "none" if profile == "hudd" else "unit-l2"
    if scaling not in (None, expected):
        raise DataError(
            f"profile {profile} needs distances of heatmaps scaled by '{expected}', these are scaled by '{scaling}'; "
            "compute the distances again with this profile"
        )


def smallest(profile: str, min_size: int | None) -> int:
    """Images that a cluster must have: `min_size`, or what the profile asks for; DataError when it is below 1."""
    if min_size is None:
        return 1 if profile == "hudd" else 2
    if min_size < 1:
        raise DataError(f"smallest cluster {min_size}; expected 1 or more")
    return min_size


def _condensed(values: Any, layer: str) -> Floats:
    condensed = np.asarray(values[...], dtype=np.float64)
    if condensed.ndim != 1 or image_count(condensed) * (image_count(condensed) - 1) // 2 != len(condensed):
        raise DataError(
            f"layer '{layer}': an array of shape {condensed.shape} holds no condensed distances; expected n (n - 1) / 2"
        )
    if not len(condensed):
        raise DataError("fewer than two images, so there is nothing to cluster: look at them one by one")
    if not np.isfinite(condensed).all() or condensed.min() < 0:
        raise DataError(f"layer '{layer}': distances must be finite and not negative; compute them again")
    return condensed


def _score_layer(name: str, condensed: Floats, profile: str, linkage: str, given: int | None) -> LayerScores:
    from scipy.cluster import hierarchy

    count = image_count(condensed)
    if given is not None and not 1 <= given <= count:
        raise DataError(f"{given} clusters of {count} images; expected 1 to {count}")
    most = min(max(count // 2, 2), MOST_CLUSTERS)
    if profile == "hudd":
        rows, above = _row_scaled(condensed)
        tree = hierarchy.linkage(rows, linkage)
        curves = curves_of((above, rows), tree, most)
    else:
        tree = hierarchy.linkage(condensed, linkage)
        curves = curves_of((condensed, condensed), tree, most, first=1)
    if given is not None:
        k, how = given, GIVEN
    else:
        k, how = choose_k(curves, profile) if condensed.any() else (1, IDENTICAL)
    partition = cut(condensed, labels_after(tree, merges_for(tree, k)))
    weighted, mean = partition.weighted_distance, float(condensed.mean())
    wicd = weighted / partition.count
    relative = weighted / mean + partition.alone if mean else math.inf
    at = np.flatnonzero(curves.k == k)
    return LayerScores(
        layer=name,
        k=partition.count,
        how_k=how,
        curves=curves,
        tree=tree,
        mean_distance=mean,
        weighted_distance=weighted,
        wicd=wicd,
        silhouette=float(curves.silhouette[at[0]]) if at.size else math.nan,
        score=wicd if profile == "hudd" else relative,
    )


def _row_scaled(condensed: Floats) -> tuple[Floats, Floats]:
    """Distances between the rows of S, and S itself above the diagonal, both condensed."""
    from scipy.spatial.distance import squareform

    square = squareform(condensed)
    largest = square.max(axis=1)
    largest[largest == 0] = 1
    square /= largest[:, None]
    above = condensed / np.repeat(largest[:-1], np.arange(len(largest) - 1, 0, -1))
    return pairwise(square, scaling="none", dtype="float64"), above


def numbered_by_size(partition: Cut, min_size: int = 1, loosest: float = math.inf) -> tuple[Labels, tuple[str, ...]]:
    """Clusters numbered from 1 for the largest; those too small or too loose are noise, with the reason."""
    sizes = partition.sizes.astype(np.int64).tolist()
    labels, noise, number = np.full(len(partition.labels), NOISE), [], 0
    for place in sorted(range(partition.count), key=lambda place: (-sizes[place], place)):
        within = partition.within[place]
        if sizes[place] < min_size:
            noise.append(f"{sizes[place]} image(s), fewer than {min_size}")
        elif partition.count > 1 and within >= loosest > 0:
            noise.append(
                f"{sizes[place]} images, mean distance {within:.3g}, not below {loosest:.3g}: nothing in common"
            )
        else:
            number += 1
            labels[partition.labels == place] = number
    return labels, tuple(noise)


def medoids_of(partition: Cut, labels: Labels) -> dict[int, int]:
    """The image of each cluster with the smallest summed distance to the others; `labels` as numbered by size."""
    found: dict[int, int] = {}
    for label in range(1, int(labels.max()) + 1):
        members = np.flatnonzero(labels == label)
        found[label] = int(members[np.argmin(partition.means[partition.labels[members[0]], members])])
    return found


def distances_to(medoids: Mapping[int, int], labels: Labels, condensed: Floats) -> Floats:
    """Distance of each image to the medoid of its cluster, (n,); NaN for noise."""
    found = np.full(len(labels), np.nan)
    for label, medoid in medoids.items():
        members = np.flatnonzero(labels == label)
        found[members] = distances_of(condensed, medoid)[members]
    return found


def thresholds(condensed: NDArray[Any], labels: NDArray[np.int64]) -> dict[int, float]:
    """For each cluster the largest distance from a member to its nearest fellow member.

    "Sufficiently close to cluster members based on test set observations" (Fahmy et al. 2021): whoever is farther from
    a cluster than any of its own members would be, were it left out, does not belong to it.

    Parameters
    ----------
    condensed : array (n (n - 1) / 2,)
        Distances that the clusters were made from.
    labels : int array (n,)
        Below 1 for none. Clusters of one image have no threshold and are left out.
    """
    condensed, found = np.asarray(condensed[...]), {}
    for label in np.unique(labels[labels >= 1]).tolist():
        members = np.flatnonzero(labels == label)
        if len(members) > 1:
            to_others = (distances_of(condensed, row)[members[members != row]] for row in members.tolist())
            found[label] = float(max(distances.min() for distances in to_others))
    return found
