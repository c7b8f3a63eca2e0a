"""Features of the images of a heatmap store: what a layer of a network, the explained or another one, makes of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lrp_onnx.data import batches
from lrp_onnx.errors import DataError
from lrp_onnx.forward import make_forward
from lrp_onnx.graph import Graph, load
from lrp_onnx.inputs import describe, feed_for, first_readable
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.store import HeatmapStore
from lrp_onnx.stored_inputs import stored_dataset

# On the way from the last layer with positions to the dense one; they move values and change none.
_MOVES = ("Reshape", "Flatten", "Squeeze", "Transpose", "Identity", "Dropout")
_TAKES_LAST_AXIS = ("MatMul", "LayerNormalization")


@dataclass(frozen=True, eq=False)
class Features:
    """What `compute_features` found.

    Attributes
    ----------
    values : float32 array (n, features)
    rows : int array (n,)
        Row in the store of each image.
    network, layer : str
        File and tensor that they come from.
    sha256 : str
        Of the network.
    notes : tuple of str
        What was guessed, and how many images could not be read.
    """

    values: NDArray[np.float32]
    rows: NDArray[np.int64]
    network: str
    layer: str
    sha256: str
    notes: tuple[str, ...]


def compute_features(
    network: Graph | str | os.PathLike[str],
    store: HeatmapStore,
    rows: NDArray[np.int64],
    *,
    layer: str | None = None,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Run images of a store through a network and keep the activations of one layer.

    Activations with positions are averaged over them. Images that cannot be read are left out and counted.

    Parameters
    ----------
    network
        ONNX model. If it is the one that the heatmaps are of, pictures become inputs as they did then; otherwise as the
        network's metadata say.
    store : HeatmapStore
    rows : int array (m,)
        Which images.
    layer : str, optional
        Tensor; see `default_layer`.
    batch_size : int
        Images at a time, if the network leaves it free.
    progress : callable (done, total), optional

    Raises
    ------
    DataError
        No image can be read, there is no such layer, or network and images do not fit each other.
    ModelError
        The network cannot be read.
    """
    graph = network if isinstance(network, Graph) else load(network)
    if store.preprocess is not None and graph.sha256 == store.attrs["model_sha256"]:
        graph = describe(graph, Preprocess.from_json(store.preprocess))
    name = default_layer(graph) if layer is None else graph.aliases.get(layer, layer)
    if name not in graph.producer:
        raise DataError(f"{graph.name}: no layer '{name}'; `lrp-onnx inspect` lists them")
    dataset = stored_dataset(store, rows)
    feed = feed_for(graph, dataset)
    first_readable(dataset, feed)
    forward = make_forward(graph, [name], torch.float32, torch.device("cpu"))
    values, found = [], []
    for batch in batches(dataset, feed.preprocess, feed.batch or batch_size):
        inputs = torch.from_numpy(feed.batch_of(batch.inputs))
        activations = forward({feed.input: inputs})[name].numpy()
        if activations.ndim < 2 or len(activations) != len(inputs):
            raise DataError(
                f"{graph.name}: layer '{name}' has shape {activations.shape} for a batch of {len(inputs)}; expected a "
                "row of activations an image; name another one"
            )
        values.append(_without_positions(activations[: len(batch.rows)], graph, name))
        if not np.isfinite(values[-1]).all():
            path = batch.paths[int(np.isfinite(values[-1]).all(axis=1).argmin())]
            raise DataError(f"{graph.name}: layer '{name}' is not finite for {path}; name another layer")
        found.append(batch.rows)
        if progress is not None:
            progress(int(batch.rows[-1]) + 1, len(dataset))
    notes = list(feed.notes)
    if dataset.failures:
        path, reason = next(iter(dataset.failures.items()))
        notes.append(f"{len(dataset.failures)} images could not be read and are left out; the first, {path}: {reason}")
    return Features(np.concatenate(values), rows[np.concatenate(found)], graph.name, name, graph.sha256, tuple(notes))


def default_layer(graph: Graph) -> str:
    """The input of the last dense layer, as it is before it is flattened; the output of a network without one.

    That is where a classifier has gathered what it knows of an image, and a backbone without its classifier ends.
    """
    dense = [
        node
        for node in graph.nodes
        if node.op_type == "Gemm" or (node.op_type == "MatMul" and node.input(1) in graph.initializers)
    ]
    if not dense:
        return next(iter(graph.outputs))
    before = dense[-1].inputs[0]
    while before in graph.producer and graph.producer[before].op_type in _MOVES:
        before = graph.producer[before].inputs[0]
    has_positions = len(graph.shapes.get(before, ())) > 2 and before in graph.producer
    return before if has_positions else dense[-1].inputs[0]


def _without_positions(activations: NDArray[np.float32], graph: Graph, name: str) -> NDArray[np.float32]:
    """Activations (n, channels), averaged over whatever other axes there are."""
    last = any(node.op_type in _TAKES_LAST_AXIS and node.inputs[0] == name for node in graph.nodes)
    channels = activations.ndim - 1 if last else 1
    axes = tuple(axis for axis in range(1, activations.ndim) if axis != channels)
    return activations.mean(axis=axes) if axes else activations
