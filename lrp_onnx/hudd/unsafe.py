"""The unsafe set on disk: a folder per cluster, and the table in which a person fills in labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lrp_onnx.errors import DataError, OutputError
from lrp_onnx.hudd.assign import Assignment, Selected, assign_stores
from lrp_onnx.hudd.clusters import INPUT
from lrp_onnx.hudd.distances import Distances
from lrp_onnx.hudd.folders import folder_written_whole, refuse_folder
from lrp_onnx.hudd.records import read_clusters, write_csv
from lrp_onnx.hudd.samples import Samples
from lrp_onnx.store import HeatmapStore

TABLE = "unsafe.csv"
LABEL = "label"
COLUMNS = ("image", "cluster", "distance", "rank", LABEL, "reason")


@dataclass(frozen=True, eq=False)
class UnsafeSet:
    """What `assign_store` found and wrote.

    Attributes
    ----------
    folder, table : pathlib.Path
    assignment : Assignment
    images : int
        Images of the improvement set that were considered.
    without_image : int
        Selected images that could not be read again.
    """

    folder: Path
    table: Path
    assignment: Assignment
    images: int
    without_image: int

    @property
    def selected(self) -> dict[int, int]:
        """Images selected for each cluster that may select any."""
        chosen = [one.cluster for one in self.assignment.selected]
        return {cluster: chosen.count(cluster) for cluster in self.assignment.quotas}


def assign_store(
    improvement: str | os.PathLike[str],
    clusters: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    store: str | os.PathLike[str] | None = None,
    factor: float = 2.0,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> UnsafeSet:
    """Select the images of an improvement set that resemble the clusters, and write them down for labelling.

    `out` gets a folder of images per cluster (hard links where possible), nearest first, and ``unsafe.csv`` with the
    columns image, cluster, distance, rank, label (empty) and reason. Nothing selected is a valid result.

    Parameters
    ----------
    improvement : path-like
        Heatmap store of the improvement set, with the layer of the clusters.
    clusters, store : path-like
        As in `read_clusters`.
    out : path-like
    factor : float
        A cluster selects at most so many times as many images as it has.
    overwrite : bool
        Replace an earlier unsafe set, unless somebody has filled in labels.
    progress : callable (step, done, total), optional

    Raises
    ------
    DataError
        The clusters or the stores do not fit each other.
    OutputError
        `out` holds something that may not be replaced, or cannot be written.
    """
    folder, report = Path(out), progress or (lambda step, done, total: None)
    refuse_folder(folder, TABLE, overwrite)
    if _labelled(folder / TABLE):
        raise OutputError(
            f"{folder / TABLE} holds labels that somebody filled in; move it away, or name another folder"
        )
    saved = read_clusters(clusters, store)
    with (
        HeatmapStore(improvement) as images,
        HeatmapStore(saved.store) as errors,
        Distances(saved.distances) as distances,
    ):
        layer = saved.clustering.layer
        if layer not in (INPUT, *images.layer_names):
            raise DataError(
                f"{images.path}: has no heatmaps of the clusters' layer; make it with "
                f"`lrp-onnx heatmaps … --layers '{layer}'`"
            )
        report("Comparing", 0, 1)
        assignment = assign_stores(images, errors, saved.clustering, distances, factor=factor)
        report("Comparing", 1, 1)
        samples = Samples(images)
        with folder_written_whole(folder, TABLE, overwrite=overwrite) as new:
            without = _place(samples, assignment, new, report)
            rows = ((samples.path(one.image), *_cells(one, assignment)) for one in assignment.selected)
            write_csv(new / TABLE, COLUMNS, rows)
        return UnsafeSet(folder, folder / TABLE, assignment, len(images.done), without)


def _place(samples: Samples, assignment: Assignment, folder: Path, report: Callable[[str, int, int], None]) -> int:
    without = 0
    for done, one in enumerate(assignment.selected, start=1):
        (folder / str(one.cluster)).mkdir(exist_ok=True)
        without += not samples.place(one.image, folder / str(one.cluster), one.rank)
        report("Copying", done, len(assignment.selected))
    return without


def _cells(one: Selected, assignment: Assignment) -> tuple[int, str, int, str, str]:
    """Cluster, distance, rank, the label to fill in, and the reason."""
    limits = assignment.thresholds
    reason = "nearest cluster" if one.choice == 1 else f"nearest cluster with room, {one.choice - 1} nearer without"
    if limits is not None:
        reason += f"; within its threshold {limits[one.cluster]:.4g}"
    reason += f"; place {one.rank} of at most {assignment.quotas[one.cluster]}"
    return one.cluster, f"{one.distance:.6g}", one.rank, "", reason


def _labelled(table: Path) -> bool:
    """Whether a table, perhaps saved by a spreadsheet, has labels; one that cannot be understood might have."""
    if not table.is_file():
        return False
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
        separator = max(",;\t", key=lines[0].count)
        return any(row[LABEL].strip() for row in csv.DictReader(lines, delimiter=separator))
    except (UnicodeDecodeError, IndexError, KeyError, AttributeError):
        return True
