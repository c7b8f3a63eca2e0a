"""The ways from a Keras model to ONNX, by the backend that Keras runs on."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx

from lrp_onnx.converters import tensorflow_graph
from lrp_onnx.converters.base import InputSpec, Request, Route, Run, made_once, require
from lrp_onnx.errors import ConversionError

Call = Callable[..., Any]


def routes(model: Any, call: Call, inputs: Sequence[InputSpec], request: Request) -> tuple[Route, ...]:
    """The routes that the backend has: tf2onnx, torch.export, or tf2onnx in a process on the TensorFlow backend."""
    import keras

    backend = keras.backend.backend()
    fixed = {tensor.shape[0] for tensor in getattr(model, "inputs", None) or []} - {None}
    batch = next(iter(fixed)) if len(fixed) == 1 else None
    if backend == "tensorflow":
        require("tensorflow", "tensorflow", "converting Keras models")
        found = [_tensorflow(model, call, inputs, "tf2onnx, frozen concrete function", None)]
        if batch is not None:
            how = "tf2onnx, frozen concrete function of fixed batch size"
            found.append(_tensorflow(model, call, inputs, how, batch))
        return tuple(found)
    elsewhere = [Route("tf2onnx, in a process on the TensorFlow backend", lambda: _elsewhere(model, request), batch)]
    if backend == "torch":
        first = Route("torch.export exporter", lambda: _torch(model, call, inputs))
        return (first, *elsewhere) if find_spec("tf2onnx") else (first,)
    return tuple(elsewhere)


def exact_run(call: Call, inputs: Sequence[InputSpec]) -> Run:
    """What the model computes on the TensorFlow backend, in float64."""
    return made_once(lambda: tensorflow_graph.in_float64(_traced(call, inputs, None)))


def _tensorflow(model: Any, call: Call, inputs: Sequence[InputSpec], how: str, batch: int | None) -> Route:
    def export(exactly: bool = False) -> onnx.ModelProto:
        function = _traced(call, inputs, batch)
        names = output_names(model, function.structured_outputs)
        return tensorflow_graph.to_onnx(function, [spec.name for spec in inputs], names, exactly=exactly)

    return Route(how, export, batch, partial(export, exactly=True))


def _traced(call: Call, inputs: Sequence[InputSpec], batch: int | None) -> Any:
    import tensorflow as tf

    signature = [tf.TensorSpec((batch, *spec.shape), spec.dtype) for spec in inputs]
    return tf.function(call, input_signature=signature, autograph=False).get_concrete_function()


def _torch(model: Any, call: Call, inputs: Sequence[InputSpec]) -> onnx.ModelProto:
    """A Keras model on the torch backend is a module, whose weights torch.export sees."""
    import torch

    from lrp_onnx.converters import pytorch_export

    class Inference(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = model

        def forward(self, *tensors: Any) -> Any:
            return call(*tensors)

    free = 64  # any size will do to trace with where the model leaves it free
    examples = tuple(
        torch.zeros((2, *(size or free for size in spec.shape)), dtype=getattr(torch, spec.dtype.name))
        for spec in inputs
    )
    with torch.no_grad():
        names = output_names(model, call(*examples))
    return pytorch_export.export_current(Inference(), examples, [spec.name for spec in inputs], names)


def _elsewhere(model: Any, request: Request) -> onnx.ModelProto:
    """By way of a .keras file, which no backend puts its mark on."""
    require("tf2onnx", "tensorflow", "converting Keras models of another backend than torch")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "model.keras", Path(folder) / "model.onnx"
        model.save(source)
        command = [sys.executable, "-m", "lrp_onnx", "convert", str(source), "-o", str(target), "--trust-pickle"]
        for value in request.custom_objects.values():
            command += ["--custom-objects", f"{value.__module__}:{value.__qualname__}"]
        if request.shapes is not None or request.examples is not None:
            for shape in request.sample_shapes(""):
                command += ["--input-shape", ",".join(map(str, shape))]
        environment = {
            **os.environ,
            "KERAS_BACKEND": "tensorflow",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise ConversionError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
        return onnx.load(target)


def output_names(model: Any, outputs: Any) -> list[str]:
    """The keys of a dict of outputs, else the layers' names, else "output" or numbered ones."""
    import keras

    count = len(keras.tree.flatten(outputs))
    if isinstance(outputs, dict) and len(outputs) == count:
        return sorted(outputs)  # the order in which a dict is flattened
    tensors = getattr(model, "outputs", None) or []
    if len(tensors) == count:
        names = unique([layer_name(tensor) for tensor in tensors])
        taken = {layer_name(tensor) for tensor in getattr(model, "inputs", None) or []}
        return [f"{name}_output" if name in taken else name for name in names]
    return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]


def layer_name(tensor: Any) -> str:
    """Name of the layer that a symbolic tensor comes from."""
    history = getattr(tensor, "_keras_history", None)
    return str(history.operation.name if history is not None else tensor.name)


def unique(names: Sequence[str]) -> list[str]:
    """The same names, with numbers behind those that came before."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        count = seen[name] = seen.get(name, 0) + 1
        result.append(name if count == 1 else f"{name}_{count}")
    return result
