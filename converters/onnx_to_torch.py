"""ONNX to a torch network by onnx2torch; what its registry lacks is registered from `lrp_onnx.ops`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from lrp_onnx.errors import ConversionError, UnsupportedOpError
from lrp_onnx.graph import Graph, Node
from lrp_onnx.ops import OPS, Op, run

# Nodes in this domain have no handler in onnx2torch, so that ours is taken (no dot: it becomes part of module names).
_OWN_DOMAIN = "lrp_onnx_ops"
# Every onnx2torch handler that makes a torch layer of a node reads the layer's tensors from these inputs.
_POSITIONS = {"weight": 1, "bias": 2}


@dataclass(frozen=True)
class Binding:
    """One tensor of the torch network as a function of one ONNX constant: scale * reshape(transpose(constant))."""

    path: str
    name: str
    shape: tuple[int, ...]
    transposed: bool = False
    scale: float = 1.0

    def __call__(self, constant: Tensor) -> Tensor:
        """The network's tensor."""
        tensor = (constant.T if self.transposed else constant).reshape(self.shape)
        return tensor if self.scale == 1.0 else tensor * self.scale


class OnnxOp(nn.Module):
    """One ONNX node by `lrp_onnx.ops`, as a layer of the network; `present` are the positions of its inputs."""

    def __init__(self, node: Node, op: Op) -> None:
        super().__init__()
        self._node, self._op = node, op
        self._present = [position for position, name in enumerate(node.inputs) if name]

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        arguments: list[Tensor | None] = [None] * len(self._node.inputs)
        for position, tensor in zip(self._present, inputs, strict=True):
            arguments[position] = tensor
        outputs = run(self._node, self._op, arguments)
        return outputs[0] if len(self._node.outputs) == 1 else outputs


def build(
    model: onnx.ModelProto, trainable: Collection[str], *, own: bool = False
) -> tuple[nn.Module, tuple[Binding, ...]]:
    """A torch network that computes what `model` does, and which of its tensors come from which constant.

    Parameters
    ----------
    model : onnx.ModelProto
        Without Constant nodes; node names are made unique in place.
    trainable : collection of str
        The initializers to bind.
    own : bool
        Take `lrp_onnx.ops` for every node that it knows, instead of only where onnx2torch has no handler.

    Raises
    ------
    ConversionError
        onnx2torch is not installed, or fails.
    UnsupportedOpError
        Neither onnx2torch nor `lrp_onnx.ops` knows a node.
    """
    onnx2torch = import_onnx2torch()
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"  # onnx2torch names modules after nodes; exporters repeat names
        known = node.domain in ("", "ai.onnx") and ("", node.op_type) in OPS
        if known and (own or _unfit(model, node)):
            node.domain = _OWN_DOMAIN
    if any(node.domain == _OWN_DOMAIN for node in model.graph.node):
        model.opset_import.append(onnx.helper.make_opsetid(_OWN_DOMAIN, 1))
    _register_missing(model)
    try:
        network = onnx2torch.convert(model, attach_onnx_mapping=True)
    except Exception as error:  # its handlers raise KeyError, NotImplementedError, RuntimeError …
        raise ConversionError(f"onnx2torch stopped: {type(error).__name__}: {error}") from error
    network.requires_grad_(False).eval()
    bindings = tuple(_bindings(network, model, frozenset(trainable)))
    _check(network, bindings, model)
    return network, bindings


def import_onnx2torch() -> ModuleType:
    """onnx2torch, or a ConversionError that says how to get it."""
    try:
        import onnx2torch
    except Exception as error:  # a torchvision that does not fit the installed torch raises RuntimeError
        raise ConversionError(
            f"retraining needs onnx2torch and a torchvision that fits torch {torch.__version__} "
            f'({type(error).__name__}: {error}); install them with: pip install "lrp-onnx[retrain]"'
        ) from error
    return onnx2torch


def _unfit(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether onnx2torch has a handler for this op that cannot do this node."""
    if node.op_type in ("Conv", "ConvTranspose"):  # it wants initializers; here a weight is computed from one
        stored = {tensor.name for tensor in model.graph.initializer}
        return not stored.issuperset(filter(None, node.input[1:]))
    return node.op_type == "Slice"  # it indexes by a list of slices, which torch is giving another meaning


def _register_missing(model: onnx.ModelProto) -> None:
    """Give onnx2torch a handler for every node of `model` that it has none for, in that very version."""
    from onnx2torch.node_converters import registry

    versions = {opset.domain: opset.version for opset in model.opset_import}
    for node in model.graph.node:
        version = versions[node.domain]
        try:
            registry.get_converter(node.op_type, version, node.domain)
        except NotImplementedError:
            op = OPS.get(("" if node.domain == _OWN_DOMAIN else node.domain, node.op_type))
            if op is None:
                name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
                raise UnsupportedOpError(
                    f"node '{node.output[0]}': neither onnx2torch nor lrp_onnx.ops knows op '{name}' (version "
                    f"{version}), so the model cannot be trained",
                    op_type=node.op_type,
                ) from None
            registry.add_converter(node.op_type, _since(node, version), node.domain)(_handler(op))


def _since(node: onnx.NodeProto, version: int) -> int:
    """The version under which onnx2torch will look for the handler."""
    try:
        return int(onnx.defs.get_schema(node.op_type, max_inclusive_version=version, domain=node.domain).since_version)
    except onnx.defs.SchemaError:
        return version


def _handler(op: Op) -> Callable[[Any, Any], Any]:
    """An onnx2torch handler that makes an `OnnxOp` of a node."""
    from onnx2torch.utils.common import OnnxMapping, OperationConverterResult

    def handler(node: Any, graph: Any) -> Any:
        alone = onnx.ModelProto()
        alone.graph.node.append(node.proto)
        (known,) = Graph.from_proto(alone).nodes
        present = tuple(name for name in known.inputs if name)
        return OperationConverterResult(OnnxOp(known, op), OnnxMapping(present, known.outputs))

    return handler


def _check(network: nn.Module, bindings: Sequence[Binding], model: onnx.ModelProto) -> None:
    """Every bound tensor is what its constant says; a handler that computes another one is not understood here."""
    own = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for binding in bindings:
        constant = torch.tensor(onnx.numpy_helper.to_array(stored[binding.name]))
        if not torch.allclose(binding(constant), own[binding.path]):
            raise ConversionError(f"onnx2torch's '{binding.path}' is not the weight '{binding.name}'")


def _bindings(network: Any, model: onnx.ModelProto, trainable: frozenset[str]) -> list[Binding]:
    producer = {node.output[0]: node for node in model.graph.node}
    bindings = []
    for call in network.graph.nodes:
        if call.op != "call_module":
            continue
        layer = network.get_submodule(call.target)
        mapping = layer.onnx_mapping
        node = producer[mapping.outputs[0]]
        for path, tensor in layer.named_parameters():  # tensors that the handler made a layer of
            position = _POSITIONS.get(path.rpartition(".")[2], len(node.input))
            name = node.input[position] if position < len(node.input) else ""
            if name in trainable:
                bindings.append(_layer_binding(f"{call.target}.{path}", name, tensor, layer, node))
        arguments = [argument for argument in (*call.args, *call.kwargs.values()) if argument is not None]
        for argument, name in zip(arguments, filter(None, mapping.inputs), strict=True):
            if name in trainable and argument.op == "get_attr":  # tensors that are handed to the layer
                holder, _, attribute = argument.target.rpartition(".")
                shape = getattr(network.get_submodule(holder), attribute).shape
                bindings.append(Binding(argument.target, name, tuple(shape)))
    return list(dict.fromkeys(bindings))


def _layer_binding(path: str, name: str, tensor: Tensor, layer: nn.Module, node: onnx.NodeProto) -> Binding:
    shape = tuple(tensor.shape)
    if not (isinstance(layer, nn.Linear) and node.op_type == "Gemm"):
        return Binding(path, name, shape)
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if path.endswith(".bias"):
        return Binding(path, name, shape, scale=attributes.get("beta", 1.0))
    return Binding(path, name, shape, not attributes.get("transB", 0), attributes.get("alpha", 1.0))
