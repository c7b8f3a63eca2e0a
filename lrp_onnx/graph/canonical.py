"""The sequence of passes that turns any loaded model into its canonical form."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from lrp_onnx.errors import ModelError
from lrp_onnx.graph.activations import RecogniseActivations
from lrp_onnx.graph.affine import FuseAffineIntoLinear
from lrp_onnx.graph.cut import cut_activations
from lrp_onnx.graph.layout import ExplicitPads, RemoveDropout, tidy
from lrp_onnx.graph.model import Node
from lrp_onnx.graph.norms import RecogniseNorms
from lrp_onnx.graph.opset import convert_opset
from lrp_onnx.graph.shapes import InferShapes, fold


class _Names(common.naming.SimpleNameGenerator):
    def generate_node_name(self, node: ir.Node) -> str:
        return node.name or f"{node.op_type}_{node.outputs[0].name}"


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
    names = {value.name for node in model.graph for value in node.outputs}

    ir.passes.Sequential(common.InlinePass(), common.RemoveInitializersFromInputsPass(), lift)(model)
    model = convert_opset(model)
    ir.passes.Sequential(
        lift,
        RemoveDropout(),
        fold(),
        ExplicitPads(),
        tidy(),
        clean,
        RecogniseNorms(),
        RecogniseActivations(),
        common.RemoveUnusedNodesPass(),
        FuseAffineIntoLinear(),
        tidy(),
        lift,
        clean,
    )(model)
    cuts = cut_activations(model, names)
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.NameFixPass(_Names()),
        InferShapes(),
        common.CheckerPass(),
    )(model)
    return model, cuts
