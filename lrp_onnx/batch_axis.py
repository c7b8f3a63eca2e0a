"""Models whose batch is not the first dimension, such as recurrent ones (T, N, C), with it moved to the front."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import onnx
import onnx_ir as ir

from lrp_onnx.engine.seed import output_name
from lrp_onnx.errors import DataError, TargetError
from lrp_onnx.graph import Graph, Node, load
from lrp_onnx.graph.model import TensorInfo

BATCH_AXIS_KEY = "lrp_onnx.batch_axis"  # of the model's metadata: JSON, what `BatchAxis` is
# Which dimension of an input or output is the batch, by name, and as "" or alone of all that are not named
BatchAxis = int | Mapping[str, int]
Order = tuple[int, ...]

_BATCH = re.compile(r"n|b|bs|.*batch.*", re.IGNORECASE)  # what exporters call the dimension of the samples
_INNER = "/batch_inside"  # behind the name that a tensor had before
_EXPECTED = "expected AXIS, or NAME=AXIS of an input or output, from 0, such as 1 or x=1"


def batch_first(graph: Graph, axis: BatchAxis | None = None) -> Graph:
    """The same model with the samples along the first dimension of every input and output.

    Which dimension that was, `axis` says, or else the model's metadata ("lrp_onnx.batch_axis"). Of what neither names:
    where dimensions are named, the batch of an input is the one called N, B, bs, or "batch" with anything around it, if
    its first dimension is not called so; the batch of an output is the dimension called as an input's batch. Of a model
    for single samples (inputs start with 1), it is an output's only dimension of 1, where that has three or more. What
    is moved gets a Transpose at its end of the model; every other model is given back as it is.

    Parameters
    ----------
    graph : Graph
        As `load` gives it.
    axis : int or dict of str to int, optional
        Of all inputs and outputs, or by name; the name "" is for all others.

    Returns
    -------
    Graph
        With the names, hash and metadata of `graph`, in which `axis` is. An output behind which an activation was cut
        has a new name.

    Raises
    ------
    DataError
        When `axis` names what the model does not have, or dimensions that cannot be the batch.
    """
    if axis is not None:
        said = json.dumps(axis if isinstance(axis, int) else dict(axis), ensure_ascii=False)
        graph = replace(graph, metadata={**graph.metadata, BATCH_AXIS_KEY: said})
    if graph.moved:
        return graph
    told = _told(graph)
    inputs = {n: order for n, info in graph.inputs.items() if (order := _order(info, told.get(n, _input_axis(info))))}
    sizes = {info.shape[inputs.get(name, (0,))[0]] for name, info in graph.inputs.items() if info.shape} - {None}
    outputs = {
        name: order
        for name, info in graph.outputs.items()
        if (order := _order(info, told.get(name, _output_axis(info, sizes))))
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
        moved=frozenset([*inputs, *named.values()]),
    )


def read_batch_axis(texts: Sequence[str] | None) -> BatchAxis | None:
    """What `--batch-axis` says: "1" for all, "x=1" for one, any number of them.

    Raises
    ------
    DataError
        When one says something else, or two say the same.
    """
    found: dict[str, int] = {}
    for text in texts or ():
        name, _, number = text.rpartition("=")
        if not re.fullmatch(r"\d+", number.strip()):
            raise DataError(f"--batch-axis {text}: {_EXPECTED}")
        if name in found:
            raise DataError(f"--batch-axis {text}: {name or 'AXIS'} was {found[name]} before; say it once")
        found[name] = int(number)
    return found or None


def write_batch_axis(model: onnx.ModelProto, axis: BatchAxis) -> None:
    """Say in a model's metadata where its batch is, so that every command knows.

    Raises
    ------
    DataError
        As `batch_first`.
    """
    graph = batch_first(load(model), axis)
    props = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**props, BATCH_AXIS_KEY: graph.metadata[BATCH_AXIS_KEY]})


def _told(graph: Graph) -> dict[str, int]:
    """Where the metadata say that the batch is, of each input and output of which they say so."""
    if BATCH_AXIS_KEY not in graph.metadata:
        return {}
    text = graph.metadata[BATCH_AXIS_KEY]
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    named = {"": said} if isinstance(said, int) else said
    if not isinstance(named, dict) or not all(type(axis) is int and axis >= 0 for axis in named.values()):
        raise DataError(f"{graph.name}: batch axis {text}: {_EXPECTED}")
    by_name = {_known(graph, name): axis for name, axis in named.items() if name}
    everything = {**graph.inputs, **graph.outputs}
    found = {name: named[""] for name, info in everything.items() if info.shape != ()} if "" in named else {}
    found |= by_name
    fixed = {}
    for name, axis in found.items():
        shape = everything[name].shape
        if shape is None or axis >= len(shape):
            raise DataError(f"{_described(graph, name, axis)}; say it by name, {_in_file(graph, name)}=AXIS")
        size = shape[axis]
        if isinstance(size, int):
            fixed[name] = size
    # a number for all was not meant for an output where classes are, say
    others = [name for name in found if name in graph.inputs and name not in fixed]
    odd = [name for name in fixed if fixed[name] != next(iter(fixed.values()))]
    odd = odd or [name for name in fixed if others and name in graph.outputs and name not in by_name]
    if odd:
        other = next(name for name in (*fixed, *others) if fixed.get(name) != fixed[odd[0]])
        name, there = odd[0], fixed.get(other, "any number")
        raise DataError(
            f"{_described(graph, name, found[name])}, {fixed[name]} samples, and '{_in_file(graph, other)}' has "
            f"{there}; say it by name, {_in_file(graph, name)}=AXIS"
        )
    return found


def _known(graph: Graph, name: str) -> str:
    """The input or output of the canonical graph that is called so, also as the file has it."""
    if name in graph.inputs:
        return name
    try:
        return output_name(graph, name)
    except TargetError:
        outputs = (_in_file(graph, output) for output in graph.outputs)
        raise DataError(
            f"{graph.name}: batch axis: no input or output is named '{name}'; the model has {', '.join(graph.inputs)} "
            f"and {', '.join(outputs)}"
        ) from None


def _in_file(graph: Graph, name: str) -> str:
    """What the file calls an input or output, also one that an activation was cut off from."""
    return graph.cuts[name].outputs[0] if name in graph.cuts else name


def _described(graph: Graph, name: str, axis: int) -> str:
    shape = (graph.inputs.get(name) or graph.outputs[name]).shape
    shown = "of unknown shape" if shape is None else f"({', '.join(str(size or 'any') for size in shape)})"
    return f"{graph.name}: batch axis {axis}: '{_in_file(graph, name)}' is {shown}"


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
