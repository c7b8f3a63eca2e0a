"""What can be known of a graph before any image is read: the relevance path, signs of tensors, their layout."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx

from lrp_onnx.graph import Graph, Node
from lrp_onnx.ops import find

FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
}


_NARROW = {onnx.TensorProto.UINT8, onnx.TensorProto.INT8}  # what pictures are stored in
INTEGERS = _NARROW | {
    *(onnx.TensorProto.INT16, onnx.TensorProto.INT32, onnx.TensorProto.INT64),
    *(onnx.TensorProto.UINT16, onnx.TensorProto.UINT32, onnx.TensorProto.UINT64),
}
ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear", "DequantizeLinear")
_TO_FLOAT = {"Cast", "CastLike", "DequantizeLinear"}

Path = list[tuple[Node, tuple[int, ...]]]


def relevance_path(graph: Graph, output: str, *, hold_detached: bool) -> Path:
    """Nodes between the inputs and `output`, in execution order, with the input positions that get relevance.

    Integers get relevance where they stand for something: as ids that pick rows of a constant table (tokens), and as
    the pixels of 8-bit pictures. In a model that has neither, nor floats, any that are cast to floats do (counts).
    With `hold_detached`, what an op holds constant in LRP (the denominator of Div) is not on the path.
    """
    path = _path(graph, output, hold_detached, _NARROW)
    return path or _path(graph, output, hold_detached, INTEGERS)


def _path(graph: Graph, output: str, hold_detached: bool, numbers: Collection[int]) -> Path:
    """`numbers` are the integer types of inputs that are numbers and not ids."""
    reached = {name for name, info in graph.inputs.items() if info.elem_type in FLOATS}
    integers = {name for name, info in graph.inputs.items() if info.elem_type in INTEGERS}
    cast = {name for name in integers if graph.inputs[name].elem_type in numbers}
    active: dict[int, tuple[int, ...]] = {}
    for i, node in enumerate(graph.nodes):
        op = find(node)
        if reached.intersection(node.captured):  # a branch or a loop; refused where the rules are chosen
            active[i] = ()
            reached.update(node.outputs)
            continue
        if looks_up(graph, node):
            got = tuple(p for p in _ids(node) if node.inputs[p] in integers)
        elif (
            op
            and (op.family in ("route", "identity") or node.op_type in _TO_FLOAT)
            and (moved := _moved(node, integers))
        ):
            numeric = all(node.inputs[p] in cast for p in moved)
            to_float = node.op_type in _TO_FLOAT and graph.dtypes.get(node.outputs[0]) not in INTEGERS
            got = moved if not to_float or numeric else ()
            if not to_float:  # ids in another order, or as another integer type
                active[i] = got
                integers.update(node.outputs)
                cast.update(node.outputs if numeric else ())
                continue
        elif _held_against_all(graph, node):
            active[i] = tuple(p for p, name in enumerate(node.inputs) if name in integers)
            integers.update(node.outputs if active[i] else ())
            continue
        elif node.op_type == "Cast" and node.inputs[0] in reached and node.attributes["to"] in INTEGERS:
            active[i] = (0,)  # Keras hands ids in as floats
            integers.update(node.outputs)
            continue
        else:
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
    return path[::-1] if output in reached else []


def _moved(node: Node, names: Collection[str]) -> tuple[int, ...]:
    """Positions of the inputs whose elements the node moves, if they are among `names`."""
    positions = range(len(node.inputs)) if node.op_type == "Concat" else (0,)
    return tuple(p for p in positions if node.inputs[p] in names)


def looks_up(graph: Graph, node: Node) -> bool:
    """Whether the node picks rows of a constant table by ids, as an embedding does, or makes one-hot rows of them."""
    if node.op_type == "Cast":
        before = graph.producer.get(node.inputs[0])
        return before is not None and _held_against_all(graph, before) and node.attributes["to"] in FLOATS
    if node.op_type == "OneHot":
        return all(name in graph.initializers for name in node.inputs[1:])
    if node.op_type != "Gather" or node.domain or node.inputs[0] not in graph.initializers:
        return False
    return graph.initializers[node.inputs[0]].dtype.kind not in "iub"


def _held_against_all(graph: Graph, node: Node) -> bool:
    """Whether the node compares ids with all that there can be: one-hot rows as JAX makes them."""
    constants = [graph.initializers[name] for name in node.inputs if name in graph.initializers]
    return node.op_type == "Equal" and len(constants) == 1 and constants[0].size > 1


def _ids(node: Node) -> tuple[int, ...]:
    return (1,) if node.op_type == "Gather" else (0,)


def ids(graph: Graph, path: Path) -> frozenset[str]:
    """Tensors on a relevance path that hold ids: those that rows are picked by, and what these are made of."""
    result: set[str] = set()
    for node, active in reversed(path):
        if looks_up(graph, node) or result.intersection(node.outputs):
            result.update(node.inputs[p] for p in active)
    return frozenset(result)


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


_NOT_ZERO_AT_ZERO = {
    *("Sigmoid", "HardSigmoid", "Softplus", "BatchNormalization"),
    *("Exp", "Log", "Reciprocal", "Cos", "Cosh", "Acos", "Acosh", "Pow"),
    *("LogSoftmax", "ReduceLogSumExp", "QuantizeLinear"),
}


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
