"""What was expected of a stored sample and what the model gave, in words, for regressed numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.losses import part_names
from lrp_onnx.store import HeatmapStore

_MOST_SHOWN = 4  # numbers that a caption has room for


class Regressed:
    """Captions of the samples of a store that has regression targets.

    Parameters
    ----------
    store : HeatmapStore

    Attributes
    ----------
    targets : float (N, T)
        NaN where not known.
    """

    def __init__(self, store: HeatmapStore) -> None:
        targets, values, loss = store.target_values, store.predicted_values, store.attrs.get("loss", "")
        assert targets is not None
        self.targets = targets.reshape(len(targets), -1)
        # A store made without them, or of a model whose output does not fit the targets, has only that output.
        known = values is not None and not np.isnan(values).all()
        self._values = values.reshape(len(targets), -1) if values is not None and known else store.prediction
        samples = store.samples
        self._loss, self._worst = samples["loss"], samples["worst"]
        self._width = 2 if loss == "landmarks" else 1
        count = self.targets.shape[1] // self._width
        self._names = part_names(loss, store.target_names, count) if loss else ()

    def expected(self, row: int) -> str:
        return numbers(self.targets[row])

    def predicted(self, row: int) -> str:
        return numbers(self._values[row])

    def lines(self, row: int) -> list[str]:
        """The worst output or landmark and the loss; expected and predicted, where they are many of the worst alone."""
        worst, loss = int(self._worst[row]), float(self._loss[row])
        expected, predicted = self.targets[row], np.ravel(self._values[row])
        what = "loss not known" if np.isnan(loss) else f"loss {loss:.3g}"
        if len(self._names) > 1 and worst >= 0:
            what = f"worst {self._names[worst]}, {what}"
            if len(expected) > _MOST_SHOWN:
                part = slice(self._width * worst, self._width * (worst + 1))
                expected, predicted = expected[part], predicted[part]
        return [what, f"expected {_few(expected)}, predicted {_few(predicted)}"]


def numbers(values: Sequence[float] | NDArray[np.floating]) -> str:
    """Numbers in a row; "-" for what is not known."""
    return " ".join("-" if np.isnan(value) else f"{value:.4g}" for value in np.ravel(values).tolist())


def _few(values: NDArray[np.floating]) -> str:
    """As `numbers`, the first ones and shorter."""
    first = values[:_MOST_SHOWN].tolist()
    shown = " ".join("-" if np.isnan(v) else f"{v:.0f}" if abs(v) >= 100 else f"{v:.3g}" for v in first)
    return shown + (" …" if values.size > _MOST_SHOWN else "")
