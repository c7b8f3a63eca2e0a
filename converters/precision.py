"""A model in float64 becomes the same in float32, each of its constants rounded once."""

from __future__ import annotations

import numpy as np
import onnx

_FLOAT, _DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE
_CHOOSES_TYPE = {"to", "dtype", "output_dtype"}  # attributes that name an element type


def to_float32(model: onnx.ModelProto) -> None:
    """Turn every float64 of `model` into float32: constants, inputs, outputs, and what nodes make."""
    _narrow(model.graph)


def _narrow(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _round(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == _DOUBLE:
            value.type.tensor_type.elem_type = _FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in _CHOOSES_TYPE and attribute.i == _DOUBLE:
                attribute.i = _FLOAT
            for tensor in (attribute.t, *attribute.tensors):
                _round(tensor)
            for body in (attribute.g, *attribute.graphs):
                _narrow(body)


def _round(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == _DOUBLE:
        values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
