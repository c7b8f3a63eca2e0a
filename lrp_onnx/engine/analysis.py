"""What can be known of a graph before any image is read: the relevance path, signs of tensors, their layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from lrp_onnx.graph import Graph, Node
from lrp_onnx.ops import find

_FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
}


def relevance_path(graph: Graph, output: str, *, hold_detached: bool) -> list[tuple[Node, tuple[int, ...]]]:
    """Nodes between the float inputs and `output`, in execution order, with the input positions that get relevance.

    With `hold_detached`, what an op holds constant in LRP (the denominator of Div) is not on the path.
    """
    reached = {name for name, info in graph.inputs.items() if info.elem_type in _FLOATS}
    active: dict[int, tuple[int, ...]] = {}
    for i, node in enumerate(graph.nodes):
        op = find(node)
        positions: Sequence[int] = op.differentiable(node) if op else range(len(node.inputs))
        got = tuple(p for p in positions if node.inputs[p] in reached)
        if hold_detached and op:
            got = tuple(p for p in got if p not in op.detached) or got
        if got:
            active[i] = got
            reached.update(node.outputs)
    wanted = {output}
    path = []
    for i, node in reversed(list(enumerate(graph.nodes))):
        if i in active and wanted.intersection(node.outputs):
            path.append((node, active[i]))
            wanted.update(node.inputs[p] for p in active[i])
    return path[::-1]


_NEVER_NEGATIVE = {"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "ThresholdedRelu", "Abs", "Exp", "Sqrt"}
_KEEPS_SIGN = {"AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum", "Add", "Sum", "Mean", "Mul", "Div", "LRN"}


def nonnegative_tensors(graph: Graph) -> set[str]:
    """Tensors and constants that hold no negative value, whatever the input."""
    result: set[str] = set()

    def known(name: str) -> bool:
        if name in graph.initializers:
            array = graph.initializers[name]
            return array.dtype.kind in "fui" and bool((array >= 0).all())
        return name in result

    for node in graph.nodes:
        op = find(node)
        if op is None:
            continue
        data = [node.inputs[p] for p in op.differentiable(node)]
        if node.op_type == "Clip":
            holds = clip_bound(graph, node, 1) >= 0 or known(node.inputs[0])
        elif node.op_type == "Pad":
            holds = known(node.inputs[0]) and (not node.input(2) or known(node.input(2)))
        elif node.op_type == "BatchNormalization":
            holds = False
        else:
            keeps = op.family in ("max", "route", "identity") or node.op_type in _KEEPS_SIGN
            holds = node.op_type in _NEVER_NEGATIVE or (keeps and bool(data) and all(known(n) for n in data))
        if holds:
            result.update(n for n in node.outputs if n)
    return result


def clip_bound(graph: Graph, node: Node, position: int) -> float:
    """Lower (position 1) or upper (2) bound of a Clip node; -inf or inf where it is not a known constant."""
    open_end = (-np.inf, np.inf)[position - 1]
    value: Any = node.attributes.get(("min", "max")[position - 1], open_end)
    if node.input(position):
        value = graph.initializers.get(node.input(position), open_end)
    return float(np.asarray(value).reshape(()))


_NOT_ZERO_AT_ZERO = {"Sigmoid", "HardSigmoid", "Softplus", "BatchNormalization"}


def zero_at_zero(graph: Graph, node: Node) -> bool:
    """Whether the node's output element is zero wherever the input element it comes from is zero."""
    if node.op_type == "Clip":
        return clip_bound(graph, node, 1) <= 0 <= clip_bound(graph, node, 2)
    return node.op_type not in _NOT_ZERO_AT_ZERO


def rectifies(graph: Graph, node: Node) -> bool:
    """Whether the node's output is zero wherever its input is not positive: ReLU, ReLU6."""
    return node.op_type == "Relu" or (node.op_type == "Clip" and clip_bound(graph, node, 1) == 0)


_KEEPS_LAYOUT = {"activation", "identity", "max", "mean", "sum", "product"}


def pictures(graph: Graph) -> frozenset[str]:
    """Tensors (N, C, H, W) that come out of convolutions, directly or through ops that keep that form."""
    result: set[str] = set()
    for node in graph.nodes:
        op = find(node)
        keeps = node.op_type == "Concat" or (op is not None and op.family in _KEEPS_LAYOUT)
        if node.op_type in ("Conv", "ConvTranspose") or (keeps and result.intersection(node.inputs)):
            result.update(name for name in node.outputs if len(graph.shapes.get(name) or ()) == 4)
    return frozenset(result)


def bind_dimensions(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Values of the symbolic dimensions of the model's inputs in a run with inputs of these shapes."""
    values: dict[str, int] = {}
    for name, info in graph.inputs.items():
        for declared, actual in zip(info.shape or (), shapes.get(name, ()), strict=False):
            if isinstance(declared, str):
                values[declared] = actual
    return values
