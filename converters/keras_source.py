"""Keras models, objects and files, on whatever backend Keras runs on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrp_onnx.converters import keras_routes
from lrp_onnx.converters.base import InputSpec, Loaded, Request, defined_in, given_or, one_line, require, some
from lrp_onnx.errors import ConversionError

_SUFFIXES = (".keras", ".h5", ".hdf5", ".hdf")


def matches_object(request: Request) -> bool:
    """A Keras model object; under the torch backend it is an nn.Module too, so this comes before PyTorch."""
    return defined_in(request.source, "keras") and not isinstance(request.source, type)


def matches_file(request: Request) -> bool:
    """A Keras file by its suffix."""
    return request.path is not None and request.path.suffix.lower() in _SUFFIXES


def load_file(request: Request) -> Loaded:
    """Read a Keras file, in safe mode unless pickle is trusted, and load the model in it."""
    keras = _keras()
    path = request.path
    assert path is not None
    try:
        model = keras.models.load_model(
            path, custom_objects=dict(request.custom_objects), compile=False, safe_mode=not request.trust_pickle
        )
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
            f"{path} uses {unknown[1]}, which Keras does not know; name its class as custom_objects (--custom-objects "
            f"package.module:{unknown[1]}), or give module:factory for the code that builds the model"
        )
    return f"{path} cannot be read as a Keras model: {one_line(error)}"


def load_object(request: Request, model: Any = None) -> Loaded:
    """Make a Keras model ready to run and to export."""
    keras = _keras()
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
    inputs = _inputs(model, request)

    def call(*tensors: Any) -> Any:
        return model(_as_the_model_takes_them(model, tensors), training=False)

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        with keras.device("cpu"):
            return [np.asarray(keras.ops.convert_to_numpy(output)) for output in keras.tree.flatten(call(*arrays))]

    backend = keras.backend.backend()
    routes = keras_routes.routes(model, call, inputs, request)
    version = f"{keras.__version__} ({backend} {getattr(require(backend, 'tensorflow', ''), '__version__', '')})"
    exact = keras_routes.exact_run(call, inputs) if backend == "tensorflow" else None
    return Loaded("keras", version, inputs, routes, run, notes=tuple(notes), run_exactly=exact)


def _keras() -> Any:
    # Keras before TensorFlow: its torch backend can abort the process when TensorFlow is there already.
    return require("keras", "tensorflow", "converting Keras models")


def _build(model: Any, request: Request) -> list[str]:
    """Call a model that was never called, so that its weights exist."""
    fresh = not model.built
    shapes = request.sample_shapes(f"{type(model).__name__} {model.name!r}, which was never called,")
    dtypes = request.dtypes(np.float32, len(shapes))
    zeros = [np.zeros((1, *shape), dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
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


def _inputs(model: Any, request: Request) -> tuple[InputSpec, ...]:
    tensors = list(getattr(model, "inputs", None) or [])
    if not tensors:
        shapes = request.sample_shapes(f"{type(model).__name__} {model.name!r}")
        names = ["input"] if len(shapes) == 1 else [f"input_{index}" for index in range(len(shapes))]
        dtypes = request.dtypes(np.float32, len(shapes))
        return tuple(InputSpec(*spec) for spec in zip(names, shapes, dtypes, strict=True))
    sizes = given_or(request, [list(tensor.shape[1:]) for tensor in tensors], f"Keras model {model.name!r}")
    names = keras_routes.unique([keras_routes.layer_name(tensor) for tensor in tensors])
    dtypes = [np.dtype(tensor.dtype) for tensor in tensors]
    return tuple(InputSpec(*spec) for spec in zip(names, sizes, dtypes, strict=True))


def _as_the_model_takes_them(model: Any, tensors: Sequence[Any]) -> Any:
    """One tensor, or the nested structure that a functional model was built with."""
    import keras

    structure = getattr(model, "_inputs_struct", None)
    if structure is not None:
        return keras.tree.pack_sequence_as(structure, list(tensors))
    return tensors[0] if len(tensors) == 1 else list(tensors)
