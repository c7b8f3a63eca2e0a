"""The clustering step as a whole: from a heatmap store to folders of images, contact sheets, animations and tables."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.errors import DataError
from lrp_onnx.folders import folder_written_whole, link_or_copy, refuse_folder
from lrp_onnx.hudd.charts import curve_chart, dendrogram_chart, neighbour_chart
from lrp_onnx.hudd.clusters import FEATURES, NOISE, Clustering
from lrp_onnx.hudd.distances import Distances
from lrp_onnx.hudd.gallery import groups, write_gallery
from lrp_onnx.hudd.grouping import Progress, by_features, by_heatmaps, check_profile
from lrp_onnx.hudd.records import CHOSEN, CLUSTERING, DISTANCES, write_tables
from lrp_onnx.hudd.samples import Samples
from lrp_onnx.hudd.spreadsheet import MOST_IMAGES, export_xlsx, xlsx_writer
from lrp_onnx.render import save_png
from lrp_onnx.render.charts import RGB
from lrp_onnx.store import HeatmapStore
from lrp_onnx.store.disk import disk_errors

INSPECTED = 5  # images of a cluster that a person looks at, in HUDD's evaluation
ANALYSIS, SPREADSHEET = "ClusterAnalysis", f"{CHOSEN}-distances.xlsx"
_LONGEST_NAME = 60


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
    spreadsheet : pathlib.Path or None
        The distances of the layer, where that was asked for.
    notes : tuple of str
        What was left out, and why.
    """

    folder: Path
    chosen: Path
    clustering: Clustering
    clusters: tuple[ClusterSummary, ...]
    images: int
    without_image: int
    spreadsheet: Path | None
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
    micro: int | None = None,
    device: str = "cpu",
    scheduler: str | None = None,
    model: str | os.PathLike[str] | None = None,
    backbone: str | os.PathLike[str] | None = None,
    heatmaps: bool = True,
    xlsx: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Clustered:
    """Cluster the errors of a heatmap store and write what a person looks at.

    Images known to be handled correctly are left out. Without `layer`, those of `eligible_layers` compete; the input is
    used when there is no inner layer.

    Profile `features` is for comparison (Attaoui et al. 2023): it compares what a layer of a network makes of the
    images instead of heatmaps, see `compute_features` and `cluster_features`.

    Under `out` appear ``distances.h5``, ``ClusterAnalysis/Layer<place>-<name>/`` (see `write_clusters`) and a copy of
    that folder, ``LayerX/``. After a kill the same call goes on; no distances are computed twice.

    Parameters
    ----------
    store, out : path-like
    profile : {"default", "hudd", "features"}
    k, layer, linkage, min_size
        As in `cluster`; in profile `features`, `layer` is a tensor of the network and `min_size` as in
        `cluster_features`.
    metric, reduce
        As in `pairwise`.
    micro : int, optional
        Cluster so many errors that stand for all, which the others join (`choose_representatives`,
        `join_representatives`); 0: all of them. By default 5,000 where there are more than 20,000 errors.
    device : str
        Where distances between heatmaps are computed, as in `pairwise`.
    scheduler : str, optional
        The same for many processes, as in `compute_distances`.
    model, backbone : path-like, optional
        For profile `features`: the ONNX model that the heatmaps are of, or another network to use in its place.
    heatmaps : bool
        Show the heatmap of the input beside each image.
    xlsx : bool
        Write the distances of the layer to ``LayerX-distances.xlsx`` too.
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
    given = {
        "k": k is not None,
        "linkage": linkage != "ward",
        "metric": metric != "euclidean",
        "reduce": reduce != "none",
        "micro": micro is not None,
        "device": device != "cpu",
        "scheduler": scheduler is not None,
    }
    check_profile(profile, [name for name in given if given[name]], has_network=bool(model or backbone))
    if xlsx:
        xlsx_writer()  # a missing package should show before the work
    refuse_folder(root / CHOSEN, CLUSTERING, overwrite)
    with disk_errors(root / SPREADSHEET):
        (root / SPREADSHEET).unlink(missing_ok=True)  # it belongs to the clusters that are replaced now
    with HeatmapStore(store) as heatmap_store:
        rows, notes = _errors(heatmap_store)
        place = heatmap_store, rows, root / DISTANCES
        options: dict[str, Any] = {"layer": layer, "min_size": min_size, "overwrite": overwrite, "progress": report}
        charts = None
        if profile == FEATURES:
            dense, more = by_features(*place, model=model, backbone=backbone, **options)
            clustering, charts = dense.clustering, {"curve.png": neighbour_chart(dense)}
        else:
            options |= {
                "metric": metric,
                "reduce": reduce,
                "micro": micro,
                "device": device,
                "scheduler": scheduler,
                "k": k,
                "linkage": linkage,
            }
            clustering, more = by_heatmaps(*place, profile=profile, **options)
        notes += more
        with Distances(root / DISTANCES) as distances:
            spreadsheet = _spreadsheet(root / SPREADSHEET, distances, clustering.layer, notes) if xlsx else None
            folder, without = write_clusters(
                heatmap_store,
                distances,
                clustering,
                root,
                heatmaps=heatmaps,
                charts=charts,
                progress=lambda done, total: report("Drawing", done, total),
            )
            summaries = summarise(heatmap_store, distances.rows, clustering)
    images = len(clustering.labels)
    return Clustered(folder, root / CHOSEN, clustering, summaries, images, without, spreadsheet, tuple(notes))


def write_clusters(
    store: HeatmapStore,
    distances: Distances,
    clustering: Clustering,
    out: str | os.PathLike[str],
    *,
    heatmaps: bool = True,
    charts: Mapping[str, RGB] | None = None,
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
    charts : mapping of str to uint8 array (H, W, 3), optional
        Pictures by file name, in place of ``curve.png`` and ``dendrogram.png``.
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
    order = max(0, int(distances[clustering.layer].attrs["order"]))  # it is below 0 for what is no inner layer
    name = re.sub(r"[^\w.-]+", "_", clustering.layer).strip("_")[-_LONGEST_NAME:]
    folder = root / ANALYSIS / f"Layer{order}-{name}"
    samples = Samples(store, heatmaps=heatmaps)
    # LayerX comes last, so that it is there only when everything is.
    with folder_written_whole(root / CHOSEN, CLUSTERING, overwrite=True) as copy:
        with folder_written_whole(folder, CLUSTERING, overwrite=True) as new:
            without = write_gallery(samples, distances.rows, clustering, new, progress or (lambda done, total: None))
            for file, chart in (_charts(clustering, distances) if charts is None else charts).items():
                save_png(chart, new / file)
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


def _spreadsheet(path: Path, distances: Distances, layer: str, notes: list[str]) -> Path | None:
    compared = distances.representatives
    if len(compared) > MOST_IMAGES:
        notes.append(
            f"no {path.name}: a sheet holds {MOST_IMAGES} images, not {len(compared)}; {DISTANCES} has the distances"
        )
        return None
    paths = distances.paths
    export_xlsx(path, distances[layer][:], [paths[image] for image in compared])
    return path


def _charts(clustering: Clustering, distances: Distances) -> dict[str, RGB]:
    scores = clustering.layers[clustering.layer]
    charts = {"curve.png": curve_chart(scores, clustering.profile)}
    labels = clustering.labels
    tree = dendrogram_chart(scores, labels[distances.representatives], clustering.linkage, len(labels))
    return charts if tree is None else charts | {"dendrogram.png": tree}


def _copy(source: str, target: str) -> None:
    """Pictures are linked; tables are copied, so that a person who edits one does not edit both."""
    if Path(source).suffix in (".csv", ".json"):
        shutil.copyfile(source, target)
    else:
        link_or_copy(source, target)
