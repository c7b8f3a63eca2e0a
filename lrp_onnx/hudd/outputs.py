"""The clustering step as a whole: from a heatmap store to folders of images, contact sheets, animations and tables."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.errors import DataError, StoreError
from lrp_onnx.hudd.charts import curve_chart, dendrogram_chart
from lrp_onnx.hudd.clusters import INPUT, NOISE, Clustering, cluster
from lrp_onnx.hudd.distances import Distances, compute_distances
from lrp_onnx.hudd.folders import folder_written_whole, link_or_copy, refuse_folder
from lrp_onnx.hudd.gallery import groups, write_gallery
from lrp_onnx.hudd.records import CHOSEN, CLUSTERING, DISTANCES, write_tables
from lrp_onnx.hudd.samples import Samples
from lrp_onnx.render import save_png
from lrp_onnx.store import HeatmapStore

Progress = Callable[[str, int, int], None]
INSPECTED = 5  # images of a cluster that a person looks at, in HUDD's evaluation
ANALYSIS = "ClusterAnalysis"
_ROWS_TRIED, _LONGEST_NAME = 64, 60


@dataclass(frozen=True)
class ClusterSummary:
    """A cluster in a few words.

    Attributes
    ----------
    cluster : int
        -1 for noise.
    size : int
    medoid : str or None
        Path of the medoid's image; None for noise.
    silhouette : float
        Mean of its images.
    confusions : tuple of (str, str, int)
        Expected class, predicted class, and how many images; the most frequent first. Empty where nothing is expected.
    """

    cluster: int
    size: int
    medoid: str | None
    silhouette: float
    confusions: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True, eq=False)
class Clustered:
    """What `cluster_store` found and wrote.

    Attributes
    ----------
    folder, chosen : pathlib.Path
        The folder of the layer, and its copy `LayerX`.
    clustering : Clustering
    clusters : tuple of ClusterSummary
        Largest first; noise, if any, last.
    images : int
        Errors that were clustered.
    without_image : int
        Those whose image could not be read again.
    notes : tuple of str
        What was left out, and why.
    """

    folder: Path
    chosen: Path
    clustering: Clustering
    clusters: tuple[ClusterSummary, ...]
    images: int
    without_image: int
    notes: tuple[str, ...]

    @property
    def inspected(self) -> int:
        """Images to look at: five a cluster, or all of a smaller one; noise belongs to no cluster."""
        return sum(min(INSPECTED, one.size) for one in self.clusters if one.cluster != NOISE)


def cluster_store(
    store: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    profile: str = "default",
    k: int | None = None,
    layer: str | None = None,
    linkage: str = "ward",
    min_size: int | None = None,
    metric: str = "euclidean",
    reduce: str = "none",
    heatmaps: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Clustered:
    """Cluster the errors of a heatmap store and write what a person looks at.

    Images known to be handled correctly are left out. Without `layer`, all inner layers compete, but for the one that
    relevance starts from: it only says what was predicted. The input is used when there is no inner layer.

    Under `out` appear ``distances.h5``, ``ClusterAnalysis/Layer<place>-<name>/`` (see `write_clusters`) and a copy of
    that folder, ``LayerX/``. After a kill the same call goes on; no distances are computed twice.

    Parameters
    ----------
    store, out : path-like
    profile, k, layer, linkage, min_size
        As in `cluster`.
    metric, reduce
        As in `pairwise`.
    heatmaps : bool
        Show the heatmap of the input beside each image.
    overwrite : bool
        Replace earlier clusters in `out`; distances are only computed again if they were made otherwise.
    progress : callable (step, done, total), optional

    Raises
    ------
    DataError
        Fewer than two errors, or options that do not fit.
    StoreError
        The store cannot be read, or distances were made otherwise.
    OutputError
        There are clusters in `out` already, or it cannot be written.
    """
    root, report = Path(out), progress or (lambda step, done, total: None)
    refuse_folder(root / CHOSEN, CLUSTERING, overwrite)
    with HeatmapStore(store) as heatmap_store:
        rows, notes = _errors(heatmap_store)
        layers = [layer] if layer is not None else eligible_layers(heatmap_store)
        if layers == [INPUT] and layer is None:
            notes.append("no inner layer in the store: images are compared by the heatmaps of the input")
        options: dict[str, Any] = {"profile": profile, "layers": layers, "rows": rows}
        options |= {"metric": metric, "reduce": reduce, "progress": _over_layers(layers, report)}
        try:
            compute_distances(heatmap_store, root / DISTANCES, **options)
        except StoreError:
            if not overwrite:
                raise
            compute_distances(heatmap_store, root / DISTANCES, **options, overwrite=True)
        with Distances(root / DISTANCES) as distances:
            report("Clustering", 0, 1)
            wanted = {name: distances[name] for name in layers}
            clustering = cluster(wanted, profile, k=k, layer=layer, linkage=linkage, min_size=min_size)
            report("Clustering", 1, 1)
            folder, without = write_clusters(
                heatmap_store,
                distances,
                clustering,
                root,
                heatmaps=heatmaps,
                progress=lambda done, total: report("Drawing", done, total),
            )
            summaries = summarise(heatmap_store, distances.rows, clustering)
    return Clustered(folder, root / CHOSEN, clustering, summaries, len(rows), without, tuple(notes))


def eligible_layers(store: HeatmapStore) -> list[str]:
    """Layers that can tell causes apart: the inner ones without those that only repeat what was predicted.

    The relevance of the tensor that it starts from, and of the same tensor in another shape, is that of one output and
    0 for all others. It separates the predicted classes perfectly, and would always win.

    Returns
    -------
    list of str
        In graph order; "input" alone when nothing else is left.
    """
    names, outputs = store.layer_names, int(np.prod(store.prediction.shape[1:]))
    start = store.conservation[0][-1] if store.conservation is not None else None
    rows = store.done[:_ROWS_TRIED]
    while names and (names[-1] == start or _one_output(store.layer(names[-1])[rows], outputs)):
        names.pop()
    return names or [INPUT]


def write_clusters(
    store: HeatmapStore,
    distances: Distances,
    clustering: Clustering,
    out: str | os.PathLike[str],
    *,
    heatmaps: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Path, int]:
    """Write the clusters of a layer, and a copy of the folder as `LayerX`; earlier ones are replaced.

    The folder holds, for each cluster and for noise: a folder of its images (hard links where possible), the medoid
    first, a contact sheet ``<cluster>.png`` of at most 48 and an animation ``<cluster>.gif`` of at most 200 images,
    from the medoid to the farthest. Beside them: ``clusters.csv`` (a row an image), ``scores.csv`` (a row a layer and
    k), ``curve.png``, ``dendrogram.png`` (up to 200 clusters) and ``clustering.json``, which `read_clusters` reads.

    Parameters
    ----------
    store, distances, clustering
        Of each other.
    out : path-like
        The folder with ``distances.h5``.
    heatmaps : bool
    progress : callable (done, total), optional
        Called as images are done.

    Returns
    -------
    pathlib.Path, int
        The folder, and how many images could not be read again.

    Raises
    ------
    OutputError
        When it cannot be written, or something else is in its place; what was there before stays.
    """
    root = Path(out)
    order = 0 if clustering.layer == INPUT else int(store.layer(clustering.layer).attrs["order"])
    name = re.sub(r"[^\w.-]+", "_", clustering.layer).strip("_")[-_LONGEST_NAME:]
    folder = root / ANALYSIS / f"Layer{order}-{name}"
    scores = clustering.layers[clustering.layer]
    samples = Samples(store, heatmaps=heatmaps)
    # LayerX comes last, so that it is there only when everything is.
    with folder_written_whole(root / CHOSEN, CLUSTERING, overwrite=True) as copy:
        with folder_written_whole(folder, CLUSTERING, overwrite=True) as new:
            without = write_gallery(samples, distances.rows, clustering, new, progress or (lambda done, total: None))
            save_png(curve_chart(scores, clustering.profile), new / "curve.png")
            tree = dendrogram_chart(scores, clustering.labels, clustering.linkage)
            if tree is not None:
                save_png(tree, new / "dendrogram.png")
            write_tables(samples, distances, clustering, new, root)
        shutil.copytree(folder, copy, copy_function=_copy, dirs_exist_ok=True)
    return folder, without


def summarise(store: HeatmapStore, rows: NDArray[np.int64], clustering: Clustering) -> tuple[ClusterSummary, ...]:
    """Each cluster in a few words; `rows` (n,) says which row of the store each clustered image is."""
    samples, found = Samples(store), []
    for label in groups(clustering):
        members = np.flatnonzero(clustering.labels == label)
        pairs = Counter((samples.expected(row), samples.predicted(row)) for row in rows[members].tolist())
        known = samples.targets is None
        medoid = clustering.medoids.get(label)
        found.append(
            ClusterSummary(
                cluster=label,
                size=len(members),
                medoid=None if medoid is None else samples.path(int(rows[medoid])),
                silhouette=float(clustering.silhouettes[members].mean()),
                confusions=tuple((*pair, count) for pair, count in pairs.most_common() if known and pair[0]),
            )
        )
    return tuple(found)


def _errors(store: HeatmapStore) -> tuple[NDArray[np.int64], list[str]]:
    """Rows to cluster, and what was left out."""
    done, correct = store.done, store.samples["correct"]
    rows, notes = done[correct[done] != 1], []
    if len(done) < len(store):
        notes.append(f"{len(store) - len(done)} of {len(store)} images have no finished heatmap and are left out")
    if len(rows) < len(done):
        notes.append(f"{len(done) - len(rows)} correctly handled images are left out")
    if not len(rows):
        raise DataError(f"{store.path}: no errors among its {len(done)} images with a heatmap, so nothing to cluster")
    if len(rows) == 1:
        path = store.samples["path"][rows[0]]
        raise DataError(f"{store.path}: one error only, so nothing to cluster; look at {path}")
    return rows, notes


def _one_output(relevance: NDArray[np.floating], outputs: int) -> bool:
    flat = relevance.reshape(len(relevance), -1)
    return flat.shape[1] == outputs and bool(((flat != 0).sum(axis=1) <= 1).all())


def _over_layers(layers: list[str], report: Progress) -> Callable[[str, int, int], None]:
    """Progress over the pairs of all layers, from progress layer by layer."""
    return lambda layer, done, pairs: report("Comparing", layers.index(layer) * pairs + done, len(layers) * pairs)


def _copy(source: str, target: str) -> None:
    """Pictures are linked; tables are copied, so that a person who edits one does not edit both."""
    if Path(source).suffix in (".csv", ".json"):
        shutil.copyfile(source, target)
    else:
        link_or_copy(source, target)
