"""What a model says about a data set, as a table; and which samples such a table calls wrong."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lrp_onnx.data import Dataset, batches
from lrp_onnx.errors import DataError
from lrp_onnx.files import written_whole
from lrp_onnx.forward import make_forward
from lrp_onnx.graph import Graph
from lrp_onnx.inputs import classes_of, feed_for, first_readable, open_both, sample_name

Progress = Callable[[int, int], None]
COLUMNS = ("image", "label", "predicted", "correct", "loss")


@dataclass(frozen=True, eq=False)
class Verdict:
    """Of each of n samples: predicted class (int64, -1 where there are no classes), correct (int8: 1, 0, or -1 for not
    known) and loss (float64, NaN where nothing is expected)."""

    predicted: np.ndarray
    correct: np.ndarray
    loss: np.ndarray


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
class Predictions:
    """What `write_predictions` found.

    Attributes
    ----------
    path : pathlib.Path
        The CSV file.
    samples : int
        Rows written.
    labelled, correct : int
        Those with a known class, and those of them that the model got right.
    accuracy, mean_loss : float or None
        None without labels.
    failures : dict of str to str
        Path and reason of each sample that could not be read; these have no row.
    notes : tuple of str
    """

    path: Path
    samples: int
    labelled: int
    correct: int
    accuracy: float | None
    mean_loss: float | None
    failures: dict[str, str]
    notes: tuple[str, ...]


def judge(output: np.ndarray, labels: np.ndarray, targets: np.ndarray | None = None) -> Verdict:
    """Predicted class, correctness and loss from logits.

    With K > 1 logits the class is the largest and the loss the cross-entropy; with a single logit it is class 1 where
    the logit is positive, and the loss the binary cross-entropy; with regression targets the loss is the mean squared
    error.

    Parameters
    ----------
    output : (n, …)
        Logits; with `targets` the regressed values (`own_output`, where the model ends in Sigmoid).
    labels : int (n,)
        -1 where none is known.
    targets : (n, T), optional
    """
    n = len(output)
    flat = output.reshape(n, -1).astype(np.float64)
    unknown = np.full(n, -1)
    if targets is not None:
        fits = flat.shape == targets.shape
        loss = ((flat - targets) ** 2).mean(axis=1) if fits else np.full(n, np.nan)
        return Verdict(unknown, unknown.astype(np.int8), loss)
    predicted = flat.argmax(axis=1) if flat.shape[1] > 1 else (flat[:, 0] > 0).astype(np.int64)
    if output.ndim > 2:  # a class per position: one label says nothing about it
        return Verdict(predicted, unknown.astype(np.int8), np.full(n, np.nan))
    known = labels >= 0
    correct = np.where(known, predicted == labels, -1).astype(np.int8)
    logits = flat if flat.shape[1] > 1 else np.concatenate([np.zeros((n, 1)), flat], axis=1)
    largest = logits.max(axis=1)
    total = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
    own = np.take_along_axis(logits, np.where(known, labels, 0)[:, None], axis=1)[:, 0]
    return Verdict(predicted, correct, np.where(known, total - own, np.nan))


def predict(
    model: Graph | str | os.PathLike[str],
    data: Dataset | str | os.PathLike[str],
    *,
    batch_size: int = 32,
) -> Iterator[BatchResult]:
    """Run a model over a data set, batch by batch; unreadable samples go to ``data.failures``.

    Raises
    ------
    ModelError, DataError
        When one cannot be read, or they do not fit each other.
    """
    graph, dataset = open_both(model, data)
    feed = feed_for(graph, dataset)
    first_readable(dataset, feed)
    name = next(iter(graph.outputs))
    forward = make_forward(graph, [name], torch.float32, torch.device("cpu"))
    for batch in batches(dataset, feed.preprocess, feed.batch or batch_size):
        n = len(batch.rows)
        output = forward({feed.input: torch.from_numpy(feed.batch_of(batch.inputs))})[name].numpy()
        if not output.ndim or len(output) < n:
            raise DataError(
                f"{graph.name}: output '{name}' has shape {output.shape} for a batch of {n}; expected a row per sample"
            )
        output = output[:n]
        scores = own_output(graph, name, output)
        verdict = judge(output if batch.targets is None else scores, batch.labels, batch.targets)
        yield BatchResult(batch.rows, batch.paths, batch.labels, batch.targets, output, scores, verdict)


def write_predictions(
    model: Graph | str | os.PathLike[str],
    data: Dataset | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    batch_size: int = 32,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Predictions:
    """Write a CSV file with a row per sample: image, label, predicted, correct, loss, score_<class>…

    `image` is relative to the data set; classes go by name where names are known; `score_…` is the model's own output
    (probabilities where it ends in Softmax or Sigmoid); cells that make no sense for a sample are empty. With
    regression targets, label and score hold the numbers and predicted and correct are empty.

    Raises
    ------
    OutputError
        When `path` exists and `overwrite` is False, or cannot be written.
    ModelError, DataError
        As `predict`.
    """
    path = Path(path)
    counts, losses = {"samples": 0, "labelled": 0, "correct": 0}, 0.0
    measured = 0
    with written_whole(path, overwrite=overwrite) as new:
        graph, dataset = open_both(model, data)
        classes = classes_of(graph) or dataset.classes
        with new.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            for result in predict(graph, dataset, batch_size=batch_size):
                if not counts["samples"]:
                    width = result.scores[0].size
                    table.writerow([*COLUMNS, *(f"score_{_name(k, classes, width)}" for k in range(width))])
                table.writerows(_lines(dataset, result, classes))
                verdict = result.verdict
                counts["samples"] += len(result.rows)
                counts["labelled"] += int((verdict.correct >= 0).sum())
                counts["correct"] += int((verdict.correct == 1).sum())
                measured += int(np.isfinite(verdict.loss).sum())
                losses += float(np.nansum(verdict.loss))
                if progress:
                    progress(int(result.rows[-1]) + 1, len(dataset))
    return Predictions(
        path,
        **counts,
        accuracy=counts["correct"] / counts["labelled"] if counts["labelled"] else None,
        mean_loss=losses / measured if measured else None,
        failures=dataset.failures,
        notes=feed_for(graph, dataset).notes,
    )


def wrong_rows(results: str | os.PathLike[str], dataset: Dataset) -> list[int]:
    """Rows of `dataset` that a table of `write_predictions` marks as not correct, in the order of the data set.

    Raises
    ------
    DataError
        When the table cannot be read, says nothing about correctness, names samples or labels that the data set does
        not have, or marks none as wrong.
    """
    path = Path(results)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            table = list(reader)
            header = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path}: the results cannot be read: {reason}") from error
    if missing := [name for name in ("image", "label", "correct") if name not in header]:
        raise DataError(f"{path}: no column '{missing[0]}'; expected a table that `lrp-onnx test` wrote")
    row_of = {sample_name(dataset, sample.path): row for row, sample in enumerate(dataset.samples)}
    wrong = []
    for line, entry in enumerate(table, start=2):
        row = row_of.get(entry["image"])
        if row is None:
            raise DataError(
                f"{path}, line {line}: '{entry['image']}' is not in {dataset.root}; is it of another data set?"
            )
        label = dataset.samples[row].label
        known = {"" if label is None else str(label), _label(label, dataset.classes)}
        if dataset.samples[row].target is None and entry["label"] not in known:
            raise DataError(
                f"{path}, line {line}: '{entry['image']}' has label '{entry['label']}' there and "
                f"'{_label(label, dataset.classes)}' in {dataset.root}; is it of another data set?"
            )
        if entry["correct"] == "0":
            wrong.append(row)
    if not wrong:
        judged = any(entry["correct"] for entry in table)
        raise DataError(
            f"{path}: {'no prediction is wrong' if judged else 'no sample has a label'}; nothing to explain"
        )
    return sorted(wrong)


def own_output(graph: Graph, name: str, output: np.ndarray) -> np.ndarray:
    """The model's own output from the logits in front of the activation that was cut off."""
    activation = graph.cuts[name].op_type if name in graph.cuts else ""
    logits = output.astype(np.float64)
    if activation == "Sigmoid":
        return 1 / (1 + np.exp(-logits))
    if activation in ("Softmax", "LogSoftmax"):
        axis = int(graph.cuts[name].attributes.get("axis", -1))
        odds = np.exp(logits - logits.max(axis=axis, keepdims=True))
        probabilities = odds / odds.sum(axis=axis, keepdims=True)
        return probabilities if activation == "Softmax" else np.log(probabilities)
    return logits


def _lines(dataset: Dataset, result: BatchResult, classes: Sequence[str] | None) -> Iterator[list[str]]:
    verdict = result.verdict
    for i, path in enumerate(result.paths):
        label = _label(int(result.labels[i]), classes)
        if result.targets is not None:
            label = " ".join(f"{value:.6g}" for value in result.targets[i])
        predicted, correct, loss = verdict.predicted[i], verdict.correct[i], verdict.loss[i]
        yield [
            sample_name(dataset, path),
            label,
            _label(int(predicted), classes),
            "" if correct < 0 else str(correct),
            "" if np.isnan(loss) else f"{loss:.6g}",
            *(f"{score:.6g}" for score in result.scores[i].ravel()),
        ]


def _label(index: int | None, classes: Sequence[str] | None) -> str:
    if index is None or index < 0:
        return ""
    return classes[index] if classes is not None and index < len(classes) else str(index)


def _name(index: int, classes: Sequence[str] | None, width: int) -> str:
    return classes[index] if classes is not None and len(classes) == width else str(index)
