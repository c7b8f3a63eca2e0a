"""More errors than can be compared pair by pair: some stand for all, are clustered, and the others join them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lrp_onnx.errors import DataError
from lrp_onnx.hudd.blocks import MEMORY, HeatmapRows, between
from lrp_onnx.hudd.clusters import LOOSEST, Clustering, medoids_of, numbered_by_size, smallest, thresholds
from lrp_onnx.hudd.tree import Cut, Floats, Labels, cut, labels_after, merges_for

if TYPE_CHECKING:
    from lrp_onnx.hudd.distances import Distances

EXACT = 20_000  # more errors than this are not compared pair by pair unless that is asked for; see docs/scaling.md
MICRO = 5_000  # micro-clusters then
SEED = 0
_WIDTH = 256  # values an error has in the sketch: squared distances are off by a standard deviation of 9 %
_SLAB = 8192  # features projected at a time


def micro_count(errors: int, asked: int | None) -> int:
    """How many micro-clusters to make of some errors, 0 for none: `asked` for, or as many as are needed by default.

    Raises
    ------
    DataError
        When fewer than two are asked for, but not 0.
    """
    if asked is not None and (asked < 0 or asked == 1):
        raise DataError(f"{asked} micro-clusters; expected 2 or more, or 0 to compare all errors pair by pair")
    count = (MICRO if errors > EXACT else 0) if asked is None else asked
    return count if count < errors else 0


def choose_representatives(
    layers: Mapping[str, HeatmapRows],
    count: int,
    *,
    memory: int = MEMORY,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.int64]:
    """Errors that stand for all: the nearest to the centre of each of `count` micro-clusters.

    All layers are taken together: the heatmaps of a layer, scaled to unit norm, times a random matrix of signs
    (Achlioptas 2003), summed over the layers, are a sketch of 256 values an error, in which squared distances are, but
    for 9 % by chance, the mean of those in the layers. Mini-batch k-means (Sculley 2010) groups the sketches. The seed
    is fixed.

    Parameters
    ----------
    layers : mapping of str to HeatmapRows
        The same n errors in each.
    count : int
        Below n.
    memory : int
        Bytes that heatmaps may take; the sketch takes 1 KiB an error, the matrix 256 bytes a feature beside it.
    progress : callable (done, total), optional

    Returns
    -------
    int array (m,)
        Places among the n errors, ascending; m is `count` or a little less: centres may share their nearest error.

    Raises
    ------
    DataError
        When scikit-learn is missing, or a heatmap is not finite.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
        from sklearn.metrics import pairwise_distances_argmin
    except ImportError as error:
        raise DataError("micro-clusters need a package: pip install 'lrp-onnx[scale]'") from error
    report, errors = progress or (lambda done, total: None), len(next(iter(layers.values())))
    steps = len(layers) + 1
    sketch = np.zeros((errors, _WIDTH), dtype=np.float32)
    for step, reader in enumerate(layers.values()):
        for start, stop, part in _projected(reader, step, memory):
            sketch[start:stop] += part
            report(step * errors + stop, steps * errors)
    # Random starts, because k-means++ would take longer than all the rest, and so many centres need no better ones.
    means = MiniBatchKMeans(
        count, init="random", n_init=1, batch_size=2 * count, compute_labels=False, random_state=SEED
    ).fit(sketch)
    found = np.unique(pairwise_distances_argmin(means.cluster_centers_, sketch))
    report(steps * errors, steps * errors)
    return found.astype(np.int64)


def join_representatives(
    found: Clustering,
    distances: Distances,
    heatmaps: NDArray[Any] | h5py.Dataset,
    *,
    min_size: int | None = None,
    memory: int = MEMORY,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Clustering:
    """The clusters of all errors, from those of their representatives: each error joins its nearest one.

    Nearest in the layer of the clusters, by distances that are exact. Medoids are representatives. The silhouette of an
    error is on its mean distances to the representatives of the clusters. The threshold of a cluster is, as ever, the
    largest distance from a member to the nearest other that an image could be compared to: here, a representative.

    Parameters
    ----------
    found : Clustering
        Of the representatives, by `cluster`.
    distances : Distances
        What `found` was made from.
    heatmaps : array or h5py dataset (N, …)
        Of the store, at the layer of the clusters.
    min_size : int, optional
        As in `cluster`, of all errors.
    memory, device
        As in `pairwise`.
    progress : callable (done, total), optional

    Returns
    -------
    Clustering
        With labels of all n errors; `layers` stay those of the representatives.
    """
    scores, chosen, rows = found.layers[found.layer], distances.representatives, distances.rows
    condensed = distances[found.layer][:]
    partition = cut(condensed, labels_after(scores.tree, merges_for(scores.tree, scores.k)))
    options = {name: getattr(distances, name) for name in ("metric", "scaling", "reduce", "dtype")}
    everyone, some = (HeatmapRows(heatmaps, which, device=device, **options) for which in (rows, rows[chosen]))
    stands_for = np.full(len(rows), -1)  # which representative an error is itself
    stands_for[chosen] = np.arange(len(chosen))
    medoids = np.array(list(medoids_of(partition, partition.labels + 1).values()))
    places, (to_nearest, to_medoid, silhouettes) = np.empty(len(rows), np.int64), np.empty((3, len(rows)))
    for _, tiles in groupby(between(everyone, some, memory), key=lambda tile: tile[0].start):
        heres, _, parts = zip(*tiles, strict=True)
        here, to_all = heres[0], np.concatenate(parts, axis=1)  # (rows, representatives)
        nearest = np.where(stands_for[here] < 0, to_all.argmin(axis=1), stands_for[here])
        places[here] = partition.labels[nearest]
        to_nearest[here] = np.take_along_axis(to_all, nearest[:, None], axis=1)[:, 0]
        to_medoid[here] = np.take_along_axis(to_all, medoids[places[here], None], axis=1)[:, 0]
        silhouettes[here] = _silhouettes(to_all, partition, places[here], stands_for[here] >= 0)
        if progress is not None:
            progress(here.stop, len(rows))
    sizes = np.bincount(places, minlength=partition.count).astype(np.float64)
    loosest = LOOSEST * float(condensed.mean(dtype=np.float64)) if found.profile == "default" else np.inf
    whole = Cut(places, sizes, partition.means, partition.within)
    labels, noise = numbered_by_size(whole, smallest(found.profile, min_size), loosest)
    limits = thresholds(condensed, labels[chosen])
    for label in range(1, int(labels.max()) + 1):
        joined = to_nearest[(labels == label) & (stands_for < 0)]
        if len(joined):
            limits[label] = max(limits.get(label, 0.0), float(joined.max()))
    named = {int(labels[image]): int(image) for image in chosen[medoids] if labels[image] > 0}
    return replace(
        found,
        how_k=f"{found.how_k}, on {len(chosen)} errors that stand for all {len(rows)}",
        labels=labels,
        medoids=dict(sorted(named.items())),
        distance_to_medoid=np.where(labels > 0, to_medoid, np.nan),
        silhouettes=silhouettes,
        noise=noise,
        thresholds=limits,
    )


def _projected(reader: HeatmapRows, step: int, memory: int) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
    """Sketches of blocks of rows, (start, stop, array (rows, width))."""
    import torch

    random = np.random.default_rng([SEED, step])
    signs = random.integers(0, 2, (reader.features, _WIDTH), dtype=np.int8)
    signs *= 2
    signs -= 1
    blocks = reader.blocks(memory)
    buffer = reader.buffer(blocks)
    for start, stop in blocks:
        block, part = reader.read(start, stop, buffer), torch.zeros((stop - start, _WIDTH))
        for first in range(0, reader.features, _SLAB):
            slab = slice(first, first + _SLAB)
            part += block.rows[:, slab] @ torch.from_numpy(signs[slab]).float()
        part *= block.scale[:, None]
        yield start, stop, part.numpy() / np.sqrt(_WIDTH)


def _silhouettes(to_all: Floats, partition: Cut, places: Labels, itself: NDArray[np.bool_]) -> Floats:
    """Silhouettes on the distances (rows, representatives) of errors, some of which are representatives themselves."""
    if partition.count == 1:
        return np.zeros(len(to_all))
    member = np.eye(partition.count, dtype=to_all.dtype)[partition.labels]
    sums, lines = to_all @ member, np.arange(len(to_all))
    fellows = partition.sizes[places] - itself
    inside = sums[lines, places] / np.maximum(fellows, 1)
    means = sums / partition.sizes
    means[lines, places] = np.inf
    nearest = means.min(axis=1)
    larger = np.maximum(inside, nearest)
    return np.divide(nearest - inside, larger, out=np.zeros(len(larger)), where=(larger > 0) & (fellows > 0))
