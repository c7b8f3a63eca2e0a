"""TensorFlow Lite files to ONNX by tf2onnx, float and quantised, checked against TensorFlow Lite's own interpreter."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from lrp_onnx.converters.base import InputSpec, Loaded, Request, Route, one_line, require
from lrp_onnx.converters.tensorflow_graph import refuse_unknown_ops
from lrp_onnx.errors import ConversionError

_OPSET = 18  # the highest that tf2onnx writes
# Integer kernels round where floats do not; a step is 1/255 of a tensor's range, and steps add up from layer to layer.
_ROUNDING = 0.1
_STATES = {"ASSIGN_VARIABLE", "CALL_ONCE", "READ_VARIABLE", "VAR_HANDLE"}


def matches(request: Request) -> bool:
    """A `.tflite` file."""
    return request.path is not None and request.path.suffix.lower() == ".tflite"


def load(request: Request) -> Loaded:
    """Read the file; quantised tensors become QuantizeLinear and DequantizeLinear around float ops."""
    path = request.path
    assert path is not None
    if request.weights is not None:
        raise ConversionError(f"{path}: a TensorFlow Lite file has its weights inside; weights cannot be given as well")
    interpreter, version = _interpreter(path)
    _refuse_states(path, interpreter)
    details = interpreter.get_input_details()
    inputs = tuple(
        InputSpec(_short(each["name"]), tuple(int(size) for size in each["shape"][1:]), np.dtype(each["dtype"]))
        for each in details
    )
    free = all(each.get("shape_signature", each["shape"])[0] == -1 for each in details)
    outputs = [each["index"] for each in interpreter.get_output_details()]
    quantised = any(each["dtype"] in (np.int8, np.uint8, np.int16) for each in interpreter.get_tensor_details())

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        for each, array in zip(details, arrays, strict=True):
            interpreter.set_tensor(each["index"], array)
        interpreter.invoke()
        return [interpreter.get_tensor(index).copy() for index in outputs]

    notes = ("a quantised model: explained on its dequantised weights",) if quantised else ()
    route = Route(
        "tf2onnx, TensorFlow Lite", lambda: _export(path, [spec.name for spec in inputs]), None if free else 1
    )
    rounding = _ROUNDING if quantised else 0.0
    return Loaded("tflite", version, inputs, (route,), run, 1, notes, rounding)


def _interpreter(path: Path) -> tuple[Any, str]:
    """TensorFlow Lite's interpreter, from the package that is there, with the model in it."""
    tensorflow = require("tensorflow", "tensorflow", "reading a TensorFlow Lite file")
    try:
        lite = importlib.import_module("ai_edge_litert.interpreter")  # what TensorFlow is replacing its own by
    except ImportError:
        lite = tensorflow.lite
    try:
        made = lite.Interpreter(model_path=str(path))
        made.allocate_tensors()
    except Exception as error:
        raise ConversionError(f"{path} cannot be read as a TensorFlow Lite model: {one_line(error)}") from error
    return made, tensorflow.__version__


def _refuse_states(path: Path, interpreter: Any) -> None:
    """Refuse variables that outlive a call, as streaming models have them: ONNX has none."""
    known: Any = getattr(interpreter, "_get_ops_details", list)  # private, so that another version may lack it
    if states := sorted({each["op_name"] for each in known()} & _STATES):
        raise ConversionError(
            f"{path} keeps a state from call to call ({', '.join(states)}), which ONNX cannot; convert a version "
            "of the model that takes its state as an input and gives it as an output"
        )


def _export(path: Path, names: Sequence[str]) -> onnx.ModelProto:
    tf2onnx = require("tf2onnx", "tensorflow", "converting TensorFlow Lite models")
    model, _ = tf2onnx.convert.from_tflite(str(path), opset=_OPSET)
    refuse_unknown_ops(model)
    _rename(model, {value.name: name for value, name in zip(model.graph.input, names, strict=True)})
    _rename(model, {value.name: _short(value.name) for value in model.graph.output})
    return model


def _short(name: str) -> str:
    """`serving_default_image:0` becomes `image`."""
    return name.removesuffix(":0").removeprefix("serving_default_")


def _rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Other names for tensors, those left out that are taken."""
    graph = model.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    taken |= {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    names = {old: new for old, new in names.items() if new not in taken}
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
