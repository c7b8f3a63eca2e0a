"""`Judge`: what one model says about one data set, held against what is expected there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.data import Dataset
from lrp_onnx.errors import DataError, TargetError
from lrp_onnx.graph import Graph
from lrp_onnx.inputs import Feed
from lrp_onnx.losses import Loss, Verdict, check_criterion, judge, worst_outputs


@dataclass(frozen=True, eq=False)
class Judge:
    """The outputs of a model, judged.

    Parameters
    ----------
    graph, output : Graph, str
        The model, and the name of its output.
    dataset, feed : Dataset, Feed
    loss, threshold
        As in `judge`, for regression data.

    Raises
    ------
    DataError
        When loss or threshold cannot be had, or the data set holds classes.
    """

    graph: Graph
    output: str
    dataset: Dataset
    feed: Feed
    loss: Loss | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        check_criterion(self.dataset, self.loss, self.threshold)

    def __call__(
        self, logits: np.ndarray, inputs: np.ndarray, labels: np.ndarray, targets: np.ndarray | None
    ) -> Verdict:
        """The verdict on a batch: logits (n, …), the inputs that they are of, labels (n,), and targets (n, T).

        Raises
        ------
        DataError
            When output and targets do not fit each other.
        """
        return self._verdict(logits, inputs, labels, targets, self.loss)

    def measure(self, verdict: Verdict) -> Loss | None:
        """What the loss of a verdict is; None for classes, and where output and targets do not fit."""
        return None if verdict.errors is None else self.loss or "mse"

    def worst(self, logits: np.ndarray, inputs: np.ndarray, targets: np.ndarray | None) -> NDArray[np.bool_]:
        """The part of each output that is the farthest off, shaped as the output (n, …).

        Raises
        ------
        TargetError, DataError
            When that is not known, or the output does not fit the samples or their targets.
        """
        require_rows(self.graph.name, self.output, logits.shape, len(inputs))
        chosen = np.zeros((len(logits), logits[0].size), bool)
        if chosen.shape[1] == 1:
            return ~chosen.reshape(logits.shape)
        loss, labels = self.loss or "mse", np.full(len(logits), -1)
        worst = self._verdict(logits, inputs, labels, targets, loss).worst
        if targets is None or (worst < 0).any():
            raise TargetError(
                f"target 'worst' needs regression targets of every sample, and in {self.dataset.root} some have none; "
                "use another target, or the seed 'all', which explains every output"
            )
        places = worst_outputs(logits, worst, targets.shape[1], loss)
        np.put_along_axis(chosen, places, True, axis=1)
        return chosen.reshape(logits.shape)

    def _verdict(
        self,
        logits: np.ndarray,
        inputs: np.ndarray,
        labels: np.ndarray,
        targets: np.ndarray | None,
        loss: Loss | None,
    ) -> Verdict:
        output = logits if targets is None else own_output(self.graph, self.output, logits)
        size = self.feed.picture_size(inputs)
        try:
            return judge(output, labels, targets, loss=loss, threshold=self.threshold, size=size)
        except DataError as error:
            raise DataError(f"{self.graph.name}, {self.dataset.root}: {error}") from error


def require_rows(model: str, output: str, shape: tuple[int, ...], batch: int) -> None:
    """Make sure that an output of this shape has a row for each sample of a batch.

    Raises
    ------
    DataError
        It has not: the batch is another dimension, or there is none.
    """
    if shape[:1] == (batch,):
        return
    others = [axis for axis, size in enumerate(shape) if size == batch]
    where = f"; its batch seems to be dimension {others[0]}" if len(others) == 1 and batch > 1 else ""
    raise DataError(
        f"{model}: output '{output}' has shape {shape} for a batch of {batch}; expected a row per sample{where}: say "
        f"--batch-axis {output}={others[0] if len(others) == 1 else 'AXIS'}, name that dimension in the ONNX file as "
        "the input's batch is named (dynamic_axes of torch.onnx.export), or choose another output with --output-name"
    )


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
