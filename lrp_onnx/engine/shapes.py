"""Shapes of a model's tensors in a run, from those of its inputs: so that no activation is kept for its shape alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import onnx

from lrp_onnx.graph import Graph

Shape = tuple[int, ...]

_KEPT = 256  # runs whose shapes are remembered
_SMALL = 1 << 10  # elements of a constant that may be a shape, or the scales of Resize


class Shapes:
    """The shapes of some tensors in a run with inputs of given shapes, as far as these tell.

    Where the sizes of the inputs leave a shape open (exporters flatten to -1, and onnx calls what that gives `unk__7`),
    onnx infers it for the very sizes of the run. What depends on data, such as how many numbers are not zero, stays
    unknown.
    """

    def __init__(self, graph: Graph, names: Iterable[str]) -> None:
        self._graph, self._names = graph, tuple(names)
        self._found: dict[tuple[Shape | None, ...], Mapping[str, Shape]] = {}

    def __call__(self, inputs: Mapping[str, Sequence[int]]) -> Mapping[str, Shape]:
        """By name, without those that stay unknown, for shapes of the model's inputs by name."""
        given = {name: tuple(shape) for name, shape in inputs.items()}
        key = tuple(given.get(name) for name in self._graph.inputs)
        found = self._found.get(key)
        if found is None:
            if len(self._found) >= _KEPT:
                self._found = {}
            found = self._found[key] = self._find(given)
        return found

    def guessed(self) -> Mapping[str, Shape]:
        """For inputs of the sizes that the model declares, and 1 where it leaves them open."""
        shapes = {name: info.shape or () for name, info in self._graph.inputs.items()}
        return self({name: [d if isinstance(d, int) else 1 for d in shape] for name, shape in shapes.items()})

    def _find(self, inputs: Mapping[str, Shape]) -> Mapping[str, Shape]:
        sizes = self._sizes(inputs)
        declared = {name: _filled(self._graph.shapes.get(name), sizes) for name in self._names}
        known = {name: shape for name, shape in declared.items() if shape is not None} | dict(inputs)
        unknown = [name for name in self._names if name not in known]
        inferred = self._inferred(inputs) if unknown else {}
        return known | {name: inferred[name] for name in unknown if name in inferred}

    def _sizes(self, inputs: Mapping[str, Shape]) -> dict[str, int]:
        """Of the dimensions that the inputs have names for, where they agree on it."""
        sizes: dict[str, set[int]] = {}
        for name, shape in inputs.items():
            for dimension, size in zip(self._graph.inputs[name].shape or (), shape, strict=False):
                if isinstance(dimension, str):
                    sizes.setdefault(dimension, set()).add(size)
        return {dimension: size for dimension, (size, *others) in sizes.items() if not others}

    def _inferred(self, inputs: Mapping[str, Shape]) -> Mapping[str, Shape]:
        model = onnx.ModelProto()
        model.CopyFrom(self._bare)
        for value in model.graph.input:
            if value.name in inputs:
                value.CopyFrom(
                    onnx.helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, inputs[value.name])
                )
        try:
            graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        except Exception:  # onnx has its own exceptions, all directly below Exception
            return {}
        found = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.output)}
        return {
            name: tuple(d.dim_value for d in tensor.shape.dim)
            for name, tensor in found.items()
            if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim)
        }

    @cached_property
    def _bare(self) -> onnx.ModelProto:
        """The model without the weights, of which the types are enough, and without what was inferred before."""
        source = self._graph.model
        model = onnx.ModelProto(ir_version=source.ir_version, opset_import=source.opset_import)
        model.functions.extend(source.functions)
        model.graph.name = source.graph.name
        model.graph.node.extend(source.graph.node)
        model.graph.output.extend(onnx.ValueInfoProto(name=output.name) for output in source.graph.output)
        for node in model.graph.node:
            if any(a.name == "ceil_mode" and a.i for a in node.attribute):  # onnx counts windows that runtimes drop
                node.op_type, node.domain = "NotKnown", "lrp_onnx"
        for tensor in source.graph.initializer:
            if math.prod(tensor.dims) <= _SMALL:
                model.graph.initializer.append(tensor)
            else:
                value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                model.graph.input.append(value)
        model.graph.input.extend(value for value in source.graph.input if value.name in self._graph.inputs)
        return model


def _filled(shape: Sequence[int | str | None] | None, sizes: Mapping[str, int]) -> Shape | None:
    """A shape in numbers; None where they are not all known."""
    if shape is None:
        return None
    numbers = [size if isinstance(size, int) else sizes.get(size) if size else None for size in shape]
    return None if None in numbers else tuple(numbers)  # type: ignore[arg-type]  # mypy does not see that


def numbers_of_sample(shapes: Shapes, names: Iterable[str], inputs: Mapping[str, Sequence[int]]) -> int:
    """How many numbers these tensors hold for one sample, of inputs (by name) of these shapes without the batch.

    Tensors whose shape is not known count nothing.
    """
    known = shapes({name: (1, *shape) for name, shape in inputs.items()})
    return sum(math.prod(known.get(name, (0,))) for name in names)
