"""Put weights back in order that ONNX Runtime laid out in blocks of channels, as one kind of processor wants them."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from lrp_onnx.graph.values import add_constant, constant, refuse, remark

BLOCKED = "com.microsoft.nchwc"
_WAY_OUT = "save the model with ORT_ENABLE_EXTENDED in place of ORT_ENABLE_ALL, or explain it as it was before"


@cache
def block_size() -> int:
    """Channels in a block as ONNX Runtime has it on this processor; 1 where it has no such layout."""
    import onnxruntime as ort

    channels = np.arange(64, dtype=np.float32).reshape(1, -1, 1, 1)
    x = np.concatenate([channels, channels + 64], axis=3)  # of two pixels; a block of each in turn
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)
    node = helper.make_node("ReorderInput", ["x"], ["y"], domain=BLOCKED)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(BLOCKED, 1)]
    graph = helper.make_graph([node], "probe", [info], [onnx.ValueInfoProto(name="y")])
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
        (y,) = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    except Exception:  # ONNX Runtime has no such operator here, and says so in its own ways
        return 1
    return int(np.flatnonzero(y.ravel() == 64)[0])


def unblock(model: ir.Model) -> None:
    """Turn convolutions over blocks of channels into FusedConv over channels, or say why they cannot be explained."""
    for node in list(model.graph):
        if node.domain != BLOCKED or node.op_type != "Conv":
            continue
        stored = constant(node.inputs[1])
        weight = None if stored is None else _in_order(stored, node.attributes.get_int("group", 1), block_size())
        if weight is None:
            refuse(node, f"its weights are in the layout of another kind of processor; {_WAY_OUT}")
            continue
        value = node.inputs[1]
        assert value is not None
        node.replace_input_with(1, add_constant(model.graph, weight, f"{value.name}_in_order", value.dtype))
        node.domain, node.op_type = "com.microsoft", "FusedConv"
        model.opset_imports.setdefault("com.microsoft", 1)
        remark(node, "weights put back in order")


def _in_order(weight: np.ndarray, group: int, block: int) -> np.ndarray | None:
    """(O, I, H, W) from blocks (O / b, I / b, H, W, b, b), or (O / b, I, H, W, b) of few channels or of one a group."""
    outputs, inputs, *kernel = weight.shape
    if block == 1 or outputs % block:
        return None
    if inputs < block or (inputs == 1 and group == outputs):
        blocks = weight.reshape(outputs // block, inputs, *kernel, block)
        return np.ascontiguousarray(np.moveaxis(blocks, -1, 1)).reshape(weight.shape)
    if inputs % block:
        return None
    blocks = weight.reshape(outputs // block, inputs // block, *kernel, block, block)
    # (O / b, I / b, H, W, b of I, b of O) -> (O / b, b of O, I / b, b of I, H, W)
    return np.ascontiguousarray(blocks.transpose(0, 5, 1, 4, 2, 3)).reshape(weight.shape)
