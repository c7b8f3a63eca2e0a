"""`Graph` and `Node`: an ONNX model as the engine sees it, read only."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx


@dataclass(frozen=True)
class TensorInfo:
    """Name, ONNX element type and shape of a graph input or output; a dynamic dimension is a string or None."""

    name: str
    elem_type: int
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True, eq=False)
class Node:
    """One operation. `inputs` holds "" for an optional input that is absent.

    `captured` are the tensors that its branches or its loop body read from outside; `layer` is the layer of the
    framework's model that it comes from, as far as the exporter said so in more than the node's name.
    """

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""
    captured: tuple[str, ...] = ()
    layer: str = ""

    def __str__(self) -> str:
        layer = f" (layer '{self.layer}')" if self.layer else ""
        return f"{self.op_type} node '{self.name}'{layer}"

    def input(self, position: int) -> str:
        """Name of the input at `position`, "" when it is absent."""
        return self.inputs[position] if position < len(self.inputs) else ""


@dataclass(frozen=True, eq=False)
class Graph:
    """A canonical model: nodes in execution order, constants by name. Never modified after `load`.

    Attributes
    ----------
    model : onnx.ModelProto
        The canonical model, as ONNX Runtime runs it.
    nodes, initializers, inputs, outputs
        The same, in plain Python; `inputs` leaves out initializers that old models list as inputs too. Weights that
        were fused are in float64 here, before `model` rounds them to its type.
    opset : int
        Version of the default operator set.
    metadata : dict of str to str
        The model's metadata_props (preprocessing and class names live here).
    name : str
        File name of the source, or "model".
    sha256 : str
        Hash of the bytes that were loaded (external data included).
    original : onnx.ModelProto
        The model as it was loaded, untouched.
    cut : str
        Op type of the trailing activation that was cut off so that relevance starts at the logit ("" if none).
    cuts : dict of str to Node
        Output name -> the activation that was cut off behind it; its `outputs` name the output that it replaces.
    history : dict of str to tuple of str
        Node name -> what the rewrites made it of: what was fused into it, which loop's step it is.
    refused : dict of str to str
        Node name -> why no relevance can go through it: branches and loops that depend on the data.
    notes : tuple of str
        What holds for the whole model and its user should know.
    moved : frozenset of str
        Inputs and outputs whose batch was moved to the front (`batch_first`).
    """

    model: onnx.ModelProto
    nodes: tuple[Node, ...]
    initializers: Mapping[str, np.ndarray]
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    opset: int
    metadata: Mapping[str, str]
    name: str = "model"
    sha256: str = ""
    original: onnx.ModelProto | None = None
    cut: str = ""
    cuts: Mapping[str, Node] = field(default_factory=dict)
    history: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    moved: frozenset[str] = frozenset()

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor whose type is known (inputs, outputs, what nodes compute, constants) by name."""
        graph = self.model.graph
        known = {v.name: _info(v) for v in (*graph.value_info, *graph.input, *graph.output)}
        for t in graph.initializer:
            known[t.name] = TensorInfo(t.name, t.data_type, tuple(t.dims))
        return known

    @cached_property
    def shapes(self) -> dict[str, tuple[int | str | None, ...]]:
        """Tensor name -> shape, for every tensor of known rank; a dynamic dimension is a string or None."""
        return {name: info.shape for name, info in self.tensors.items() if info.shape is not None}

    @cached_property
    def dtypes(self) -> dict[str, int]:
        """Tensor name -> ONNX element type (`onnx.TensorProto.FLOAT` …), for every tensor of known type."""
        return {name: info.elem_type for name, info in self.tensors.items() if info.elem_type}

    @cached_property
    def batch(self) -> int | None:
        """The only batch size that the model takes: its first input's, or what its outputs have whatever the inputs.

        Some exporters call the batch free and write the size of their example into the graph. None where it is free.
        """
        first = [info.shape[0] for info in self.inputs.values() if info.shape]
        if first and isinstance(first[0], int) and first[0] > 0:
            return first[0]
        if not first or not _all_fixed(self.outputs.values(), first):
            return None
        bare = onnx.ModelProto()  # what the file says of its outputs may be the example's size as well
        bare.CopyFrom(self.model)
        for output in bare.graph.output:
            output.type.tensor_type.ClearField("shape")
        try:
            found = onnx.shape_inference.infer_shapes(bare).graph.output
        except Exception:  # more than protobuf can write (2 GB): the file is taken at its word
            found = self.model.graph.output
        outputs = [_info(output) for output in found]
        return int((outputs[0].shape or (0,))[0] or 0) or None if _all_fixed(outputs, first) else None

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Name of a tensor of the original model that is gone -> the tensor here that holds the same values.

        These are the inputs and outputs of Identity and Dropout nodes that were removed.
        """
        here = {*self.inputs, *self.initializers, *self.producer}
        group: dict[str, list[str]] = {}
        for node in self.original.graph.node if self.original else ():
            if node.op_type in ("Identity", "Dropout") and node.input and node.output:
                same = group.setdefault(node.input[0], [node.input[0]])
                same.append(node.output[0])
                group[node.output[0]] = same
        kept = {name: next((n for n in same if n in here), None) for name, same in group.items()}
        return {name: survivor for name, survivor in kept.items() if survivor is not None and name not in here}

    @cached_property
    def producer(self) -> dict[str, Node]:
        """Tensor name -> the node that computes it."""
        return {output: node for node in self.nodes for output in node.outputs if output}

    @classmethod
    def from_proto(
        cls, model: onnx.ModelProto, *, initializers: Mapping[str, np.ndarray] | None = None, **extra: Any
    ) -> Graph:
        """View a checked, canonical ModelProto as a Graph; `initializers` saves reading the arrays out of it again."""
        graph = model.graph
        if initializers is None:
            initializers = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        nodes = tuple(
            Node(
                name=node.name or f"{node.op_type}_{i}",
                op_type=node.op_type,
                inputs=tuple(node.input),
                outputs=tuple(node.output),
                attributes={a.name: _attribute(a) for a in node.attribute},
                domain="" if node.domain == "ai.onnx" else node.domain,
                captured=_captured(node),
                layer=_layer(node),
            )
            for i, node in enumerate(graph.node)
        )
        return cls(
            model=model,
            nodes=nodes,
            initializers=initializers,
            inputs={i.name: _info(i) for i in graph.input if i.name not in initializers},
            outputs={o.name: _info(o) for o in graph.output},
            opset=next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0),
            metadata={p.key: p.value for p in model.metadata_props},
            **extra,
        )


def _captured(node: onnx.NodeProto) -> tuple[str, ...]:
    """Names that the graphs inside of `node` read and do not make."""
    found: dict[str, None] = {}
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs:
            own = {value.name for value in (*graph.input, *graph.initializer)}
            for inner in graph.node:
                found.update(dict.fromkeys(n for n in (*inner.input, *_captured(inner)) if n and n not in own))
                own.update(inner.output)
            found.update(dict.fromkeys(output.name for output in graph.output if output.name not in own))
    return tuple(found)


_SCOPES = "pkg.torch.onnx.name_scopes"  # ['', 'layer1', 'layer1.0', 'layer1.0.conv1', 'conv2d']


def _layer(node: onnx.NodeProto) -> str:
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            return next(reversed(re.findall(r"'([^']*)'", entry.value)[:-1]), "")
    return ""


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if attribute.type == onnx.AttributeProto.STRINGS:
        return tuple(v.decode("utf-8", "replace") for v in value)
    return tuple(value) if isinstance(value, (list, tuple)) or hasattr(value, "append") else value


def _all_fixed(outputs: Iterable[TensorInfo], free: Collection[int | str | None]) -> bool:
    """Whether outputs all start with the same number, and none has a batch that is free elsewhere."""
    shapes = [info.shape for info in outputs if info.shape != ()]
    if not all(shapes) or any(size is not None and size in free for shape in shapes for size in shape or ()):
        return False
    sizes = {shape[0] for shape in shapes if shape}
    return len(sizes) == 1 and all(isinstance(size, int) and size > 0 for size in sizes)


def _info(value: onnx.ValueInfoProto) -> TensorInfo:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return TensorInfo(value.name, tensor.elem_type, None)
    return TensorInfo(value.name, tensor.elem_type, tuple(map(_size, tensor.shape.dim)))


def _size(dimension: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dimension.HasField("dim_value"):
        return dimension.dim_value if dimension.dim_value >= 0 else None  # some exporters write -1 for "any"
    return dimension.dim_param.replace("?", "") or None  # and "?", which are not all the same
