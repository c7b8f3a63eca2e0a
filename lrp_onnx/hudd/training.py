"""The training loop: epochs in an order that the seed fixes, validation, early stopping, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lrp_onnx.errors import DataError
from lrp_onnx.files import written_whole
from lrp_onnx.hudd.training_data import Examples
from lrp_onnx.inputs import Feed
from lrp_onnx.runtime import first_line

if TYPE_CHECKING:
    from lrp_onnx.converters.trainable import Trainable

Loss = Literal["cross-entropy", "mse", "mae"]
Stopped = Literal["epochs", "patience", "diverged"]


@dataclass(frozen=True)
class Epoch:
    """One pass over the training set.

    Attributes
    ----------
    epoch : int
        0 is the model as it came.
    training_loss, training_accuracy : float or None
        Means over the training set while it was learned from; None for epoch 0.
    loss, accuracy : float
        Means over the validation set afterwards. Accuracies are 0 to 1, and None for regression.
    """

    epoch: int
    training_loss: float | None
    training_accuracy: float | None
    loss: float
    accuracy: float | None

    @property
    def rank(self) -> tuple[float, float]:
        """The larger, the better on the validation set: accuracy first, then loss."""
        return (self.accuracy or 0.0, -self.loss)


@dataclass(frozen=True)
class Objective:
    """What is minimised: a loss between the model's output and the answers."""

    loss: Loss
    feed: Feed

    def output(self, trainable: Trainable, inputs: np.ndarray) -> Tensor:
        """(n, K) logits, or (n, T) regressed numbers; in several runs where the model's batch size is fixed."""
        device = trainable.weights[0].device
        size = self.feed.batch or len(inputs)
        parts = []
        for start in range(0, len(inputs), size):
            chunk = inputs[start : start + size]
            tensor = torch.from_numpy(np.ascontiguousarray(self.feed.batch_of(chunk))).to(device)
            output = trainable.logits(tensor) if self.loss == "cross-entropy" else trainable(tensor)[0]
            parts.append(output[: len(chunk)])
        return torch.cat(parts).flatten(1)

    def value(self, output: Tensor, answers: np.ndarray) -> tuple[Tensor, int]:
        """Mean loss, and how many are right (0 for regression)."""
        wanted = torch.from_numpy(answers).to(output.device)
        if self.loss == "mse":
            return F.mse_loss(output, wanted.to(output.dtype)), 0
        if self.loss == "mae":
            return F.l1_loss(output, wanted.to(output.dtype)), 0
        if output.shape[1] > 1:
            return F.cross_entropy(output, wanted), int((output.argmax(dim=1) == wanted).sum())
        logit = output[:, 0]
        value = F.binary_cross_entropy_with_logits(logit, wanted.to(output.dtype))
        return value, int(((logit > 0) == wanted.bool()).sum())

    def check(self, trainable: Trainable, inputs: np.ndarray, sets: tuple[Examples, Examples]) -> None:
        """Raise DataError where answers and outputs do not fit each other."""
        with torch.no_grad():
            output = trainable.logits(*map(torch.from_numpy, [inputs]))
        width = output.flatten(1).shape[1]
        for part in sets:
            if self.loss == "cross-entropy":
                if output.ndim > 2 and width != output.shape[1]:
                    raise DataError(f"the model gives {tuple(output.shape[1:])} for a sample; one class is expected")
                if part.answers.max() >= max(width, 2):
                    raise DataError(
                        f"class index {part.answers.max()}, but the model tells {max(width, 2)} classes apart"
                    )
            elif part.answers.shape[1] != width:
                raise DataError(f"{part.answers.shape[1]} numbers to regress, but the model gives {width}")


@dataclass(eq=False)
class Trainer:
    """A training run: its weights, its past, and how it goes on; `best` are the weights of the epoch that is kept."""

    trainable: Trainable
    training: Examples
    validation: Examples
    objective: Objective
    optimiser: torch.optim.Optimizer
    batch_size: int
    seed: int
    history: list[Epoch] = field(default_factory=list)
    best: list[Tensor] = field(default_factory=list)
    best_epoch: int = 0

    def train(
        self,
        epochs: int,
        patience: int | None,
        *,
        save: Callable[[], None] | None = None,
        progress: Callable[[Epoch], None] | None = None,
        step: Callable[[int, int], None] | None = None,
    ) -> Stopped:
        """Go on until `epochs` are done, `patience` epochs brought nothing, or a loss is not finite; says which."""
        with _deterministic():
            if not self.history:
                self._note(Epoch(0, None, None, *self._validate()), progress)
            while (epoch := len(self.history)) <= epochs:
                if patience is not None and epoch - 1 - self._peak().epoch >= patience:
                    return "patience"
                learned = self._learn(epoch, epochs, step)
                checked = self._validate()
                if not np.isfinite([learned[0], checked[0]]).all():
                    return "diverged"
                self._note(Epoch(epoch, *learned, *checked), progress)
                if save is not None:
                    save()
        return "epochs"

    def save(self, path: Path, run: Mapping[str, Any]) -> None:
        """Write the state after the last epoch; `run` says what it is the state of."""
        state = {
            "run": dict(run),
            "history": [asdict(epoch) for epoch in self.history],
            "best epoch": self.best_epoch,
            "best": self.best,
            "weights": self.trainable.snapshot(),
            "optimiser": self.optimiser.state_dict(),
        }
        with written_whole(path, overwrite=True) as new:
            torch.save(state, new)

    def resume(self, path: Path, run: Mapping[str, Any]) -> None:
        """Take up the state that `save` wrote.

        Raises
        ------
        DataError
            It cannot be read, or is of another run.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            found = dict(state["run"])
        except Exception as error:  # torch.load raises what zip, pickle or the file system raise
            raise DataError(f"{path}: not a checkpoint that can be read ({first_line(error)}); remove it") from error
        if other := [key for key in run if found.get(key) != run[key]]:
            raise DataError(
                f"{path}: a checkpoint of another run, with other {', '.join(other)}; remove it to start anew"
            )
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.best, self.best_epoch = state["best"], state["best epoch"]
        self.trainable.restore(state["weights"])
        self.optimiser.load_state_dict(state["optimiser"])

    def _note(self, epoch: Epoch, progress: Callable[[Epoch], None] | None) -> None:
        self.history.append(epoch)
        if epoch.epoch == 0 or self._as_good(epoch):
            self.best, self.best_epoch = self.trainable.snapshot(), epoch.epoch
        if progress is not None:
            progress(epoch)

    def _peak(self) -> Epoch:
        return max(self.history, key=lambda epoch: epoch.rank)

    def _as_good(self, epoch: Epoch) -> bool:
        """Whether an epoch is better than the original, and not measurably worse than the best.

        Accuracies on a few hundred images differ by chance: the best of many is the luckiest. Within one standard error
        of it (Breiman et al. 1984) the latest counts, which has learned the most and jumps about the least.
        """
        peak = self._peak()
        if epoch.accuracy is None or peak.accuracy is None:
            return epoch is peak
        error = (peak.accuracy * (1 - peak.accuracy) / len(self.validation)) ** 0.5
        return epoch.rank > self.history[0].rank and epoch.accuracy >= peak.accuracy - error

    def _learn(self, epoch: int, epochs: int, step: Callable[[int, int], None] | None) -> tuple[float, float | None]:
        # the order depends on seed and epoch only: a run that resumes needs no state of a generator
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.training))
        before = (epoch - 1) * len(order)

        def update(value: Tensor, done: int) -> None:
            self.optimiser.zero_grad()
            value.backward()
            self.optimiser.step()
            if step is not None:
                step(before + done, epochs * len(order))

        return self._pass(self.training, order, update)

    def _validate(self) -> tuple[float, float | None]:
        with torch.no_grad():
            return self._pass(self.validation, np.arange(len(self.validation)))

    def _pass(
        self, part: Examples, order: np.ndarray, update: Callable[[Tensor, int], None] | None = None
    ) -> tuple[float, float | None]:
        """Mean loss and accuracy over `part`; ends early with a loss that is not finite."""
        total, right, done = 0.0, 0, 0
        for inputs, answers in part.batches(order, self.batch_size):
            value, correct = self.objective.value(self.objective.output(self.trainable, inputs), answers)
            total, right, done = total + value.item() * len(answers), right + correct, done + len(answers)
            if not np.isfinite(total):
                break
            if update is not None:
                update(value, done)
        return total / done, right / done if self.objective.loss == "cross-entropy" else None


@contextmanager
def _deterministic() -> Iterator[None]:
    """The same numbers in every run; full float32 on a GPU, so that ONNX Runtime agrees."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield
