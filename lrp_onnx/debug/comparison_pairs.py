"""The same images in two heatmap stores: which rows belong together, and what each model decides."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.debug.class_names import unique_names
from lrp_onnx.debug.explained import of_classes
from lrp_onnx.errors import DataError
from lrp_onnx.hudd.samples import Samples
from lrp_onnx.store import HeatmapStore

_MOST_NAMES = 4  # in a message


@dataclass(frozen=True)
class Decision:
    """What one model decides on one image.

    Attributes
    ----------
    predicted, explained : str
        Class decided for, and class that the heatmap explains; "" where they are no classes.
    right : bool or None
        None where it is not known: no label, or one that the model has no class for.
    confidence : float or None
        Softmax probability of the expected class, and where that is not known of the predicted one; of a single logit
        the sigmoid.
    """

    predicted: str
    explained: str
    right: bool | None
    confidence: float | None


@dataclass(frozen=True)
class Pair:
    """An image in both stores: rows, path in A, expected class or target ("" for none), and both decisions."""

    rows: tuple[int, int]
    path: str
    expected: str
    a: Decision
    b: Decision


class Pairs:
    """Images that two stores have in common, matched by path.

    Where no path is in both stores, because the images were moved, paths below the common folder of each store are
    matched.

    Parameters
    ----------
    a, b : HeatmapStore
        Open.

    Attributes
    ----------
    samples : (Samples, Samples)
        Of A and of B.
    only_a, only_b : list of str
        Paths of finished samples of one store alone.
    notes : list of str

    Raises
    ------
    DataError
        No image is in both; the models have no class in common, or outputs that cannot be named alike; or one store
        holds classes and the other numbers.
    """

    def __init__(self, a: HeatmapStore, b: HeatmapStore) -> None:
        self.samples = Samples(a), Samples(b)
        self.notes: list[str] = []
        self.regression = _both([one.regressed is not None for one in self.samples], a, b)
        self.outputs = tuple(int(np.prod(one.prediction.shape[1:])) for one in (a, b))
        if not self.regression:
            self._name_classes()
        self._rows = self._match()

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Pair]:
        """In the order of A.

        Raises
        ------
        DataError
            When the stores expect different classes of an image.
        """
        one, other = self.samples
        for rows in self._rows:
            path, expected = one.path(rows[0]), one.expected(rows[0])
            there = other.expected(rows[1])
            if expected and there and expected != there:
                raise DataError(
                    f"{path}: '{expected}' is expected in {one.store.path}, '{there}' in {other.store.path}; make both "
                    "stores from the same labelled images"
                )
            expected = expected or there
            yield Pair(rows, path, expected, self._decision(0, rows[0], expected), self._decision(1, rows[1], expected))

    def _decision(self, side: int, row: int, expected: str) -> Decision:
        samples = self.samples[side]
        columns = samples.columns
        if self.regression:
            judged = int(columns["correct"][row])
            return Decision(samples.predicted(row), "", None if judged < 0 else judged == 1, None)
        if not of_classes(samples.store):  # boxes, maps, embeddings: no class is decided for
            return Decision("", "", None, None)
        predicted, explained = (_class(samples, int(columns[name][row])) for name in ("predicted", "target"))
        known = self._index[side].get(expected)
        right = None if known is None or not predicted else predicted == expected
        wanted = int(columns["predicted"][row]) if known is None else known
        return Decision(predicted, explained, right, _probability(samples.store.prediction[row], wanted))

    def _name_classes(self) -> None:
        """Give both stores class names that mean the same."""
        (one, other), paths = self.samples, [samples.store.path for samples in self.samples]
        if not (one.classes and other.classes):
            if self.outputs[0] != self.outputs[1]:
                raise DataError(
                    f"{paths[0]} has {self.outputs[0]} outputs and {paths[1]} has {self.outputs[1]}, and not both have "
                    "class names; make the heatmaps with --classes, so that classes can be matched by name"
                )
            if one.classes or other.classes:
                named = 0 if one.classes else 1
                self.notes.append(f"{paths[1 - named]} has no class names, so those of {paths[named]} stand for both")
            one.classes = other.classes = one.classes or other.classes or [str(k) for k in range(self.outputs[0])]
        one.classes, other.classes = unique_names(one.classes), unique_names(other.classes)
        self._index: tuple[Mapping[str, int], ...] = tuple(
            {name: place for place, name in enumerate(samples.classes)} for samples in self.samples
        )
        lacking = [[name for name in self._index[k] if name not in self._index[1 - k]] for k in (0, 1)]
        if len(lacking[0]) == len(self._index[0]):
            raise DataError(
                f"the models have no class in common: {_few(lacking[0])} in {paths[0]}, {_few(lacking[1])} in "
                f"{paths[1]}; give both the same names with --classes"
            )
        for side, names in enumerate(lacking):
            if names:
                self.notes.append(
                    f"{'AB'[side]} has {len(names)} class{'es' if len(names) > 1 else ''} that {'BA'[side]} has not "
                    f"({_few(names)}); on images of such a class only one of them is judged"
                )

    def _match(self) -> list[tuple[int, int]]:
        finished = [samples.store.done.tolist() for samples in self.samples]
        paths = [[samples.path(row) for row in rows] for samples, rows in zip(self.samples, finished, strict=True)]
        keys = [_keys(of_store) for of_store in paths]
        if not set(keys[0]) & set(keys[1]):
            roots = [_root(of_store) for of_store in paths]
            below = [[os.path.relpath(path, root) for path in one] for one, root in zip(paths, roots, strict=True)]
            keys = [_keys(of_store) for of_store in below]
            self.notes.append(f"no path is in both stores; matched by the path below {roots[0]} and below {roots[1]}")
        of_b = dict(zip(keys[1], finished[1], strict=True))
        found = [(row, of_b[key]) for key, row in zip(keys[0], finished[0], strict=True) if key in of_b]
        if not found:
            one, other = (samples.store.path for samples in self.samples)
            raise DataError(
                f"no image is in both stores; {one} has {_few(paths[0])}, {other} has {_few(paths[1])}; make both from "
                "the same images"
            )
        self.only_a, self.only_b = (
            [path for path, key in zip(paths[k], keys[k], strict=True) if key not in set(keys[1 - k])] for k in (0, 1)
        )
        return found


def _both(regression: Sequence[bool], a: HeatmapStore, b: HeatmapStore) -> bool:
    if regression[0] != regression[1]:
        classes, numbers = (b, a) if regression[0] else (a, b)
        raise DataError(
            f"{classes.path} holds decisions between classes and {numbers.path} regressed numbers; compare two models "
            "with the same task"
        )
    return regression[0]


def _keys(paths: Sequence[str]) -> list[tuple[str, int]]:
    """Each path with how often it came before, so that an image that is there twice is matched twice."""
    seen: Counter[str] = Counter()
    keys = []
    for path in paths:
        plain = path.replace("\\", "/")
        keys.append((plain, seen[plain]))
        seen[plain] += 1
    return keys


def _root(paths: Sequence[str]) -> str:
    return os.path.commonpath([str(Path(path).parent) for path in paths]) if paths else "."


def _class(samples: Samples, index: int) -> str:
    return "" if index < 0 else str(samples.classes[index]) if index < len(samples.classes) else str(index)


def _probability(logits: NDArray[np.floating], index: int) -> float | None:
    if logits.ndim != 1 or index < 0:
        return None
    values = logits.astype(np.float64) if len(logits) > 1 else np.array([0.0, float(logits[0])])
    odds = np.exp(values - values.max())
    return float(odds[index] / odds.sum()) if index < len(odds) else None


def _few(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
