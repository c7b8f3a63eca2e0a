"""Predictions by many processes, in the order of the data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lrp_onnx.data import Dataset
from lrp_onnx.distributed.parts import SharedArray, parts_of, read_by_workers, readable
from lrp_onnx.distributed.scheduler import Report, check_shared, connect, run_parts
from lrp_onnx.errors import DataError
from lrp_onnx.graph import Graph
from lrp_onnx.inputs import feed_for
from lrp_onnx.losses import Loss
from lrp_onnx.predictions import BatchResult, predict


@dataclass(frozen=True, eq=False)
class _Job:
    """What all parts have in common."""

    graph: Graph
    output: str | None
    batch_size: int
    loss: Loss | None
    threshold: float | None
    trial: Dataset
    array: SharedArray


def predict_on(
    scheduler: str,
    graph: Graph,
    dataset: Dataset,
    *,
    output: str | None = None,
    batch_size: int = 32,
    loss: Loss | None = None,
    threshold: float | None = None,
) -> Iterator[BatchResult]:
    """`predict` on the workers of a scheduler; the same batches in the same order.

    Raises
    ------
    LrpOnnxError
        As `predict`; DataError also when the scheduler cannot be reached or is lost.
    """
    feed = feed_for(graph, dataset)
    trial = readable(dataset, feed)
    job = _Job(graph, output, batch_size, loss, threshold, trial, SharedArray.of(dataset))
    start = 0
    with connect(scheduler) as client:
        check_shared(client, read_by_workers(job.trial, job.array))
        parts = parts_of(dataset, feed.batch or batch_size)
        for part, (results, failures) in zip(parts, run_parts(client, _predict_part, job, parts), strict=True):
            dataset.failures.update(failures)
            for result in results:
                yield replace(result, rows=result.rows + start)
            start += len(part)


def _predict_part(job: _Job, part: Dataset, report: Report) -> tuple[list[BatchResult], dict[str, str]]:
    dataset, results = job.array.back_in(part), []
    try:
        for result in predict(
            job.graph,
            dataset,
            output=job.output,
            batch_size=job.batch_size,
            loss=job.loss,
            threshold=job.threshold,
            trial=job.array.back_in(job.trial),
        ):
            results.append(result)
            report(int(result.rows[-1]) + 1)
    except DataError:
        if len(dataset.failures) < len(dataset):
            raise
    return results, dataset.failures
