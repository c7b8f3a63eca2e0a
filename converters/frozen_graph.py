"""Frozen TensorFlow graphs (`.pb`, weights as constants) to ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lrp_onnx.converters import tensorflow_graph
from lrp_onnx.converters.base import InputSpec, Loaded, Request, Route, made_once, one_line, require, some
from lrp_onnx.errors import ConversionError

_NO_RESULT = {"Const", "Placeholder", "PlaceholderWithDefault", "NoOp", "Assert"}


def matches(request: Request) -> bool:
    """A `.pb` file."""
    return request.path is not None and request.path.suffix.lower() == ".pb"


def load(request: Request) -> Loaded:
    """Read the graph and cut it at the inputs and outputs asked for, or at the ones that it plainly has."""
    require("tensorflow", "tensorflow", "reading a frozen graph")
    import tensorflow as tf

    path = request.path
    assert path is not None
    if request.weights is not None:
        raise ConversionError(f"{path}: a frozen graph has its weights inside; weights cannot be given as well")
    graph_def = _read(path)
    given = [_tensor_name(name) for name in request.inputs or _placeholders(path, graph_def)]
    asked = [_tensor_name(name) for name in request.outputs or _results(path, graph_def)]
    shapes = request.sample_shapes(str(path)) if request.shapes or request.examples is not None else None
    if shapes is not None:
        _shape_placeholders(graph_def, dict(zip(given, shapes, strict=False)))

    def imported() -> None:
        tf.graph_util.import_graph_def(graph_def, name="")

    wrapped = tf.compat.v1.wrap_function(imported, [])
    try:
        tensors = [wrapped.graph.as_graph_element(name) for name in (*given, *asked)]
    except (KeyError, ValueError) as error:
        raise ConversionError(
            f"{path}: {one_line(error)}; inputs and outputs are tensors of the graph, which ends in "
            f"{some(_ends(graph_def))}"
        ) from error
    feeds, fetches = tensors[: len(given)], tensors[len(given) :]
    try:
        function = wrapped.prune(feeds, fetches)
    except Exception as error:
        raise ConversionError(
            f"{path}: {', '.join(asked)} needs more than {', '.join(given)}: {one_line(error)}"
        ) from error
    if shapes is not None and len(shapes) != len(feeds):
        raise ConversionError(f"{path}: {len(shapes)} input shapes came for the inputs {', '.join(given)}")
    inputs = tuple(_spec(path, tensor, None if shapes is None else shapes[i]) for i, tensor in enumerate(feeds))
    sizes = {tensor.shape[0] for tensor in feeds if tensor.shape.rank}
    batch = next(iter(sizes)) if len(sizes) == 1 else None

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        with tf.device("/CPU:0"):
            return [np.asarray(output) for output in tf.nest.flatten(function(*map(tf.convert_to_tensor, arrays)))]

    names = [spec.name for spec in inputs]
    outputs = [name.removesuffix(":0") for name in asked]
    export = partial(tensorflow_graph.to_onnx, function, names, outputs)
    route = Route("tf2onnx, frozen graph", export, batch, partial(export, exactly=True))
    exact = made_once(lambda: tensorflow_graph.in_float64(function))
    return Loaded("tensorflow", tf.__version__, inputs, (route,), run, batch, run_exactly=exact)


def _read(path: Path) -> Any:
    import tensorflow as tf
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    graph_def = tf.compat.v1.GraphDef()
    try:
        graph_def.ParseFromString(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise ConversionError(f"{path} cannot be read as a frozen TensorFlow graph: {one_line(error)}") from error
    if not graph_def.node:
        raise ConversionError(f"{path} holds no graph; a SavedModel is given by its folder")
    variables = [node.name for node in graph_def.node if node.op in ("VariableV2", "VarHandleOp", "Variable")]
    if variables:
        raise ConversionError(f"{path}: the graph is not frozen, {some(variables)} are variables; freeze it first")
    return graph_def


def _placeholders(path: Path, graph_def: Any) -> list[str]:
    found = [node.name for node in graph_def.node if node.op == "Placeholder"]
    if not found:
        raise ConversionError(f"{path} has no placeholders; name the tensors that are its inputs (inputs, --inputs)")
    return found


def _shape_placeholders(graph_def: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    """Tell placeholders of unknown rank their shape, with a free batch."""
    import tensorflow as tf

    for node in graph_def.node:
        shape = shapes.get(f"{node.name}:0")
        if shape is not None and node.op == "Placeholder" and node.attr["shape"].shape.unknown_rank:
            node.attr["shape"].shape.CopyFrom(tf.TensorShape([None, *shape]).as_proto())
            node.attr.pop("_output_shapes", None)


def _ends(graph_def: Any) -> list[str]:
    """Nodes that nothing reads."""
    read = {name.lstrip("^").split(":")[0] for node in graph_def.node for name in node.input}
    return [node.name for node in graph_def.node if node.name not in read and node.op not in _NO_RESULT]


def _results(path: Path, graph_def: Any) -> list[str]:
    ends = _ends(graph_def)
    if len(ends) != 1:
        raise ConversionError(
            f"{path}: which tensor is the output is not plain, nothing reads {some(ends, 6) or 'any'}; "
            "name it (outputs, --outputs)"
        )
    return ends


def _tensor_name(name: str) -> str:
    return name if ":" in name else f"{name}:0"


def _spec(path: Path, tensor: Any, shape: Sequence[int] | None) -> InputSpec:
    name = tensor.name.removesuffix(":0")
    if shape is None and tensor.shape.rank is None:
        raise ConversionError(f"{path}: the shape of {name!r} is not in the graph; give input_shape (one sample)")
    own = tuple(tensor.shape.as_list()[1:]) if tensor.shape.rank is not None else (None,) * len(shape or ())
    if shape is not None and (
        len(shape) != len(own) or any(a not in (None, b) for a, b in zip(own, shape, strict=True))
    ):
        raise ConversionError(f"{path}: {name!r} takes {own} (one sample), not {tuple(shape)}")
    return InputSpec(name, own if shape is None else tuple(shape), np.dtype(tensor.dtype.as_numpy_dtype))
