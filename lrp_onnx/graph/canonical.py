"""The sequence of passes that turns any loaded model into its canonical form."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants

from lrp_onnx.errors import ModelError
from lrp_onnx.graph.activations import RecogniseActivations
from lrp_onnx.graph.affine import FuseAffineIntoLinear
from lrp_onnx.graph.cut import cut_activations
from lrp_onnx.graph.layout import ExplicitPads, RemoveDropout, tidy
from lrp_onnx.graph.model import Node
from lrp_onnx.graph.norms import RecogniseNorms
from lrp_onnx.graph.opset import convert_opset

_LARGEST_FOLDED = 2**28  # elements; a weight that is stored as "fill with 0.02" may be as large as any other weight


class _Names(common.naming.SimpleNameGenerator):
    def generate_node_name(self, node: ir.Node) -> str:
        return node.name or f"{node.op_type}_{node.outputs[0].name}"


class _FoldConstants(ir.passes.InPlacePass):
    """Evaluates what depends on constants and static shapes only; a dynamic dimension stays dynamic."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        result = fold_constants(
            model,
            onnx_shape_inference=True,
            input_size_limit=_LARGEST_FOLDED,
            output_size_limit=_LARGEST_FOLDED,
            should_fold=lambda node: True,
        )
        return ir.passes.PassResult(model, result.modified)


def canonicalise(model: ir.Model) -> tuple[ir.Model, dict[str, Node]]:
    """Rewrite `model` into the form that the engine expects; the result computes the same up to rounding.

    One opset, no local functions of the exporter, no Constant nodes, folded shape arithmetic, one node for each
    activation and norm, BatchNormalization and biases inside the linear operations, logits as outputs.

    Parameters
    ----------
    model : onnx_ir.Model
        Is modified.

    Returns
    -------
    model : onnx_ir.Model
    cuts : dict of str to Node
        Output name -> the activation that was cut off behind it.

    Raises
    ------
    ModelError
        If a pass cannot read the model.
    """
    try:
        return _canonicalise(model)
    except ir.passes.PassError as error:
        cause = error.__cause__ or error
        raise ModelError(f"the model cannot be brought to canonical form: {cause}") from error


def _canonicalise(model: ir.Model) -> tuple[ir.Model, dict[str, Node]]:
    lift = common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
    clean = ir.passes.Sequential(common.IdentityEliminationPass(), common.RemoveUnusedNodesPass())
    fold = ir.passes.Sequential(_FoldConstants(), lift, RemoveDropout(), clean)
    infer = common.ShapeInferencePass(check_type=False, strict_mode=False)

    ir.passes.Sequential(common.InlinePass(), common.RemoveInitializersFromInputsPass(), lift)(model)
    model = convert_opset(model)
    ir.passes.Sequential(
        lift,
        infer,
        fold,
        ExplicitPads(),
        tidy(),
        fold,
        RecogniseNorms(),
        RecogniseActivations(),
        common.RemoveUnusedNodesPass(),
        FuseAffineIntoLinear(),
        tidy(),
        lift,
        clean,
    )(model)
    cuts = cut_activations(model)
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.NameFixPass(_Names()),
        infer,
        common.CheckerPass(),
    )(model)
    return model, cuts
