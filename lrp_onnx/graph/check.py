"""Compare a canonical model with the model it was made from, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from lrp_onnx.errors import ModelError
from lrp_onnx.graph.model import Graph, Node, TensorInfo
from lrp_onnx.runtime import first_line, open_session

_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
_UNKNOWN_SIZE = 64  # stands in for a dynamic dimension that is not the batch


def verify_canonical(graph: Graph, seed: int = 0, batch: int = 2, *, inner: bool = False) -> float:
    """Largest difference between the outputs of the original and of the canonical model on random inputs.

    Where an activation was cut off, the logits are compared if the original has a tensor of that name, otherwise the
    activation is applied to the canonical model's logits.

    Parameters
    ----------
    graph : Graph
        As `load` returns it.
    seed : int
        Seed of the standard normal inputs.
    batch : int
        Size given to a dynamic first dimension.
    inner : bool
        Compare every floating-point tensor whose name is in both models, not only the outputs.

    Returns
    -------
    float
        Largest absolute difference of an output over the largest absolute value of that output.

    Raises
    ------
    ModelError
        If the graph has no original, or ONNX Runtime cannot run one of the two models.
    """
    if graph.original is None:
        raise ModelError(f"{graph.name}: there is no original model to compare with")
    rng = np.random.default_rng(seed)
    feeds = {name: _random(info, rng, batch) for name, info in graph.inputs.items()}
    return max((found.relative for found in canonical_differences(graph, feeds, inner=inner)), default=0.0)


@dataclass(frozen=True)
class Difference:
    """The largest difference of one tensor, absolute, and over the largest absolute value expected."""

    tensor: str
    absolute: float
    relative: float


def canonical_differences(
    graph: Graph, feeds: Mapping[str, np.ndarray], *, inner: bool = False, optimise: bool = False
) -> list[Difference]:
    """Differences between original and canonical model on inputs by name: of each output, then of inner tensors.

    `verify_canonical` says what is compared with what. With `optimise` both run as ONNX Runtime does by default: the
    original as it is deployed, quantised operations in integers, the canonical model as its heatmaps are computed.
    """
    if graph.original is None:
        raise ModelError(f"{graph.name}: there is no original model to compare with")
    computed = {output for node in graph.original.graph.node for output in node.output}
    names = list(graph.outputs)
    if inner:
        floats = {name for name, dtype in graph.dtypes.items() if dtype in _FLOATS}
        names += [name for name in graph.producer if name in computed & floats and name not in graph.outputs]
    sources = [graph.cuts[name].outputs[0] if name in graph.cuts and name not in computed else name for name in names]
    wanted = _run(graph.original, sources, feeds, graph.name, optimise)
    found = _run(graph.model, names, feeds, graph.name, optimise, canonical=True)
    result = []
    for name, source, expected, actual in zip(names, sources, wanted, found, strict=True):
        if source != name:
            actual = _activate(actual, graph.cuts[name])
        if actual.size != expected.size:
            raise ModelError(f"{graph.name}: output '{name}' has shape {actual.shape} instead of {expected.shape}")
        result.append(difference(name, expected, actual.reshape(expected.shape)))
    return result


def difference(tensor: str, expected: np.ndarray, actual: np.ndarray) -> Difference:
    """How far two arrays of one shape are apart; equal infinities and NaN in the same place are no difference."""
    if expected.dtype.kind in "OSU":  # class names
        off = 0.0 if np.array_equal(expected, actual) else np.inf
        return Difference(tensor, off, off)
    a, b = expected.astype(np.float64), actual.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        largest = np.where(same, 0.0, np.abs(a - b)).max(initial=0.0)
    largest = float("inf") if np.isnan(largest) else float(largest)
    scale = np.abs(a[np.isfinite(a)]).max(initial=np.finfo(np.float32).tiny)
    return Difference(tensor, largest, float(largest / scale))


def _random(info: TensorInfo, rng: np.random.Generator, batch: int) -> np.ndarray:
    sizes = [
        size if isinstance(size, int) else batch if axis == 0 else _UNKNOWN_SIZE
        for axis, size in enumerate(info.shape or ())
    ]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(info.elem_type)
    values = rng.standard_normal(sizes)
    return np.asarray(values if dtype.kind == "f" else values > 0).astype(dtype)


def _run(
    model: onnx.ModelProto,
    names: list[str],
    feeds: Mapping[str, np.ndarray],
    label: str,
    optimise: bool,
    *,
    canonical: bool = False,
) -> list[np.ndarray]:
    # ONNX Runtime recognises norms and activations itself; optimised, both models could be the same by its doing
    session = open_session(model, names, name=label, optimise=optimise, canonical=canonical)
    try:
        return session.run(names, feeds)
    except Exception as error:  # ONNX Runtime has its own exception types, all directly below Exception
        raise ModelError(f"{label}: ONNX Runtime cannot run the model: {first_line(error)}") from error


def _activate(logits: np.ndarray, activation: Node) -> np.ndarray:
    x = logits.astype(np.float64)
    if activation.op_type == "Sigmoid":
        return 1.0 / (1.0 + np.exp(-x))
    axis = int(activation.attributes.get("axis", -1))
    shifted = x - x.max(axis=axis, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
    return log_softmax if activation.op_type == "LogSoftmax" else np.exp(log_softmax)
