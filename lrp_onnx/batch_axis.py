"""Models whose batch is not the first dimension, such as recurrent ones (T, N, C), with it moved to the front."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace

import onnx
import onnx_ir as ir

from lrp_onnx.graph import Graph, Node
from lrp_onnx.graph.model import TensorInfo

Order = tuple[int, ...]

_BATCH = re.compile(r"n|b|bs|.*batch.*", re.IGNORECASE)  # what exporters call the dimension of the samples
_INNER = "/batch_inside"  # behind the name that a tensor had before


def batch_first(graph: Graph) -> Graph:
    """The same model with the samples along the first dimension of every input and output.

    Where dimensions are named, the batch of an input is the one called N, B, bs, or "batch" with anything around it, if
    its first dimension is not called so; the batch of an output is the dimension called as an input's batch. Of a model
    for single samples (inputs start with 1), it is an output's only dimension of 1, where that has three or more. What
    is moved gets a Transpose at its end of the model; every other model is given back as it is.

    Parameters
    ----------
    graph : Graph
        As `load` gives it.

    Returns
    -------
    Graph
        With the names, hash and metadata of `graph`. An output behind which an activation was cut has a new name.
    """
    inputs = {name: order for name, info in graph.inputs.items() if (order := _order(info, _input_axis(info)))}
    sizes = {info.shape[inputs.get(name, (0,))[0]] for name, info in graph.inputs.items() if info.shape} - {None}
    outputs = {
        name: order for name, info in graph.outputs.items() if (order := _order(info, _output_axis(info, sizes)))
    }
    if graph.original is None or not (inputs or outputs):
        return graph
    named = {name: name + "/batch_first" if name in graph.cuts else name for name in outputs}
    moved = Graph.from_proto(_moved(graph.model, inputs, outputs, named), initializers=graph.initializers)
    cuts, before = {}, {name: order for name, order in outputs.items() if name not in graph.cuts}
    for name, node in graph.cuts.items():
        if name in outputs:
            before[node.outputs[0]] = outputs[name]
            cuts[named[name]] = _cut(node, outputs[name][0], named[name])
        else:
            cuts[name] = node
    return replace(
        graph,
        model=moved.model,
        nodes=moved.nodes,
        inputs=moved.inputs,
        outputs=moved.outputs,
        original=_moved(graph.original, inputs, before, {name: name for name in before}),
        cuts=cuts,
    )


def _order(info: TensorInfo, axis: int | None) -> Order:
    """Dimensions with the batch in front; empty where it is already, or is not known."""
    return (axis, *(a for a in range(len(info.shape or ())) if a != axis)) if axis else ()


def _input_axis(info: TensorInfo) -> int | None:
    """Where the batch of an input is, if not in front."""
    called = [axis for axis, size in enumerate(info.shape or ()) if isinstance(size, str) and _BATCH.fullmatch(size)]
    return called[0] if len(called) == 1 else None


def _output_axis(info: TensorInfo, sizes: Collection[int | str | None]) -> int | None:
    shape = info.shape or ()
    if not shape or shape[0] in sizes:
        return None
    fits = [axis for axis, size in enumerate(shape) if size in sizes and (isinstance(size, str) or size == 1)]
    if len(fits) != 1 or (shape[fits[0]] == 1 and len(shape) < 3):
        return None
    return fits[0]


def _cut(node: Node, axis: int | None, name: str) -> Node:
    """A cut activation on the logits with the batch in front."""
    if axis is None:
        return node
    along = int(node.attributes.get("axis", -1))
    moved = 0 if along == axis else along + 1 if 0 <= along < axis else along
    return replace(node, inputs=(name,), attributes={**node.attributes, "axis": moved})


def _moved(
    proto: onnx.ModelProto, inputs: Mapping[str, Order], outputs: Mapping[str, Order], named: Mapping[str, str]
) -> onnx.ModelProto:
    """A model with a Transpose behind inputs and before outputs, which get these orders of their dimensions."""
    model = ir.from_proto(proto)
    graph = model.graph
    for place, inner in enumerate(graph.inputs):
        name = str(inner.name)
        if name not in inputs:
            continue
        order = inputs[name]
        outer = ir.Value(name=name, type=inner.type, shape=_ordered(inner, order))
        back = ir.node("Transpose", [outer], {"perm": [order.index(a) for a in range(len(order))]}, name=name + _INNER)
        (result,) = back.outputs
        result.type, result.shape, result.name = inner.type, inner.shape, name + _INNER
        ir.convenience.replace_all_uses_with(inner, result)
        graph.inputs[place] = outer
        graph.insert_before(graph[0], back)
    for place, inner in enumerate(graph.outputs):
        name = str(inner.name)
        if name not in outputs:
            continue
        front = ir.node("Transpose", [inner], {"perm": list(outputs[name])}, name=f"{name}/to_front")
        (outer,) = front.outputs
        outer.type, outer.shape = inner.type, _ordered(inner, outputs[name])
        if named[name] == name:
            inner.name = name + _INNER
        outer.name = named[name]
        graph.append(front)
        graph.outputs[place] = outer
    return ir.to_proto(model)


def _ordered(value: ir.Value, order: Order) -> ir.Shape | None:
    return None if value.shape is None else ir.Shape([value.shape[axis] for axis in order])
