"""Recognise activations that an exporter wrote in pieces (hard-swish, GELU, ReLU6 …) and make each one node."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
import onnx_ir as ir
from scipy import special

from lrp_onnx.graph.regions import ELEMENTWISE, ROUNDING, constants, entries, evaluate, gelu, gelu_tanh, softplus
from lrp_onnx.graph.values import add_constant, is_available, is_float, is_op, rank, remark, remove_unused, replace

logger = logging.getLogger(__name__)

# Dense where activations bend; the far ends tell a leak or a bound, however small or large, from none.
_TAIL = np.array([13.0, 20.0, 30.0, 80.0, 1e3, 1e5, 1e8, 1e12, 1e20, 1e30])
_X = np.concatenate([-_TAIL[::-1], np.linspace(-12, 12, 4801), _TAIL])
_PROBES = np.concatenate([-_TAIL[::-1], np.linspace(-12, 12, 49), _TAIL])  # turn almost everything away, cheaply
_UNBOUNDED = _TAIL[-1]
_FINITE_WITHIN = 80.0  # exp overflows further out, in float32 and in the decompositions alike
_LEAST_VARIATION = 50  # times the tolerance: below it every function that hardly varies would match
_ENDS = set(ELEMENTWISE) - set(ROUNDING)
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
    5. Where a quantised model rounds between the parts of an activation, the one node does not.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        order = {node: position for position, node in enumerate(model.graph)}
        modified = False
        for node in reversed(list(model.graph)):
            current: ir.Node | None = node
            while current is not None and current.graph is not None and is_op(current, *_ENDS):
                current = _rewrite(model, current, order)
                modified |= current is not None
        return ir.passes.PassResult(model, modified)


def _rewrite(model: ir.Model, node: ir.Node, order: dict[ir.Node, int]) -> ir.Node | None:
    output = node.outputs[0]
    if not is_float(output) or (not output.uses() and not output.is_graph_output()):
        return None
    coarse = output.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
    for entry, region in entries(node, order, ELEMENTWISE):
        if sum(not is_op(inner, *ROUNDING) for inner in region) == 1 and not is_op(node, "Max", "Min"):
            continue
        if is_op(region[0], *ROUNDING):
            continue
        scalars = constants(region)
        if not all(array.size == 1 for array in scalars):
            return None
        if entry.dtype != output.dtype or any(array.ndim > (rank(entry) or 0) for array in scalars):
            continue
        match = _match(partial(evaluate, region, entry), scalars, coarse)
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
        remark(new, f"recognised in {len(region)} nodes")
        remove_unused(region[:-1])
        return new
    return None


def _match(function: Callable[[np.ndarray], np.ndarray], scalars: list[np.ndarray], coarse: bool) -> _Candidate | None:
    """The named function that `function` differs from by rounding of constants only."""
    tolerance = 3e-3 if coarse else 2e-6
    if _nearest(function, _PROBES, scalars, 2 * tolerance) is None:
        return None
    return _nearest(function, _X, scalars, tolerance)


def _nearest(
    function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, scalars: list[np.ndarray], tolerance: float
) -> _Candidate | None:
    y = function(x)
    if y.shape != x.shape or y.dtype.kind != "f":
        return None
    finite = np.isfinite(y)
    if not finite[np.abs(x) <= _FINITE_WITHIN].all():
        return None
    height = float(np.abs(y[finite]).max())
    if float(np.ptp(y[finite])) <= _LEAST_VARIATION * tolerance * height:
        return None
    with np.errstate(all="ignore"):
        candidates = list(_candidates(x, y, scalars))
        named = np.stack([candidate.y for candidate in candidates])
        largest = np.maximum(np.abs(y), np.abs(named)) + min(1.0, height)
        errors = (np.abs(y - named) / (tolerance * largest))[:, finite].max(axis=1, initial=0.0)
    best = int(np.where(np.isnan(errors), np.inf, errors).argmin())
    return candidates[best] if errors[best] < 1.0 else None


def _candidates(x: np.ndarray, y: np.ndarray, scalars: list[np.ndarray]) -> Iterator[_Candidate]:
    def at(position: float) -> float:
        return float(y[np.searchsorted(x, position)])

    low, high = float(np.nanmin(y)), float(np.nanmax(y))
    if low < high and (low > -_UNBOUNDED or high < _UNBOUNDED) and not (low == 0 and high >= _UNBOUNDED):
        bounds = (low if low > -_UNBOUNDED else None, high if high < _UNBOUNDED else None)
        yield _Candidate("Clip", np.clip(x, low, high), bounds=bounds)
    yield from _fixed(len(x))
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


@cache
def _fixed(points: int) -> tuple[_Candidate, ...]:
    """Functions without parameters, on the grid of that many points."""
    x = _X if points == len(_X) else _PROBES
    with np.errstate(all="ignore"):
        return (
            _Candidate("Identity", x),
            _Candidate("Relu", np.maximum(x, 0)),
            _Candidate("HardSwish", x * np.clip(x / 6 + 0.5, 0, 1)),
            _Candidate("Gelu", gelu(x), {"approximate": "none"}),
            _Candidate("Gelu", gelu_tanh(x), {"approximate": "tanh"}),
            _Candidate("Sigmoid", special.expit(x)),
            _Candidate("Tanh", np.tanh(x)),
            _Candidate("Softplus", softplus(x)),
            _Candidate("Mish", x * np.tanh(softplus(x))),
            _Candidate("Softsign", x / (1 + np.abs(x))),
            _Candidate("Swish", x * special.expit(x), {"alpha": 1.0}),
        )
