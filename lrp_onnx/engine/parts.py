"""A large batch in parts: whether its samples are independent, and how many at a time memory is spent on."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrp_onnx.engine.explanation import Explanation
from lrp_onnx.engine.plan import Plan
from lrp_onnx.engine.shapes import Shapes, numbers_of_sample
from lrp_onnx.errors import LrpOnnxError
from lrp_onnx.graph import Graph
from lrp_onnx.ops import find

Explain = Callable[[Mapping[str, Tensor], Callable[[Tensor], Tensor]], Explanation]  # of a batch with a target

# Activations read, of the samples explained at a time: 8 of VGG-16, 18 of MobileNetV2; more are no faster on a CPU. Up
# to 8 samples may have more of them: matrix products, as of transformers, are faster for many rows (ViT: by 12 %).
_BYTES = {"cpu": 512 << 20}
_BYTES_ON_ACCELERATORS = 4 << 30
_FEW, _BYTES_OF_FEW = 8, 2 << 30

# ops that may look across the batch and still give a row for each sample
_ACROSS = {"DynamicQuantizeLinear", "CumSum", "CumProd", "ReverseSequence", "TopK", "Scan", "Loop", "If"}


class Independence:
    """Whether a model's samples can be explained one without the others."""

    def __init__(self, plan: Plan, shapes: Shapes) -> None:
        self._shapes = shapes
        self._batch = None if _looks_across(plan.graph) else _batch(plan.graph)
        self._rows_apart = self._batch is not None and _rows_apart(plan, self._batch)
        self._tried: bool | None = None

    def samples(self, inputs: Mapping[str, Tensor], target: Any, labels: Any) -> int:
        """How many samples a batch has that may go in parts, their target one for each or the same for all; else 1."""
        counts = {len(tensor) if tensor.ndim else 0 for tensor in inputs.values()}
        if self._batch is None or len(counts) != 1 or min(counts) < 2:
            return 1
        (n,) = counts
        return n if _per_sample(target, n) and (labels is None or _per_sample(labels, n)) else 1

    def holds(self, inputs: Mapping[str, Tensor], recorded: Collection[str], explain: Explain) -> bool:
        """Whether each sample of a batch that may go in parts can be explained without the others.

        That is known where the batch leads the shape of every tensor on the relevance path. Where it does not, as in
        transformers, whose attention has it between others, a try with `explain` tells, for batches that lead all
        `recorded` tensors.
        """
        if self._rows_apart:
            return True
        if not self._led_by_batch(recorded, inputs):
            return False
        if self._tried is None:
            try:
                self._tried = _apart_in_a_try(inputs, explain)
            except LrpOnnxError:  # it may not run with two samples, whatever its shapes say
                self._tried = False
        return self._tried

    def _led_by_batch(self, names: Collection[str], inputs: Mapping[str, Tensor]) -> bool:
        """Whether the tensors have as many rows as the batch, and another number where that has another."""
        n = len(next(iter(inputs.values())))
        for size in (n, n + 1):
            found = self._shapes({name: (size, *tensor.shape[1:]) for name, tensor in inputs.items()})
            if any(found.get(name, ())[:1] != (size,) for name in names):
                return False
        return True


def _apart_in_a_try(inputs: Mapping[str, Tensor], explain: Explain) -> bool:
    """Whether two samples have the output and the relevance together that each has alone."""
    for row in (0, 1):
        together = explain({name: tensor[:2] for name, tensor in inputs.items()}, partial(_only, row))
        alone = explain({name: tensor[row : row + 1] for name, tensor in inputs.items()}, partial(_only, 0))
        if not _alike(together.output[row : row + 1], alone.output) or len(together.output) != 2:
            return False
        for name, relevance in together.relevance.items():
            if bool(relevance[1 - row].any()) or not _alike(relevance[row : row + 1], alone.relevance[name], 1e-2):
                return False
    return True


def _alike(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether two tensors are equal but for rounding, of finite numbers."""
    if a.shape != b.shape or not a.isfinite().all():
        return False
    return float((a - b).norm()) <= tolerance * float(a.norm())


def _only(row: int, output: Tensor) -> Tensor:
    """The outputs of one row alone, as a target."""
    target = torch.zeros_like(output, dtype=torch.bool)
    target[row] = True
    return target


def _batch(graph: Graph) -> str | None:
    """The symbol that leads the shape of every input; None where there is none."""
    leading = {info.shape[0] if info.shape else None for info in graph.inputs.values()}
    (symbol,) = leading if len(leading) == 1 else {None}
    return symbol if isinstance(symbol, str) else None


def _rows_apart(plan: Plan, symbol: str) -> bool:
    """Whether the batch leads the shape of every tensor on the path, and occurs nowhere else in it."""
    graph, batch = plan.graph, set[int | str | None]([symbol])
    inputs = [info.shape or () for info in graph.inputs.values()]
    for step in plan.steps:  # exporters flatten to (-1, K), and shape inference has a new name for what -1 gives
        before, after = (graph.shapes.get(name) or () for name in (step.node.inputs[0], step.node.outputs[0]))
        if step.node.op_type == "Reshape" and before[:1] and before[0] in batch and _known(before) == _known(after) > 0:
            batch.add(after[0])
    shapes = inputs + [graph.shapes.get(name) or () for name in plan.tensors]
    return all(shape and shape[0] in batch and not batch.intersection(shape[1:]) for shape in shapes)


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
    each = max(1, dtype.itemsize * numbers_of_sample(shapes, plan.reads, sample))
    return max(1, _BYTES.get(device.type, _BYTES_ON_ACCELERATORS) // each, min(_FEW, _BYTES_OF_FEW // each))


def ranges(n: int, most: int) -> Iterator[slice]:
    """n samples in as few parts as hold `most` each, of almost equal size."""
    count = -(-n // most)
    for k in range(count):
        yield slice(n * k // count, n * (k + 1) // count)
