"""What a table of results says of a data set: which samples the model got wrong, which it handled correctly."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lrp_onnx.data import Dataset
from lrp_onnx.data.table import read_table
from lrp_onnx.errors import DataError
from lrp_onnx.inputs import sample_name
from lrp_onnx.losses import LOSSES, Loss

COLUMNS = ("image", "label", "predicted", "correct", "loss")  # of every table of results
REGRESSION_COLUMNS = ("measure", "worst")  # and what follows them for regression
_JUDGED = {"1": 1, "0": 0, "": -1}


@dataclass(frozen=True, eq=False)
class Results:
    """A table of results, read again.

    Attributes
    ----------
    path : pathlib.Path
    dataset : Dataset
        What the table is of.
    correct : int8 (N,)
        Of each sample of the data set: 1, 0, or -1 where it was not judged.
    loss : Loss or None
        How it was judged, for regression.
    """

    path: Path
    dataset: Dataset
    correct: np.ndarray
    loss: Loss | None

    def wrong(self) -> list[int]:
        """Rows of the data set that are marked as not correct, in order.

        Raises
        ------
        DataError
            There is none.
        """
        return self._rows(0, "no prediction is wrong")

    def right(self, per_class: int | None = None) -> list[int]:
        """Rows that are marked as correct, in order; at most so many of each class, spread over the data set.

        Raises
        ------
        DataError
            There is none.
        """
        rows = self._rows(1, "no prediction is correct")
        if per_class is None:
            return rows
        if per_class < 1:
            raise DataError(f"{per_class} correct samples per class; expected at least 1")
        labels = self.dataset.labels[rows]
        groups = [np.array(rows)[labels == label] for label in np.unique(labels)]
        return sorted(row for group in groups for row in _spread(group, per_class))

    def _rows(self, flag: int, none: str) -> list[int]:
        rows = np.flatnonzero(self.correct == flag).tolist()
        if not rows:
            unknown = "no sample was judged: there are no labels, or for regression no --threshold was given to `test`"
            raise DataError(f"{self.path}: {none if (self.correct >= 0).any() else unknown}; nothing to explain")
        return rows


def read_results(path: str | os.PathLike[str], dataset: Dataset) -> Results:
    """Read a table of `write_predictions`, also one that a spreadsheet saved.

    Raises
    ------
    DataError
        When the table cannot be read, says nothing about correctness, or names samples or labels that the data set does
        not have.
    """
    table = read_table(Path(path), {*COLUMNS, *REGRESSION_COLUMNS})
    if missing := [name for name in ("image", "label", "correct") if name not in table.header]:
        raise DataError(f"{path}: no column '{missing[0]}'; expected a table that `lrp-onnx test` wrote")
    row_of = {sample_name(dataset, sample.path).strip(): row for row, sample in enumerate(dataset.samples)}
    correct, measure = np.full(len(dataset), -1, np.int8), ""
    for line, entry in table.rows:
        where, name = f"{path}, line {line}", entry.get("image", "")
        row = row_of.get(name)
        if row is None:
            raise DataError(f"{where}: '{name}' is not in {dataset.root}; is it of another data set?")
        label, found = dataset.samples[row].label, entry.get("label", "")
        known = {"" if label is None else str(label), class_name(label, dataset.classes).strip()}
        if dataset.samples[row].target is None and found not in known:
            raise DataError(
                f"{where}: '{name}' has label '{found}' there and '{class_name(label, dataset.classes)}' in "
                f"{dataset.root}; is it of another data set?"
            )
        flag = entry.get("correct", "")
        if flag not in _JUDGED:
            raise DataError(f"{where}: column 'correct' holds '{flag}'; expected 1, 0 or nothing")
        correct[row], measure = _JUDGED[flag], entry.get("measure", measure)
    if measure and measure not in LOSSES:
        raise DataError(f"{path}: column 'measure' holds '{measure}'; expected one of {', '.join(LOSSES)}")
    return Results(Path(path), dataset, correct, measure or None)


def wrong_rows(results: str | os.PathLike[str], dataset: Dataset) -> list[int]:
    """Rows of `dataset` that a table of `write_predictions` marks as not correct, in the order of the data set.

    Raises
    ------
    DataError
        As `read_results`, or when the table marks none as wrong.
    """
    return read_results(results, dataset).wrong()


def correct_rows(results: str | os.PathLike[str], dataset: Dataset, per_class: int | None = None) -> list[int]:
    """Rows that a table of `write_predictions` marks as correct, in the order of the data set.

    Parameters
    ----------
    results : path-like
    dataset : Dataset
    per_class : int, optional
        At most so many of each expected class (of all, for regression), evenly spread over the data set; always the
        same ones.

    Raises
    ------
    DataError
        As `read_results`, or when the table marks none as correct.
    """
    return read_results(results, dataset).right(per_class)


def class_name(index: int | None, classes: Sequence[str] | None) -> str:
    """How a table names a class; empty for none."""
    if index is None or index < 0:
        return ""
    return classes[index] if classes is not None and index < len(classes) else str(index)


def _spread(rows: np.ndarray, most: int) -> list[int]:
    """At most so many, each from the middle of an equal part."""
    count = min(most, len(rows))
    return rows[((np.arange(count) + 0.5) * len(rows) / count).astype(int)].tolist()
