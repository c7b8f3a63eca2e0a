"""TensorFlow models to ONNX: Keras objects, `.keras`, `.h5`, SavedModel."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrp_onnx.converters import tensorflow_graph
from lrp_onnx.converters.base import InputSpec, Loaded, Request, Route, defined_in, one_line, require, some
from lrp_onnx.errors import ConversionError

_KERAS_SUFFIXES = (".keras", ".h5", ".hdf5", ".hdf")
_SIGNATURE = "serving_default"


def matches_object(request: Request) -> bool:
    """A Keras model object; under the torch backend it is an nn.Module too, so this comes before PyTorch."""
    return defined_in(request.source, "keras") and not isinstance(request.source, type)


def matches_file(request: Request) -> bool:
    """A Keras file by its suffix."""
    return request.path is not None and request.path.suffix.lower() in _KERAS_SUFFIXES


def matches_saved_model(request: Request) -> bool:
    """A folder that TensorFlow saved a model in."""
    return request.path is not None and any(
        (request.path / f"saved_model.{kind}").is_file() for kind in ("pb", "pbtxt")
    )


def load_file(request: Request) -> Loaded:
    """Read a Keras file, in safe mode unless pickle is trusted, and load the model in it."""
    keras = _keras()
    path = request.path
    assert path is not None
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=not request.trust_pickle)
    except Exception as error:
        raise ConversionError(_why_unreadable(path, error)) from error
    return load_object(request, model)


def _why_unreadable(path: Path, error: Exception) -> str:
    text = str(error)
    if "safe_mode" in text or "unsafe" in text.lower():
        return (
            f"{path} holds Python code (a Lambda layer), which loading would run; if you trust where it comes from, "
            "pass trust_pickle=True (--trust-pickle), otherwise rebuild the model with an ordinary layer in its place"
        )
    if "No model config" in text or "No model found in config" in text:
        return (
            f"{path} holds weights without an architecture; "
            "give the architecture as module:factory and this file as weights"
        )
    unknown = re.search(r"(?:Could not locate class|Unknown layer:?) '?(\w+)", text)
    if unknown:
        return (
            f"{path} uses {unknown[1]}, which Keras does not know; "
            "give module:factory for the code that builds the model, and its weights as weights"
        )
    return f"{path} cannot be read as a Keras model: {one_line(error)}"


def load_object(request: Request, model: Any = None) -> Loaded:
    """Make a Keras model ready to run and to export."""
    keras = _keras()
    import tensorflow as tf

    model = request.source if model is None else model
    if not isinstance(model, keras.Model):
        raise ConversionError(f"a {type(model).__name__} is not a Keras model; wrap layers in keras.Sequential")
    notes: list[str] = []
    if not model.built or not getattr(model, "inputs", None):
        notes += _build(model, request)
    if request.weights is not None:
        if not request.owned:
            raise ConversionError(
                "weights go with module:factory; a Keras model object is not modified, so load them into it before"
            )
        _load_weights(model, request.weights)
    inputs = _keras_inputs(model, request)

    def call(*tensors: Any) -> Any:
        return model(_as_the_model_takes_them(model, tensors), training=False)

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        with tf.device("/CPU:0"):
            return [np.asarray(output) for output in tf.nest.flatten(call(*map(tf.convert_to_tensor, arrays)))]

    def route(how: str, batch: int | None) -> Route:
        def export() -> Any:
            signature = [tf.TensorSpec((batch, *spec.shape), spec.dtype) for spec in inputs]
            function = tf.function(call, input_signature=signature, autograph=False).get_concrete_function()
            return tensorflow_graph.to_onnx(function, [spec.name for spec in inputs], _output_names(model, function))

        return Route(how, export, batch)

    fixed = {tensor.shape[0] for tensor in getattr(model, "inputs", None) or []} - {None}
    routes = [route("tf2onnx, frozen concrete function", None)]
    if len(fixed) == 1:
        routes.append(route("tf2onnx, frozen concrete function of fixed batch size", next(iter(fixed))))
    version = f"{keras.__version__} (tensorflow {tf.__version__})"
    return Loaded("keras", version, inputs, tuple(routes), run, notes=tuple(notes))


def load_saved_model(request: Request) -> Loaded:
    """Load the serving signature of a SavedModel."""
    require("tensorflow", "tensorflow", "reading a SavedModel")
    import tensorflow as tf

    path = request.path
    assert path is not None
    if request.weights is not None:
        raise ConversionError(f"{path}: a SavedModel has its weights inside; weights cannot be given as well")
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:
        raise ConversionError(f"{path} cannot be read as a SavedModel: {one_line(error)}") from error
    signatures = dict(loaded.signatures)
    if _SIGNATURE not in signatures:
        raise ConversionError(
            f"{path}: expected the signature {_SIGNATURE!r}; found {some(list(signatures)) or 'none'}; "
            f"save the model with signatures={{{_SIGNATURE!r}: ...}}"
        )
    function = signatures[_SIGNATURE]
    named = function.structured_input_signature[1]
    names = sorted(named)  # the order in which TensorFlow flattens keyword arguments and results
    sizes = _given_or(request, [named[name].shape.as_list()[1:] for name in names], str(path))
    inputs = tuple(
        InputSpec(name, size, np.dtype(named[name].dtype.as_numpy_dtype))
        for name, size in zip(names, sizes, strict=True)
    )
    outputs = sorted(function.structured_outputs)
    batch = named[names[0]].shape[0]

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        with tf.device("/CPU:0"):
            results = function(**dict(zip(names, map(tf.convert_to_tensor, arrays), strict=True)))
        return [np.asarray(results[name]) for name in outputs]

    def export() -> Any:
        assert loaded is not None  # its variables would die with it
        return tensorflow_graph.to_onnx(function, names, outputs)

    routes = (Route("tf2onnx, serving signature", export, batch),)
    return Loaded("tensorflow", tf.__version__, inputs, routes, run, batch)


def _keras() -> Any:
    # Keras before TensorFlow: its torch backend can abort the process when TensorFlow is there already.
    keras = require("keras", "tensorflow", "converting Keras models")
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise ConversionError(
            f"Keras runs on the {backend} backend here and only the tensorflow backend can be converted; "
            "save the model as .keras and convert that file in a process with KERAS_BACKEND=tensorflow"
        )
    require("tensorflow", "tensorflow", "converting Keras models")
    return keras


def _build(model: Any, request: Request) -> list[str]:
    """Call a model that was never called, so that its weights exist."""
    import tensorflow as tf

    fresh = not model.built
    shapes = request.sample_shapes(f"{type(model).__name__} {model.name!r}, which was never called,")
    dtypes = request.dtypes(np.float32, len(shapes))
    zeros = [tf.zeros((1, *shape), dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    try:
        model(zeros[0] if len(zeros) == 1 else zeros, training=False)
    except Exception as error:
        raise ConversionError(
            f"{type(model).__name__} {model.name!r} does not run on input of shape "
            f"{some([str(array.shape) for array in zeros])}: {one_line(error)}"
        ) from error
    return ["the model had never been called: it was built for the given input, with fresh weights"] if fresh else []


def _load_weights(model: Any, path: Path) -> None:
    if not path.is_file():
        raise ConversionError(f"weights {path}: there is no such file")
    try:
        model.load_weights(path)
    except Exception as error:
        raise ConversionError(f"weights {path} do not fit {model.name!r}: {one_line(error)}") from error


def _keras_inputs(model: Any, request: Request) -> tuple[InputSpec, ...]:
    tensors = list(getattr(model, "inputs", None) or [])
    if not tensors:
        shapes = request.sample_shapes(f"{type(model).__name__} {model.name!r}")
        names = ["input"] if len(shapes) == 1 else [f"input_{index}" for index in range(len(shapes))]
        dtypes = request.dtypes(np.float32, len(shapes))
        return tuple(InputSpec(*spec) for spec in zip(names, shapes, dtypes, strict=True))
    sizes = _given_or(request, [list(tensor.shape[1:]) for tensor in tensors], f"Keras model {model.name!r}")
    names = _unique([_layer_name(tensor) for tensor in tensors])
    dtypes = [np.dtype(tensor.dtype) for tensor in tensors]
    return tuple(InputSpec(*spec) for spec in zip(names, sizes, dtypes, strict=True))


def _given_or(request: Request, own: list[list[int | None]], where: str) -> list[tuple[int | None, ...]]:
    """The caller's sample shapes where given and compatible with the model's own."""
    if request.shapes is None and request.examples is None:
        return [tuple(shape) for shape in own]
    given = request.sample_shapes(where)
    fits = len(given) == len(own) and all(
        len(ours) == len(theirs) and all(a is None or a == b for a, b in zip(ours, theirs, strict=True))
        for ours, theirs in zip(own, given, strict=True)
    )
    if not fits:
        raise ConversionError(
            f"{where} takes input of shape {some([str(tuple(shape)) for shape in own])} "
            f"(one sample, as the framework has it), not {some([str(shape) for shape in given])}"
        )
    return list(given)


def _layer_name(tensor: Any) -> str:
    history = getattr(tensor, "_keras_history", None)
    return str(history.operation.name if history is not None else tensor.name)


def _unique(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    result = []
    for name in names:
        count = seen[name] = seen.get(name, 0) + 1
        result.append(name if count == 1 else f"{name}_{count}")
    return result


def _output_names(model: Any, function: Any) -> list[str]:
    import tensorflow as tf

    structured = function.structured_outputs
    count = len(tf.nest.flatten(structured))
    if isinstance(structured, dict) and len(structured) == count:
        return sorted(structured)  # the order in which tf.nest flattens a dict
    tensors = getattr(model, "outputs", None) or []
    if len(tensors) == count:
        names = _unique([_layer_name(tensor) for tensor in tensors])
        taken = {_layer_name(tensor) for tensor in getattr(model, "inputs", None) or []}
        return [f"{name}_output" if name in taken else name for name in names]
    return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]


def _as_the_model_takes_them(model: Any, tensors: Sequence[Any]) -> Any:
    """One tensor, or the nested structure that a functional model was built with."""
    import keras

    structure = getattr(model, "_inputs_struct", None)
    if structure is not None:
        return keras.tree.pack_sequence_as(structure, list(tensors))
    return tensors[0] if len(tensors) == 1 else list(tensors)
