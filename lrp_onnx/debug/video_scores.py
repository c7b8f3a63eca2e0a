"""What a model says of the frames of a clip, one after the other: labels, smoothed over time, peaks, and the table."""

from __future__ import annotations

import csv
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.debug.timeline import Peak, ScoreHistory
from lrp_onnx.errors import DataError, TargetError
from lrp_onnx.graph import Graph
from lrp_onnx.inputs import classes_of
from lrp_onnx.judging import own_output

MOST_COLUMNS = 20  # classes that each get a column; of more, the best few are named
BEST = 5

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Labels:
    """What is shown on n frames: class indexes (n,), and their scores (n,); smoothed where that was asked for."""

    classes: NDArray[np.int64]
    scores: Scores


class FrameScores:
    """Takes in the scores of the frames in order, writes a line for each, and remembers labels and peaks.

    Memory does not grow with the number of frames.

    Parameters
    ----------
    file : text file
        The table is written there: frame, time, predicted, score; smoothed and smoothed_score; then score_<class>, or
        with more than `MOST_COLUMNS` classes the runners-up and the classes in `asked`.
    names : sequence of str
        Of the K classes.
    asked : sequence of int
        Classes of interest.
    smooth : float
        Seconds; the label shown is the class with the highest mean score over the frames of the last so many seconds.
        0 shows what was predicted.
    """

    def __init__(self, file: TextIO, names: Sequence[str], asked: Sequence[int], smooth: float) -> None:
        self.names, self._asked, self._smooth = names, asked, smooth
        self.history = ScoreHistory(len(names))
        self.shown: Counter[int] = Counter()  # frames by label
        self.frames = 0
        self._window: deque[tuple[float, Scores]] = deque()
        self._sum = np.zeros(len(names))
        self._peaks = np.full(len(names), -np.inf)
        self._peak_frames = np.zeros(len(names), np.int64)
        self._peak_times = np.zeros(len(names))
        self._many = len(names) > MOST_COLUMNS
        self._table = csv.writer(file, lineterminator="\n")
        further = [f"score_{name}" for name in names]
        if self._many:
            further = [f"{column}_{place}" for place in range(2, BEST + 1) for column in ("class", "score")]
            further += [f"score_{names[index]}" for index in asked]
        smoothed = ["smoothed", "smoothed_score"] if smooth else []
        self._table.writerow(["frame", "time", "predicted", "score", *smoothed, *further])

    def take(self, numbers: Sequence[int], times: Sequence[float], scores: Scores) -> Labels:
        """Count frames in: their numbers and times (seconds), and scores (n, K)."""
        means = np.stack([self._mean(time, row) for time, row in zip(times, scores, strict=True)])
        classes = means.argmax(axis=1)
        best, first = scores.max(axis=0), scores.argmax(axis=0)
        higher = best > self._peaks
        self._peaks[higher] = best[higher]
        self._peak_frames[higher] = np.asarray(numbers)[first[higher]]
        self._peak_times[higher] = np.asarray(times)[first[higher]]
        self.frames += len(scores)
        self.shown.update(classes.tolist())
        for time, row in zip(times, scores, strict=True):
            self.history.add(time, row)
        for i, (number, time) in enumerate(zip(numbers, times, strict=True)):
            self._table.writerow([number, f"{time:.6f}", *self._line(scores[i], means[i])])
        return Labels(classes, np.take_along_axis(means, classes[:, None], axis=1)[:, 0])

    def _mean(self, time: float, scores: Scores) -> Scores:
        if not self._smooth:
            return scores
        self._window.append((time, scores))
        self._sum += scores
        while self._window[0][0] <= time - self._smooth:
            self._sum -= self._window.popleft()[1]
        return self._sum / len(self._window)

    def _line(self, scores: Scores, means: Scores) -> Iterator[str]:
        order = np.argsort(-scores, kind="stable")[:BEST].tolist()
        yield from (self.names[order[0]], _number(scores[order[0]]))
        if self._smooth:
            label = int(means.argmax())
            yield from (self.names[label], _number(means[label]))
        if not self._many:
            yield from map(_number, scores)
            return
        for index in order[1:]:
            yield from (self.names[index], _number(scores[index]))
        yield from (_number(scores[index]) for index in self._asked)

    def peak(self, index: int) -> Peak:
        """Where a class scored highest, before smoothing."""
        frame, time, score = self._peak_frames[index], self._peak_times[index], self._peaks[index]
        return Peak(self.names[index], int(frame), float(time), float(score))


def class_scores(graph: Graph, name: str, output: NDArray[np.float32]) -> Scores:
    """Scores of K classes from a model's logits, (n, K): probabilities where it ends in Softmax or Sigmoid.

    A single output speaks for class 1, and what is missing to certainty, or its opposite, for class 0.

    Raises
    ------
    DataError
        The output is not a number a class.
    """
    flat = output.reshape(len(output), -1) if output.ndim > 1 else output[:, None]
    if output.ndim > 2 and flat.shape[1] != max(output.shape[1:]):
        raise DataError(
            f"{graph.name}: output '{name}' has shape {tuple(output.shape[1:])} a frame; expected a score per class"
        )
    scores = own_output(graph, name, flat)
    if scores.shape[1] > 1:
        return scores
    bounded = name in graph.cuts and graph.cuts[name].op_type == "Sigmoid"
    return np.concatenate([1 - scores if bounded else -scores, scores], axis=1)


def class_names(graph: Graph, classes: int) -> tuple[str, ...]:
    """The model's names of so many classes, or their numbers."""
    names = classes_of(graph)
    return names if names is not None and len(names) == classes else tuple(map(str, range(classes)))


def find_class(wanted: str, names: Sequence[str]) -> int:
    """The index of a class by its name, or its number.

    Raises
    ------
    TargetError
        There is no such class, or several.
    """
    found = [index for index, name in enumerate(names) if name == wanted]
    if len(found) > 1:
        raise TargetError(f"class '{wanted}' is the name of classes {found}; give its number")
    if found:
        return found[0]
    if wanted.isdecimal() and int(wanted) < len(names):
        return int(wanted)
    near = get_close_matches(wanted, names, n=3) or [name for name in names if wanted.lower() in name.lower()][:3]
    hint = f"near: {', '.join(near)}" if near else f"such as {', '.join(names[:3])}"
    raise TargetError(f"the model has no class '{wanted}'; there are {len(names)}, {hint}")


def _number(value: float) -> str:
    return f"{value:.6g}"
