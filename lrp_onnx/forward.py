"""Activations of the tensors that the walk reads: by ONNX Runtime, or by our own ops in torch."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol
from weakref import WeakValueDictionary

import numpy as np
import onnx
import torch
from torch import Tensor

from lrp_onnx.errors import DataError, ModelError
from lrp_onnx.graph import Graph, Node
from lrp_onnx.ops import find, moved, numbers_of, run
from lrp_onnx.runtime import CHANNELS_LAST, first_line, open_session

CPU = torch.device("cpu")


class Forward(Protocol):
    """Runs the model and gives the tensors that were asked for when it was made."""

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


def to_tensor(array: np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A constant of the model in torch, on the device; floats in the precision of the run."""
    if array.dtype.kind not in "fiub":  # bfloat16 and kin, from ml_dtypes
        array = array.astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the array may be read-only; we never write to it
        tensor = torch.from_numpy(np.asarray(array, order="C"))
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else tensor.dtype)


class Constants:
    """The constants of a model in torch, in the precision and on the device of a run, each there once for all readers.

    It lives as long as one of these holds it: a rule may have made something of its own of it. Beside an accelerator,
    what ops take as Python numbers, and what the host computes with, is on the CPU.
    """

    def __init__(self, graph: Graph, dtype: torch.dtype, device: torch.device) -> None:
        self.graph, self.dtype, self.device = graph, dtype, device
        self._made: WeakValueDictionary[tuple[str, torch.device], Tensor] = WeakValueDictionary()

    def on(self, device: torch.device, name: str) -> Tensor:
        made = self._made.get((name, device))
        if made is None:
            made = self._made[name, device] = to_tensor(self.graph.initializers[name], self.dtype, device)
        return made

    def of(self, node: Node, device: torch.device | None = None) -> dict[int, Tensor]:
        """Those that a node reads, by position, for where it runs: the device of the run by default."""
        there, numbers = device or self.device, numbers_of(node)
        reads = {p: name for p, name in enumerate(node.inputs) if name in self.graph.initializers}
        return {p: self.on(CPU if p in numbers else there, name) for p, name in reads.items()}


def make_forward(
    graph: Graph,
    names: Iterable[str],
    dtype: torch.dtype,
    device: torch.device,
    *,
    channels_last: Collection[str] = (),
    constants: Constants | None = None,
) -> Forward:
    """ONNX Runtime for float32 on the CPU; torch otherwise, and for ops that a user gave a meaning in torch alone.

    ONNX Runtime gives the tensors (N, C, H, W) named in `channels_last` in that memory format. In torch, `constants` of
    that precision and device are shared.
    """
    if device.type == "cpu" and dtype == torch.float32:
        try:
            return OnnxRuntimeForward(graph, names, channels_last)
        except ModelError:
            if not any(node.domain and find(node) for node in graph.nodes):
                raise
    return TorchForward(graph, names, dtype, device, constants)


class OnnxRuntimeForward:
    """ONNX Runtime on the CPU, with inner tensors exposed as further outputs."""

    def __init__(self, graph: Graph, names: Iterable[str], channels_last: Collection[str] = ()) -> None:
        self._direct = [name for name in names if name in graph.inputs]
        computed = [name for name in names if name not in graph.inputs]
        plain = [name for name in computed if name not in channels_last]
        self._names = [name if name in plain else name + CHANNELS_LAST for name in computed]
        self._session = open_session(
            graph.model,
            plain,
            channels_last=[name for name in computed if name in channels_last],
            name=graph.name,
            canonical=True,
            threads=torch.get_num_threads(),  # `torch.set_num_threads` holds for both halves of an explanation
        )
        self._types = {n: onnx.helper.tensor_dtype_to_np_dtype(info.elem_type) for n, info in graph.inputs.items()}

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        feeds = {name: tensor.numpy().astype(self._types[name], copy=False) for name, tensor in inputs.items()}
        try:
            arrays = self._session.run(self._names, feeds)
        except Exception as error:
            raise DataError(f"ONNX Runtime stopped: {first_line(error)}") from error
        result = {name: inputs[name] for name in self._direct}
        for name, array in zip(self._names, arrays, strict=True):
            values = torch.from_numpy(array)
            if name.endswith(CHANNELS_LAST):
                name, values = name.removesuffix(CHANNELS_LAST), values.permute(0, 3, 1, 2)
            # the walk goes on in float32, whatever precision the model has
            result[name] = values.float() if values.is_floating_point() else values
        return result


class TorchForward:
    """The same graph through `lrp_onnx.ops`, on any device, in float32 or float64."""

    def __init__(
        self,
        graph: Graph,
        names: Iterable[str],
        dtype: torch.dtype,
        device: torch.device,
        constants: Constants | None = None,
    ) -> None:
        self._names, self._dtype, self._device = list(names), dtype, device
        self._nodes: list[Node] = []  # those that the names depend on, in execution order
        wanted = set(self._names)
        for node in reversed(graph.nodes):
            if wanted.intersection(node.outputs):
                self._nodes.insert(0, node)
                wanted.update(n for n in (*node.inputs, *node.captured) if n)
        self._constants = Constants(graph, dtype, device) if constants is None else constants
        self._branching = {
            node: _Branching(graph, node, self._constants) for node in self._nodes if _is_branching(node)
        }
        self._at = {node: self._constants.of(node) for node in self._nodes}
        self._last_use = {
            name: i for i, node in enumerate(self._nodes) for name in (*node.inputs, *node.captured) if name
        }

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values = dict(inputs)
        keep = set(self._names)
        for i, node in enumerate(self._nodes):
            arguments = self._arguments(node, values)
            try:
                branching = self._branching.get(node)
                outputs = branching(values) if branching else run(node, find(node), arguments)
            except RuntimeError as error:
                shapes = ", ".join(str(tuple(a.shape)) for a in arguments if a is not None)
                raise DataError(f"{node}: {first_line(error)} (inputs {shapes})") from error
            for name, value in zip(node.outputs, outputs, strict=False):
                if name:  # what was cast from integers takes the precision of the run
                    values[name] = value.to(self._dtype) if value.is_floating_point() else value
            for name in (*node.inputs, *node.captured):
                if self._last_use.get(name) == i and name not in keep:
                    values.pop(name, None)
        return {name: self._result(values[name]) for name in self._names}

    def _arguments(self, node: Node, values: Mapping[str, Tensor]) -> list[Tensor | None]:
        constants = self._at[node]
        computed = [values[n] if n and p not in constants else None for p, n in enumerate(node.inputs)]
        if self._device.type != "cpu" and self._is_hosts(node, computed):
            constants = self._constants.of(node, CPU)
        return [constants.get(p, x) for p, x in enumerate(computed)]

    def _is_hosts(self, node: Node, computed: Sequence[Tensor | None]) -> bool:
        """Whether the host computes a node, of shapes: so that nothing waits for the accelerator to tell them."""
        numbers = numbers_of(node)
        data = [x for p, x in enumerate(computed) if x is not None and p not in numbers]
        if any(x.is_floating_point() or not x.is_cpu for x in data):
            return all(x.is_cpu for x in data)
        return not any(x.is_floating_point() for p, x in self._at[node].items() if p not in numbers)

    def _result(self, value: Tensor) -> Tensor:
        return moved(value, self._device) if value.is_floating_point() else value


def _is_branching(node: Node) -> bool:
    return any(isinstance(value, onnx.GraphProto) for value in node.attributes.values())


class _Branching:
    """A branch or a loop, beside the relevance path, in ONNX Runtime: its choice is known only when it runs."""

    def __init__(self, graph: Graph, node: Node, constants: Constants) -> None:
        self._node, self._constants = node, constants
        self._names = list(dict.fromkeys(n for n in (*node.inputs, *node.captured) if n))
        self._types = {n: graph.dtypes.get(n, onnx.TensorProto.FLOAT) for n in self._names}
        model = onnx.ModelProto(ir_version=graph.model.ir_version, opset_import=graph.model.opset_import)
        model.functions.extend(graph.model.functions)
        model.graph.name = node.name
        model.graph.node.extend(proto for proto in graph.model.graph.node if list(proto.output) == list(node.outputs))
        model.graph.input.extend(onnx.helper.make_tensor_value_info(n, t, None) for n, t in self._types.items())
        model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in node.outputs if n)
        self._session = open_session(model, name=str(node), canonical=True)

    def __call__(self, values: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Its outputs, one for each name, computed in the types of the model."""
        given = {n: values[n].cpu() if n in values else self._constants.on(CPU, n) for n in self._types}
        feeds = {n: given[n].numpy().astype(onnx.helper.tensor_dtype_to_np_dtype(t)) for n, t in self._types.items()}
        device = next((value.device for value in values.values() if value.is_floating_point()), torch.device("cpu"))
        try:
            found = iter(self._session.run(None, feeds))
        except Exception as error:
            raise DataError(f"{self._node}: ONNX Runtime stopped: {first_line(error)}") from error
        results = [torch.from_numpy(np.asarray(next(found))) if n else torch.empty(0) for n in self._node.outputs]
        return tuple(value.to(device) if value.is_floating_point() else value for value in results)
