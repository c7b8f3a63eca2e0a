"""Make padding explicit, drop what changes nothing, and merge what the library's rewrite rules can merge exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common

from lrp_onnx.graph.values import constant, is_op

_WINDOWED = ("Conv", "MaxPool", "AveragePool", "LpPool")


class ExplicitPads(ir.passes.InPlacePass):
    """Replaces `auto_pad` of convolutions and pools by the `pads` it stands for, where the spatial size is known."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in model.graph:
            mode = node.attributes.get_string("auto_pad", "NOTSET") if is_op(node, *_WINDOWED) else "NOTSET"
            pads = None if mode == "NOTSET" else _pads(node, mode)
            if pads is not None:
                node.attributes.pop("auto_pad")
                node.attributes.add(ir.AttrInt64s("pads", pads))
                modified = True
        return ir.passes.PassResult(model, modified)


def _pads(node: ir.Node, mode: str) -> list[int] | None:
    x = node.inputs[0]
    if x is None or x.shape is None:
        return None
    sizes: Sequence[int | ir.SymbolicDim] = list(x.shape)[2:]
    if mode == "VALID":
        return [0] * (2 * len(sizes))
    kernel = node.attributes.get_ints("kernel_shape", None)
    if kernel is None:
        weight = constant(node.inputs[1])
        if weight is None:
            return None
        kernel = weight.shape[2:]
    ones = [1] * len(sizes)
    strides = node.attributes.get_ints("strides", ones)
    dilations = node.attributes.get_ints("dilations", ones)
    begin, end = [], []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        reach = (k - 1) * dilation + 1
        if stride == 1:
            total = reach - 1
        elif isinstance(size, int):
            total = max(0, (-(-size // stride) - 1) * stride + reach - size)
        else:
            return None
        small, large = total // 2, total - total // 2
        begin.append(large if mode == "SAME_LOWER" else small)
        end.append(small if mode == "SAME_LOWER" else large)
    return begin + end


class RemoveDropout(ir.passes.InPlacePass):
    """Turns Dropout that is not training, and of which only the output is read, into Identity."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in model.graph:
            if not is_op(node, "Dropout") or any(mask.uses() or mask.is_graph_output() for mask in node.outputs[1:]):
                continue
            training = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else False
            if training is None or training:
                continue
            node.resize_inputs(1)
            node.resize_outputs(1)
            node.attributes.clear()
            node.op_type = "Identity"
            modified = True
        return ir.passes.PassResult(model, modified)


class RemoveNoOpBounds(ir.passes.InPlacePass):
    """Turns Max with minus infinity, and Min with infinity, into Identity."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in model.graph:
            if not is_op(node, "Max", "Min") or len(node.inputs) != 2:
                continue
            bound = -np.inf if node.op_type == "Max" else np.inf
            kept = [
                v for v in node.inputs if (array := constant(v)) is None or array.size != 1 or array.item() != bound
            ]
            if len(kept) == 1:
                node.replace_input_with(0, kept[0])
                node.resize_inputs(1)
                node.op_type = "Identity"
                modified = True
        return ir.passes.PassResult(model, modified)


class RemoveIdentities(ir.passes.InPlacePass):
    """Removes Identity nodes of the main graph; an output of the graph gives its name to what it is a copy of.

    Those within branches and loops stay: behind them may be a tensor from outside, which is no output of theirs.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            source, output = (node.inputs[0], node.outputs[0]) if is_op(node, "Identity") else (None, None)
            if source is None or output is None:
                continue
            ends = output.is_graph_output()
            if ends and (source.is_graph_input() or source.is_initializer() or source.is_graph_output()):
                continue
            if source.type is None:
                source.type = output.type
            if source.shape is None:
                source.shape = output.shape
            ir.convenience.replace_all_uses_with(output, source, replace_graph_outputs=True)
            name = output.name
            model.graph.remove(node, safe=True)
            if ends:
                source.name = name
            modified = True
        return ir.passes.PassResult(model, modified)


def tidy() -> ir.passes.PassBase:
    """Rewrite rules of onnxscript that are exact: zero Pad into Conv, inverse Transposes, `+ 0`, `* 1`."""
    return RewritePass(
        [
            common.no_op_transpose_rule,
            common.transpose_transpose_rule,
            common.no_op_cast_rule,
            common.no_op_expand_rule,
            common.mul_by_1_rule,
            common.div_by_1_rule,
            common.add_0_rule,
            common.sub_0_rule,
            common.fuse_pad_into_conv_rule,
        ]
    )
