"""Resolve control flow: branches and loops that constants decide, sequences of tensors that are known one by one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from lrp_onnx.graph.shapes import fold
from lrp_onnx.graph.unroll import UnrollLoops
from lrp_onnx.graph.values import add_constant, constant, is_op, refuse

_SEQUENCES = ("SequenceEmpty", "SequenceConstruct", "SequenceInsert", "SequenceErase", "SequenceLength", "SequenceAt")
_BRANCHING = ("If", "Loop", "Scan", "SequenceMap")
_ROUNDS = 16  # a loop within a branch within a loop …


def has_control_flow(model: ir.Model) -> bool:
    """Whether the main graph has branches, loops or sequences."""
    return any(is_op(node, *_BRANCHING, *_SEQUENCES, "SplitToSequence") for node in model.graph)


def resolve_control_flow() -> ir.passes.PassBase:
    """Passes that leave no branch, loop or sequence that is known before an input is."""
    return ir.passes.PassManager(
        [common.LiftSubgraphInitializersToMainGraphPass(), fold(), ResolveSequences(), UnrollLoops()],
        steps=_ROUNDS,
        early_stop=True,
    )


class RefuseBranches(ir.passes.InPlacePass):
    """Marks what is still there with the reason why no relevance can go through it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for node in model.graph:
            if is_op(node, "If"):
                condition = node.inputs[0]
                name = "" if condition is None else f" '{condition.name}'"
                refuse(
                    node,
                    f"its condition{name} depends on the input, so that the branch is not known; export the model for "
                    "inputs of one shape, or without the branch",
                )
            elif is_op(node, "SequenceMap", *_SEQUENCES, "SplitToSequence", "ConcatFromSequence"):
                refuse(node, "which tensors the sequence holds depends on the input; export the model without it")
        return ir.passes.PassResult(model, modified=False)


class ResolveSequences(ir.passes.InPlacePass):
    """Follows sequences from where they are made to where they are read, as far as every position is constant.

    SequenceInsert and SequenceErase become one SequenceConstruct; SequenceAt becomes the tensor itself, SequenceLength
    a constant. (SplitToSequence and ConcatFromSequence become Split and Concat by constant folding.)
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        lists: dict[ir.Value | None, list[ir.Value | None]] = {}
        modified = False
        for node in list(model.graph):
            if not is_op(node, *_SEQUENCES):
                continue
            source = lists.get(node.inputs[0]) if node.inputs else None
            if node.op_type == "SequenceEmpty":
                lists[node.outputs[0]] = []
            elif node.op_type == "SequenceConstruct":
                lists[node.outputs[0]] = list(node.inputs)
            elif source is not None:
                modified |= _follow(model, node, list(source), lists)
        return ir.passes.PassResult(model, modified)


def _follow(
    model: ir.Model, node: ir.Node, items: list[ir.Value | None], lists: dict[ir.Value | None, list[ir.Value | None]]
) -> bool:
    output = node.outputs[0]
    if node.op_type == "SequenceLength":
        ir.convenience.replace_all_uses_with(
            output, add_constant(model.graph, np.array(len(items)), f"{output.name}_known")
        )
        return True
    inserts = node.op_type == "SequenceInsert"
    given = node.inputs[2 if inserts else 1] if len(node.inputs) > (2 if inserts else 1) else None
    array = constant(given)
    if given is not None and array is None:
        return False
    position = len(items) if inserts else len(items) - 1  # the default: behind the last, or the last
    if array is not None:
        position = int(array.reshape(()))
        position += len(items) if position < 0 else 0
    if node.op_type == "SequenceAt":
        item = items[position]
        if item is None or output.is_graph_output():
            return False
        ir.convenience.replace_all_uses_with(output, item)
        return True
    if inserts:
        items.insert(position, node.inputs[1])
    else:
        del items[position]
    lists[output] = items
    if not items:
        return False
    new = ir.Node("", "SequenceConstruct", items, name=node.name)
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], [new], node.outputs, new.outputs)
    lists[new.outputs[0]] = items
    return True
