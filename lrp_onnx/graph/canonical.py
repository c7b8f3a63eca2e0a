"""The sequence of passes that turns any loaded model into its canonical form."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from lrp_onnx.errors import ModelError
from lrp_onnx.graph.activations import RecogniseActivations
from lrp_onnx.graph.affine import FuseAffineIntoLinear
from lrp_onnx.graph.bias import SeparateBias
from lrp_onnx.graph.bodies import WriteOut
from lrp_onnx.graph.control import RefuseBranches, has_control_flow, resolve_control_flow
from lrp_onnx.graph.cut import cut_activations
from lrp_onnx.graph.layout import ExplicitPads, RemoveDropout, RemoveIdentities, RemoveNoOpBounds, tidy
from lrp_onnx.graph.model import Node
from lrp_onnx.graph.norms import RecogniseNorms
from lrp_onnx.graph.opset import FINE_ROUNDING_OPSET, INTERNAL_OPSET, NEWEST_IR_VERSION, convert_opset
from lrp_onnx.graph.packed import Unpack
from lrp_onnx.graph.quantised import NOTE, Dequantise, is_quantised, rounds_finely
from lrp_onnx.graph.shapes import InferShapes, fold
from lrp_onnx.graph.values import HISTORY, REFUSED
from lrp_onnx.runtime import first_line


class _Names(common.naming.SimpleNameGenerator):
    def generate_node_name(self, node: ir.Node) -> str:
        return node.name or f"{node.op_type}_{node.outputs[0].name}"


@dataclass(frozen=True)
class Canonical:
    """What `canonicalise` made of a model; see the attributes of `Graph` of the same names."""

    model: ir.Model
    cuts: dict[str, Node]
    history: dict[str, tuple[str, ...]]
    refused: dict[str, str]
    notes: tuple[str, ...]


def canonicalise(model: ir.Model) -> Canonical:
    """Rewrite `model` into the form that the engine expects; the result computes the same up to rounding.

    One opset, no local functions of the exporter, no Constant nodes, folded shape arithmetic, one node for each
    activation and norm, BatchNormalization and biases inside the linear operations, logits as outputs.

    Parameters
    ----------
    model : onnx_ir.Model
        Is modified.

    Raises
    ------
    ModelError
        If a pass cannot read the model.
    """
    try:
        return _canonicalise(model)
    except ir.passes.PassError as error:
        cause: BaseException = error
        while isinstance(cause, ir.passes.PassError) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, ModelError):
            raise cause from None
        raise ModelError(f"the model cannot be brought to canonical form: {first_line(cause)}") from error


def _canonicalise(model: ir.Model) -> Canonical:
    lift = common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
    clean = ir.passes.Sequential(RemoveIdentities(), common.RemoveUnusedNodesPass())
    names = {value.name for node in model.graph for value in node.outputs}

    named = common.NameFixPass(_Names())  # before anything is remembered by its name

    ir.passes.Sequential(common.InlinePass(), common.RemoveInitializersFromInputsPass(), lift, named)(model)
    if has_control_flow(model):  # before the opset converter, which does not look into bodies
        ir.passes.Sequential(resolve_control_flow(), named)(model)
    quantised = is_quantised(model)
    model = convert_opset(model, FINE_ROUNDING_OPSET if rounds_finely(model) else INTERNAL_OPSET)
    Unpack()(model)
    WriteOut()(model)
    ir.passes.Sequential(
        lift,
        Dequantise(),
        RemoveDropout(),
        resolve_control_flow() if has_control_flow(model) else fold(),
        RefuseBranches(),
        ExplicitPads(),
        RemoveNoOpBounds(),
        tidy(),
        clean,
        RecogniseNorms(),
        RecogniseActivations(),
        common.RemoveUnusedNodesPass(),
        FuseAffineIntoLinear(),
        tidy(),
        lift,
        clean,
        SeparateBias(),
    )(model)
    model.ir_version = min(model.ir_version, NEWEST_IR_VERSION)
    cuts = cut_activations(model, names)
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        named,
        InferShapes(),
        common.CheckerPass(),
    )(model)
    nodes = {str(node.name): node.meta for node in model.graph}
    return Canonical(
        model,
        cuts,
        history={name: meta[HISTORY] for name, meta in nodes.items() if HISTORY in meta},
        refused={name: meta[REFUSED] for name, meta in nodes.items() if REFUSED in meta},
        notes=(NOTE,) if quantised else (),
    )
