"""Recognise activations that an exporter wrote in pieces (hard-swish, GELU, ReLU6 …) and make each one node."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from scipy import special

from lrp_onnx.graph.regions import ELEMENTWISE, constants, entries, evaluate, gelu, gelu_tanh, softplus
from lrp_onnx.graph.values import add_constant, is_available, is_float, is_op, rank, replace

logger = logging.getLogger(__name__)

# Dense where activations bend; the far ends tell a leak or a bound, however small or large, from none.
_TAIL = np.array([13.0, 20.0, 30.0, 80.0, 1e3, 1e5, 1e8, 1e12, 1e20, 1e30])
_X = np.concatenate([-_TAIL[::-1], np.linspace(-12, 12, 4801), _TAIL])
_UNBOUNDED = _TAIL[-1]
_FINITE_WITHIN = 80.0  # exp overflows further out, in float32 and in the decompositions alike
_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875  # the ONNX defaults


@dataclass(frozen=True)
class _Candidate:
    op_type: str
    y: np.ndarray
    attributes: dict[str, float | str] = field(default_factory=dict)
    bounds: tuple[float | None, ...] = ()


class RecogniseActivations(ir.passes.InPlacePass):
    """Replaces each elementwise subgraph of one tensor that equals an activation by that activation.

    1. The subgraph may be written in any way: it is compared by value (float64, about 5000 points from -1e30 to 1e30).
    2. All its constants are scalars, and input and output have the same type and rank.
    3. A subgraph of one node is looked at only for Max and Min, which stand for Relu and Clip.
    4. Tensors inside the subgraph that others read as well are kept for them.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        order = {node: position for position, node in enumerate(model.graph)}
        modified = False
        for node in reversed(list(model.graph)):
            current: ir.Node | None = node
            while current is not None and current.graph is not None and is_op(current, *ELEMENTWISE):
                current = _rewrite(model, current, order)
                modified |= current is not None
        return ir.passes.PassResult(model, modified)


def _rewrite(model: ir.Model, node: ir.Node, order: dict[ir.Node, int]) -> ir.Node | None:
    output = node.outputs[0]
    if not is_float(output) or (not output.uses() and not output.is_graph_output()):
        return None
    for entry, region in entries(node, order, ELEMENTWISE):
        if len(region) == 1 and not is_op(node, "Max", "Min"):
            continue
        scalars = constants(region)
        if entry.dtype != output.dtype or not all(array.size == 1 for array in scalars):
            continue
        if any(array.ndim > (rank(entry) or 0) for array in scalars):
            continue
        y = evaluate(region, entry, _X)
        if y.shape != _X.shape or y.dtype.kind != "f":
            continue
        match = _match(y, scalars, coarse=output.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE))
        if match is None or not is_available(model, match.op_type):
            continue
        bounds = [
            None
            if bound is None
            else add_constant(model.graph, np.asarray(bound), f"{output.name}_{side}", output.dtype)
            for side, bound in zip(("min", "max"), match.bounds, strict=False)
        ]
        logger.debug("%d nodes up to '%s' are one %s", len(region), output.name, match.op_type)
        new = replace(model, node, match.op_type, [entry, *bounds], match.attributes)
        order[new] = order[node]
        return new
    return None


def _match(y: np.ndarray, scalars: list[np.ndarray], coarse: bool) -> _Candidate | None:
    """The named function nearest to `y` on the grid, if it is near enough to differ by rounding of constants only."""
    finite = np.isfinite(y)
    if not finite[np.abs(_X) <= _FINITE_WITHIN].all():
        return None
    tolerance = 3e-3 if coarse else 2e-6
    best, least = None, 1.0
    with np.errstate(all="ignore"):
        for candidate in _candidates(y, scalars):
            largest = np.maximum(np.abs(y), np.abs(candidate.y)) + min(1.0, float(np.abs(y[finite]).max()))
            error = float(np.max((np.abs(y - candidate.y) / (tolerance * largest))[finite], initial=0.0))
            if error < least:
                best, least = candidate, error
    return best


def _candidates(y: np.ndarray, scalars: list[np.ndarray]) -> Iterator[_Candidate]:
    x = _X

    def at(position: float) -> float:
        return float(y[np.searchsorted(x, position)])

    yield _Candidate("Relu", np.maximum(x, 0))
    low, high = float(np.nanmin(y)), float(np.nanmax(y))
    if low < high and (low > -_UNBOUNDED or high < _UNBOUNDED) and not (low == 0 and high >= _UNBOUNDED):
        bounds = (low if low > -_UNBOUNDED else None, high if high < _UNBOUNDED else None)
        yield _Candidate("Clip", np.clip(x, low, high), bounds=bounds)
    yield _Candidate("HardSwish", x * np.clip(x / 6 + 0.5, 0, 1))
    yield _Candidate("Gelu", gelu(x), {"approximate": "none"})
    yield _Candidate("Gelu", gelu_tanh(x), {"approximate": "tanh"})
    yield _Candidate("Sigmoid", special.expit(x))
    yield _Candidate("Tanh", np.tanh(x))
    yield _Candidate("Softplus", softplus(x))
    yield _Candidate("Mish", x * np.tanh(softplus(x)))
    yield _Candidate("Softsign", x / (1 + np.abs(x)))
    yield _Candidate("Swish", x * special.expit(x), {"alpha": 1.0})
    for alpha in {float(s.item()) for s in scalars if s.dtype.kind == "f"} - {0.0, 1.0}:
        yield _Candidate("Swish", x * special.expit(alpha * x), {"alpha": alpha})
    if leak := -at(-1e8) / 1e8:
        yield _Candidate("LeakyRelu", np.where(x < 0, leak * x, x), {"alpha": leak})
    if (alpha := -at(-30.0)) > 0:
        negative = np.expm1(np.minimum(x, 0))
        yield _Candidate("Elu", np.where(x > 0, x, alpha * negative), {"alpha": alpha})
        selu = _SELU_GAMMA * np.where(x > 0, x, _SELU_ALPHA * negative)
        yield _Candidate("Selu", selu, {"alpha": _SELU_ALPHA, "gamma": _SELU_GAMMA})
    inside = np.flatnonzero((y > 0.05) & (y < 0.95))
    if len(inside) > 1:
        first, last = inside[0], inside[-1]
        slope = float((y[last] - y[first]) / (x[last] - x[first]))
        offset = float(y[first] - slope * x[first])
        yield _Candidate("HardSigmoid", np.clip(slope * x + offset, 0, 1), {"alpha": slope, "beta": offset})
