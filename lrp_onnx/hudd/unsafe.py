"""The unsafe set on disk: a folder per cluster, what was selected and why, and the table that a person fills in."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lrp_onnx.data.sources import IMAGE_COLUMN, LABEL_COLUMN
from lrp_onnx.errors import DataError, OutputError
from lrp_onnx.files import written_whole
from lrp_onnx.folders import folder_written_whole, refuse_folder
from lrp_onnx.hudd.assign import Assignment, Selected, assign_stores
from lrp_onnx.hudd.clusters import Clustering
from lrp_onnx.hudd.distances import Distances
from lrp_onnx.hudd.label_table import match_images, read_label_table
from lrp_onnx.hudd.records import read_clusters, write_csv
from lrp_onnx.hudd.samples import Samples
from lrp_onnx.store import HeatmapStore

TABLE, ASSIGNMENT, ASIDE = "unsafe.csv", "assignment.json", "labels.csv"
FORMAT, FORMAT_VERSION = "lrp-onnx-unsafe-set", 1
COLUMNS = (IMAGE_COLUMN, "cluster", "distance", "rank", LABEL_COLUMN, "reason")


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
    labelled, set_aside : int
        Labels of an earlier set that was replaced: of images selected again, and of others (in ``labels.csv``).
    """

    folder: Path
    table: Path
    assignment: Assignment
    images: int
    without_image: int
    labelled: int
    set_aside: int

    @property
    def selected(self) -> dict[int, int]:
        """Images selected for each cluster that may select any."""
        chosen = [one.cluster for one in self.assignment.selected]
        return {cluster: chosen.count(cluster) for cluster in self.assignment.quotas}


@dataclass(frozen=True, eq=False)
class SavedUnsafeSet:
    """An unsafe set read back from its folder.

    Attributes
    ----------
    folder, table : pathlib.Path
    images : int
        Images of the improvement set that were considered.
    layer, profile : str
        Of the clusters.
    factor : float
    quotas, thresholds, too_far, over_quota, explanation
        As in `Assignment`.
    paths : tuple of str
        The selected images.
    selected : tuple of Selected
        In the same order; `Selected.image` is the place in `paths`.
    """

    folder: Path
    table: Path
    images: int
    layer: str
    factor: float
    profile: str
    quotas: Mapping[int, int]
    thresholds: Mapping[int, float] | None
    too_far: int
    over_quota: int
    explanation: str
    paths: tuple[str, ...]
    selected: tuple[Selected, ...]


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

    `out` gets a folder of images per cluster (hard links where possible), nearest first, ``unsafe.csv`` with the
    columns image, cluster, distance, rank, label (empty) and reason, and ``assignment.json``. Nothing selected is a
    valid result.

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
        Replace an earlier unsafe set. Labels that somebody filled in are not lost: images that are selected again have
        them in the new table, those of other images wait in ``labels.csv`` (image, label).
    progress : callable (step, done, total), optional

    Raises
    ------
    DataError
        The clusters or the stores do not fit each other.
    OutputError
        `out` holds something that may not be replaced, such as labels in a table that cannot be understood, or cannot
        be written.
    """
    folder, report = Path(out), progress or (lambda step, done, total: None)
    if (folder / ASSIGNMENT).is_file() and not (folder / TABLE).is_file():
        raise OutputError(
            f"{folder}: {TABLE} is gone; if labels are in it, put it back, else remove the folder to select anew"
        )
    refuse_folder(folder, TABLE, overwrite)
    spare = folder.with_name(f".{folder.name}.{ASIDE}")
    labels = _earlier_labels(folder, spare)
    saved = read_clusters(clusters, store)
    with (
        HeatmapStore(improvement) as images,
        HeatmapStore(saved.store) as errors,
        Distances(saved.distances) as distances,
    ):
        report("Comparing", 0, 1)
        assignment = assign_stores(images, errors, saved.clustering, distances, factor=factor)
        report("Comparing", 1, 1)
        samples, considered = Samples(images), len(images.done)
        paths = [samples.path(one.image) for one in assignment.selected]
        labels = _where_they_are_now(labels, [samples.path(row) for row in images.done.tolist()])
        again = {*paths}
        aside = [(image, labels[image]) for image in labels if image not in again]
        # A process killed while the new folder takes the place of the old one leaves neither; the labels are here then.
        if labels:
            with written_whole(spare, overwrite=True) as new:
                write_csv(new, (IMAGE_COLUMN, LABEL_COLUMN), list(labels.items()))
        try:
            with folder_written_whole(folder, TABLE, overwrite=overwrite) as new:
                without = _place(samples, assignment, new, report)
                rows = zip(paths, assignment.selected, strict=True)
                cells = ((image, *_cells(one, assignment, labels.get(image, ""))) for image, one in rows)
                write_csv(new / TABLE, COLUMNS, cells)
                if aside:
                    write_csv(new / ASIDE, (IMAGE_COLUMN, LABEL_COLUMN), aside)
                _write_assignment(new / ASSIGNMENT, assignment, paths, considered, factor, saved.clustering)
                _keep_others(folder, new)
        finally:
            if (folder / TABLE).is_file():
                spare.unlink(missing_ok=True)
    return UnsafeSet(folder, folder / TABLE, assignment, considered, without, len(labels) - len(aside), len(aside))


def read_unsafe(unsafe: str | os.PathLike[str]) -> SavedUnsafeSet:
    """Read back what `assign_store` selected; labels are read by `read_labels`.

    Parameters
    ----------
    unsafe : path-like
        The folder, or the table in it.

    Raises
    ------
    DataError
        There is no unsafe set, or none that can be used.
    """
    given = Path(unsafe)
    folder = given if given.is_dir() else given.parent
    path = folder / ASSIGNMENT
    if not path.is_file():
        raise DataError(f"{given}: no unsafe set there ({ASSIGNMENT}); make it with `lrp-onnx assign`")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT or values["format_version"] > FORMAT_VERSION:
            raise ValueError(f"format {values['format']} {values['format_version']}")
        chosen, limits = values["selected"], values["thresholds"]
        plain = ("images", "layer", "factor", "profile", "too_far", "over_quota", "explanation")
        return SavedUnsafeSet(
            folder=folder,
            table=folder / TABLE if given.is_dir() else given,
            **{name: values[name] for name in plain},
            quotas={int(cluster): quota for cluster, quota in values["quotas"].items()},
            thresholds=None if limits is None else {int(cluster): limit for cluster, limit in limits.items()},
            paths=tuple(one["image"] for one in chosen),
            selected=tuple(Selected(**{**one, "image": place}) for place, one in enumerate(chosen)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: cannot be used ({error}); make it again with `lrp-onnx assign --overwrite`, which keeps labels"
        ) from error


def _write_assignment(
    path: Path, assignment: Assignment, paths: list[str], images: int, factor: float, clustering: Clustering
) -> None:
    limits = assignment.thresholds
    values: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "images": images,
        "layer": clustering.layer,
        "factor": factor,
        "profile": clustering.profile,
        "quotas": {str(cluster): quota for cluster, quota in assignment.quotas.items()},
        "thresholds": None if limits is None else {str(cluster): limit for cluster, limit in limits.items()},
        "too_far": assignment.too_far,
        "over_quota": assignment.over_quota,
        "explanation": assignment.explanation,
        "selected": [{**asdict(one), "image": image} for image, one in zip(paths, assignment.selected, strict=True)],
    }
    path.write_text(json.dumps(values, ensure_ascii=False, indent=1), encoding="utf-8")


def _keep_others(old: Path, new: Path) -> None:
    """Take along files that people put beside the table, such as the spreadsheet in which they label."""
    for path in old.iterdir() if old.is_dir() else ():
        if path.is_file() and path.name not in (TABLE, ASSIGNMENT, ASIDE):
            shutil.copy2(path, new)


def _place(samples: Samples, assignment: Assignment, folder: Path, report: Callable[[str, int, int], None]) -> int:
    without = 0
    for done, one in enumerate(assignment.selected, start=1):
        (folder / str(one.cluster)).mkdir(exist_ok=True)
        without += not samples.place(one.image, folder / str(one.cluster), one.rank)
        report("Copying", done, len(assignment.selected))
    return without


def _cells(one: Selected, assignment: Assignment, label: str) -> tuple[int, str, int, str, str]:
    """Cluster, distance, rank, the label, and the reason."""
    limits = assignment.thresholds
    reason = "nearest cluster" if one.choice == 1 else f"nearest cluster with room, {one.choice - 1} nearer without"
    if limits is not None:
        reason += f"; within its threshold {limits[one.cluster]:.4g}"
    reason += f"; place {one.rank} of at most {assignment.quotas[one.cluster]}"
    return one.cluster, f"{one.distance:.6g}", one.rank, label, reason


def _earlier_labels(folder: Path, spare: Path) -> dict[str, str]:
    """Labels by image of the set in `folder`; where a killed process left none, those that it had put into `spare`."""
    try:
        if not (folder / TABLE).is_file():
            return _labels_in(spare, ()) if spare.is_file() else {}
        known = read_unsafe(folder).paths if (folder / ASSIGNMENT).is_file() else ()
        waiting = _labels_in(folder / ASIDE, ()) if (folder / ASIDE).is_file() else {}
        return waiting | _labels_in(folder / TABLE, known)
    except DataError as error:
        raise OutputError(f"{error}; it may hold labels: mend it, move it away, or name another folder") from error


def _where_they_are_now(labels: dict[str, str], images: list[str]) -> dict[str, str]:
    """Labels by the present paths of their images, where the whole improvement set was moved or copied.

    Where any image is still at its place, another one of the same name is another image.
    """
    if not labels.keys().isdisjoint(images):
        return labels
    places = match_images(list(labels), images)
    return {
        image if place is None else images[place]: label
        for (image, label), place in zip(labels.items(), places, strict=True)
    }


def _labels_in(path: Path, known: tuple[str, ...]) -> dict[str, str]:
    rows = read_label_table(path).rows
    found: dict[str, str] = {}
    for row, place in zip(rows, match_images([row.image for row in rows], known), strict=True):
        image = row.image if place is None else known[place]
        if row.label and found.setdefault(image, row.label) != row.label:
            raise DataError(f"{path}, line {row.line}: {image} has the labels '{found[image]}' and '{row.label}'")
    return found
