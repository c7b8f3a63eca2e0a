"""The unsafe set: which images of the improvement set resemble a root-cause cluster enough to be worth a label."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lrp_onnx.errors import DataError
from lrp_onnx.hudd.blocks import MEMORY, HeatmapRows, between
from lrp_onnx.hudd.clusters import FEATURES, INPUT, PROFILES, Clustering, thresholds
from lrp_onnx.hudd.distances import Distances, heatmaps_of
from lrp_onnx.store import HeatmapStore


@dataclass(frozen=True)
class Selected:
    """An image of the unsafe set, and why it is there.

    Attributes
    ----------
    image : int
        Row of the improvement set.
    cluster : int
    distance : float
        To the nearest member of the cluster.
    rank : int
        Place among the images selected for the cluster, 1 for the nearest.
    choice : int
        1 when no other cluster is nearer to the image, 2 when one is, …: its quota was full.
    """

    image: int
    cluster: int
    distance: float
    rank: int
    choice: int


@dataclass(frozen=True, eq=False)
class Assignment:
    """The unsafe set and what did not get into it.

    Attributes
    ----------
    selected : tuple of Selected
        By cluster, then rank; each image at most once.
    quotas : mapping of int to int
        Most images for each cluster.
    thresholds : mapping of int to float, or None
        Largest distance for each cluster; None in profile `hudd`, which has none.
    nearest_cluster, nearest_distance : arrays (m,)
        Of every image of the improvement set, selected or not.
    too_far, over_quota : int
        Images beyond the thresholds of all clusters, and images within one whose quotas were full.
    explanation : str
        One sentence with these numbers; when nothing was selected it says why.
    """

    selected: tuple[Selected, ...]
    quotas: Mapping[int, int]
    thresholds: Mapping[int, float] | None
    nearest_cluster: NDArray[np.int64]
    nearest_distance: NDArray[np.float64]
    too_far: int
    over_quota: int
    explanation: str


def nearest_members(
    improvement: NDArray[Any] | h5py.Dataset,
    members: NDArray[Any] | h5py.Dataset,
    labels: NDArray[np.int64],
    *,
    rows: NDArray[np.int64] | None = None,
    member_rows: NDArray[np.int64] | None = None,
    metric: str = "euclidean",
    scaling: str = "unit-l2",
    reduce: str = "none",
    dtype: str = "float32",
    memory: int = MEMORY,
) -> dict[int, NDArray[np.float64]]:
    """Distance of every improvement image to the nearest member of every cluster.

    Parameters
    ----------
    improvement : array or h5py dataset (M, …)
        Heatmaps of the improvement set at the layer of the clusters.
    members : array or h5py dataset (N, …)
        Heatmaps of the clustered images at the same layer.
    labels : int array (n,)
        Cluster of each clustered image; below 1 for none.
    rows, member_rows : int arrays (m,) and (n,), optional
        Rows of `improvement` and of `members` that count; all when left out.
    metric, scaling, reduce, dtype, memory
        As in `pairwise`; the same as for the clusters.

    Returns
    -------
    dict of int to float array (m,)
        By cluster, ascending.

    Raises
    ------
    DataError
        When heatmaps or labels do not fit each other.
    """
    options = {"metric": metric, "scaling": scaling, "reduce": reduce, "dtype": dtype}
    images = HeatmapRows(improvement, rows, name="the heatmaps of the improvement set", **options)
    errors = HeatmapRows(members, member_rows, name="the heatmaps of the clusters", **options)
    if len(labels) != len(errors):
        raise DataError(f"{len(labels)} labels for {len(errors)} clustered images; the clusters are of other images")
    found = {int(label): np.full(len(images), np.inf) for label in np.unique(labels) if label >= 1}
    for here, there, distances in between(images, errors, memory):
        for label, nearest in found.items():
            of_cluster = labels[there] == label
            if of_cluster.any():
                np.minimum(nearest[here], distances[:, of_cluster].min(axis=1), out=nearest[here])
    return found


def assign_images(
    nearest: Mapping[int, NDArray[np.float64]],
    sizes: Mapping[int, int],
    limits: Mapping[int, float] | None = None,
    *,
    profile: str = "default",
    factor: float = 2.0,
) -> Assignment:
    """Choose the unsafe set: each image for its nearest cluster, the nearest images first, while quotas last.

    A cluster c takes at most U_c = ceil(factor · |c|) images; what its quota leaves over goes to the second nearest
    cluster, and so on. Profile `default` considers only images within the threshold of a cluster, profile `hudd` all.
    Clusters of one image select nothing.

    Parameters
    ----------
    nearest : mapping of int to array (m,)
        From `nearest_members`.
    sizes : mapping of int to int
        Images in each cluster, `Clustering.sizes`.
    limits : mapping of int to float
        From `thresholds`; for profile `default`.
    factor : float
        Above 0.

    Raises
    ------
    DataError
        When options or clusters do not fit.
    """
    if profile not in PROFILES:
        raise DataError(f"profile {profile!r}; expected one of {', '.join(PROFILES)}")
    if not factor > 0 or not math.isfinite(factor):
        raise DataError(f"quota factor {factor}; expected a number above 0")
    if profile == "hudd":
        limits = None
    elif limits is None:
        raise DataError("profile default needs the thresholds of the clusters; take them from thresholds()")
    clusters = sorted(label for label, size in sizes.items() if size > 1)
    missing = [label for label in clusters if label not in nearest or (limits is not None and label not in limits)]
    if missing:
        raise DataError(f"cluster {missing[0]} has no distances or no threshold; compute both from the same clusters")
    quotas = {label: math.ceil(factor * sizes[label]) for label in clusters}
    count = len(next(iter(nearest.values()), []))
    if not clusters or not count:
        why = "there is no cluster of two or more images" if not clusters else "the improvement set is empty"
        none = np.full(count, -1), np.full(count, np.nan)
        return Assignment((), quotas, limits, *none, 0, 0, f"nothing selected: {why}")
    distances = np.stack([nearest[label] for label in clusters], axis=1)  # (m, clusters)
    allowed = np.ones(distances.shape, dtype=bool)
    if limits is not None:
        allowed = distances <= np.array([limits[label] for label in clusters])
    taken = _fill_quotas(distances, allowed, [quotas[label] for label in clusters])
    selected = tuple(
        Selected(image, clusters[place], float(distances[image, place]), rank, choice)
        for place, images in enumerate(taken)
        for rank, (image, choice) in enumerate(
            sorted(images, key=lambda pair: (distances[pair[0], place], pair[0])), start=1
        )
    )
    within = int(allowed.any(axis=1).sum())
    first = distances.argmin(axis=1)
    explanation = f"{len(selected)} of {count} images selected, {count - within} too far from every cluster, "
    explanation += f"{within - len(selected)} left over by full quotas"
    if not selected and limits is not None:
        explanation = _nearest_miss(distances, clusters, limits)
    return Assignment(
        selected=selected,
        quotas=quotas,
        thresholds=limits,
        nearest_cluster=np.array(clusters)[first],
        nearest_distance=distances[np.arange(count), first],
        too_far=count - within,
        over_quota=within - len(selected),
        explanation=explanation,
    )


def assign_stores(
    improvement: HeatmapStore,
    errors: HeatmapStore,
    clustering: Clustering,
    distances: Distances,
    *,
    factor: float = 2.0,
    rows: NDArray[np.int64] | None = None,
    memory: int = MEMORY,
) -> Assignment:
    """`assign_images` for two heatmap stores: images of the improvement set to the clusters of the errors.

    Parameters
    ----------
    improvement, errors : HeatmapStore
        Of the same model, composite, target and seed.
    clustering : Clustering
    distances : Distances
        What `clustering` was made from; says how to compare heatmaps.
    rows : int array (m,), optional
        Rows of `improvement` that count, all finished ones when left out. `Selected.image` is a row of the store, the
        arrays of the result are in the order of `rows`.
    factor, memory
        As in `assign_images` and `pairwise`.

    Raises
    ------
    DataError
        When the stores were not made alike, or do not fit the clusters, such as those of profile `features`.
    """
    if clustering.profile == FEATURES:
        raise DataError(
            "clusters of profile features are for comparison, no images can be assigned to them; cluster with profile "
            "default or hudd"
        )
    for name in ("model_sha256", "composite", "target", "seed"):
        if improvement.attrs[name] != errors.attrs[name]:
            raise DataError(
                f"{improvement.path} and {errors.path} differ in {name}, so their heatmaps cannot be compared; make "
                "both with the same model and options"
            )
    layer, chosen = clustering.layer, distances.representatives
    labels = clustering.labels[chosen]
    if layer not in (INPUT, *improvement.layer_names):
        raise DataError(
            f"{improvement.path}: has no heatmaps of the clusters' layer; make it with "
            f"`lrp-onnx heatmaps … --layers '{layer}'`"
        )
    rows = improvement.done if rows is None else np.asarray(rows, dtype=np.int64)
    limits = None
    if clustering.profile == "default":
        limits = clustering.thresholds or thresholds(distances[layer], labels)
    nearest = nearest_members(
        heatmaps_of(improvement, layer),
        heatmaps_of(errors, layer),
        labels,
        rows=rows,
        member_rows=distances.rows[chosen],
        metric=distances.metric,
        scaling=distances.scaling,
        reduce=distances.reduce,
        dtype=distances.dtype,
        memory=memory,
    )
    found = assign_images(nearest, clustering.sizes, limits, profile=clustering.profile, factor=factor)
    return replace(found, selected=tuple(replace(one, image=int(rows[one.image])) for one in found.selected))


def _fill_quotas(
    distances: NDArray[np.float64], allowed: NDArray[np.bool_], quotas: list[int]
) -> list[list[tuple[int, int]]]:
    """For each cluster the images that it takes, with their choice. Ties go to the lower cluster, the earlier image."""
    taken: list[list[tuple[int, int]]] = [[] for _ in quotas]
    order = np.argsort(distances, axis=1, kind="stable")
    free = np.ones(len(distances), dtype=bool)
    for choice in range(len(quotas)):
        cluster = order[:, choice]
        distance = np.take_along_axis(distances, cluster[:, None], axis=1)[:, 0]
        for image in np.argsort(distance, kind="stable").tolist():
            place = int(cluster[image])
            if free[image] and allowed[image, place] and len(taken[place]) < quotas[place]:
                taken[place].append((image, choice + 1))
                free[image] = False
    return taken


def _nearest_miss(distances: NDArray[np.float64], clusters: list[int], limits: Mapping[int, float]) -> str:
    limit = np.array([limits[label] for label in clusters])
    image, place = np.unravel_index(np.argmin(distances - limit), distances.shape)
    return (
        f"nothing selected: none of {len(distances)} images is as close to a cluster as its members are to each other; "
        f"the nearest miss is {distances[image, place]:.4g} away from cluster {clusters[place]}, whose threshold is "
        f"{limit[place]:.4g}"
    )
