"""Heatmaps by many processes: a shard for each part of the data set, and one store over all of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from lrp_onnx.data import Dataset
from lrp_onnx.distributed.parts import SharedArray, parts_of, read_by_workers, readable
from lrp_onnx.distributed.scheduler import Report, check_shared, connect, run_parts
from lrp_onnx.engine import Explainer
from lrp_onnx.errors import DataError, StoreError
from lrp_onnx.graph import Graph
from lrp_onnx.heatmap_run import Heatmaps, Settings, Shares, explain_into
from lrp_onnx.inputs import feed_for
from lrp_onnx.memory import MOST_AT_A_TIME
from lrp_onnx.store import join_stores
from lrp_onnx.store.disk import disk_errors


@dataclass(frozen=True, eq=False)
class _Job:
    """What all parts have in common. Compared by identity: a worker gets it once."""

    graph: Graph
    settings: Settings
    known: int
    trial: Dataset
    array: SharedArray


@dataclass(frozen=True, eq=False)
class _Part:
    path: Path
    dataset: Dataset


def explain_on(
    scheduler: str,
    path: Path,
    explainer: Explainer,
    dataset: Dataset,
    settings: Settings,
    known: int = -1,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Heatmaps:
    """`explain_into` on the workers of a scheduler.

    Beside ``h.h5`` appears the folder ``h.h5.shards``, which holds the heatmaps; `path` is a view of them, written last
    (see `join_stores`). Parts are the same whatever the number of workers, so that a run can be resumed with others,
    and batches are those of a run in one process.

    Raises
    ------
    LrpOnnxError
        As `compute_heatmaps`; DataError also when the scheduler cannot be reached or is lost.
    """
    folder = path.with_name(f"{path.name}.shards")
    if folder.exists() and not resume:
        if not overwrite:
            raise StoreError(f"{folder} exists already; use --resume to go on with it or --overwrite to replace it")
        shutil.rmtree(folder)
    feed = feed_for(explainer.graph, dataset)
    # what a worker has free is not known here, and parts may not depend on it
    batch_size = feed.batch or settings.batch_size or MOST_AT_A_TIME
    settings = replace(settings, batch_size=batch_size)
    parts = [
        _Part((folder / f"{number:05d}.h5").resolve(), part)
        for number, part in enumerate(parts_of(dataset, batch_size))
    ]
    job = _Job(explainer.graph, settings, known, readable(dataset, feed), SharedArray.of(dataset))
    advance = progress or (lambda done, total: None)
    advance(0, len(dataset))
    with connect(scheduler) as client:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            check_shared(client, [folder.resolve(), *read_by_workers(job.trial, job.array)])
        except DataError:
            with suppress(OSError):  # it holds an earlier run
                folder.rmdir()
            raise
        results = list(run_parts(client, _explain_part, job, parts, lambda done: advance(done, len(dataset))))
    join_stores(path, [part.path for part in parts])
    advance(len(dataset), len(dataset))
    for result in results:
        dataset.failures.update(result.failures)
    computed = sum(result.computed for result in results)
    shares = _together([result.shares for result in results if result.shares is not None])
    first = results[0]
    return Heatmaps(path, len(dataset), computed, first.layers, shares, dataset.failures, first.notes)


def _explain_part(job: _Job, part: _Part, report: Report) -> Heatmaps:
    return explain_into(
        part.path,
        _explainer(job),
        job.array.back_in(part.dataset),
        job.settings,
        job.known,
        trial=job.array.back_in(job.trial),
        resume=True,  # another worker may have begun it
        progress=lambda done, total: report(done),
    )


@lru_cache(maxsize=1)
def _explainer(job: _Job) -> Explainer:
    return job.settings.explainer(job.graph)


def _together(shares: Sequence[Shares]) -> Shares | None:
    start = sum(one.start for one in shares)
    if not shares or not start:
        return None
    reached, biases = (sum(getattr(one, name) * one.start for one in shares) / start for name in ("input", "biases"))
    return replace(shares[0], input=reached, biases=biases, lost=1 - reached - biases, start=start)
