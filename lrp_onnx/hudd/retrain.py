"""Retrain an ONNX model from its own weights on more data; the file that comes out differs in its weights only."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import onnx
import torch

from lrp_onnx.converters.coexist import order_imports
from lrp_onnx.errors import DataError, ModelError, OutputError
from lrp_onnx.graph import Graph, load
from lrp_onnx.hudd.comparison import ClusterVerdict, Verdict, verdict
from lrp_onnx.hudd.training import Epoch, Loss, Objective, Stopped, Trainer
from lrp_onnx.hudd.training_data import Data, Examples, examples, split

if TYPE_CHECKING:
    from lrp_onnx.converters.trainable import Trainable

__all__ = ["ClusterVerdict", "Epoch", "Retrained", "Verdict", "retrain", "verdict"]

_EXAMPLES = 8  # samples to compare torch and ONNX Runtime on
Optimizer = Literal["sgd", "adam"]


@dataclass(frozen=True, eq=False)
class Retrained:
    """What `retrain` gives.

    Attributes
    ----------
    model : onnx.ModelProto
        The model with the weights of the epoch that is kept; the original weights where no epoch was better.
    history : tuple of Epoch
        From epoch 0, the original weights.
    best_epoch : int
        The epoch that is kept: of those better on the validation set than the original and within one standard error of
        the best accuracy, the last; for regression the one with the smallest loss. 0 where none was better.
    stopped : {"epochs", "patience", "diverged"}
        Why training ended: all epochs done, no better epoch for a while, or a loss that is not finite.
    difference : float
        Relative difference between torch and ONNX Runtime on a validation batch.
    route : str
        What made the torch network: "onnx2torch" or "lrp_onnx.ops".
    trained : tuple of str
        Names of the constants that were trained.
    failures : dict of str to str
        Path and reason of each sample that could not be read.
    notes : tuple of str
        What the user should know.
    """

    model: onnx.ModelProto
    history: tuple[Epoch, ...]
    best_epoch: int
    stopped: Stopped
    difference: float
    route: str
    trained: tuple[str, ...]
    failures: dict[str, str]
    notes: tuple[str, ...]

    @property
    def improved(self) -> bool:
        """Whether an epoch was better on the validation set than the original."""
        return self.best_epoch > 0


def retrain(
    model: Graph | onnx.ModelProto | bytes | str | os.PathLike[str],
    training: Data | list[Data],
    validation: Data | list[Data] | float = 0.2,
    *,
    epochs: int = 10,
    optimizer: Optimizer = "sgd",
    learning_rate: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch_size: int = 32,
    patience: int | None = 5,
    loss: Loss = "cross-entropy",
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    device: str = "cpu",
    progress: Callable[[Epoch], None] | None = None,
    step: Callable[[int, int], None] | None = None,
) -> Retrained:
    """Train a model further and keep an epoch that is better on the validation set than the original, if any is.

    The network learns as it runs in use: BatchNormalization keeps its statistics, Dropout passes, and a Softmax or
    Sigmoid at the end is left out of the cross-entropy, which works on logits. The order of the samples follows from
    seed and epoch alone, so that a run that resumes does what an uninterrupted one does.

    Parameters
    ----------
    model : Graph, onnx.ModelProto, bytes or path
        Is not modified.
    training : Dataset, path, (inputs, answers), or a list of these, which are joined
        Inputs are arrays (N, …); answers int (N,) class indexes, or float (N, T) for "mse" and "mae". A single logit
        tells class 1 from class 0. Pictures go through the model's own preprocessing.
    validation : as `training`, or float
        A fraction of the training samples to set aside; repetitions of a sample stay together. Better are samples that
        the model has never learned from: on those that it knows by heart hardly an epoch beats the original.
    epochs : int
        Largest number of passes over the training set.
    optimizer : {"sgd", "adam"}
        Stochastic gradient descent with `momentum`, or Adam; both with `weight_decay`.
    patience : int or None
        Stop after this many epochs without a better one; None never stops early.
    loss : {"cross-entropy", "mse", "mae"}
        Better is a higher accuracy, then a lower loss, for "cross-entropy"; a lower loss for the others, which are
        computed on the model's own output.
    checkpoint : path-like, optional
        Where the state is saved after each epoch.
    resume : bool
        Continue from `checkpoint` if it is there; start anew if not.
    device : str
        Where torch trains, such as "cuda".
    progress : callable, optional
        Called with each `Epoch`, 0 included.
    step : callable, optional
        Called with samples done and samples in all epochs.

    Returns
    -------
    Retrained

    Raises
    ------
    ModelError, UnsupportedOpError, ConversionError
        The model cannot be trained, as `lrp_onnx.converters.trainable.to_torch` says.
    DataError
        The data does not fit the model, an option is out of range, or the checkpoint is of another run.
    OutputError
        `checkpoint` exists and `resume` is False, or it cannot be written.
    """
    settings = {"learning rate": learning_rate, "momentum": momentum, "weight decay": weight_decay}
    _check_options(epochs=epochs, batch_size=batch_size, patience=patience, **settings)
    for value, known in ((optimizer, get_args(Optimizer)), (loss, get_args(Loss))):
        if value not in known:
            raise DataError(f"'{value}' is not known here; expected one of {', '.join(known)}")
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.exists() and not resume:
        raise OutputError(f"{path}: there is a checkpoint already; resume from it, or remove it to start anew")
    graph = model if isinstance(model, Graph) else load(model)
    if graph.original is None:
        raise ModelError(f"{graph.name}: the model as it was loaded is gone; give its path")
    learn, check = _sets(graph, training, validation, loss, seed)

    order_imports()  # torch.optim imports triton
    from lrp_onnx.converters.trainable import to_torch, write_back

    first, _ = next(check.batches(np.arange(len(check)), min(batch_size, _EXAMPLES)))
    example = [check.feed.batch_of(first[: check.feed.batch])]
    trainable = to_torch(graph.original, example=example)
    objective = Objective(loss, check.feed)
    objective.check(trainable, example[0], (learn, check))
    trainable.to(device)
    optimiser = _optimiser(trainable, optimizer, settings)
    trainer = Trainer(trainable, learn, check, objective, optimiser, batch_size, seed)
    run = {"model": graph.sha256, "training": learn.digest(), "validation": check.digest()}
    run |= {"loss": loss, "optimizer": optimizer, "batch size": batch_size, "seed": seed, **settings}
    if path is not None and path.exists():
        trainer.resume(path, run)
    save = None if path is None else partial(trainer.save, path, run)
    stopped = trainer.train(epochs, patience, save=save, progress=progress, step=step)
    trainable.restore(trainer.best)
    written = write_back(graph.original, trainable.cpu(), example=example)
    return Retrained(
        written.model,
        tuple(trainer.history),
        trainer.best_epoch,
        stopped,
        written.difference,
        trainable.route,
        trainable.names,
        {**learn.failures, **check.failures},
        (*learn.feed.notes, *trainable.notes),
    )


def _check_options(**options: float | None) -> None:
    lowest = {"epochs": 1, "batch size": 1, "patience": 1, "learning rate": 0, "momentum": 0, "weight decay": 0}
    for name, value in options.items():
        bound = lowest[name.replace("_", " ")]
        if value is not None and not bound <= value < float("inf"):
            raise DataError(f"{name.replace('_', ' ')} is {value}; expected at least {bound}")


def _sets(
    graph: Graph, training: Data | list[Data], validation: Data | list[Data] | float, loss: Loss, seed: int
) -> tuple[Examples, Examples]:
    regression = loss != "cross-entropy"
    learn = examples(graph, training, regression=regression, what="training set")
    if isinstance(validation, int | float):
        return split(learn, validation, seed)
    return learn, examples(graph, validation, regression=regression, what="validation set")


def _optimiser(trainable: Trainable, kind: Optimizer, settings: dict[str, float]) -> torch.optim.Optimizer:
    weights = list(trainable.weights)
    rate, decay = settings["learning rate"], settings["weight decay"]
    if kind == "sgd":
        return torch.optim.SGD(weights, rate, momentum=settings["momentum"], weight_decay=decay)
    return torch.optim.Adam(weights, rate, weight_decay=decay)
