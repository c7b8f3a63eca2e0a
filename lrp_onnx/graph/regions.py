"""Find the subgraphs that compute one tensor from one other tensor, and evaluate them in float64.

Exporters write the same function in dozens of ways. Instead of one pattern for each, a region is evaluated on many
inputs and compared with the functions that have a name; a region that agrees everywhere is that function.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from scipy import special

from lrp_onnx.graph.values import constant

MAX_NODES = 24
_PRECISE = (ir.DataType.FLOAT, ir.DataType.DOUBLE)

Array = np.ndarray


def softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)


def gelu(x: Array) -> Array:
    return x * special.ndtr(x)


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def _clip(x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


def _gelu(x: Array, approximate: str = "none") -> Array:
    return gelu_tanh(x) if approximate == "tanh" else gelu(x)


def _elu(x: Array, alpha: float = 1.0) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _reduce(function: Callable[..., Array]) -> Callable[..., Array]:
    def reduce(x: Array, axes: Array, keepdims: int = 1, **_: int) -> Array:
        return function(x, axis=tuple(int(a) for a in np.ravel(axes)), keepdims=bool(keepdims))

    return reduce


# Values are float64 whatever the model's type; attributes come as keywords of their ONNX names.
ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Abs": np.abs,
    "Add": np.add,
    "Cast": lambda x, **_: x,
    "Clip": _clip,
    "Div": np.divide,
    "Elu": _elu,
    "Erf": special.erf,
    "Exp": np.exp,
    "Gelu": _gelu,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: np.clip(alpha * x + beta, 0, 1),
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Identity": lambda x: x,
    "LeakyRelu": lambda x, alpha=0.01: np.where(x < 0, alpha * x, x),
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Log": np.log,
    "Max": lambda *x: np.maximum.reduce(np.broadcast_arrays(*x)),
    "Min": lambda *x: np.minimum.reduce(np.broadcast_arrays(*x)),
    "Mul": np.multiply,
    "Neg": np.negative,
    "Not": np.logical_not,
    "DequantizeLinear": lambda x, *_, **__: x,  # rounding within a function that has a name is left out
    "Pow": np.power,
    "QuantizeLinear": lambda x, *_, **__: x,
    "Reciprocal": np.reciprocal,
    "Relu": lambda x: np.maximum(x, 0),
    "Sigmoid": special.expit,
    "Softplus": softplus,
    "Sqrt": np.sqrt,
    "Sub": np.subtract,
    "Sum": lambda *x: sum(x),
    "Tanh": np.tanh,
    "Where": np.where,
}
REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceMax": _reduce(np.max),
    "ReduceMean": _reduce(np.mean),
    "ReduceSum": _reduce(np.sum),
}
ROUNDING = ("QuantizeLinear", "DequantizeLinear")
# Around reductions that drop their axes; Expand is left to the broadcasting of whoever reads it.
SHAPING: dict[str, Callable[..., Any]] = {
    "Expand": lambda x, *_: x,
    "Reshape": lambda x, shape, allowzero=0: x.reshape(
        [int(s) if s or allowzero else x.shape[i] for i, s in enumerate(shape)]
    ),
}
_FUNCTIONS = ELEMENTWISE | REDUCTIONS | SHAPING


def entries(
    node: ir.Node, order: dict[ir.Node, int], op_types: Collection[str]
) -> Iterator[tuple[ir.Value, list[ir.Node]]]:
    """Yield each tensor from which alone `node`'s output is computed, nearest first, with the nodes in between.

    The latest tensor of the frontier is expanded first, so that whenever one tensor is left it is such an entry.
    """
    region: list[ir.Node] = []
    frontier: dict[ir.Value, int] = {node.outputs[0]: order.get(node, -1)}
    while len(region) < MAX_NODES:
        latest = max(frontier, key=frontier.__getitem__)
        producer = latest.producer()
        if producer is None or producer.domain != "" or producer.op_type not in op_types:
            return
        if len(producer.outputs) != 1 or producer.graph is not node.graph:
            return
        if producer is not node and producer.op_type == "Cast" and latest.dtype not in _PRECISE:
            return  # it rounds
        del frontier[latest]
        region.append(producer)
        for value in producer.inputs[:1] if producer.op_type == "Expand" else producer.inputs:
            if value is not None and constant(value) is None:
                source = value.producer()
                frontier[value] = -1 if source is None else order.get(source, -1)
        if not frontier:
            return
        if len(frontier) == 1:
            yield next(iter(frontier)), region[::-1]


def constants(region: list[ir.Node]) -> list[Array]:
    """Every constant that the region's nodes read."""
    found = (constant(value) for node in region for value in node.inputs)
    return [array for array in found if array is not None]


def evaluate(region: list[ir.Node], entry: ir.Value, x: Array) -> Array:
    """What the region's last node gives in float64 when the entry holds `x`."""
    known: dict[ir.Value, Array] = {entry: x}

    def read(value: ir.Value | None) -> Array | None:
        if value is None:
            return None
        array = known.get(value)
        if array is not None:
            return array
        stored = constant(value)
        assert stored is not None
        if stored.dtype.kind in "biu":
            return stored
        stored = stored.reshape(()) if stored.size == 1 else stored  # (1, 1, 1, 1) would add dimensions to x
        return stored if stored.dtype.kind in "biu" else stored.astype(np.float64)

    with np.errstate(all="ignore"):
        for node in region:
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            inputs = [read(value) for value in (node.inputs[:1] if node.op_type == "Expand" else node.inputs)]
            known[node.outputs[0]] = _FUNCTIONS[node.op_type](*inputs, **attributes)
    return known[region[-1].outputs[0]]
