"""Profile `features`, for comparison: clusters are where images lie close together, found by UMAP and DBSCAN."""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.errors import DataError
from lrp_onnx.hudd.clusters import FEATURES, NOISE, Clustering, LayerScores, distances_to, medoids_of, numbered_by_size
from lrp_onnx.hudd.curves import IDENTICAL, Curves, knee_of
from lrp_onnx.hudd.tree import Cut, Floats, Labels, cut

# UMAP: its authors' advice for clustering is many neighbours and no least distance; as many neighbours as it has by
# default, so that clusters of a few images are not drowned. Planted clusters were found best in 5 dimensions.
NEIGHBOURS, DIMENSIONS, SEED = 15, 5, 0
FEWEST = NEIGHBOURS + 1  # fewer images have not so many neighbours: they are compared as they are
LEAST, LEAST_OF_FEW = 5, 3  # images that make a place dense
_SHARE = 0.95  # of the images that have dense surroundings when the distances show no knee


@dataclass(frozen=True, eq=False)
class DenseClusters:
    """Clusters by density, and how dense is dense.

    Attributes
    ----------
    clustering : Clustering
    least : int
        Images that make a place dense.
    neighbours : array (n,)
        Distance within which each image has so many, itself counted; ascending.
    eps : float
        Distance within which they must be.
    how_eps : str
    """

    clustering: Clustering
    least: int
    neighbours: Floats
    eps: float
    how_eps: str


def cluster_features(
    values: NDArray[Any], condensed: NDArray[Any], *, min_size: int | None = None, origin: str = ""
) -> DenseClusters:
    """Group images by their features, as Attaoui et al. 2023 found best: UMAP, then DBSCAN.

    UMAP takes the features to 5 dimensions (15 neighbours, least distance 0); fewer than 16 images stay as they are.
    DBSCAN finds clusters where `min_size` images lie within eps: the knee of the sorted distances to the `min_size`-th
    nearest (kneedle, convex, increasing), or, where there is none, what 95 % of them are below. Images that are near no
    such place are noise. The seed is fixed: the same features give the same clusters.

    Parameters
    ----------
    values : array (n, features)
    condensed : array (n (n - 1) / 2,)
        Their distances; medoids and silhouettes are on these.
    min_size : int, optional
        5 by default, 3 for fewer than 16 images.
    origin : str
        In words, where the features come from.

    Raises
    ------
    DataError
        When a package is missing, or `min_size` is below 1.
    """
    count = len(values)
    least = min_size if min_size is not None else LEAST if count >= FEWEST else LEAST_OF_FEW
    if least < 1:
        raise DataError(f"smallest cluster {least}; expected 1 or more")
    condensed = np.asarray(condensed[...], dtype=np.float64)
    if condensed.any():
        space, how_space = _embedded(values)
        neighbours = _neighbour_distances(space, min(least, count))
        eps, how_eps = _radius(neighbours)
        places = _dense(space, eps, least)
        how = f"{how_space}, at least {least} images within {eps:.4g}: {how_eps}"
    else:
        neighbours, eps, how_eps = np.zeros(count), 0.0, "all features are identical"
        places, how = np.zeros(count, dtype=np.int64), IDENTICAL.replace("heatmaps", "features")
    return DenseClusters(_describe(places, condensed, how, origin, least, eps), least, neighbours, eps, how_eps)


def _embedded(values: NDArray[Any]) -> tuple[NDArray[Any], str]:
    if len(values) < FEWEST:
        return values, f"DBSCAN on the features ({len(values)} images, too few for UMAP)"
    reducer = _umap()(
        n_neighbors=NEIGHBOURS, n_components=min(DIMENSIONS, values.shape[1]), min_dist=0, random_state=SEED, n_jobs=1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clusters that are far apart are no mistake
        return reducer.fit_transform(values), f"UMAP to {reducer.n_components} dimensions and DBSCAN"


def _umap() -> Any:
    # UMAP imports TensorFlow, if there is one, for a class that is not used here; that takes seconds, and the LLVM of
    # the two of them in one process can end it.
    unused = "umap.parametric_umap"
    blocked = unused not in sys.modules
    if blocked:
        sys.modules[unused] = None  # type: ignore[assignment]
    try:
        from umap import UMAP
    except ImportError as error:
        raise DataError("profile features needs a package: pip install 'lrp-onnx[features]'") from error
    finally:
        if blocked:
            del sys.modules[unused]
    return UMAP


def _neighbour_distances(space: NDArray[Any], nearest: int) -> Floats:
    from scipy.spatial import KDTree

    distances = KDTree(space).query(space, k=[nearest])[0]
    return np.sort(distances[:, 0].astype(np.float64))


def _radius(neighbours: Floats) -> tuple[float, str]:
    at = knee_of(np.arange(len(neighbours)), neighbours, curve="convex", direction="increasing")
    how = "knee (kneedle, convex, increasing) of the sorted distances"
    eps = float(np.quantile(neighbours, _SHARE)) if at is None else float(neighbours[at])
    if at is None:
        how = f"the sorted distances have no knee: {_SHARE:.0%} of them are below"
    return max(eps, float(np.finfo(np.float32).tiny)), how  # images that are alike are 0 apart


def _dense(space: NDArray[Any], eps: float, least: int) -> Labels:
    try:
        from sklearn.cluster import DBSCAN
    except ImportError as error:
        raise DataError("profile features needs a package: pip install 'lrp-onnx[features]'") from error
    return DBSCAN(eps=eps, min_samples=least).fit_predict(space).astype(np.int64)


def _describe(places: Labels, condensed: Floats, how: str, origin: str, least: int, eps: float) -> Clustering:
    """The clustering that DBSCAN's labels (n,), -1 for noise, stand for."""
    count, clusters = len(places), int(places.max()) + 1
    inside = np.flatnonzero(places >= 0)
    labels, silhouettes, medoids = np.full(count, NOISE), np.zeros(count), {}
    weighted = math.nan
    if clusters:
        # Noise is no cluster that images could be close to, so it counts as one only to get it out of the way.
        whole = cut(condensed, np.where(places < 0, clusters, places))
        partition = Cut(places[inside], whole.sizes[:clusters], whole.means[:clusters, inside], whole.within[:clusters])
        silhouettes[inside] = partition.silhouettes()
        labels[inside], _ = numbered_by_size(partition)
        medoids = {label: int(inside[medoid]) for label, medoid in medoids_of(partition, labels[inside]).items()}
        weighted = partition.weighted_distance
    mean = float(condensed.mean())
    mean_silhouette = float(silhouettes[inside].mean()) if clusters > 1 else math.nan
    wicd = weighted / clusters if clusters else math.nan
    point = [np.array([value]) for value in (weighted, wicd, math.nan, mean_silhouette)]
    scores = LayerScores(
        layer=FEATURES,
        k=clusters,
        how_k=how,
        curves=Curves(np.array([clusters]), np.array([clusters]), *point),
        tree=np.empty((0, 4)),
        mean_distance=mean,
        weighted_distance=weighted,
        wicd=wicd,
        silhouette=mean_silhouette,
        score=weighted / mean if mean else math.nan,
    )
    alone = count - len(inside)
    return Clustering(
        profile=FEATURES,
        layer=FEATURES,
        how_layer=origin,
        linkage="none",
        k=clusters,
        how_k=how,
        labels=labels,
        medoids=medoids,
        distance_to_medoid=distances_to(medoids, labels, condensed),
        silhouettes=silhouettes,
        noise=(f"{alone} image(s) with no {least} within {eps:.4g}, nor next to one that has",) if alone else (),
        layers={FEATURES: scores},
    )
