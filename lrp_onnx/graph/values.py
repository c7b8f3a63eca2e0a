"""Small questions that every pass asks of an onnx_ir value, and the two edits that every pass makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from lrp_onnx.graph.functions import DOMAIN, add_function, is_composite

_EXACT = "exact"  # key of a value's metadata: what was computed, before it was rounded to the model's type
HISTORY = "history"  # keys of a node's: what made it what it is, and why it cannot be explained
REFUSED = "refused"


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer, None for anything that is computed or fed.

    What a pass computed comes in float64, as it was before the model's type rounded it.
    """
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    exact: np.ndarray | None = value.meta.get(_EXACT)
    return value.const_value.numpy() if exact is None else exact


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether `node` is one of these standard operators."""
    return node is not None and node.domain == "" and node.op_type in op_types


def rank(value: ir.Value) -> int | None:
    """Number of dimensions, None when unknown."""
    return None if value.shape is None else len(value.shape)


def is_float(value: ir.Value) -> bool:
    """Whether the tensor holds floating-point numbers."""
    return value.dtype is not None and value.dtype.is_floating_point()


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The only node that reads `value`, at one input; None if there are more, or if it is a graph output."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def is_available(model: ir.Model, op_type: str) -> bool:
    """Whether `replace` can emit `op_type` at the model's opset."""
    if is_composite(op_type):
        return True
    try:
        onnx.defs.get_schema(op_type, model.opset_imports[""], "")
    except onnx.defs.SchemaError:
        return False
    return True


def add_constant(graph: ir.Graph, array: np.ndarray, name: str, dtype: ir.DataType | None = None) -> ir.Value:
    """Register `array` as an initializer named `name`, or `name_1`, … if that is taken."""
    taken, unique, count = graph.initializers, name, 0
    while unique in taken:
        count += 1
        unique = f"{name}_{count}"
    tensor = ir.tensor(np.array(array, dtype=dtype.numpy() if dtype else None, order="C"), name=unique)
    value = ir.Value(name=unique, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    if array.dtype == np.float64 and tensor.dtype != ir.DataType.DOUBLE:
        value.meta[_EXACT] = array
    graph.register_initializer(value)
    return value


def add_node(
    nodes: list[ir.Node], op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any], output: str
) -> ir.Node:
    """Append to `nodes` a standard operation with one output of that name."""
    node = ir.Node("", op_type, inputs, ir.convenience.convert_attributes(dict(attributes)), name=f"{op_type}_{output}")
    node.outputs[0].name = output
    nodes.append(node)
    return node


def remark(node: ir.Node, text: str) -> None:
    """Remember what a rewrite did to `node`, for those who ask what became of their model."""
    node.meta[HISTORY] = (*node.meta.get(HISTORY, ()), text)


def refuse(node: ir.Node, reason: str) -> None:
    """Remember why no relevance can go through `node`; it is an error only where some would have to."""
    node.meta[REFUSED] = reason


def set_constant(node: ir.Node, index: int, array: np.ndarray, name: str, dtype: ir.DataType) -> None:
    """Give `node` its own constant at input `index`; its old name is kept when nobody else reads the old one."""
    assert node.graph is not None
    old = node.inputs[index] if index < len(node.inputs) else None
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, None)
    if old is not None and old.name is not None:
        name = old.name
        if not old.uses() and not old.is_graph_output():
            node.graph.initializers.pop(name)
    node.replace_input_with(index, add_constant(_owner(node), array, name, dtype))


def replace(
    model: ir.Model,
    node: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any],
) -> ir.Node:
    """Put one new operation in the place of `node`, whose name and output name stay; clean-up removes dead inputs."""
    composite = is_composite(op_type)
    if composite:
        add_function(model, op_type)
    new = ir.Node(
        DOMAIN if composite else "",
        op_type,
        inputs,
        ir.convenience.convert_attributes(dict(attributes)),
        name=node.name,
    )
    new.meta.update(node.meta)
    new.metadata_props.update(node.metadata_props)
    ir.convenience.replace_nodes_and_values(_owner(node), node, [node], [new], node.outputs, new.outputs)
    return new


def remove_unused(nodes: Sequence[ir.Node]) -> None:
    """Remove those of `nodes`, in execution order, whose results nobody reads (any more)."""
    for node in reversed(nodes):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            _owner(node).remove(node, safe=True)


def bypass(node: ir.Node, source: ir.Value) -> None:
    """Remove `node`, whose output equals what `source` now holds; the output's name goes to `source`."""
    output = node.outputs[0]
    name = output.name
    ir.convenience.replace_all_uses_with(output, source, replace_graph_outputs=True)
    _owner(node).remove(node, safe=True)
    source.name = name


def _owner(node: ir.Node) -> ir.Graph:
    graph = node.graph
    assert isinstance(graph, ir.Graph), f"node {node.name!r} is in no graph"
    return graph
