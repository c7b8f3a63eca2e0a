"""What a model says about a data set, as a table."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from lrp_onnx.data import Dataset, batches
from lrp_onnx.engine.seed import output_name
from lrp_onnx.errors import DataError
from lrp_onnx.files import written_whole
from lrp_onnx.forward import make_forward
from lrp_onnx.inputs import Model, classes_of, feed_for, first_readable, open_both, sample_name
from lrp_onnx.judging import Judge, own_output, require_rows
from lrp_onnx.losses import Loss, Verdict, judge, part_names
from lrp_onnx.results import COLUMNS, REGRESSION_COLUMNS, class_name, correct_rows, wrong_rows

__all__ = [
    "BatchResult",
    "PartError",
    "Predictions",
    "Regression",
    "Verdict",
    "correct_rows",
    "judge",
    "predict",
    "write_predictions",
    "wrong_rows",
]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class BatchResult:
    """Predictions of one batch: `rows` of the data set (n,), `output` logits (n, …), `scores` as the model gives them
    (n, …: probabilities where it ends in Softmax or Sigmoid), the verdict."""

    rows: np.ndarray
    paths: list[str]
    labels: np.ndarray
    targets: np.ndarray | None
    output: np.ndarray
    scores: np.ndarray
    verdict: Verdict


@dataclass(frozen=True)
class PartError:
    """One regressed output, or landmark.

    Attributes
    ----------
    name : str
        From the names of the targets, or a number from 0.
    error : float
        Mean absolute error; of a landmark, mean distance.
    samples : int
        Those in which its target is known.
    worst : int
        Those in which no other part is as far off.
    """

    name: str
    error: float
    samples: int
    worst: int


@dataclass(frozen=True)
class Regression:
    """How far regressed numbers are off, over all samples.

    Attributes
    ----------
    loss : {"mse", "mae", "landmarks"}
    threshold : float or None
    measured : int
        Samples that have a loss.
    above : int or None
        Those of them whose loss is above the threshold.
    mean_squared_error, mean_absolute_error : float
        Over all targets that are known.
    mean_error : float
        Over all parts that are known: for landmarks their mean distance, else the mean absolute error.
    parts : tuple of PartError
        The worst first.
    """

    loss: Loss
    threshold: float | None
    measured: int
    above: int | None
    mean_squared_error: float
    mean_absolute_error: float
    mean_error: float
    parts: tuple[PartError, ...]


@dataclass(frozen=True)
class Predictions:
    """What `write_predictions` found.

    Attributes
    ----------
    path : pathlib.Path
        The CSV file.
    samples : int
        Rows written.
    labelled, correct : int
        Those known to be right or wrong (a known class, or a loss and a threshold), and those of them that are right.
    accuracy, mean_loss : float or None
        None where nothing is known.
    failures : dict of str to str
        Path and reason of each sample that could not be read; these have no row.
    notes : tuple of str
    regression : Regression or None
        None for classes, and where no sample has a loss.
    """

    path: Path
    samples: int
    labelled: int
    correct: int
    accuracy: float | None
    mean_loss: float | None
    failures: dict[str, str]
    notes: tuple[str, ...]
    regression: Regression | None = None


def predict(
    model: Model,
    data: Dataset | str | os.PathLike[str],
    *,
    output: str | None = None,
    vocabulary: str | os.PathLike[str] | None = None,
    batch_size: int = 32,
    loss: Loss | None = None,
    threshold: float | None = None,
    trial: Dataset | None = None,
) -> Iterator[BatchResult]:
    """Run a model over a data set, batch by batch; unreadable samples go to ``data.failures``.

    Parameters
    ----------
    model
        Path, bytes, onnx.ModelProto or Graph.
    data
        Path or Dataset.
    output : str, optional
        Name of the output that predicts; the first by default.
    vocabulary : path-like, optional
        For texts, see `open_texts`.
    batch_size : int
        Samples at a time, if the model leaves it free.
    loss, threshold
        As in `judge`; for regression data only.
    trial : Dataset, optional
        Where a readable sample is looked for first; the data by default, of which then not all may be unreadable.

    Raises
    ------
    ModelError, DataError
        When one cannot be read, or they do not fit each other.
    """
    graph, dataset = open_both(model, data, output=output, vocabulary=vocabulary)
    feed, name = feed_for(graph, dataset), output_name(graph, output)
    judged = Judge(graph, name, dataset, feed, loss, threshold)
    first_readable(dataset if trial is None else trial, feed)
    forward = make_forward(graph, [name], torch.float32, torch.device("cpu"))
    for batch in batches(dataset, feed.preprocess, feed.batch or batch_size):
        n = len(batch.rows)
        given = feed.batch_by_name(batch.inputs, batch.others)
        logits = forward({key: torch.from_numpy(value) for key, value in given.items()})[name].numpy()
        require_rows(graph.name, name, logits.shape, len(given[feed.input]))
        logits = logits[:n]
        scores = own_output(graph, name, logits)
        verdict = judged(logits, batch.inputs, batch.labels, batch.targets)
        yield BatchResult(batch.rows, batch.paths, batch.labels, batch.targets, logits, scores, verdict)


def write_predictions(
    model: Model,
    data: Dataset | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    output: str | None = None,
    vocabulary: str | os.PathLike[str] | None = None,
    batch_size: int = 32,
    loss: Loss | None = None,
    threshold: float | None = None,
    overwrite: bool = False,
    scheduler: str | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """Write a CSV file with a row per sample: image, label, predicted, correct, loss, score_<class>…

    `image` is relative to the data set; classes go by name where names are known; `score_…` is the model's own output
    (probabilities where it ends in Softmax or Sigmoid); cells that make no sense for a sample are empty.

    With regression targets, label and score hold the numbers (of landmarks the coordinates, also where the model gives
    maps) and predicted is empty. `correct` is 1 where the loss is at most `threshold`, and empty without a threshold.
    Behind `loss` stand `measure` (what the loss is), `worst` (the output or landmark that is the farthest off) and, for
    landmarks, `error_<landmark>`… in pixels.

    Parameters
    ----------
    model, data, output, vocabulary, batch_size, loss, threshold
        As in `predict`.
    path : path-like
    overwrite : bool
    scheduler : str, optional
        Where to compute, if not here: "local:N" or the address of a Dask scheduler; see `lrp_onnx.distributed`.
    progress : callable (done, total), optional

    Raises
    ------
    OutputError
        When `path` exists and `overwrite` is False, or cannot be written.
    ModelError, DataError
        As `predict`.
    """
    path = Path(path)
    compute: Callable[..., Iterator[BatchResult]] = predict
    if scheduler is not None:
        from lrp_onnx.distributed import predict_on

        compute = partial(predict_on, scheduler)
    with written_whole(path, overwrite=overwrite) as new:
        graph, dataset = open_both(model, data, output=output, vocabulary=vocabulary)
        rows: _Rows | None = None
        with new.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            results = compute(graph, dataset, output=output, batch_size=batch_size, loss=loss, threshold=threshold)
            for result in results:
                if rows is None:
                    rows = _Rows(dataset, classes_of(graph) or dataset.classes, result, loss)
                    table.writerow(rows.header)
                table.writerows(rows.take(result))
                if progress:
                    progress(int(result.rows[-1]) + 1, len(dataset))
    if rows is None:
        raise DataError(f"{dataset.root}: holds no samples")
    notes = feed_for(graph, dataset).notes
    if dataset.targets is not None and rows.measure is None:
        notes += (f"the model's output does not fit the {dataset.targets.shape[1]} targets a sample: no loss",)
    if rows.shape and dataset.targets is None:
        notes += (f"outputs of shape {rows.shape} predict no one class; the scores are their numbers in order",)
    return rows.summary(path, threshold, dataset.failures, notes)


class _Rows:
    """The lines of a table, and what they add up to."""

    def __init__(
        self, dataset: Dataset, classes: tuple[str, ...] | None, first: BatchResult, loss: Loss | None
    ) -> None:
        self.dataset, self.classes = dataset, classes
        self.measure: Loss | None = None
        one_class = first.output.ndim == 2 or bool((first.verdict.predicted >= 0).all())
        self.shape = () if one_class else first.output.shape[1:]
        self.parts: tuple[str, ...] = ()
        named = classes
        width = first.scores[0].size
        if first.verdict.values is not None and first.verdict.errors is not None:
            self.measure, width = loss or "mse", first.verdict.values.shape[1]
            named = dataset.target_names
            self.parts = part_names(self.measure, named, first.verdict.errors.shape[1])
        scores = named if named is not None and len(named) == width else range(width)
        regression = () if first.targets is None else REGRESSION_COLUMNS
        distances = [f"error_{name}" for name in self.parts] if self.measure == "landmarks" else []
        self.header = [*COLUMNS, *regression, *distances, *(f"score_{name}" for name in scores)]
        self.samples = self.labelled = self.correct = self.measured = 0
        self.losses = self.squares = self.absolutes = 0.0
        self.known, self.sums = np.zeros(len(self.parts), np.int64), np.zeros(len(self.parts))
        self.worst = np.zeros(len(self.parts), np.int64)
        self.targets = 0

    def take(self, result: BatchResult) -> Iterator[list[str]]:
        """Count a batch in, and give its lines."""
        verdict = result.verdict
        self.samples += len(result.rows)
        self.labelled += int((verdict.correct >= 0).sum())
        self.correct += int((verdict.correct == 1).sum())
        self.measured += int((~np.isnan(verdict.loss)).sum())
        self.losses += float(np.nansum(verdict.loss))
        if result.targets is not None and verdict.values is not None and verdict.errors is not None:
            off = (verdict.values - result.targets)[~np.isnan(result.targets)]
            self.targets += off.size
            self.squares, self.absolutes = self.squares + float((off**2).sum()), self.absolutes + float(abs(off).sum())
            self.known += (~np.isnan(verdict.errors)).sum(axis=0)
            self.sums += np.nansum(verdict.errors, axis=0)
            self.worst += np.bincount(verdict.worst[verdict.worst >= 0], minlength=len(self.parts))
        return self._lines(result)

    def _lines(self, result: BatchResult) -> Iterator[list[str]]:
        verdict = result.verdict
        scores = result.scores if verdict.values is None else verdict.values
        for i, path in enumerate(result.paths):
            label, further = class_name(int(result.labels[i]), self.classes), []
            if result.targets is not None:
                label = " ".join(map(_number, result.targets[i]))
                worst = int(verdict.worst[i])
                further = [self.measure or "", self.parts[worst] if worst >= 0 else ""]
            if self.measure == "landmarks" and verdict.errors is not None:
                further += ["" if np.isnan(error) else _number(error) for error in verdict.errors[i]]
            correct, loss = verdict.correct[i], verdict.loss[i]
            yield [
                sample_name(self.dataset, path),
                label,
                class_name(int(verdict.predicted[i]), self.classes),
                "" if correct < 0 else str(correct),
                "" if np.isnan(loss) else _number(loss),
                *further,
                *map(_number, scores[i].ravel()),
            ]

    def summary(
        self, path: Path, threshold: float | None, failures: dict[str, str], notes: tuple[str, ...]
    ) -> Predictions:
        accuracy = self.correct / self.labelled if self.labelled else None
        mean_loss = self.losses / self.measured if self.measured else None
        counts = (self.samples, self.labelled, self.correct)
        regression = self._regression(threshold) if self.measure and self.measured else None
        return Predictions(path, *counts, accuracy, mean_loss, failures, notes, regression)

    def _regression(self, threshold: float | None) -> Regression:
        assert self.measure is not None
        each = zip(self.parts, self.sums.tolist(), self.known.tolist(), self.worst.tolist(), strict=True)
        parts = [PartError(name, total / known, known, worst) for name, total, known, worst in each if known]
        return Regression(
            loss=self.measure,
            threshold=threshold,
            measured=self.measured,
            above=None if threshold is None else self.labelled - self.correct,
            mean_squared_error=self.squares / self.targets,
            mean_absolute_error=self.absolutes / self.targets,
            mean_error=float(self.sums.sum() / self.known.sum()),
            parts=tuple(sorted(parts, key=lambda part: -part.error)),
        )


def _number(value: float) -> str:
    return f"{value:.6g}"
