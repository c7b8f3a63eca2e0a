"""TensorFlow's SavedModel folders to ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lrp_onnx.converters import tensorflow_graph
from lrp_onnx.converters.base import InputSpec, Loaded, Request, Route, given_or, made_once, one_line, require, some
from lrp_onnx.errors import ConversionError

_SIGNATURE = "serving_default"


def matches(request: Request) -> bool:
    """A folder that TensorFlow saved a model in."""
    return request.path is not None and any(
        (request.path / f"saved_model.{kind}").is_file() for kind in ("pb", "pbtxt")
    )


def load(request: Request) -> Loaded:
    """Load one signature of a SavedModel."""
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
    chosen = _signature(path, request.signature, list(loaded.signatures))
    function = loaded.signatures[chosen]
    named = function.structured_input_signature[1]
    names = sorted(named)  # the order in which TensorFlow flattens keyword arguments and results
    sizes = given_or(request, [named[name].shape.as_list()[1:] for name in names], str(path))
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

    def export(exactly: bool = False) -> Any:
        assert loaded is not None  # its variables would die with it
        return tensorflow_graph.to_onnx(function, names, outputs, exactly=exactly)

    routes = (Route(f"tf2onnx, signature {chosen!r}", export, batch, partial(export, exactly=True)),)
    exact = made_once(lambda: tensorflow_graph.in_float64(function))
    return Loaded("tensorflow", tf.__version__, inputs, routes, run, batch, run_exactly=exact)


def _signature(path: Path, asked: str | None, known: list[str]) -> str:
    """The signature asked for, else the only one, else the usual one."""
    chosen = asked or (known[0] if len(known) == 1 else _SIGNATURE)
    if chosen not in known:
        raise ConversionError(
            f"{path}: expected the signature {chosen!r}; found {some(known, 6) or 'none'}; "
            + ("name one (signature, --signature)" if known else "save the model with signatures={...}")
        )
    return chosen
