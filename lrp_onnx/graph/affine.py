"""Fuse BatchNormalization and per-channel constants into the linear operation on either side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lrp_onnx.graph.values import (
    add_constant,
    bypass,
    constant,
    is_op,
    rank,
    remark,
    replace,
    set_constant,
    sole_consumer,
)

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_FUSED = "_fused"


@dataclass(frozen=True)
class _Affine:
    """What a node does to channel c of its input: scale[c] * x + shift[c]."""

    scale: np.ndarray  # (C,) float64
    shift: np.ndarray

    def then(self, following: _Affine) -> _Affine:
        return _Affine(self.scale * following.scale, self.shift * following.scale + following.shift)


class FuseAffineIntoLinear(ir.passes.InPlacePass):
    """Fuses what scales and shifts the channels of a Conv, ConvTranspose, Gemm or MatMul into its weights and bias.

    1. BatchNormalization directly behind a linear operation: y = s * (W x + b) + t becomes (s W) x + (s b + t).
    2. A constant added or subtracted becomes the bias; MatMul of 2-D tensors becomes Gemm for that.
       (A MatMul of more dimensions has no bias input: there the Add stays.)
    3. Factors are fused only on the way to such a shift (a BatchNormalization in pieces). A factor alone stays: fusing
       a tiny layer scale would leave nothing of the linear output beside a rule's stabiliser.
    4. Transposes, and Reshapes that keep a last axis of channels, may stand in between. Nobody else may read the
       tensors in between; the last one's name is kept.
    5. BatchNormalization directly before Conv, Gemm or MatMul, read by nothing else, unless padding sees its shift.
    6. A factor and a shift for each channel that follow nothing linear become one BatchNormalization.
    7. What follows a BatchNormalization that stays is fused into its scale and bias in the same way.

    Computed in float64, stored in the weights' type.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            while _fuse_next(node):
                modified = True
        for node in list(model.graph):
            modified |= node.graph is not None and _recompose(model, node)
        for node in list(model.graph):
            if is_op(node, "BatchNormalization") and node.graph is not None and _fuse_into_next(node):
                modified = True
        return ir.passes.PassResult(model, modified)


def _fuse_next(linear: ir.Node) -> bool:
    """Fuse the operation behind `linear` into it, if that can be done."""
    if not _is_linear(linear) and not _is_batch_norm(linear):
        return False
    output = linear.outputs[0]
    dims = rank(output)
    weight = constant(linear.inputs[1])
    if dims is None or weight is None:
        return False
    axis = dims - 1 if linear.op_type in ("Gemm", "MatMul") else 1
    channels = _channels(linear, weight)
    after = sole_consumer(output)
    between: list[ir.Value] = []
    while after is not None and (moved := _channel_axis_behind(after, axis, dims, channels)) is not None:
        axis, dims = moved
        between.append(output)
        output = after.outputs[0]
        after = sole_consumer(output)
    steps, affine = _up_to_shift(after, output, axis, dims, channels)
    if not steps or not _scale_outputs(linear, affine):
        return False
    for step in steps:
        remark(linear, f"{step.op_type} '{step.name}' fused into it")
        bypass(step, output)
    for value in between:  # these hold something else than the model's tensors of that name
        value.name = f"{str(value.name).removesuffix(_FUSED)}{_FUSED}"
    return True


def _recompose(model: ir.Model, factor: ir.Node) -> bool:
    """Make BatchNormalization of a Mul or Div and the Add or Sub behind it."""
    x = next((value for value in factor.inputs if value is not None and constant(value) is None), None)
    if x is None or x.shape is None or len(x.shape) < 2 or not is_op(factor, "Mul", "Div"):
        return False
    shift, channels, dims = sole_consumer(factor.outputs[0]), x.shape[1], len(x.shape)
    if (
        not isinstance(channels, int)
        or channels == 1
        or not is_op(shift, "Add", "Sub")
        or not _by_channel(factor, shift)
    ):
        return False
    first = _affine(factor, x, 1, dims, channels)
    second = _affine(shift, factor.outputs[0], 1, dims, channels)
    if first is None or second is None or shift is None:
        return False
    base = shift.outputs[0].name
    named = {"scale": first.scale, "bias": second.shift, "mean": np.zeros(channels), "var": np.ones(channels)}
    parameters = [add_constant(model.graph, array, f"{base}_{name}", x.dtype) for name, array in named.items()]
    new = replace(model, shift, "BatchNormalization", [x, *parameters], {"epsilon": 0.0})
    remark(new, f"made of {factor.op_type} '{factor.name}' and {shift.op_type} '{shift.name}'")
    model.graph.remove(factor, safe=True)
    return True


def _by_channel(*nodes: ir.Node | None) -> bool:
    """Whether each node has a constant of more than one element; BatchNormalization has one for each channel."""
    arrays = [[constant(value) for value in node.inputs] for node in nodes if node is not None]
    return all(any(array is not None and array.size > 1 for array in found) for found in arrays)


def _channel_axis_behind(node: ir.Node, axis: int, dims: int, channels: int) -> tuple[int, int] | None:
    """Where the channels are, of how many axes, behind a Transpose or a Reshape that keeps the last axis."""
    if is_op(node, "Transpose"):
        return list(node.attributes.get_ints("perm", list(range(dims))[::-1])).index(axis), dims
    shape = node.outputs[0].shape
    if is_op(node, "Reshape") and axis == dims - 1 and shape is not None and len(shape) and shape[-1] == channels:
        return len(shape) - 1, len(shape)
    return None


def _is_linear(node: ir.Node) -> bool:
    if node.graph is None or not is_op(node, *_CONVOLUTIONS, "Gemm", "MatMul"):
        return False
    if any(value is not None and constant(value) is None for value in node.inputs[1:]):
        return False
    return node.op_type in _CONVOLUTIONS or rank(node.inputs[1]) == 2  # type: ignore[arg-type]


def _channels(linear: ir.Node, weight: np.ndarray) -> int:
    if linear.op_type in ("Conv", "BatchNormalization"):
        return weight.shape[0]
    if linear.op_type == "ConvTranspose":
        return weight.shape[1] * linear.attributes.get_int("group", 1)
    return weight.shape[0 if linear.attributes.get_int("transB", False) else 1]


def _shifts(node: ir.Node) -> bool:
    return is_op(node, "BatchNormalization", "Add", "Sub")


def _up_to_shift(
    node: ir.Node | None, source: ir.Value, axis: int, dims: int, channels: int
) -> tuple[list[ir.Node], _Affine]:
    """`node` and what follows, up to the first that shifts, as one affine map; no nodes where none shifts."""
    steps: list[ir.Node] = []
    whole = _Affine(np.ones(channels), np.zeros(channels))
    while (affine := _affine(node, source, axis, dims, channels)) is not None:
        assert node is not None
        steps.append(node)
        whole = whole.then(affine)
        if _shifts(node):
            return steps, whole
        source = node.outputs[0]
        node = sole_consumer(source)
    return [], whole


def _affine(node: ir.Node | None, source: ir.Value, axis: int, dims: int, channels: int) -> _Affine | None:
    """Read `node` as an affine map of its input's channels; None if it is something else."""
    if is_op(node, "BatchNormalization"):
        assert node is not None
        return _batch_norm(node) if axis == 1 and node.inputs[0] is source else None
    if not is_op(node, "Add", "Sub", "Mul", "Div"):
        return None
    assert node is not None
    first, second = node.inputs
    if first is not source and node.op_type in ("Sub", "Div"):
        return None
    vector = _per_channel(constant(second if first is source else first), axis, dims, channels)
    if vector is None or (node.op_type == "Div" and not vector.all()):
        return None
    ones, zeros = np.ones(channels), np.zeros(channels)
    match node.op_type:
        case "Add":
            return _Affine(ones, vector)
        case "Sub":
            return _Affine(ones, -vector)
        case "Mul":
            return _Affine(vector, zeros)
    return _Affine(1.0 / vector, zeros)


def _is_batch_norm(node: ir.Node) -> bool:
    return node.graph is not None and is_op(node, "BatchNormalization") and _batch_norm(node) is not None


def _batch_norm(node: ir.Node) -> _Affine | None:
    parameters = [constant(value) for value in node.inputs[1:5]]
    if any(p is None for p in parameters) or node.attributes.get_int("training_mode", False):
        return None
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return None
    gamma, beta, mean, variance = (p.astype(np.float64) for p in parameters if p is not None)
    scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return _Affine(scale, beta - mean * scale)


def _per_channel(array: np.ndarray | None, axis: int, dims: int, channels: int) -> np.ndarray | None:
    """`array` as a float64 vector over the channels, if broadcasting spreads it over nothing but the channels."""
    if array is None or array.ndim > dims or array.dtype.kind in "biu":
        return None
    if array.size == 1:
        return np.full(channels, array.item(), np.float64)
    shape = (1,) * (dims - array.ndim) + array.shape
    if shape[axis] != channels or array.size != channels:
        return None
    return array.reshape(-1).astype(np.float64)


def _bias(linear: ir.Node, channels: int) -> np.ndarray | None:
    """The bias as a float64 vector, zeros where there is none; None if it is not one number a channel."""
    value = linear.inputs[2] if len(linear.inputs) > 2 else None
    if value is None:
        return np.zeros(channels)
    return _per_channel(constant(value), 0, 1, channels) if linear.op_type != "Gemm" else _gemm_bias(linear, channels)


def _gemm_bias(linear: ir.Node, channels: int) -> np.ndarray | None:
    bias = _per_channel(constant(linear.inputs[2]), 1, 2, channels)
    return None if bias is None else bias * linear.attributes.get_float("beta", 1.0)


def _weight(linear: ir.Node) -> np.ndarray:
    """The weight in float64, with Gemm's alpha in it."""
    weight = constant(linear.inputs[1])
    assert weight is not None
    weight = weight.astype(np.float64)
    return weight * linear.attributes.get_float("alpha", 1.0) if linear.op_type == "Gemm" else weight


def _scale_outputs(linear: ir.Node, affine: _Affine) -> bool:
    channels = len(affine.scale)
    bias = _bias(linear, channels)
    if bias is None:
        return False
    scaled = not np.array_equal(affine.scale, np.ones(channels))
    if linear.op_type == "MatMul" and (affine.shift.any() or not scaled) and rank(linear.inputs[0]) != 2:  # type: ignore[arg-type]
        return False
    weight = None
    if scaled:
        weight = _weight(linear)
        if linear.op_type == "ConvTranspose":  # (C, M / group, ...): output channels run over groups first
            groups = linear.attributes.get_int("group", 1)
            grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
            factor = affine.scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
            weight = (grouped * factor).reshape(weight.shape)
        else:
            rows = linear.op_type not in ("Gemm", "MatMul") or linear.attributes.get_int("transB", False)
            weight = weight * affine.scale.reshape([-1] + [1] * (weight.ndim - 1) if rows else [1, -1])
    _store(linear, weight, bias * affine.scale + affine.shift)
    return True


def _store(linear: ir.Node, weight: np.ndarray | None, bias: np.ndarray) -> None:
    value = linear.inputs[1]
    assert value is not None and value.dtype is not None
    base = value.name or linear.outputs[0].name or linear.op_type
    if linear.op_type == "Gemm":
        if weight is None and linear.attributes.get_float("alpha", 1.0) != 1.0:
            weight = _weight(linear)
        for name in ("alpha", "beta"):
            linear.attributes.pop(name, None)
    if weight is not None:
        set_constant(linear, 1, weight, base, value.dtype)
    if linear.op_type == "MatMul":
        if not bias.any():
            return
        linear.op_type = "Gemm"
    set_constant(linear, 2, bias, f"{base}_bias", value.dtype)


def _fuse_into_next(norm: ir.Node) -> bool:
    """Fuse a BatchNormalization into the one linear operation that reads it, if that is exact."""
    linear = sole_consumer(norm.outputs[0])
    affine = _batch_norm(norm)
    source = norm.inputs[0]
    if (
        linear is None
        or affine is None
        or source is None
        or not _is_linear(linear)
        or norm.outputs[0] is not linear.inputs[0]
    ):
        return False
    weight = _weight(linear)
    bias = _bias(linear, _channels(linear, weight))
    if bias is None or linear.op_type == "ConvTranspose":
        return False
    if linear.op_type == "Conv":
        if affine.shift.any() and _pads(linear):
            return False
        groups = linear.attributes.get_int("group", 1)
        # (group, M / group, C / group, taps): output channel m of group g reads the input channels of g
        taps = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        per_group = [part.reshape(groups, 1, -1, 1) for part in (affine.scale, affine.shift)]
        bias = bias + (taps * per_group[1]).sum(axis=(2, 3)).reshape(-1)
        weight = (taps * per_group[0]).reshape(weight.shape)
    else:
        if rank(source) != 2 or linear.attributes.get_int("transA", False):
            return False
        columns = bool(linear.attributes.get_int("transB", False))  # (N, K) instead of (K, N)
        bias = bias + (weight @ affine.shift if columns else affine.shift @ weight)
        weight = weight * (affine.scale if columns else affine.scale[:, None])
    linear.replace_input_with(0, source)
    _store(linear, weight, bias)
    remark(linear, f"BatchNormalization '{norm.name}' in front of it fused into it")
    norm.graph.remove(norm, safe=True)  # type: ignore[union-attr]
    return True


def _pads(conv: ir.Node) -> bool:
    if conv.attributes.get_string("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        return True
    return any(conv.attributes.get_ints("pads", []))
