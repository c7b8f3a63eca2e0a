"""Read an ONNX model from a path, bytes or a ModelProto into a canonical `Graph`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor, uses_external_data
from onnx_ir.passes.common import CheckerPass

from lrp_onnx.errors import ModelError
from lrp_onnx.graph.classic import without_maps
from lrp_onnx.graph.contrib import adopt
from lrp_onnx.graph.model import Graph
from lrp_onnx.graph.values import constant
from lrp_onnx.runtime import first_line

_NORMS = {"BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization"}
_WEIGHTED = _NORMS | {"Conv", "ConvTranspose", "Gemm", "MatMul", "PRelu", "LSTM", "GRU", "RNN"}


def load(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto, *, canonical: bool = True, check: bool = True
) -> Graph:
    """Read a model and bring it to canonical form.

    Parameters
    ----------
    source : path, bytes or onnx.ModelProto
        Where the model is, its bytes, or the model. External data is read from beside the file. Neither the file
        nor the object is modified.
    canonical : bool
        False leaves the model as it is (only what `Graph` needs is read).
    check : bool
        False skips the ONNX checker and the search for weights that are not finite.

    Returns
    -------
    Graph
        `graph.original` is the model as it was, `graph.cuts` the activations that were cut off the outputs.

    Raises
    ------
    ModelError
        If the file or its external data is missing, truncated or no ONNX, the model is not valid, it states no opset,
        its opset is too old to convert, or a weight is NaN or infinite.
    """
    proto, name, digest = _read(source)
    if not any(opset.domain in ("", "ai.onnx") for opset in proto.opset_import):
        raise ModelError(f"{name}: the model states no opset of the standard operators; export it again")
    proto = without_maps(proto)
    try:
        model = _own(ir.from_proto(proto))
    except Exception as error:  # onnx_ir raises whatever its reader met first
        raise ModelError(f"{name}: the model cannot be read: {first_line(error)}") from error
    adopt(model)
    if check:
        try:
            CheckerPass()(model)
        except Exception as error:
            raise ModelError(f"{name}: not a valid ONNX model: {first_line(error.__cause__ or error)}") from error
        _require_finite(model, name)
    extra: dict[str, Any] = {}
    if canonical:
        from lrp_onnx.graph.canonical import canonicalise  # imports onnxscript

        try:
            form = canonicalise(model)
        except ModelError as error:
            raise ModelError(f"{name}: {error}") from error
        model = form.model
        extra = {"cuts": form.cuts, "history": form.history, "refused": form.refused, "notes": form.notes}
        extra["cut"] = next(iter(form.cuts.values())).op_type if form.cuts else ""
        if check:
            _require_finite(model, name)
    return Graph.from_proto(
        ir.to_proto(model) if canonical else proto,
        initializers={
            str(key): array for key, value in model.graph.initializers.items() if (array := constant(value)) is not None
        },
        name=Path(name).name,
        sha256=digest,
        original=proto,
        **extra,
    )


def _read(source: str | os.PathLike[str] | bytes | onnx.ModelProto) -> tuple[onnx.ModelProto, str, str]:
    """The model with all its data in memory, where it is from, and the hash of its bytes."""
    if isinstance(source, onnx.ModelProto):
        _require_complete(source)
        return source, "model", _hash_proto(source)
    if isinstance(source, bytes):
        proto = _parse(source, "model")
        _require_complete(proto)
        return proto, "model", hashlib.sha256(source).hexdigest()
    path = Path(source)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: the model file cannot be read: {error.strerror or error}") from error
    proto = _parse(data, str(path))
    digest = hashlib.sha256(data)
    for file in _load_external(proto, path):
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return proto, str(path), digest.hexdigest()


def _parse(data: bytes, name: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    if not data:
        raise ModelError(f"{name}: the model file is empty")
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(f"{name}: not an ONNX model, or one that was cut short ({len(data)} bytes)") from error
    if not proto.graph.output:
        raise ModelError(f"{name}: not an ONNX model: it has no graph with an output")
    return proto


def _load_external(proto: onnx.ModelProto, path: Path) -> list[Path]:
    """Read the external data of `proto` into it; the files it came from, in order of name."""
    files: set[Path] = set()
    for tensor in _external(proto.graph):
        file = path.parent / ExternalDataInfo(tensor).location
        if not file.is_file():
            raise ModelError(f"{path}: external data of '{tensor.name}' is missing: {file}; put it beside the model")
        try:
            load_external_data_for_tensor(tensor, str(path.parent))
        except Exception as error:  # onnx raises ValidationError, ValueError and OSError here
            raise ModelError(f"{path}: external data of '{tensor.name}' cannot be read: {first_line(error)}") from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
        files.add(file)
    return sorted(files)


def _require_complete(proto: onnx.ModelProto) -> None:
    tensor = next(_external(proto.graph), None)
    if tensor is not None:
        location = ExternalDataInfo(tensor).location
        raise ModelError(f"model: the data of '{tensor.name}' is in the file '{location}'; load the model by its path")


def _external(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Tensors, in the graph and below it, whose data is in another file."""
    yield from filter(uses_external_data, graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            yield from filter(uses_external_data, [attribute.t, *attribute.tensors])
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _external(subgraph)


def _hash_proto(proto: onnx.ModelProto) -> str:
    try:
        return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
    except (EncodeError, ValueError):  # over 2 GB
        pass
    digest = hashlib.sha256()
    for part in (*proto.graph.node, *proto.graph.initializer):
        digest.update(part.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _own(model: ir.Model) -> ir.Model:
    """Detach every tensor from the proto it was read from: renaming a value would rename the proto's tensor."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            value.const_value = _copy(value.const_value)
    for graph in (*model.graphs(), *(function.graph for function in model.functions.values())):
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    node.attributes[name] = ir.AttrTensor(name, _copy(attribute.as_tensor()))
    return model


def _copy(tensor: ir.TensorProtocol | None) -> ir.TensorProtocol:
    assert tensor is not None
    if tensor.dtype == ir.DataType.STRING:
        return ir.StringTensor(tensor.numpy(), shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)


def _require_finite(model: ir.Model, name: str) -> None:
    """NaN is wrong in any constant; infinity in a weight (elsewhere it stands for "no bound" or a mask)."""
    for key, value in model.graph.initializers.items():
        if value.const_value is None or not value.const_value.dtype.is_floating_point() or not value.const_value.size:
            continue
        array = value.const_value.numpy()
        low, high = float(array.min()), float(array.max())
        if low != low or high != high:
            raise ModelError(f"{name}: initializer '{key}' holds NaN; the model was trained or exported wrongly")
        readers = {use.node.op_type for use in value.uses()}
        if (low == -float("inf") or high == float("inf")) and readers & _WEIGHTED:
            raise ModelError(
                f"{name}: initializer '{key}' holds infinite weights, read by {', '.join(sorted(readers))}"
            )
