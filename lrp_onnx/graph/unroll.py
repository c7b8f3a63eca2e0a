"""Unroll Loop and Scan whose number of steps is known, so that relevance goes through each step like any other node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from lrp_onnx.errors import ModelError
from lrp_onnx.graph.values import add_constant, add_node, constant, is_op, refuse, remark

MOST_NODES = 10_000  # of one loop; more take minutes to load, and few machines hold their tensors
_TOO_LONG = "too long"  # key of a node's metadata: not to be tried again in the next round
_SMALL = 4096  # elements; counters and conditions are computed here, weights are left to the folding behind it
_EXPORT = "export the model with a fixed number of steps, or without the loop"


class _CannotUnroll(Exception):
    """Says why; the loop stays as it is, and is refused where relevance would have to go through it."""


@dataclass
class _Steps:
    """The nodes of the steps so far, not yet in the graph."""

    model: ir.Model
    loop: ir.Node
    body: ir.Graph
    nodes: list[ir.Node] = field(default_factory=list)
    count: int = 0

    @property
    def full(self) -> bool:
        return (self.count + 1) * max(len(self.body), 1) > MOST_NODES

    def step(self, inputs: Sequence[ir.Value]) -> list[ir.Value]:
        """The body once more, fed with `inputs`; what it gives."""
        if self.full:
            raise _CannotUnroll(f"after {self.count} steps of {len(self.body)} nodes it has not ended; {_EXPORT}")
        copy = self.body.clone(allow_outer_scope_values=True)
        outside = dict(zip(copy.inputs, inputs, strict=True))
        for value in copy.initializers.values():
            assert value.const_value is not None
            outside[value] = add_constant(self.model.graph, value.const_value.numpy(), f"{value.name}_step{self.count}")
        outputs = [outside.get(value, value) for value in copy.outputs]
        copy.outputs.clear()
        for value, given in outside.items():
            ir.convenience.replace_all_uses_with(value, given)
        fresh = list(copy)
        copy.remove(fresh)
        for node in fresh:
            remark(node, f"step {self.count + 1} of {self.loop.op_type} '{self.loop.name}'")
            node.name = f"{node.name or node.op_type}_step{self.count}"
            for value in node.outputs:
                value.name = f"{value.name}_step{self.count}"
        self.nodes += fresh
        self.count += 1
        return outputs

    def drop(self) -> None:
        for node in self.nodes:
            for position in range(len(node.inputs)):
                node.replace_input_with(position, None)


class UnrollLoops(ir.passes.InPlacePass):
    """Replaces each Loop and Scan by the nodes of its steps, one step after the other.

    1. Loop: the trip count is a constant, and the condition too, at every step, as far as it depends on the step's
       number and on what constants become in the loop.
    2. Scan: the scanned axis has a fixed size.
    3. A tensor `t` of the body becomes `t_step0`, `t_step1`, …; the loop's outputs keep their names.
    4. What is stacked over the steps becomes Unsqueeze and Concat.

    A loop that stays is marked with the reason.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if not is_op(node, "Loop", "Scan") or _TOO_LONG in node.meta:
                continue
            steps = _Steps(model, node, node.attributes["body"].as_graph())
            try:
                finals = _loop(steps) if node.op_type == "Loop" else _scan(steps)
            except _CannotUnroll as reason:
                steps.drop()
                if steps.full:
                    node.meta[_TOO_LONG] = True
                refuse(node, str(reason))
                continue
            _put_in_place(steps, finals)
            modified = True
        return ir.passes.PassResult(model, modified)


def _loop(steps: _Steps) -> list[ir.Value]:
    loop, graph = steps.loop, steps.model.graph
    most = _scalar(loop.inputs[0], "trip count")
    goes_on = _scalar(loop.inputs[1], "condition")
    carried = [value for value in loop.inputs[2:] if value is not None]
    stacked: list[list[ir.Value]] = [[] for _ in range(len(steps.body.outputs) - 1 - len(carried))]
    true = add_constant(graph, np.array(True), f"{loop.name}_goes_on")
    while goes_on and (most is None or steps.count < most):
        number = add_constant(graph, np.array(steps.count, np.int64), f"{loop.name}_step{steps.count}")
        before = len(steps.nodes)
        condition, *results = steps.step([number, true, *carried])
        known = _propagate(steps.model, steps.nodes[before:])
        goes_on = _scalar(known.get(condition, condition), "condition")
        carried = [known.get(value, value) for value in results[: len(carried)]]
        for values, value in zip(stacked, results[len(carried) :], strict=True):
            values.append(value)
    if stacked and not steps.count:
        raise _CannotUnroll("it makes no step at all, and stacks its results")
    return [*carried, *(_stack(steps, values, 0) for values in stacked)]


def _scan(steps: _Steps) -> list[ir.Value]:
    scan = steps.loop
    if steps.model.opset_imports[""] < 9:
        raise ModelError(f"Scan node '{scan.name}': opset 8 has it with another meaning; export with opset 9 or later")
    scanned = scan.attributes.get_int("num_scan_inputs")
    assert scanned is not None
    values = [value for value in scan.inputs if value is not None]
    carried, sequences = values[:-scanned], values[-scanned:]
    axes = list(scan.attributes.get_ints("scan_input_axes", [0] * scanned))
    lengths = {size for value, axis in zip(sequences, axes, strict=True) if (size := _size(value, axis)) is not None}
    if len(lengths) != 1:
        raise _CannotUnroll(f"the length of '{sequences[0].name}' depends on the input; {_EXPORT}")
    (length,) = lengths
    if not length or length * max(len(steps.body), 1) > MOST_NODES:
        raise _CannotUnroll(f"{length} steps of {len(steps.body)} nodes are not unrolled; {_EXPORT}")
    backwards = list(scan.attributes.get_ints("scan_input_directions", [0] * scanned))
    slices = [
        _slices(steps, value, axis, length)[:: -1 if reverse else 1]
        for value, axis, reverse in zip(sequences, axes, backwards, strict=True)
    ]
    stacked: list[list[ir.Value]] = [[] for _ in range(len(steps.body.outputs) - len(carried))]
    for parts in zip(*slices, strict=True):
        results = steps.step([*carried, *parts])
        carried = results[: len(carried)]
        for outputs, value in zip(stacked, results[len(carried) :], strict=True):
            outputs.append(value)
    out_axes = scan.attributes.get_ints("scan_output_axes", [0] * len(stacked))
    reversals = scan.attributes.get_ints("scan_output_directions", [0] * len(stacked))
    tails = [
        _stack(steps, outputs[:: -1 if reverse else 1], axis)
        for outputs, axis, reverse in zip(stacked, out_axes, reversals, strict=True)
    ]
    return [*carried, *tails]


def _scalar(value: ir.Value | None, what: str) -> int | None:
    """The number in a constant of one element; None for an input that is absent (no end, or always true)."""
    if value is None:
        return None if what == "trip count" else 1
    array = constant(value)
    if array is None:
        raise _CannotUnroll(f"its {what} '{value.name}' depends on the input; {_EXPORT}")
    return int(array.reshape(()))


def _size(value: ir.Value, axis: int) -> int | None:
    size = None if value.shape is None else value.shape[axis]
    return size if isinstance(size, int) else None


def _propagate(model: ir.Model, nodes: Sequence[ir.Node]) -> dict[ir.Value, ir.Value]:
    """Compute what depends on small constants only; the constants that stand for outputs of `nodes`."""
    known: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        for position, value in enumerate(node.inputs):
            if value in known:
                node.replace_input_with(position, known[value])
        arrays = [None if value is None else constant(value) for value in node.inputs]
        found = [array for array in arrays if array is not None]
        if any(array is None and value is not None for array, value in zip(arrays, node.inputs, strict=True)):
            continue
        if node.domain or not found or any(array.size > _SMALL for array in found) or _has_graph(node):
            continue
        for output, array in zip(node.outputs, _evaluate(node, model.opset_imports[""]), strict=True):
            if isinstance(array, np.ndarray | np.generic):
                known[output] = add_constant(model.graph, np.asarray(array), f"{output.name}_known")
    return known


def _has_graph(node: ir.Node) -> bool:
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def _evaluate(node: ir.Node, opset: int) -> list[object]:
    proto = ir.to_proto(node)
    feeds = {str(v.name): np.asarray(constant(v)) for v in node.inputs if v is not None}
    graph = onnx.GraphProto(
        node=[proto],
        name="node",
        input=[onnx.ValueInfoProto(name=name) for name in feeds],
        output=[onnx.ValueInfoProto(name=str(value.name)) for value in node.outputs],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    return list(ReferenceEvaluator(model).run(None, feeds))


def _slices(steps: _Steps, value: ir.Value, axis: int, count: int) -> list[ir.Value]:
    base = f"{steps.loop.name}_{value.name}"
    parts = [value]
    if count > 1:
        sizes = add_constant(steps.model.graph, np.ones(count, np.int64), f"{base}_sizes")
        old = steps.model.opset_imports[""] < 13
        split = ir.Node(
            "",
            "Split",
            [value] if old else [value, sizes],
            ir.convenience.convert_attributes({"axis": axis} | ({"split": [1] * count} if old else {})),
            num_outputs=count,
            name=f"{base}_split",
        )
        for number, part in enumerate(split.outputs):
            part.name = f"{base}_part{number}"
        steps.nodes.append(split)
        parts = list(split.outputs)
    return [_axes_op(steps, "Squeeze", part, axis, f"{part.name}_slice") for part in parts]


def _stack(steps: _Steps, values: Sequence[ir.Value], axis: int) -> ir.Value:
    apart = [_axes_op(steps, "Unsqueeze", value, axis, f"{value.name}_row") for value in values]
    node = add_node(steps.nodes, "Concat", apart, {"axis": axis}, f"{values[0].name}_stacked")
    remark(node, f"results of {steps.count} steps of {steps.loop.op_type} '{steps.loop.name}'")
    return node.outputs[0]


def _axes_op(steps: _Steps, op_type: str, value: ir.Value, axis: int, name: str) -> ir.Value:
    """Squeeze or Unsqueeze one axis, which older opsets take as an attribute."""
    if steps.model.opset_imports[""] < 13:
        return add_node(steps.nodes, op_type, [value], {"axes": [axis]}, name).outputs[0]
    axes = add_constant(steps.model.graph, np.array([axis], np.int64), f"{name}_axes")
    return add_node(steps.nodes, op_type, [value, axes], {}, name).outputs[0]


def _put_in_place(steps: _Steps, finals: Sequence[ir.Value]) -> None:
    loop, graph = steps.loop, steps.model.graph
    outputs = [
        add_node(steps.nodes, "Identity", [final], {}, str(output.name)).outputs[0]
        for final, output in zip(finals, loop.outputs, strict=True)
    ]
    for node, output in zip(steps.nodes[-len(outputs) :], loop.outputs, strict=True):
        node.outputs[0].type, node.outputs[0].shape = output.type, output.shape
    ir.convenience.replace_nodes_and_values(graph, loop, [loop], steps.nodes, loop.outputs, outputs)
