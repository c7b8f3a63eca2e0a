"""The report of a case: one HTML file that a safety engineer can read, print and file, made from what is on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lrp_onnx import __version__
from lrp_onnx.errors import DataError
from lrp_onnx.files import refuse_existing, written_whole
from lrp_onnx.hudd.clusters import NOISE
from lrp_onnx.hudd.distances import Distances
from lrp_onnx.hudd.outputs import INSPECTED
from lrp_onnx.hudd.records import CLUSTERING, CLUSTERS, SCORES, SavedClusters, read_clusters
from lrp_onnx.hudd.report.charts import curve_charts, training_charts
from lrp_onnx.hudd.report.clusters import cluster_sections, noise_shown
from lrp_onnx.hudd.report.pictures import worsened_shown
from lrp_onnx.hudd.report.record import hashed, run_parameters, versions
from lrp_onnx.hudd.report.steps import (
    UnsafeSummary,
    read_json,
    read_results,
    read_retraining,
    summarise_unsafe,
)
from lrp_onnx.hudd.unsafe import ASSIGNMENT
from lrp_onnx.render.page import colours, page_template, picture_file
from lrp_onnx.store import HeatmapStore

Paths = str | os.PathLike[str]

_MOST_OPEN = 12  # clusters that start unfolded
_MOST_PAIRS = 6  # confusions shown of a cluster


def write_report(
    path: Paths,
    clusters: Paths,
    *,
    store: Paths | None = None,
    correct: Paths | None = None,
    results: Paths | None = None,
    unsafe: Paths | None = None,
    retraining: Paths | None = None,
    title: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    files: Mapping[str, Paths] | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Write a self-contained HTML page about the clusters of failures and what followed from them.

    Everything is read from disk, so the report can be made again after every step; what is not given is left out.

    Parameters
    ----------
    path : path-like
        File to write.
    clusters, store : path-like
        As in `read_clusters`.
    correct : path-like, optional
        Heatmap store of images that the model handles correctly; those of the same expected classes are held against
        each cluster. Relevance of the input is enough.
    results : path-like, optional
        Table of `lrp-onnx test` on the whole test set.
    unsafe : path-like, optional
        Folder of the unsafe set, with ``assignment.json`` and ``unsafe.csv``.
    retraining : path-like, optional
        ``retraining.json``.
    title : str, optional
    parameters : mapping of str to object, optional
        Shown as a table, after those that the clusters and stores tell.
    files : mapping of str to path-like, optional
        Shown with size and SHA-256, by name; tables that the report was made from are added.
    overwrite : bool
    progress : callable (step, done, total), optional

    Returns
    -------
    pathlib.Path
        `path`.

    Raises
    ------
    DataError, StoreError
        Something that was given cannot be read, or does not fit the clusters.
    OutputError
        `path` exists and `overwrite` is False, or it cannot be written.
    """
    target, report = Path(path), progress or (lambda step, done, total: None)
    refuse_existing(target, overwrite)
    saved = read_clusters(clusters, store)
    tested = None if results is None else read_results(Path(results))
    selected = None if unsafe is None else summarise_unsafe(Path(unsafe))
    retrained = None if retraining is None else read_retraining(Path(retraining))
    with Distances(saved.distances) as distances:
        rows = distances.rows
    with HeatmapStore(saved.store) as errors, ExitStack() as opened:
        model = {"path": errors.attrs["model"], "sha256": errors.attrs["model_sha256"]}
        _check(saved, selected, retrained, retraining, model["sha256"])
        handled = None if correct is None else opened.enter_context(HeatmapStore(correct))
        sections = cluster_sections(errors, rows, saved.clustering, handled, report)
        worsened = retrained["verdict"]["worsened"] if retrained and retrained["verdict"] else []
        models = [model, retrained["retrained"]] if retrained else [model]
        read = [saved.folder / name for name in (CLUSTERING, CLUSTERS, SCORES)]
        read += [Path(one) for one in (results, retraining) if one is not None]
        read += [selected.saved.folder / ASSIGNMENT, selected.saved.table] if selected else []
        shown = {where.name: where for where in read} | dict(files or {})
        page = page_template("hudd/report/page.html.j2").render(
            title=title or f"Why {model['path']} fails",
            date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=__version__,
            colours=colours(),
            model=model["path"],
            target=errors.attrs["target"],
            regression=errors.target_values is not None,
            failures=len(rows),
            clustering=saved.clustering,
            sections=sections,
            open=_MOST_OPEN,
            most_pairs=_MOST_PAIRS,
            per_cluster=INSPECTED,
            inspected=sum(min(INSPECTED, one.summary.size) for one in sections),
            contrasted=handled is not None,
            noise=noise_shown(errors, rows, saved.clustering),
            noise_images=int((saved.clustering.labels == NOISE).sum()),
            charts=curve_charts(saved),
            curve=picture_file(saved.folder / "curve.png", "how the clusters were found"),
            layers=read_json(saved.folder / CLUSTERING)["layers"],
            dendrogram=picture_file(saved.folder / "dendrogram.png", "dendrogram of the failures"),
            tested=tested,
            unsafe=selected,
            retraining=retrained,
            training_charts=training_charts(retrained["history"], retrained["best_epoch"]) if retrained else [],
            worsened=worsened_shown(errors, worsened, tested.label if tested else lambda path: ""),
            parameters=run_parameters(errors, saved) | dict(parameters or {}),
            composite=errors.attrs["composite"],
            models=models,
            hashes=[hashed(name, where) for name, where in shown.items()],
            versions=versions(str(errors.attrs["lrp_onnx_version"])),
        )
    with written_whole(target, overwrite=overwrite) as new:
        new.write_text(page, encoding="utf-8")
    return target


def _check(
    saved: SavedClusters,
    selected: UnsafeSummary | None,
    retrained: Mapping[str, Any] | None,
    retraining: Paths | None,
    model_sha256: str,
) -> None:
    """A report must not put together what does not belong together."""
    if selected and not selected.fits(saved.clustering):
        raise DataError(
            f"{selected.saved.folder}: was selected by other clusters than those in {saved.folder}; assign images anew "
            "with `lrp-onnx assign --overwrite`"
        )
    if retrained and retrained["model"]["sha256"] != model_sha256:
        raise DataError(f"{retraining}: is of another model than the heatmaps of the clusters; retrain anew")
