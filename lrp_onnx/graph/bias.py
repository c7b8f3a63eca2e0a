"""Take the bias out of operations whose weights are computed: there it is one of the terms of a sum."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lrp_onnx.graph.values import add_constant, constant, is_op, rank, remark

_BIAS = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2, "DeformConv": 3}


class SeparateBias(ir.passes.InPlacePass):
    """Puts an Add behind Conv, ConvTranspose and Gemm with weights or bias that are computed, and behind DeformConv.

    The product of two activations is halved between them, and what is added to it must not be.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            position = _BIAS.get(node.op_type, 0) if is_op(node, *_BIAS) else 0
            bias = node.inputs[position] if 0 < position < len(node.inputs) else None
            if bias is None or rank(node.inputs[1]) is None:  # type: ignore[arg-type]
                continue
            computed = any(constant(value) is None for value in (node.inputs[1], bias))
            if computed or node.op_type == "DeformConv":
                _separate(model.graph, node, position, bias)
                modified = True
        return ir.passes.PassResult(model, modified)


def _separate(graph: ir.Graph, node: ir.Node, position: int, bias: ir.Value) -> None:
    output = node.outputs[0]
    nodes: list[ir.Node] = []
    term = _factor(graph, node, bias, nodes) if node.op_type == "Gemm" else _column(graph, node, bias, nodes)
    node.replace_input_with(position, None)
    if position == len(node.inputs) - 1:
        node.resize_inputs(position)
    add = ir.Node("", "Add", [output, term], name=f"{node.name}_bias")
    total = add.outputs[0]
    total.type, total.shape = output.type, output.shape
    ir.convenience.replace_all_uses_with(output, total, replace_graph_outputs=True)
    add.replace_input_with(0, output)  # the one use that stays
    total.name, output.name = output.name, f"{output.name}_without_bias"
    remark(add, f"bias of {node.op_type} '{node.name}'")
    graph.insert_after(node, [*nodes, add])


def _factor(graph: ir.Graph, node: ir.Node, bias: ir.Value, nodes: list[ir.Node]) -> ir.Value:
    """beta times the bias of a Gemm."""
    attribute = node.attributes.pop("beta", None)
    beta = 1.0 if attribute is None else attribute.as_float()
    if beta == 1.0:
        return bias
    factor = add_constant(graph, np.asarray(beta), f"{node.name}_beta", bias.dtype)
    return _append(nodes, ir.Node("", "Mul", [bias, factor], name=f"{node.name}_beta"), bias)


def _column(graph: ir.Graph, node: ir.Node, bias: ir.Value, nodes: list[ir.Node]) -> ir.Value:
    """The bias (C,) as (1, C, 1, …)."""
    dims = rank(node.inputs[1])  # type: ignore[arg-type]
    assert dims is not None
    stored = constant(bias)
    if stored is not None:
        column = stored.reshape(1, -1, *[1] * (dims - 2))
        return add_constant(graph, column, f"{bias.name}_column", bias.dtype)
    shape = add_constant(graph, np.array([1, -1, *[1] * (dims - 2)]), f"{node.name}_bias_shape")
    return _append(nodes, ir.Node("", "Reshape", [bias, shape], name=f"{node.name}_bias_column"), bias)


def _append(nodes: list[ir.Node], node: ir.Node, like: ir.Value) -> ir.Value:
    node.outputs[0].name, node.outputs[0].type = node.name, like.type
    nodes.append(node)
    return node.outputs[0]
