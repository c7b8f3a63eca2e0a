"""Heatmaps while a model trains: a hook for a loop in PyTorch, callbacks for Keras and Lightning."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from lrp_onnx.debug.current_weights import CurrentWeights, KerasWeights, TorchWeights
from lrp_onnx.debug.training_record import EpochRecord, ImageRecord
from lrp_onnx.debug.training_run import TrainingRun
from lrp_onnx.errors import DataError

if TYPE_CHECKING:
    import torch

__all__ = ["EpochRecord", "ImageRecord", "TorchHook", "TrainingRun", "keras_callback", "lightning_callback"]

_LIGHTNING = ("lightning.pytorch", "pytorch_lightning")


class TorchHook:
    """Records epochs of a training loop in PyTorch.

    Parameters
    ----------
    run : TrainingRun
    network : torch.nn.Module
        Takes one batch of images; the first tensor that it gives is the scores. Is only ever copied.
    example : array or tensor (n, …), optional
        Inputs to export the network with; the first validation images by default.

    Examples
    --------
    >>> hook = TorchHook(run, network)                                # doctest: +SKIP
    >>> for epoch in range(1, 21):                                    # doctest: +SKIP
    ...     loss = train_one_epoch(network)
    ...     hook(epoch, loss=loss)
    """

    def __init__(self, run: TrainingRun, network: torch.nn.Module, example: Any = None) -> None:
        images = run.sample if example is None else _array(example)
        self.run, self._weights = run, TorchWeights(network, images)

    def __call__(self, epoch: int, **metrics: Any) -> EpochRecord | None:
        """Record this epoch if it is due; numbers among `metrics`, such as the training loss, are kept."""
        return self.run.record(epoch, self._weights, metrics)


def keras_callback(run: TrainingRun) -> Any:
    """A `keras.callbacks.Callback` that records every due epoch, counted from 1, with the logs that Keras gives.

    Examples
    --------
    >>> model.fit(x, y, epochs=20, callbacks=[keras_callback(run)])   # doctest: +SKIP
    """
    import keras

    images = run.sample

    class TrainingHeatmaps(keras.callbacks.Callback):
        weights: CurrentWeights | None = None

        def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
            if self.weights is None:
                self.weights = KerasWeights(self.model, images)
            run.record(epoch + 1, self.weights, logs)

    return TrainingHeatmaps()


def lightning_callback(run: TrainingRun, example: Any = None) -> Any:
    """A callback of Lightning (`lightning` or `pytorch_lightning`) that records every due epoch, counted from 1.

    The module's own `forward` is explained. Of several processes the first records.

    Raises
    ------
    DataError
        Lightning is not installed.
    """
    images = run.sample if example is None else example

    class TrainingHeatmaps(_lightning().Callback):  # type: ignore[misc]  # a base that is found when called
        hook: TorchHook | None = None

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if not trainer.is_global_zero:
                return
            if self.hook is None:
                self.hook = TorchHook(run, module, images)
            self.hook(trainer.current_epoch + 1, **trainer.callback_metrics)

    return TrainingHeatmaps()


def _lightning() -> Any:
    for name in _LIGHTNING:
        try:
            return import_module(name)
        except ImportError:
            continue
    raise DataError("lightning_callback needs Lightning, which does not import here: pip install lightning")


def _array(example: Any) -> np.ndarray:
    return np.asarray(example.detach().cpu() if hasattr(example, "detach") else example)
