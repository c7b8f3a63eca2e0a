"""Write quantised operations out in floats, between the roundings that they do, so that these get their rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from lrp_onnx.graph.packed import PACKED
from lrp_onnx.graph.values import add_constant, add_node, constant, is_op, rank, remark, sole_consumer

NOTE = "quantised: explained on its dequantised weights, with the rounding of activations passed through"
_MICROSOFT = "com.microsoft"
_EIGHT_BITS = (ir.DataType.UINT8, ir.DataType.INT8)
_ROUNDING = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_MOVING = (
    *("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Identity", "Expand"),
    *("DepthToSpace", "SpaceToDepth", "Tile"),
)


def is_quantised(model: ir.Model) -> bool:
    """Whether the model rounds tensors to integers, or computes in integers what stands for floats."""
    return any(node.op_type in _ROUNDING or _key(node) in QUANTISED or _is_integer(node) for node in model.graph)


def rounds_finely(model: ir.Model) -> bool:
    """Whether activations are rounded to other than eight bits, which the standard has since opset 21."""
    zeros = [node.inputs[2] for node in model.graph if node.op_type == "QuantizeLinear" and len(node.inputs) == 3]
    return any(zero is not None and zero.dtype not in (None, *_EIGHT_BITS) for zero in zeros)


class Dequantise(ir.passes.InPlacePass):
    """Replaces every operation on quantised tensors by the same one on floats, between DequantizeLinear and -Quantize.

    1. QLinearConv, QLinearMatMul and ONNX Runtime's QLinear… operators (domain com.microsoft): the activations are
       dequantised before and quantised after, so that the model still rounds where it did.
    2. Weights and biases become the floats that they stand for.
    3. ConvInteger and MatMulInteger behind DynamicQuantizeLinear, with what follows: a bias in levels, Cast and Mul.
    4. What moves or compares quantised numbers (Reshape, MaxPool …) does so behind DequantizeLinear.
    5. QuantizeLinear and DequantizeLinear of ONNX Runtime's domain become those of the standard.
    6. Operators on (N, H, W, C) get a Transpose before and after.

    The result differs from the quantised model where a number lies next to the border of two levels: by one level.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if node.domain == _MICROSOFT and node.op_type in _ROUNDING:
                node.domain = ""
                modified = True
            writer = _WRITERS.get(_key(node))
            if writer is not None:
                modified |= _write_out(model, node, writer)
            elif _is_integer(node):
                modified |= _scaled_product(model, node)
        for node in list(model.graph):
            if is_op(node, "DequantizeLinear") and node.graph is not None:
                modified |= _weights(model, node) or _move_up(model, node)
        return ir.passes.PassResult(model, modified)


def _key(node: ir.Node) -> tuple[str, str]:
    return node.domain, node.op_type


def _is_integer(node: ir.Node) -> bool:
    return is_op(node, "ConvInteger", "MatMulInteger")


class _Site:
    """The place of one quantised node: makes the nodes that are to stand there."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self.model, self.node, self.nodes = model, node, list[ir.Node]()
        self.attributes: dict[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
        self.name = str(node.outputs[0].name)
        self.channels_last = bool(self.attributes.pop("channels_last", 0)) or node.op_type.startswith("Nhwc")

    @property
    def dims(self) -> int:
        """Axes of what a convolution or a pool works on."""
        weight = self.value(3) if self.node.op_type == "QLinearConv" else None
        return len(self.attributes.get("kernel_shape", (1, 1))) + 2 if weight is None else rank(weight) or 4

    def value(self, position: int) -> ir.Value | None:
        return self.node.inputs[position] if position < len(self.node.inputs) else None

    def floats(self, position: int, axis: int | None = None) -> ir.Value:
        """The floats behind a tensor, its scale and its zero point at three positions; along `axis`, if of several."""
        value, scale, zero = (self.value(position + offset) for offset in range(3))
        assert value is not None and scale is not None
        floats = self.dequantised(value, scale, zero, axis)
        return self.channels_first(floats) if position == 0 else floats

    def channels_first(self, value: ir.Value) -> ir.Value:
        if not self.channels_last:
            return value
        last = self.dims - 1
        return self.turned(value, [0, last, *range(1, last)], f"{value.name}_channels_first_for_{self.name}")

    def turned(self, value: ir.Value, order: Sequence[int], name: str) -> ir.Value:
        return self.add("Transpose", [value], {"perm": list(order)}, name)

    def dequantised(self, value: ir.Value, scale: ir.Value, zero: ir.Value | None, axis: int | None = None) -> ir.Value:
        levels, factor = constant(value), constant(scale)
        if levels is not None and factor is not None and (zero is None or constant(zero) is not None):
            array = _dequantised(levels, factor, constant(zero), axis)
            return add_constant(self.model.graph, array, f"{value.name}_dequantised", scale.dtype)
        inputs = [value, scale] if zero is None else [value, scale, zero]
        attributes = {} if axis is None or (scale.shape is not None and not len(scale.shape)) else {"axis": axis}
        return self.add("DequantizeLinear", inputs, attributes, f"{value.name}_dequantised_for_{self.name}")

    def add(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any], name: str = ""
    ) -> ir.Value:
        return add_node(self.nodes, op_type, inputs, attributes, name or f"{self.name}_float").outputs[0]

    def put(self, result: ir.Value, scale: ir.Value | None = None, zero: ir.Value | None = None) -> None:
        """Put the nodes in the place of the old one; `result` is quantised, if a scale says how."""
        node, output = self.node, self.node.outputs[0]
        if scale is not None:
            inputs = [result, scale] if zero is None else [result, scale, zero]
            result = self.add("QuantizeLinear", inputs, {}, self.name)
        result.type, result.shape = output.type, output.shape
        for new in self.nodes:
            remark(new, f"part of {node.op_type} '{node.name}'")
        graph = self.model.graph
        ir.convenience.replace_nodes_and_values(graph, node, [node], self.nodes, [output], [result])


_Writer = Callable[[_Site], "tuple[ir.Value, int | None]"]  # the float result, and where its scale is among the inputs


def _write_out(model: ir.Model, node: ir.Node, writer: _Writer) -> bool:
    if node.attributes.get_int("opset", 13) < 13:
        return False  # Softmax over several axes, which the standard does not have
    site = _Site(model, node)
    result, scale = writer(site)
    if site.channels_last:
        result = site.turned(result, [0, *range(2, site.dims), 1], f"{site.name}_channels_last")
    if scale is None or site.value(scale) is None:
        site.put(result)
    else:
        site.put(result, site.value(scale), site.value(scale + 1))
    return True


def _dequantised(array: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, axis: int | None) -> np.ndarray:
    """In float64: (q - zero) * scale, with one scale for all, one for each index of `axis`, or one for each number."""
    shape = [1] * array.ndim
    if scale.size > 1 and axis is not None:
        shape[axis] = -1

    def spread(values: np.ndarray) -> np.ndarray:
        values = values.astype(np.float64)
        if values.shape == array.shape:
            return values
        return values.reshape(shape) if values.size > 1 else values.reshape(())

    return (array.astype(np.float64) - (0.0 if zero is None else spread(zero))) * spread(scale)


def _conv(site: _Site) -> tuple[ir.Value, int | None]:
    inputs: list[ir.Value | None] = [site.floats(0), site.floats(3, axis=0)]
    if (bias := site.value(8)) is not None:
        inputs.append(_bias(site, bias, 1, 4))
    return site.add("Conv", inputs, site.attributes), 6


def _bias(site: _Site, bias: ir.Value, *scales: int) -> ir.Value:
    """A bias in units of the product of two scales."""
    first, second = (constant(site.value(position)) for position in scales)
    integers, scale = constant(bias), site.value(scales[0])
    if integers is None or first is None or second is None or scale is None:
        return site.add("DequantizeLinear", [bias, site.add("Mul", [site.value(p) for p in scales], {})], {"axis": 0})
    array = integers.astype(np.float64) * (first.astype(np.float64) * second.astype(np.float64)).reshape(-1)
    return add_constant(site.model.graph, array, f"{bias.name}_dequantised", scale.dtype)


def _matmul(site: _Site) -> tuple[ir.Value, int | None]:
    columns = rank(site.node.inputs[3])  # type: ignore[arg-type]
    return site.add("MatMul", [site.floats(0), site.floats(3, axis=None if columns is None else columns - 1)], {}), 6


def _gemm(site: _Site) -> tuple[ir.Value, int | None]:
    columns = 0 if site.attributes.get("transB") else 1
    inputs = [site.floats(0), site.floats(3, axis=columns)]
    if (bias := site.value(6)) is not None:
        inputs.append(_bias(site, bias, 1, 4))
    attributes = {name: value for name, value in site.attributes.items() if name in ("alpha", "transA", "transB")}
    return site.add("Gemm", inputs, attributes), 7


def _binary(op_type: str) -> _Writer:
    return lambda site: (site.add(op_type, [site.floats(0), site.floats(3)], {}), 6)


def _unary(op_type: str, *kept: str) -> _Writer:
    """An operation on one tensor; `kept` are the attributes that it has in the standard."""

    def write(site: _Site) -> tuple[ir.Value, int | None]:
        attributes = {name: value for name, value in site.attributes.items() if name in kept}
        return site.add(op_type, [site.floats(0)], attributes), 3

    return write


def _nhwc_max_pool(site: _Site) -> tuple[ir.Value, int | None]:
    """Of levels, which are in the order of the numbers that they stand for."""
    levels = site.value(0)
    assert levels is not None
    return site.add("MaxPool", [site.channels_first(levels)], site.attributes), None


def _reduce_mean(site: _Site) -> tuple[ir.Value, int | None]:
    axes = add_constant(site.model.graph, np.array(site.attributes["axes"], np.int64), f"{site.name}_axes")
    keepdims = {"keepdims": site.attributes.get("keepdims", 1)}
    return site.add("ReduceMean", [site.floats(0), axes], keepdims), 3


def _concat(site: _Site) -> tuple[ir.Value, int | None]:
    parts = [site.floats(position) for position in range(2, len(site.node.inputs), 3)]
    return site.add("Concat", parts, {"axis": site.attributes["axis"]}), 0


def _where(site: _Site) -> tuple[ir.Value, int | None]:
    return site.add("Where", [site.value(0), site.floats(1), site.floats(4)], {}), 7


def _matmul_to_float(site: _Site) -> tuple[ir.Value, int | None]:
    """MatMulIntegerToFloat (A, B, scale of A, of B, zero point of A, of B, bias)."""
    a, b, a_scale, b_scale, a_zero, b_zero, bias = (site.value(position) for position in range(7))
    assert a is not None and b is not None and a_scale is not None and b_scale is not None
    columns = (rank(b) or 2) - 1
    product = site.add(
        "MatMul", [site.dequantised(a, a_scale, a_zero), site.dequantised(b, b_scale, b_zero, columns)], {}
    )
    return (product if bias is None else site.add("Add", [product, bias], {}, f"{site.name}_biased")), None


def _dynamic_matmul(site: _Site) -> tuple[ir.Value, int | None]:
    """DynamicQuantizeMatMul (A in floats, B, scale of B, zero point of B, bias)."""
    a, b, scale, zero, bias = (site.value(position) for position in range(5))
    assert a is not None and b is not None and scale is not None
    rounding = ir.Node("", "DynamicQuantizeLinear", [a], num_outputs=3, name=f"{site.node.name}_rounding")
    for output, kind in zip(rounding.outputs, ("", "_scale", "_zero_point"), strict=True):
        output.name = f"{a.name}_quantised_for_{site.name}{kind}"
    site.nodes.append(rounding)
    weights = site.dequantised(b, scale, zero, (rank(b) or 2) - 1)
    levels, factor, offset = rounding.outputs
    product = site.add("MatMul", [site.dequantised(levels, factor, offset), weights], {})
    return (product if bias is None else site.add("Add", [product, bias], {}, f"{site.name}_biased")), None


_POOL = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides", "dilations")
_WRITERS: dict[tuple[str, str], _Writer] = {
    ("", "QLinearConv"): _conv,
    ("", "QLinearMatMul"): _matmul,
} | {
    (_MICROSOFT, op_type): writer
    for op_type, writer in {
        "QLinearConv": _conv,
        "QLinearAdd": _binary("Add"),
        "QLinearMul": _binary("Mul"),
        "QLinearSigmoid": _unary("Sigmoid"),
        "QLinearLeakyRelu": _unary("LeakyRelu", "alpha"),
        "QLinearSoftmax": _unary("Softmax", "axis"),
        "QLinearAveragePool": _unary("AveragePool", *_POOL),
        "QLinearGlobalAveragePool": _unary("GlobalAveragePool"),
        "QLinearReduceMean": _reduce_mean,
        "NhwcMaxPool": _nhwc_max_pool,
        "QLinearConcat": _concat,
        "QLinearWhere": _where,
        "QGemm": _gemm,
        "MatMulIntegerToFloat": _matmul_to_float,
        "DynamicQuantizeMatMul": _dynamic_matmul,
    }.items()
}
QUANTISED = {*_WRITERS, *PACKED}


def _scaled_product(model: ir.Model, node: ir.Node) -> bool:
    """x -> DynamicQuantizeLinear -> ConvInteger -> (Add ->) Cast -> Mul by both scales: the same on floats."""
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    bias, cast = _rounded_bias(node), sole_consumer(node.outputs[0])
    if bias is not None and cast is not None:
        cast = sole_consumer(cast.outputs[0])
    product = sole_consumer(cast.outputs[0]) if is_op(cast, "Cast") and cast is not None else None
    if source is None or not is_op(source, "DynamicQuantizeLinear") or product is None or not is_op(product, "Mul"):
        return False
    scales = next((value for value in product.inputs if value is not cast.outputs[0]), None)  # type: ignore[union-attr]
    both = scales.producer() if scales is not None else None
    if both is None or not is_op(both, "Mul") or source.outputs[1] not in both.inputs:
        return False
    scale = next((value for value in both.inputs if value is not source.outputs[1]), None)
    weight, zero = node.inputs[1], node.inputs[3] if len(node.inputs) > 3 else None
    if scale is None or weight is None or constant(scale) is None or constant(weight) is None:
        return False
    convolution = node.op_type == "ConvInteger"
    site = _Site(model, product)
    levels, factor, offset = source.outputs
    x = site.dequantised(levels, factor, offset)
    axis = 0 if convolution else (rank(weight) or 2) - 1
    floats = site.dequantised(weight, scale, zero, axis)
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    inputs = [x, floats] if bias is None else [x, floats, bias]
    site.put(site.add("Conv" if convolution else "MatMul", inputs, attributes))
    return True


def _rounded_bias(convolution: ir.Node) -> ir.Value | None:
    """The bias (C,) that ONNX Runtime's older quantiser adds in units of both scales: Div, Floor, Cast, Reshape."""
    output = convolution.outputs[0]
    add = sole_consumer(output)
    if add is None or not is_op(convolution, "ConvInteger") or not is_op(add, "Add"):
        return None
    value = next((value for value in add.inputs if value is not output), None)
    for op_type in ("Reshape", "Cast", "Floor", "Div"):
        node = None if value is None else value.producer()
        if node is None or not is_op(node, op_type):
            return None
        value = node.inputs[0]
    return value if constant(value) is not None else None


def _weights(model: ir.Model, node: ir.Node) -> bool:
    """DequantizeLinear of a constant: the floats."""
    scale = node.inputs[1]
    array, factor, offset = ([constant(value) for value in node.inputs] + [None])[:3]
    if array is None or factor is None or scale is None:
        return False
    if len(node.inputs) > 2 and node.inputs[2] is not None and offset is None:
        return False
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    if block:  # one scale for so many numbers along the axis
        inside = range(array.shape[axis])
        factor = np.repeat(factor, block, axis).take(inside, axis)
        offset = None if offset is None else np.repeat(offset, block, axis).take(inside, axis)
    array = _dequantised(array, factor, offset, None if block else axis)
    value = add_constant(model.graph, array, str(node.outputs[0].name), scale.dtype)
    ir.convenience.replace_all_uses_with(node.outputs[0], value, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    return True


def _move_up(model: ir.Model, node: ir.Node) -> bool:
    """DequantizeLinear behind what only moves or compares: before it."""
    modified = False
    while True:
        value = node.inputs[0]
        moving = value.producer() if value is not None else None
        if value is None or moving is None or not is_op(moving, *_MOVING) or len(moving.outputs) > 1:
            return modified
        readers = {use.node for use in value.uses()}
        scale = node.inputs[1]
        if value.is_graph_output() or scale is None or rank(scale) not in (0, None) or not _alike(readers, node):
            return modified
        site = _Site(model, moving)
        data = moving.inputs[0]
        assert data is not None
        floats = site.dequantised(data, scale, node.inputs[2] if len(node.inputs) > 2 else None)
        result = site.add(moving.op_type, [floats, *moving.inputs[1:]], site.attributes, str(node.outputs[0].name))
        result.type, result.shape = node.outputs[0].type, node.outputs[0].shape
        model.graph.insert_before(moving, site.nodes)
        for reader in readers:
            ir.convenience.replace_all_uses_with(reader.outputs[0], result, replace_graph_outputs=True)
        model.graph.remove([*readers, moving], safe=True)
        modified, node = True, site.nodes[0]


def _alike(readers: set[ir.Node], node: ir.Node) -> bool:
    return all(is_op(reader, "DequantizeLinear") and reader.inputs[1:] == node.inputs[1:] for reader in readers)
