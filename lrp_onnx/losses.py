"""How far an output is from what was expected, of classes, regressed numbers and landmarks; and where it is worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.data import Dataset
from lrp_onnx.errors import DataError

Loss = Literal["mse", "mae", "landmarks"]
LOSSES: tuple[Loss, ...] = ("mse", "mae", "landmarks")
Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Verdict:
    """What is said of each of n samples.

    Attributes
    ----------
    predicted : int64 (n,)
        Class, -1 where there are none, or one for each position.
    correct : int8 (n,)
        1, 0, or -1 for not known.
    loss : float64 (n,)
        NaN where nothing is expected.
    worst : int64 (n,)
        The output, or landmark, with the largest error; -1 where there is none. As all that follows, of regression.
    values : float64 (n, T) or None
        What the model gives for each target; None where its output does not fit the targets.
    errors : float64 (n, P) or None
        Absolute error of each output, or distance of each landmark; NaN where its target is not known.
    """

    predicted: np.ndarray
    correct: np.ndarray
    loss: np.ndarray
    worst: np.ndarray
    values: np.ndarray | None = None
    errors: np.ndarray | None = None


def judge(
    output: np.ndarray,
    labels: np.ndarray,
    targets: np.ndarray | None = None,
    *,
    loss: Loss | None = None,
    threshold: float | None = None,
    size: tuple[int, int] | None = None,
) -> Verdict:
    """Predicted class, correctness and loss.

    With K > 1 logits the class is the largest and the loss the cross-entropy; with a single logit it is class 1 where
    the logit is positive, and the loss the binary cross-entropy.

    With regression targets, the loss is of the targets that are known (not NaN): the mean squared error ("mse"), the
    mean absolute error ("mae"), or the mean Euclidean distance of landmarks ("landmarks"). A sample is correct when its
    loss is at most `threshold`.

    Landmarks are targets x, y, x, y, …, and the model gives either as many numbers, or a map for each landmark,
    (n, L, h, w) or (n, h, w, L). Of a map counts the place of its largest value, as column x and row y of the pixels of
    the model's input: 0 is the centre of the first pixel, so that the peak of a map as large as the input is at its own
    column and row.

    Parameters
    ----------
    output : (n, …)
        Logits; with `targets` what the model gives itself (not logits, where it ends in Sigmoid).
    labels : int (n,)
        -1 where none is known.
    targets : (n, T), optional
        NaN where not known.
    loss : {"mse", "mae", "landmarks"}, optional
        By default, "mse" if the output has as many numbers as there are targets, and otherwise no loss.
    threshold : float, optional
        In units of the loss. Without it, it is not known what is correct.
    size : (int, int)
        Height and width of the model's input; needed for maps.

    Raises
    ------
    DataError
        When `loss` or `threshold` is given, and output and targets do not fit each other.
    """
    if targets is not None:
        return _judge_numbers(output, targets, loss or ("mse" if threshold is not None else None), threshold, size)
    n = len(output)
    flat, none = output.reshape(n, -1).astype(np.float64), np.full(n, -1)
    predicted = flat.argmax(axis=1) if flat.shape[1] > 1 else (flat[:, 0] > 0).astype(np.int64)
    if output.ndim > 2:  # a class per position: one label says nothing about it
        classes = flat.shape[1] == max(output.shape[1:])  # (K, 1, 1)
        return Verdict(predicted if classes else none, none.astype(np.int8), np.full(n, np.nan), none)
    known = labels >= 0
    correct = np.where(known, predicted == labels, -1).astype(np.int8)
    logits = flat if flat.shape[1] > 1 else np.concatenate([np.zeros((n, 1)), flat], axis=1)
    largest = logits.max(axis=1)
    total = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
    own = np.take_along_axis(logits, np.where(known, labels, 0)[:, None], axis=1)[:, 0]
    return Verdict(predicted, correct, np.where(known, total - own, np.nan), none)


def worst_outputs(output: np.ndarray, worst: np.ndarray, targets: int, loss: Loss) -> NDArray[np.int64]:
    """Where the part `worst` (n,) of each sample is in its flattened output, (n, p), for so many `targets` a sample.

    One number, or the two coordinates of a landmark, or the peak of its map.
    """
    if loss != "landmarks":
        return worst[:, None]
    maps = landmark_maps(output, targets)
    if maps is None:
        return 2 * worst[:, None] + np.arange(2)
    index = np.arange(output[0].size).reshape(output.shape[1:])
    places = index if maps is output else np.moveaxis(index, -1, 0)
    of_worst = places.reshape(len(places), -1)[worst]  # (n, h·w): where the map's values are in the output
    peak = maps.reshape(*maps.shape[:2], -1).argmax(axis=2)[np.arange(len(worst)), worst]
    return np.take_along_axis(of_worst, peak[:, None], axis=1)


def landmark_maps(output: np.ndarray, targets: int) -> np.ndarray | None:
    """The output as a map a landmark, (n, L, h, w); None when it is no maps of so many coordinates."""
    if output.ndim != 4 or output[0].size == targets:
        return None
    if output.shape[1] == targets // 2:
        return output
    return np.moveaxis(output, -1, 1) if output.shape[-1] == targets // 2 else None


def part_names(loss: Loss, names: Sequence[str] | None, parts: int) -> tuple[str, ...]:
    """What the outputs, or landmarks, are called: by the names of their targets, or else by number from 0.

    A landmark whose targets are called nose_x and nose_y is "nose".

    Raises
    ------
    DataError
        When the names say that y comes before x.
    """
    if names is None:
        return tuple(map(str, range(parts)))
    if loss != "landmarks":
        return tuple(names)
    return tuple(_landmark_name(names[2 * part], names[2 * part + 1], part) for part in range(parts))


def check_criterion(dataset: Dataset, loss: Loss | None, threshold: float | None) -> None:
    """Raise DataError unless `loss` and `threshold` can be had, and mean something for the data set."""
    if loss is not None and loss not in LOSSES:
        raise DataError(f"loss is '{loss}'; expected one of {', '.join(LOSSES)}")
    if threshold is not None and not 0 <= threshold < np.inf:
        raise DataError(f"threshold is {threshold}; expected a number of at least 0, in units of the loss")
    if (loss is not None or threshold is not None) and (dataset.labels >= 0).any():
        what = "a loss" if loss is not None else "a threshold"
        raise DataError(
            f"{dataset.root} holds classes, which are right or wrong; leave out {what}, which is for numbers to regress"
        )


def _judge_numbers(
    output: np.ndarray, targets: np.ndarray, loss: Loss | None, threshold: float | None, size: tuple[int, int] | None
) -> Verdict:
    n, none = len(output), np.full(len(output), -1)
    if loss is None and output.reshape(n, -1).shape != targets.shape:
        return Verdict(none, none.astype(np.int8), np.full(n, np.nan), none)
    values = _regressed(output, targets.shape[1], loss, size)
    errors = np.abs(values - targets)  # (n, T)
    if loss == "landmarks":
        errors = np.hypot(errors[:, ::2], errors[:, 1::2])
        known = ~np.isnan(targets[:, ::2] + targets[:, 1::2])
    else:
        known = ~np.isnan(targets)
    errors = np.where(known, errors, np.nan)
    counted = known.sum(axis=1)
    sums = np.where(known, errors if loss in ("mae", "landmarks") else errors**2, 0).sum(axis=1)
    losses = np.divide(sums, counted, out=np.full(n, np.nan), where=counted > 0)
    # a model that gives NaN is wrong, and the output that gives it the worst
    correct = none if threshold is None else np.where(counted > 0, losses <= threshold, -1)
    worst = np.where(counted > 0, np.where(known, errors, -1).argmax(axis=1), -1)
    return Verdict(none, correct.astype(np.int8), losses, worst, values, errors)


def _regressed(output: np.ndarray, count: int, loss: Loss | None, size: tuple[int, int] | None) -> Numbers:
    """What the model gives for each of `count` targets, (n, count)."""
    maps = None
    if loss == "landmarks":
        if count % 2:
            raise DataError(f"the data has {count} targets a sample; landmarks have x and y each: x1, y1, x2, y2, …")
        maps = landmark_maps(output, count)
    if maps is not None:
        return _peaks(maps, size)
    flat = output.reshape(len(output), -1).astype(np.float64)
    if flat.shape[1] != count:
        hint = f", or {count // 2} maps" if loss == "landmarks" else ""
        if loss != "landmarks" and count % 2 == 0 and landmark_maps(output, count) is not None:
            hint = ", or for maps of landmarks the loss 'landmarks'"
        raise DataError(
            f"the data has {count} targets a sample, and the model's output is of shape {output.shape[1:]}; expected "
            f"{count} numbers{hint}"
        )
    return flat


def _peaks(maps: np.ndarray, size: tuple[int, int] | None) -> Numbers:
    """x and y of the largest value of each map (n, L, h, w), in pixels of the model's input: (n, 2 L)."""
    if size is None:
        raise DataError("maps of landmarks need a model whose input is a picture, for what place a peak is at")
    height, width = maps.shape[2:]
    rows, columns = np.divmod(maps.reshape(*maps.shape[:2], -1).argmax(axis=2), width)
    x, y = ((columns + 0.5) * size[1] / width - 0.5), ((rows + 0.5) * size[0] / height - 0.5)
    return np.stack([x, y], axis=2).reshape(len(maps), -1)


def _landmark_name(x: str, y: str, number: int) -> str:
    differ = [place for place, pair in enumerate(zip(x, y, strict=False)) if pair[0] != pair[1]]
    if len(x) != len(y) or len(differ) != 1:
        return str(number)
    (place,) = differ
    axes = (x[place] + y[place]).lower()
    if axes == "yx":
        raise DataError(f"targets '{x}' and '{y}' are in the order y, x; landmarks are x1, y1, x2, y2, …")
    return ((x[:place] + x[place + 1 :]).strip(" _-.") or str(number)) if axes == "xy" else str(number)
