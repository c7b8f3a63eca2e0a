"""Recognise LayerNorm, RMSNorm and Softmax that an exporter wrote in pieces and make each one node."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from lrp_onnx.graph.regions import REDUCTIONS, ROUNDING, SHAPING, constants, entries, evaluate
from lrp_onnx.graph.values import add_constant, constant, is_available, is_float, is_op, rank, remark, replace

logger = logging.getLogger(__name__)

# No Clip: a bound that the samples do not reach would go unnoticed.
_ARITHMETIC = {"Add", "Cast", "Div", "Exp", "Identity", "Mul", "Neg", "Pow", "Reciprocal", "Sqrt", "Sub", "Sum"}
_ABOVE_ZERO = {"Max", "Relu"}  # keep variances from rounding below zero
_INSIDE = _ARITHMETIC | _ABOVE_ZERO | {*REDUCTIONS, *ROUNDING, *SHAPING}
_SCALES = np.array([1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0])  # small rows make epsilon count, large ones the rest


@dataclass(frozen=True)
class _Match:
    op_type: str
    error: float
    attributes: dict[str, float | int]
    parameters: list[np.ndarray] = field(default_factory=list)


class RecogniseNorms(ir.passes.InPlacePass):
    """Replaces each subgraph of one tensor that equals a normalisation over some axes by LayerNormalization & co.

    1. The subgraph is compared by value on random rows of very different size; scale and bias are read off it.
    2. Statistics are taken over the same axes throughout, with a known number of elements. Reductions may drop these
       axes, and Reshape and Expand put them back.
    3. Axes that are not the last ones (a norm over channels in NCHW) get a Transpose before and after.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        order = {node: position for position, node in enumerate(model.graph)}
        modified = False
        for node in reversed(list(model.graph)):
            if node.graph is None or not is_op(node, *_ARITHMETIC):
                continue
            output = node.outputs[0]
            if not is_float(output) or (not output.uses() and not output.is_graph_output()):
                continue
            found = None  # the farthest entry: the second half of a LayerNorm alone is an RMSNorm
            for entry, region in entries(node, order, _INSIDE):
                if is_op(region[0], *ROUNDING):
                    continue
                axes = _axes(entry, output, region)
                match = _match(entry, region, axes) if axes else None
                if match is not None and axes is not None and is_available(model, match.op_type):
                    found = entry, axes, match, len(region)
            if found is not None:
                logger.debug("'%s' is one %s", output.name, found[2].op_type)
                remark(node, f"recognised in {found[3]} nodes")
                _emit(model, node, *found[:3])
                modified = True
        return ir.passes.PassResult(model, modified)


def _axes(entry: ir.Value, output: ir.Value, region: list[ir.Node]) -> tuple[int, ...] | None:
    """The axes that every reduction in the region goes over; None where there is no or no common answer."""
    dims = rank(entry)
    reductions = [node for node in region if node.op_type in REDUCTIONS]
    if any(bound.any() for node in region if node.op_type == "Max" for bound in constants([node])):
        return None
    if dims is None or len(reductions) < 1 or entry.dtype != output.dtype or rank(output) != dims:
        return None
    found = set()
    for node in reductions:
        axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if axes is None:
            return None
        found.add(tuple(sorted(int(axis) % dims for axis in np.ravel(axes))))
    if len(found) != 1 or any(array.ndim > dims for array in _factors(region)):
        return None
    return found.pop() or None


def _match(entry: ir.Value, region: list[ir.Node], axes: tuple[int, ...]) -> _Match | None:
    assert entry.shape is not None
    whole = any(node.op_type == "Reshape" for node in region)  # which counts on the sizes that the model has
    sizes: list[int] = []  # of one row; 1 where the norm does not reach
    for axis, size in enumerate(entry.shape):
        if axis in axes and not isinstance(size, int):
            return None
        sizes.append(size if (axis in axes or whole) and isinstance(size, int) else 1)
    row_axis = next((axis for axis in range(len(sizes)) if axis not in axes), None)
    if row_axis is None or any(
        size != 1 for array in _factors(region) for axis, size in _aligned(array, len(sizes)) if axis not in axes
    ):
        return None
    rows = [len(_SCALES) if axis == row_axis else size for axis, size in enumerate(sizes)]
    x = np.random.default_rng(0).standard_normal(rows)
    x *= _SCALES.reshape([-1 if axis == row_axis else 1 for axis in range(len(sizes))])
    x += 0.3 * x.std(axis=axes, keepdims=True)  # a mean that is not zero tells LayerNorm from RMSNorm
    try:
        y = evaluate(region, entry, x)
    except ValueError:  # a Reshape to one batch size
        return None
    if y.shape != x.shape or not np.isfinite(y).all():
        return None
    at_zero = evaluate(region, entry, np.zeros(sizes))  # a norm of nothing: its bias, the same for every row
    at_zero = at_zero[tuple(slice(None if axis in axes else 1) for axis in range(len(sizes)))]
    coarse = entry.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
    tolerance = 5e-3 if coarse else 1e-5
    best = min(_candidates(x, y, at_zero, axes, _factors(region)), key=lambda match: match.error, default=None)
    return best if best is not None and best.error < tolerance else None


def _factors(region: list[ir.Node]) -> list[np.ndarray]:
    """The constants that are computed with; axes and shapes are integers."""
    return [array for array in constants(region) if array.dtype.kind not in "iu" or array.size == 1]


def _aligned(array: np.ndarray, dims: int) -> list[tuple[int, int]]:
    return [(dims - array.ndim + axis, size) for axis, size in enumerate(array.shape)]


def _candidates(
    x: np.ndarray, y: np.ndarray, at_zero: np.ndarray, axes: tuple[int, ...], stored: list[np.ndarray]
) -> Iterator[_Match]:
    if len(axes) == 1:
        exponential = np.exp(x - x.max(axis=axes, keepdims=True))
        softmax = exponential / exponential.sum(axis=axes, keepdims=True)
        yield _Match("Softmax", _difference(softmax, y), {"axis": axes[0]})
    if not np.isfinite(at_zero).all():
        return
    others = tuple(axis for axis in range(x.ndim) if axis not in axes)
    for epsilon in {float(array.item()) for array in stored if array.size == 1 and array.dtype.kind == "f"}:
        if not 0 < epsilon < 0.1:
            continue
        for op_type, centred in (("LayerNormalization", x - x.mean(axis=axes, keepdims=True)), ("RMSNormalization", x)):
            if op_type == "RMSNormalization" and (at_zero.any() or len(axes) > 1):
                continue
            normalised = centred / np.sqrt((centred**2).mean(axis=axes, keepdims=True) + epsilon)
            scale = ((y - at_zero) * normalised).sum(axis=others, keepdims=True)
            scale = scale / (normalised**2).sum(axis=others, keepdims=True)
            parameters = [scale, at_zero] if at_zero.any() else [scale]
            error = _difference(normalised * scale + at_zero, y)
            yield _Match(op_type, error, {"epsilon": epsilon}, parameters)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12))


def _emit(model: ir.Model, node: ir.Node, entry: ir.Value, axes: tuple[int, ...], match: _Match) -> None:
    if match.op_type == "Softmax":
        replace(model, node, match.op_type, [entry], match.attributes)
        return
    output = node.outputs[0]
    assert entry.shape is not None and node.graph is not None
    dims = len(entry.shape)
    order = [axis for axis in range(dims) if axis not in axes] + list(axes)
    shape = [match.parameters[0].shape[axis] for axis in axes]
    parameters = [
        add_constant(model.graph, array.transpose(order).reshape(shape), f"{output.name}_{kind}", output.dtype)
        for kind, array in zip(("scale", "bias"), match.parameters, strict=False)
    ]
    attributes = match.attributes | {"axis": -len(axes)}
    if order == list(range(dims)):
        replace(model, node, match.op_type, [entry, *parameters], attributes)
        return
    before = ir.Node(
        "", "Transpose", [entry], ir.convenience.convert_attributes({"perm": order}), name=f"{node.name}_last"
    )
    moved = before.outputs[0]
    moved.name, moved.type = f"{output.name}_last", entry.type
    moved.shape = ir.Shape([entry.shape[axis] for axis in order])
    model.graph.insert_before(node, before)
    norm = replace(model, node, match.op_type, [moved, *parameters], attributes)
    inner = norm.outputs[0]
    name, inner.name = inner.name, f"{output.name}_normalised"
    after = ir.Node(
        "",
        "Transpose",
        [inner],
        ir.convenience.convert_attributes({"perm": [int(i) for i in np.argsort(order)]}),
        name=f"{node.name}_back",
    )
    outer = after.outputs[0]
    outer.name, outer.type, outer.shape = name, entry.type, inner.shape
    inner.shape = moved.shape
    for user, index in list(inner.uses()):
        if user is not after:
            user.replace_input_with(index, outer)
    for index, graph_output in enumerate(model.graph.outputs):
        if graph_output is inner:
            model.graph.outputs[index] = outer
    model.graph.insert_after(norm, after)
