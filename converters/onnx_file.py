"""ONNX models that are ONNX already: checked, and otherwise passed through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from lrp_onnx.converters.base import InputSpec, Loaded, Request, Route, one_line
from lrp_onnx.errors import ConversionError


def matches(request: Request) -> bool:
    """A ModelProto or a `.onnx` file."""
    if isinstance(request.source, onnx.ModelProto):
        return True
    return request.path is not None and request.path.suffix.lower() == ".onnx"


def load(request: Request) -> Loaded:
    """Read and check the model; there is no other framework to compare it with."""
    where = str(request.path) if request.path is not None else "the given ModelProto"
    if request.weights is not None:
        raise ConversionError(f"{where}: an ONNX model has its weights inside; weights cannot be given as well")
    model = _read(request.path) if request.path is not None else request.source
    try:
        onnx.checker.check_model(str(request.path) if request.path is not None else model)
    except Exception as error:
        raise ConversionError(f"{where} is not valid ONNX: {one_line(error)}") from error
    stored = {initializer.name for initializer in model.graph.initializer}
    values = [value for value in model.graph.input if value.name not in stored]
    inputs = tuple(_spec(value) for value in values)
    first = next((value.type.tensor_type.shape.dim for value in values), None)
    batch = (first[0].dim_value or None) if first else None
    route = Route("onnx.checker", lambda: model, batch)
    return Loaded("onnx", f"opset {model.opset_import[0].version}", inputs, (route,), None, batch)


def _read(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path)
    except FileNotFoundError as error:
        raise ConversionError(f"{path}: {one_line(error)}") from error
    except Exception as error:
        raise ConversionError(
            f"{path} cannot be read as ONNX ({one_line(error)}); "
            "it is truncated, of another kind, or lacks its external data"
        ) from error


def _spec(value: onnx.ValueInfoProto) -> InputSpec:
    tensor = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type or onnx.TensorProto.FLOAT))
    return InputSpec(value.name, tuple(dim.dim_value or None for dim in tensor.shape.dim[1:]), dtype)
