"""Write composite operations out in the simpler ones that they stand for, so that these get their rules."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from lrp_onnx.graph import classic, contrib_attention  # noqa: F401  (they register their operators)
from lrp_onnx.graph.blocked import unblock
from lrp_onnx.graph.contrib import CONTRIB, body_of
from lrp_onnx.graph.functions import DOMAIN, add_function
from lrp_onnx.graph.shapes import InferShapes
from lrp_onnx.graph.values import remark

# Operators whose standard defines them by others, and that are explained part by part. (LayerNormalization, Gelu and
# others have such definitions, too, but rules of their own.)
_STANDARD = {
    ("", op_type)
    for op_type in (
        "AffineGrid",
        "Attention",
        "BlackmanWindow",
        "CausalConvWithState",
        "CenterCropPad",
        "HammingWindow",
        "HannWindow",
        "LinearAttention",
        "NegativeLogLikelihoodLoss",
        "RotaryEmbedding",
        "SoftmaxCrossEntropyLoss",
        "SwiGLU",
    )
} | {("ai.onnx.preview", "FlexAttention")}
_CALLS = "lrp_onnx.bodies"
_ROUNDS = 4  # a loss is defined by a loss that is defined by simpler operations


class WriteOut(ir.passes.InPlacePass):
    """Replaces fused and composite operations by what they are made of.

    1. Operators of the ONNX standard that it defines as functions: fused attention, rotary embeddings, losses, windows.
    2. Operators that ONNX Runtime's optimiser puts in their place (domain com.microsoft).
    3. Linear operators of classic machine learning (domain ai.onnx.ml).
    4. The output's name is kept; a node for which there is no such form is left as it is, to be refused by name.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        unblock(model)
        for _ in range(_ROUNDS):
            if not any(_is_composite(node) for node in model.graph):
                break
            InferShapes()(model)  # definitions depend on types, and on the number of axes
            if not _write_out(model):
                break
            modified = True
        return ir.passes.PassResult(model, modified)


def _is_composite(node: ir.Node) -> bool:
    if any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
        return False  # the scores of FlexAttention, say, by a function of the user's
    return (node.domain, node.op_type) in _STANDARD or (node.domain, node.op_type) in CONTRIB


def _write_out(model: ir.Model) -> bool:
    before = set(model.graph)
    for count, node in enumerate(list(model.graph)):
        if not _is_composite(node):
            continue
        proto = body_of(node, model.opset_imports[""]) if (node.domain, node.op_type) in CONTRIB else _body(model, node)
        if proto is None:
            continue
        proto.domain, proto.name = _CALLS, f"{node.op_type}_{count}"
        function = ir.serde.deserialize_function(proto)
        # what the definitions are made of has not changed since opset 13
        function.opset_imports.update({domain: model.opset_imports.get(domain, 1) for domain in function.opset_imports})
        place = node.name or node.outputs[0].name
        for inner in function:
            inner.name = f"{place}/{inner.outputs[0].name}"
            for value in inner.outputs:
                value.name = f"{place}/{value.name}"
            remark(inner, f"part of {node.op_type} '{place}'")
        model.functions[function.identifier()] = function
        model.opset_imports[_CALLS] = 1
        node.resize_inputs(min(len(node.inputs), len(function.inputs)))
        node.resize_outputs(len(function.outputs))
        node.domain, node.op_type = _CALLS, proto.name
    common.InlinePass(criteria=lambda function: function.domain == _CALLS)(model)
    common.RemoveUnusedNodesPass()(model)
    model.opset_imports.pop(_CALLS, None)
    if any(node.domain == DOMAIN and node.op_type == "RMSNormalization" for node in model.graph):
        add_function(model, "RMSNormalization")
    return any(node not in before for node in model.graph)


def _body(model: ir.Model, node: ir.Node) -> onnx.FunctionProto | None:
    """The standard's definition of `node`; None where it has none for these inputs."""
    opset = model.opset_imports.get(node.domain, 0)
    schema: Any = onnx.defs.get_schema(node.op_type, opset, node.domain)  # onnx's type stub leaves half of it out
    proto = onnx.FunctionProto()
    if schema.has_context_dependent_function:
        version = _newest(schema.context_dependent_function_opset_versions, opset)
        types = [b"" if v is None or v.type is None else _type(v).SerializeToString() for v in node.inputs]
        call = ir.serde.serialize_node(node).SerializeToString()
        proto.ParseFromString(schema.get_context_dependent_function_with_opset_version(version, call, types))
    else:
        version = _newest(schema.function_opset_versions, opset)
        proto.ParseFromString(schema.get_function_with_opset_version(version))
        given = set(node.attributes)
        for name in [n for n in proto.attribute if n not in given and schema.attributes[n].default_value.name]:
            proto.attribute.remove(name)
            proto.attribute_proto.append(schema.attributes[name].default_value)
    del proto.output[len(node.outputs) :]
    defined = {name for inner in proto.node for name in inner.output}
    for name in proto.output:
        if name not in defined:  # of an output that the node does not have, and that is counted all the same
            proto.node.append(onnx.helper.make_node("Identity", [proto.output[0]], [name]))
    return proto if proto.node else None


def _newest(versions: list[int], opset: int) -> int:
    return max((version for version in versions if version <= opset), default=min(versions))


def _type(value: ir.Value) -> onnx.TypeProto:
    proto = onnx.TypeProto()
    assert value.type is not None
    ir.serde.serialize_type_into(proto, value.type)
    if value.shape is not None:
        ir.serde.serialize_shape_into(proto, value.shape)
    return proto
