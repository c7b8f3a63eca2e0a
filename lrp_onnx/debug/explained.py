"""What number each heatmap of a store explains: a class, or how much each element of the output counts in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray

from lrp_onnx.embedding import embed
from lrp_onnx.engine.seed import output_name
from lrp_onnx.errors import StoreError
from lrp_onnx.graph import Graph
from lrp_onnx.losses import worst_outputs
from lrp_onnx.store import HeatmapStore
from lrp_onnx.targets import Chosen, parse


@dataclass(frozen=True, eq=False)
class Explained:
    """What the heatmaps of a store are of.

    Attributes
    ----------
    store : HeatmapStore
    output : str
        Name of the model's output.
    classes : bool
        Each is of a class of (K,) outputs; otherwise of a number, such as a box's score or a regressed coordinate.
    chosen : Chosen or None
        The target, where it is one by name.
    """

    store: HeatmapStore
    output: str
    classes: bool
    chosen: Chosen | None

    def target(self, row: int) -> int | NDArray[np.float32]:
        """Of a finished sample: the index in the flattened output, or weights shaped as the output."""
        output = self.store.prediction[row]
        if self.chosen is not None:
            return self.chosen.weights(torch.from_numpy(output)[None], None)[0].numpy().astype(np.float32)
        samples = self._samples
        if samples["target"][row] >= 0:
            return int(samples["target"][row])
        expected, loss = self.store.target_values, self.store.attrs.get("loss", "")
        if expected is None or samples["worst"][row] < 0:
            raise StoreError(f"{self.store.path}, {samples['path'][row]}: the store does not say what is explained")
        weights = np.zeros(output.size, np.float32)
        weights[worst_outputs(output[None], samples["worst"][row : row + 1], expected.shape[1], loss)[0]] = 1
        return weights.reshape(output.shape)

    @cached_property
    def _samples(self) -> dict[str, np.ndarray]:
        return self.store.samples

    def number(self, row: int) -> float:
        """What the model gave for it."""
        target, output = self.target(row), self.store.prediction[row]
        if isinstance(target, int):
            return float(output.ravel()[target])
        return float((target * output).sum())


def explained_by(store: HeatmapStore, graph: Graph) -> Explained:
    """What the heatmaps of a store are of.

    Raises
    ------
    StoreError
        When there are none, or they explain every output at once.
    DataError, TargetError
        When a reference or mask that the target names is gone.
    """
    if not len(store.done):
        raise StoreError(f"{store.path}: holds no finished heatmap; compute heatmaps first")
    if store.attrs["seed"] == "all":
        raise StoreError(
            f"{store.path}: heatmaps that explain every output at once, and no one number that could be followed; "
            "compute them again with --seed auto"
        )
    recorded = store.conservation
    output = recorded[0][-1] if recorded and recorded[0][-1] in graph.outputs else output_name(graph)
    text = str(store.attrs["target"])
    found = parse(text, store.target_names or store.classes, partial(embed, graph, output=output))
    chosen = found if isinstance(found, Chosen) else None
    return Explained(store, output, of_classes(store), chosen)


def of_classes(store: HeatmapStore) -> bool:
    """Whether a store is of decisions between classes, as far as its shapes, its data and its target say."""
    named = ":" in str(store.attrs["target"]) or store.attrs["target"] == "worst"
    return not named and store.target_values is None and store.prediction.ndim == 2
