"""Bring a model to the internal opset."""

from __future__ import annotations

import logging

import onnx
import onnx.version_converter
import onnx_ir as ir

from lrp_onnx.errors import ModelError
from lrp_onnx.runtime import first_line

logger = logging.getLogger(__name__)

INTERNAL_OPSET = 20  # has Gelu, Mish, HardSwish and LayerNormalization; ONNX Runtime runs it since 1.17
FINE_ROUNDING_OPSET = 21  # has QuantizeLinear to 4 and 16 bits
NEWEST_IR_VERSION = 10  # what ONNX Runtime 1.20 reads; onnx writes newer ones that its latest release refuses
OLDEST_USABLE = 13  # axes became inputs and Softmax lost its flattening
_BIG = 1024  # bytes; larger tensors do not pass through the converter, which copies and cannot hold 2 GB


def convert_opset(model: ir.Model, target: int = INTERNAL_OPSET) -> ir.Model:
    """Convert `model` up to the opset `target`; newer models are returned as they are.

    Raises
    ------
    ModelError
        If the converter fails and the model's opset is older than `OLDEST_USABLE`.
    """
    version = model.opset_imports[""]
    if version >= target:
        return model
    held = {value.name: value for value in model.graph.initializers.values() if _nbytes(value) > _BIG}
    try:
        converted = ir.from_proto(onnx.version_converter.convert_version(_hollow(model, set(held)), target))
        _refill(converted, held)
        _settle_ir_version(converted, model)
        ir.passes.common.CheckerPass()(converted)
    except Exception as error:  # the converter raises RuntimeError, the checker and the reader their own
        reason = first_line(error)
        if version >= OLDEST_USABLE:
            logger.warning("the model stays at opset %d; it cannot be brought to %d: %s", version, target, reason)
            return model
        raise ModelError(
            f"the model's opset {version} is too old and cannot be brought to {target}: {reason}; "
            "export it again with opset 13 or later"
        ) from error
    _restore_notes(converted, model)
    return converted


def _nbytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


def _hollow(model: ir.Model, names: set[str | None]) -> onnx.ModelProto:
    """A proto of `model` in which the named initializers are inputs without a value."""
    hollow = model.clone()
    for name in names:
        assert name is not None
        value = hollow.graph.initializers.pop(name)
        value.shape = ir.Shape(value.const_value.shape)  # type: ignore[union-attr, arg-type]
        value.type = ir.TensorType(value.const_value.dtype)  # type: ignore[union-attr]
        value.const_value = None
        hollow.graph.inputs.append(value)
    hollow.ir_version = max(hollow.ir_version, 4)  # before 4, initializers had to be inputs
    return ir.to_proto(hollow)


def _refill(model: ir.Model, held: dict[str | None, ir.Value]) -> None:
    inputs = list(model.graph.inputs)
    model.graph.inputs.clear()
    model.graph.inputs.extend(value for value in inputs if value.name not in held)
    for value in inputs:
        if value.name in held:
            value.const_value = held[value.name].const_value
            model.graph.register_initializer(value)


def _settle_ir_version(converted: ir.Model, model: ir.Model) -> None:
    converted.ir_version = max(model.ir_version, 9)
    converted.metadata_props.update(model.metadata_props)


def _restore_notes(converted: ir.Model, model: ir.Model) -> None:
    """What is known of nodes beside their meaning does not pass through the converter."""
    before = {node.outputs[0].name: node for node in model.graph if node.outputs}
    for node in converted.graph:
        old = before.get(node.outputs[0].name) if node.outputs else None
        if old is not None:
            node.meta.update(old.meta)
            node.metadata_props.update(old.metadata_props)
