"""Open ONNX Runtime sessions, with inner tensors exposed as further outputs and for models of any size."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

from lrp_onnx.errors import ModelError

if TYPE_CHECKING:
    import onnxruntime


CHANNELS_LAST = "/channels_last"  # ends the name of an output that a session gives as (N, H, W, C)


def open_session(
    model: onnx.ModelProto,
    outputs: Sequence[str] = (),
    *,
    channels_last: Collection[str] = (),
    name: str = "model",
    optimise: bool = True,
    canonical: bool = False,
    threads: int = 0,
) -> onnxruntime.InferenceSession:
    """A session on the CPU for `model`, which is not modified.

    Parameters
    ----------
    model : onnx.ModelProto
    outputs : sequence of str
        Tensors to expose; those that are no outputs of the model become outputs of the session.
    channels_last : collection of str
        Tensors (N, C, H, W) to expose as (N, H, W, C) under their name with `CHANNELS_LAST` behind it. ONNX Runtime
        keeps them in a layout of its own, so that either order costs one copy.
    name : str
        What error messages call the model.
    optimise : bool
        False switches ONNX Runtime's graph rewriting off.
    canonical : bool
        The model is in canonical form: its quantised weights are floats, on which ONNX Runtime's fusions of quantised
        operators fail. Any other model runs as it would without this package.
    threads : int
        How many an op may use; 0 leaves it to ONNX Runtime (one a core).

    Raises
    ------
    ModelError
        ONNX Runtime cannot load the model.
    """
    import onnxruntime

    present = {output.name for output in model.graph.output}
    extra = onnx.ModelProto()
    for tensor in channels_last:
        extra.graph.node.append(
            onnx.helper.make_node("Transpose", [tensor], [tensor + CHANNELS_LAST], perm=[0, 2, 3, 1])
        )
    exposed = dict.fromkeys((*outputs, *(tensor + CHANNELS_LAST for tensor in channels_last)))
    extra.graph.output.extend(onnx.ValueInfoProto(name=n) for n in exposed if n not in present)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = False  # one more block, for all tensors at once, beside the arena: twice the memory
    options.log_severity_level = 4  # errors are raised; its own log would repeat them
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leave the cores to torch
    if canonical:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return _open(model, extra, options)
    except Exception as error:  # ONNX Runtime has its own exception types, all directly below Exception
        reason = first_line(error)
        if "is not a registered function/op" in reason:
            reason += "; register the op's meaning in torch (--extensions, see Extending in the README)"
        raise ModelError(f"{name}: ONNX Runtime cannot load the model: {reason}") from error


def _open(
    model: onnx.ModelProto, extra: onnx.ModelProto, options: onnxruntime.SessionOptions
) -> onnxruntime.InferenceSession:
    from onnxruntime import InferenceSession

    providers = ["CPUExecutionProvider"]
    try:
        # protobuf merges concatenated messages: this appends nodes and outputs without another copy of the weights
        bytes_ = model.SerializeToString() + extra.SerializeToString()
        session = InferenceSession(bytes_, options, providers=providers)
    except (EncodeError, ValueError):  # more than protobuf can write (2 GB): weights go beside the graph
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            copy.MergeFrom(extra)
            onnx.save_model(copy, path, save_as_external_data=True, location="weights")
            return InferenceSession(str(path), options, providers=providers)
    session.disable_fallback()  # to other providers, for which the session keeps the bytes: as much as the weights
    session._model_bytes = b""
    return session


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, for a message of one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
