"""A large batch in parts: whether its samples are independent, and how many at a time memory is spent on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrp_onnx.engine.plan import Plan
from lrp_onnx.engine.shapes import Shapes, numbers_of_sample
from lrp_onnx.graph import Graph
from lrp_onnx.ops import find

# activations read, of the samples explained at a time: 8 of VGG-16, 18 of MobileNetV2; more are no faster on a CPU
_BYTES = {"cpu": 512 << 20}
_BYTES_ON_ACCELERATORS = 4 << 30

# ops that may look across the batch and still give a row for each sample
_ACROSS = {"DynamicQuantizeLinear", "CumSum", "CumProd", "ReverseSequence", "TopK", "Scan", "Loop", "If"}


def independent(plan: Plan, inputs: Mapping[str, Tensor], target: Any, labels: Any) -> int | None:
    """How many samples a batch has, if each can be explained without the others; else None.

    That is known where the same symbol leads the shape of every input and of every tensor on the relevance path and
    occurs nowhere else in it, and where the target is one for each sample or the same for all.
    """
    samples = {len(tensor) if tensor.ndim else 0 for tensor in inputs.values()}
    if len(samples) != 1 or min(samples) < 2 or not _rows_apart(plan):
        return None
    (n,) = samples
    fits = _per_sample(target, n) and (labels is None or _per_sample(labels, n))
    return n if fits else None


def _rows_apart(plan: Plan) -> bool:
    graph = plan.graph
    inputs = [info.shape or () for info in graph.inputs.values()]
    batch = {shape[0] if shape else None for shape in inputs}
    if len(batch) != 1 or not all(isinstance(size, str) for size in batch):
        return False
    for step in plan.steps:  # exporters flatten to (-1, K), and shape inference has a new name for what -1 gives
        before, after = (graph.shapes.get(name) or () for name in (step.node.inputs[0], step.node.outputs[0]))
        if step.node.op_type == "Reshape" and before[:1] and before[0] in batch and _known(before) == _known(after) > 0:
            batch.add(after[0])
    shapes = inputs + [graph.shapes.get(name) or () for name in plan.tensors]
    apart = all(shape and shape[0] in batch and not batch.intersection(shape[1:]) for shape in shapes)
    return apart and not _looks_across(graph)


def _known(shape: Sequence[int | str | None]) -> int:
    """Elements of each sample; 0 where the shape does not tell."""
    sizes = [size for size in shape[1:] if isinstance(size, int)]
    return math.prod(sizes) if shape and len(sizes) == len(shape) - 1 else 0


def _looks_across(graph: Graph) -> bool:
    for node in graph.nodes:
        op = find(node)
        if op is None or node.op_type in _ACROSS or node.attributes.get("training_mode"):
            return True
        if op.family in ("softmax", "normalisation") and node.attributes.get("axis") == 0:
            return True
    return False


def _per_sample(value: Any, n: int) -> bool:
    """Whether a target or labels are one for all, or have a row for each of n samples."""
    if isinstance(value, str):
        return value in ("predicted", "label")
    if not isinstance(value, int | np.integer | np.ndarray | Tensor | list | tuple | range):
        return False
    if isinstance(value, Tensor):
        shape, whole = tuple(value.shape), not (value.is_floating_point() or value.dtype == torch.bool)
    else:
        array = np.asarray(value)
        shape, whole = array.shape, array.dtype.kind in "iu"
    return shape == () or (shape[0] == n and (len(shape) > 1 or whole))


def part_of(value: Any, rows: slice, n: int) -> Any:
    """The rows of a target or of labels of n samples; itself where it is one for all."""
    shape = value.shape if isinstance(value, Tensor) else np.shape(value)
    return value if value is None or isinstance(value, str) or not shape else value[rows]


def most_at_once(
    plan: Plan, shapes: Shapes, inputs: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
) -> int:
    """How many samples have room: those whose activations, as far as the walk reads them, take a fixed amount."""
    sample = {name: tensor.shape[1:] for name, tensor in inputs.items()}
    each = dtype.itemsize * numbers_of_sample(shapes, plan.reads, sample)
    return max(1, _BYTES.get(device.type, _BYTES_ON_ACCELERATORS) // max(1, each))


def ranges(n: int, most: int) -> Iterator[slice]:
    """n samples in as few parts as hold `most` each, of almost equal size."""
    count = -(-n // most)
    for k in range(count):
        yield slice(n * k // count, n * (k + 1) // count)
