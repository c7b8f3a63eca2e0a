"""Activations of the tensors that the walk reads: by ONNX Runtime, or by our own ops in torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np
import onnx
import torch
from torch import Tensor

from lrp_onnx.errors import DataError, ModelError
from lrp_onnx.graph import Graph, Node
from lrp_onnx.ops import find, run


class Forward(Protocol):
    """Runs the model and gives the tensors that were asked for when it was made."""

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


def to_tensor(array: np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A constant of the model in torch: floats in the precision of the run, on the device; integers stay on the CPU."""
    if array.dtype.kind not in "fiub":  # bfloat16 and kin, from ml_dtypes
        array = array.astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the array may be read-only; we never write to it
        tensor = torch.from_numpy(np.asarray(array, order="C"))
    if tensor.is_floating_point():
        return tensor.to(device=device, dtype=dtype)
    return tensor


class OnnxRuntimeForward:
    """ONNX Runtime on the CPU, with inner tensors exposed as further outputs."""

    def __init__(self, graph: Graph, names: Iterable[str]) -> None:
        import onnxruntime as ort

        self._direct = [name for name in names if name in graph.inputs]
        self._names = [name for name in names if name not in graph.inputs]
        extra = onnx.ModelProto()
        extra.graph.output.extend(onnx.ValueInfoProto(name=n) for n in self._names if n not in graph.outputs)
        # protobuf merges concatenated messages: this appends the outputs without another copy of the weights
        payload = graph.model.SerializeToString() + extra.SerializeToString()
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised below
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leave the cores to torch
        try:
            self._session = ort.InferenceSession(payload, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exceptions share no public base class
            raise ModelError(f"ONNX Runtime cannot load {graph.name}: {_first_line(error)}") from error

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
        try:
            arrays = self._session.run(self._names, feeds)
        except Exception as error:
            raise DataError(f"ONNX Runtime stopped: {_first_line(error)}") from error
        result = {name: torch.from_numpy(array) for name, array in zip(self._names, arrays, strict=True)}
        return result | {name: inputs[name] for name in self._direct}


class TorchForward:
    """The same graph through `lrp_onnx.ops`, on any device, in float32 or float64."""

    def __init__(self, graph: Graph, names: Iterable[str], dtype: torch.dtype, device: torch.device) -> None:
        self._names = list(names)
        self._nodes: list[Node] = []  # those that the names depend on, in execution order
        wanted = set(self._names)
        for node in reversed(graph.nodes):
            if wanted.intersection(node.outputs):
                self._nodes.insert(0, node)
                wanted.update(n for n in node.inputs if n)
        self._constants = {n: to_tensor(a, dtype, device) for n, a in graph.initializers.items() if n in wanted}
        self._last_use = {name: i for i, node in enumerate(self._nodes) for name in node.inputs if name}

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values = dict(inputs)
        keep = set(self._names)
        for i, node in enumerate(self._nodes):
            arguments = [
                None if not n else self._constants[n] if n in self._constants else values[n] for n in node.inputs
            ]
            try:
                outputs = run(node, find(node), arguments)
            except RuntimeError as error:
                shapes = ", ".join(str(tuple(a.shape)) for a in arguments if a is not None)
                raise DataError(f"{node}: {_first_line(error)} (inputs {shapes})") from error
            values.update((name, value) for name, value in zip(node.outputs, outputs, strict=False) if name)
            for name in node.inputs:
                if self._last_use.get(name) == i and name not in keep:
                    values.pop(name, None)
        return {name: values[name] for name in self._names}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
