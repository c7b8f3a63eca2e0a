"""What a network is trained on: arrays or data sets, checked against the model, in batches of any order."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lrp_onnx.data import Dataset, Sample, batches
from lrp_onnx.errors import DataError
from lrp_onnx.graph import Graph
from lrp_onnx.inputs import Feed, feed_for, open_both

Data = Dataset | str | os.PathLike[str] | tuple[np.ndarray, np.ndarray]
_HASHED_ROWS = 256


@dataclass(eq=False)
class Examples:
    """Samples with known answers, and how they go into the model.

    `answers` is int64 (N,) class indexes, or float32 (N, T) regression targets; `failures` names what could not be
    read.
    """

    dataset: Dataset
    feed: Feed
    answers: np.ndarray
    failures: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self, order: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Inputs (n, …) and answers (n, …) of the rows in `order`."""
        chosen = self.dataset.subset(order)
        for batch in batches(chosen, self.feed.preprocess, size):
            yield batch.inputs, self.answers[order[batch.rows]]
        self.failures.update(chosen.failures)

    def digest(self) -> str:
        """Hash of what these examples are, so that a checkpoint is not continued with others."""
        total = hashlib.sha256(self.answers.tobytes())
        total.update("\n".join(self.dataset.paths).encode())
        array = self.dataset.array
        for path in dict.fromkeys(self.dataset.paths if array is None else ()):
            with suppress(OSError), Path(path).open("rb") as file:  # what cannot be read is left out of training, too
                total.update(hashlib.file_digest(file, "sha256").digest())
        for start in range(0, 0 if array is None else len(array), _HASHED_ROWS):
            total.update(array[start : start + _HASHED_ROWS].tobytes())  # type: ignore[index]
        return total.hexdigest()


def examples(graph: Graph, source: Data | Sequence[Data], *, regression: bool, what: str) -> Examples:
    """Open a source (a list of sources is joined) and check that every sample has an answer.

    Raises
    ------
    DataError
        No samples, samples without a label or of a class that the model does not have, targets where labels are needed,
        several sources that cannot be joined.
    """
    sources = source if isinstance(source, list) else [source]
    if not sources:
        raise DataError(f"{what}: no data given")
    parts = [_open(graph, part, what) for part in sources]  # type: ignore[arg-type]
    dataset = parts[0] if len(parts) == 1 else _join(parts, what)
    if not len(dataset):
        raise DataError(f"{what}: {dataset.root} has no samples; expected at least one")
    return Examples(dataset, feed_for(graph, dataset), _answers(dataset, regression, what))


def split(whole: Examples, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """Set a random part aside; repetitions of one sample (a bootstrap makes them) stay on one side together.

    Raises
    ------
    DataError
        When one side would be empty.
    """
    names = sorted(set(whole.dataset.paths))
    aside = round(fraction * len(names))
    if not 0 < aside < len(names):
        raise DataError(f"validation: {fraction} of {len(names)} different samples leaves one side empty")
    chosen = {names[i] for i in np.random.default_rng(seed).permutation(len(names))[:aside]}
    inside = np.array([path in chosen for path in whole.dataset.paths])

    def part(rows: np.ndarray) -> Examples:
        return Examples(whole.dataset.subset(rows), whole.feed, whole.answers[rows], whole.failures)

    return part(np.flatnonzero(~inside)), part(np.flatnonzero(inside))


def _open(graph: Graph, source: Data, what: str) -> Dataset:
    if not isinstance(source, tuple):
        return open_both(graph, source)[1]
    if len(source) != 2:
        raise DataError(
            f"{what}: expected inputs and answers, a tuple of two arrays; got {len(source)} (join by a list)"
        )
    inputs, answers = (np.asarray(array) for array in source)
    if len(inputs) != len(answers) or not len(inputs):
        raise DataError(f"{what}: {len(inputs)} inputs and {len(answers)} answers; expected as many, and at least one")
    targets = answers.reshape(len(answers), -1).tolist() if answers.dtype.kind == "f" else None
    if targets is None and (answers.ndim != 1 or answers.dtype.kind not in "iu"):
        raise DataError(
            f"{what}: answers are {answers.dtype} of shape {answers.shape}; expected whole numbers (N,) for classes or "
            "floats (N, T) to regress"
        )
    samples = [
        Sample(f"{what}[{row}]", None if targets else int(answers[row]), row, tuple(targets[row]) if targets else None)
        for row in range(len(inputs))
    ]
    return Dataset(Path(what), samples, array=inputs)


def _join(parts: Sequence[Dataset], what: str) -> Dataset:
    classes = next((part.classes for part in parts if part.classes), None)
    arrays = [part.array for part in parts if part.array is not None]
    kinds = {(array.shape[1:], array.dtype) for array in arrays}
    if arrays and (len(arrays) < len(parts) or len(kinds) > 1):
        raise DataError(
            f"{what}: pictures and arrays, or arrays of different shape or type, cannot be trained on together"
        )
    if not arrays:
        return Dataset(parts[0].root, [sample for part in parts for sample in part.samples], classes)
    samples = []
    offset = 0
    for number, part in enumerate(parts):  # the number keeps apart rows that arrays given in memory name alike
        samples += [replace(s, path=f"{number}:{s.path}", index=s.index + offset) for s in part.samples]
        offset += len(part.array)  # type: ignore[arg-type]
    return Dataset(parts[0].root, samples, classes, np.concatenate(arrays))


def _answers(dataset: Dataset, regression: bool, what: str) -> np.ndarray:
    if regression:
        if dataset.targets is None:
            raise DataError(f"{what}: {dataset.root} has no numbers to regress; for classes use the loss cross-entropy")
        unknown = np.flatnonzero(np.isnan(dataset.targets).any(axis=1))
        if len(unknown):
            raise DataError(
                f"{what}: {len(unknown)} of {len(dataset)} samples lack a number to learn; the first is "
                f"{dataset.paths[unknown[0]]}"
            )
        return dataset.targets
    if dataset.targets is not None:
        raise DataError(f"{what}: {dataset.root} holds numbers to regress; use the loss mse or mae")
    unlabelled = np.flatnonzero(dataset.labels < 0)
    if len(unlabelled):
        raise DataError(
            f"{what}: {len(unlabelled)} of {len(dataset)} samples have no label; the first is "
            f"{dataset.paths[unlabelled[0]]}"
        )
    return dataset.labels
