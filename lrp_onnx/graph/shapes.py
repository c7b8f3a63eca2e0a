"""Infer shapes, and fold the arithmetic on shapes that exporters leave where a dimension is dynamic."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules.common import materialize_reshape_shape_rule

from lrp_onnx.graph.layout import RemoveIdentities
from lrp_onnx.graph.values import add_constant, constant, is_op

_LARGEST_FOLDED = 2**28  # elements; a weight that is stored as "fill with 0.02" may be as large as any other weight
_ROUNDS = 8  # each folded Reshape can make the shapes behind it known


class InferShapes(ir.passes.InPlacePass):
    """Infers shapes anew; names that an earlier inference made up for unknown dimensions are forgotten first."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for node in model.graph:
            for output in node.outputs:
                if output.shape is not None and any(map(_is_invented, output.shape)):
                    output.shape = ir.Shape([None if _is_invented(size) else size for size in output.shape])
        common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
        return ir.passes.PassResult(model, modified=False)  # knowing more is no reason for another round


def _is_invented(size: int | ir.SymbolicDim) -> bool:
    return not isinstance(size, int) and str(size.value).startswith("unk__")  # onnx's shape inference names them so


class FoldConstants(ir.passes.InPlacePass):
    """Evaluates what depends on constants only, whatever its size."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        result = fold_constants(
            model,
            onnx_shape_inference=False,
            input_size_limit=_LARGEST_FOLDED,
            output_size_limit=_LARGEST_FOLDED,
            should_fold=lambda node: True,
        )
        return ir.passes.PassResult(model, result.modified)


class FoldDimensions(ir.passes.InPlacePass):
    """Replaces Gather and Slice of a Shape by a constant where the dimensions that they take are static."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            shape = node.inputs[0].producer() if is_op(node, "Gather", "Slice") and node.inputs[0] is not None else None
            taken = _dimensions(node, shape) if shape is not None and is_op(shape, "Shape") else None
            if taken is None:
                continue
            output = node.outputs[0]
            folded = add_constant(model.graph, taken, f"{output.name}_folded")
            ir.convenience.replace_all_uses_with(output, folded, replace_graph_outputs=False)
            modified = True
        return ir.passes.PassResult(model, modified)


def _dimensions(node: ir.Node, shape: ir.Node) -> np.ndarray | None:
    x = shape.inputs[0]
    if x is None or x.shape is None or not node.outputs[0].uses() or node.outputs[0].is_graph_output():
        return None
    if node.op_type == "Slice" and len(node.inputs) < 3:
        return None  # before opset 10, where it went by attributes
    start, end = shape.attributes.get_int("start", 0), shape.attributes.get_int("end", None)
    # positions in the shape stand in for its values, so that any indexing can be done on them
    positions = np.arange(len(x.shape))[start:end]
    arguments = [constant(value) for value in node.inputs[1:]]
    if any(argument is None for argument in arguments):
        return None
    if node.op_type == "Gather":
        positions = positions[arguments[0]]
    else:
        begin, stop = (int(argument.item()) for argument in arguments[:2])  # type: ignore[union-attr]
        step = int(arguments[3].item()) if len(arguments) > 3 else 1  # type: ignore[union-attr]
        positions = positions[begin:stop:step]
    sizes = [x.shape[int(position)] for position in np.ravel(positions)]
    if not all(isinstance(size, int) for size in sizes):
        return None
    return np.array(sizes, np.int64).reshape(positions.shape)


class FixResizeSizes(ir.passes.InPlacePass):
    """Gives Resize constant sizes for the axes that it changes, where exporters put the free batch in front of them."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if model.opset_imports[""] < 18 or not is_op(node, "Resize") or len(node.inputs) < 4:
                continue
            x, sizes = node.inputs[0], node.inputs[3]
            if (
                x is None
                or x.shape is None
                or sizes is None
                or constant(sizes) is not None
                or "axes" in node.attributes
            ):
                continue
            wanted = computed_sizes(sizes)
            if wanted is None or len(wanted) != len(x.shape):
                continue
            axes = [axis for axis, (old, new) in enumerate(zip(x.shape, wanted, strict=True)) if old != new]
            changed = [wanted[axis] for axis in axes]
            if not axes or not all(isinstance(size, int) for size in changed):
                continue
            array = np.array(changed, np.int64)
            node.replace_input_with(3, add_constant(model.graph, array, f"{sizes.name}_changed"))
            node.attributes.add(ir.AttrInt64s("axes", axes))
            modified = True
        return ir.passes.PassResult(model, modified)


_Sizes = list[int | ir.SymbolicDim]


def computed_sizes(value: ir.Value | None) -> _Sizes | None:
    """What a tensor of sizes holds, as numbers and names of dimensions; None where that is not known."""
    array = constant(value)
    if array is not None:
        return [int(size) for size in np.ravel(array)] if array.dtype.kind in "iu" else None
    node = None if value is None else value.producer()
    if node is None or node.domain != "" or any(output is None for output in node.outputs):
        return None
    first = node.inputs[0] if node.inputs else None
    match node.op_type:
        case "Shape":
            start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", None)
            return None if first is None or first.shape is None else list(first.shape)[start:end]
        case "Concat":
            parts = [computed_sizes(part) for part in node.inputs]
            return None if None in parts else [size for part in parts for size in part or ()]
        case "Cast" | "Identity" | "Squeeze" | "Unsqueeze" | "Reshape":
            return computed_sizes(first)
        case "Gather" | "Slice":
            known = computed_sizes(first)
            return None if known is None else _indexed(node, known)
    return None


def _indexed(node: ir.Node, known: _Sizes) -> _Sizes | None:
    arguments = [constant(value) for value in node.inputs[1:]]
    if any(argument is None for argument in arguments):
        return None
    if node.op_type == "Gather":
        return [known[int(index)] for index in np.ravel(arguments[0])]  # type: ignore[arg-type]
    begin, end = (int(np.ravel(argument)[0]) for argument in arguments[:2])  # type: ignore[arg-type]
    step = int(np.ravel(arguments[3])[0]) if len(arguments) > 3 else 1  # type: ignore[arg-type]
    return known[begin:end:step]


class RemoveNoOpReshapes(ir.passes.InPlacePass):
    """Turns Reshape into Identity where it can change nothing: all dimensions but one are known to stay."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in model.graph:
            if is_op(node, "Reshape") and _keeps_shape(node):
                node.resize_inputs(1)
                node.attributes.clear()
                node.op_type = "Identity"
                modified = True
        return ir.passes.PassResult(model, modified)


def _keeps_shape(node: ir.Node) -> bool:
    x, target = node.inputs[0], constant(node.inputs[1])
    if x is None or x.shape is None or target is None or len(target) != len(x.shape):
        return False
    copies = not node.attributes.get_int("allowzero", 0)
    pairs = list(zip(x.shape, target.tolist(), strict=True))
    changing = [size for size, wanted in pairs if size != wanted and not (copies and wanted == 0)]
    return not changing or (len(changing) == 1 and -1 in target)


def fold() -> ir.passes.PassBase:
    """Passes that leave nothing to compute before an input is known."""
    return ir.passes.PassManager(
        [
            InferShapes(),
            FoldDimensions(),
            FixResizeSizes(),
            FoldConstants(),
            RewritePass([materialize_reshape_shape_rule]),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            RemoveNoOpReshapes(),
            RemoveIdentities(),
            common.RemoveUnusedNodesPass(),
        ],
        steps=_ROUNDS,
        early_stop=True,
    )
