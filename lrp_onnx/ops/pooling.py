"""Pooling over windows and over everything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrp_onnx.errors import UnsupportedOpError
from lrp_onnx.graph import Node
from lrp_onnx.ops.registry import Linear, means, op, resolve_pads, torch_pads

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _window(
    x: Tensor,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
    ceil_mode: int,
) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Strides, dilations, padding before and after, and the further end padding that ceil_mode reads."""
    n = len(kernel_shape)
    if n not in _MAX:
        raise UnsupportedOpError(f"pooling over {n} spatial axes (1 to 3 are supported)")
    steps, gaps = list(strides or [1] * n), list(dilations or [1] * n)
    before, after = resolve_pads(x.shape[2:], kernel_shape, steps, gaps, pads, auto_pad)
    beyond = [0] * n
    if ceil_mode and not auto_pad.startswith("SAME"):
        for a in range(n):
            size, extent = x.shape[2 + a], (kernel_shape[a] - 1) * gaps[a] + 1
            count = math.ceil((size + before[a] + after[a] - extent) / steps[a]) + 1
            if (count - 1) * steps[a] >= size + before[a]:  # a window must not begin in the padding at the end
                count -= 1
            beyond[a] = max((count - 1) * steps[a] + extent - (size + before[a] + after[a]), 0)
    return steps, gaps, before, after, beyond


@op("MaxPool", family="max", counts_outputs=True)
def max_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    storage_order: int = 0,
    outputs: int = 1,
) -> Tensor | tuple[Tensor, Tensor]:
    size = x.shape
    steps, gaps, before, after, beyond = _window(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    native = before == after and not any(beyond) and all(2 * p <= k for p, k in zip(before, kernel_shape, strict=True))
    if not native:
        end = [a + b for a, b in zip(after, beyond, strict=True)]
        x = F.pad(x, torch_pads(before, end), value=-math.inf)
    window = tuple(kernel_shape), tuple(steps), tuple(before) if native else 0, tuple(gaps)
    if outputs == 1:
        return _MAX[len(kernel_shape)](x, *window)
    best, index = _MAX[len(kernel_shape)](x, *window, return_indices=True)
    at = torch.unravel_index(index, x.shape[2:])
    at = at if native else tuple(a - b for a, b in zip(at, before, strict=True))
    return best, _plane_offset(size, x.device) + _ravel(at, size[2:], column_major=bool(storage_order))


def _plane_offset(size: Sequence[int], device: torch.device) -> Tensor:
    """Flat index of the first element of each (sample, channel): (N, C, 1, …)."""
    planes = torch.arange(size[0] * size[1], device=device) * math.prod(size[2:])
    return planes.reshape(size[0], size[1], *[1] * (len(size) - 2))


def _ravel(at: Sequence[Tensor], size: Sequence[int], *, column_major: bool = False) -> Tensor:
    axes = list(zip(at, size, strict=True))
    index = torch.zeros_like(at[0])
    for a, s in reversed(axes) if column_major else axes:
        index = index * s + a
    return index


@op("MaxUnpool", family="route", inputs=(0,))
def max_unpool(
    x: Tensor,
    indices: Tensor,
    output_shape: Tensor | None = None,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
) -> Tensor:
    n = len(kernel_shape)
    edges = list(pads or [0] * 2 * n)
    steps = list(strides or [1] * n)
    size = [*x.shape[:2]]  # of the tensor that the indices are for
    size += [(x.shape[2 + a] - 1) * steps[a] + kernel_shape[a] - edges[a] - edges[a + n] for a in range(n)]
    z = x.new_zeros(size if output_shape is None else output_shape.tolist())
    return z.index_put(torch.unravel_index(indices.to(x.device), size), x)


def _box(x: Tensor, kernel: Sequence[int], steps: Sequence[int], gaps: Sequence[int]) -> Tensor:
    """Mean over windows of a tensor that is padded already."""
    if all(g == 1 for g in gaps):
        return _AVERAGE[len(kernel)](x, tuple(kernel), tuple(steps))
    weight = x.new_full((x.shape[1], 1, *kernel), 1 / math.prod(kernel))
    return _CONV[len(kernel)](x, weight, None, tuple(steps), 0, tuple(gaps), x.shape[1])


def _pool_builder(node: Node, constants: Mapping[int, Tensor], active: Sequence[int]) -> Linear:
    given = node.attributes
    if {*given["kernel_shape"], *given.get("strides", ())} == {1} and not any(given.get("pads", ())):
        return Linear(lambda x, _: x, lambda s, *_: s, weight=None)  # windows of one, as VGG's at its usual size
    return means(average_pool, **given)


@op("AveragePool", family="mean", linear=_pool_builder)
def average_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
) -> Tensor:
    steps, gaps, before, after, beyond = _window(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    if not any((*before, *after, *beyond)):
        return _box(x, kernel_shape, steps, gaps)
    end = [a + b for a, b in zip(after, beyond, strict=True)]
    total = _box(F.pad(x, torch_pads(before, end)), kernel_shape, steps, gaps)
    # the divisor of each window: how many of its taps count; those that only ceil_mode reads never do
    ones = x.new_ones((1, 1, *x.shape[2:]))
    ones = F.pad(ones, torch_pads(before, after), value=1.0 if count_include_pad else 0.0)
    return total / _box(F.pad(ones, torch_pads([0] * len(end), beyond)), kernel_shape, steps, gaps)


def _global_builder(node: Node, constants: Mapping[int, Tensor], active: Sequence[int]) -> Linear:
    def transpose(s: Tensor, _: Any, shape: Sequence[int]) -> Tensor:
        return (s / math.prod(shape[2:])).expand(tuple(shape))

    return Linear(lambda x, _: global_average_pool(x), transpose, weight=None)


@op("LpPool", family="proportion")
def lp_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    p: int = 2,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
) -> Tensor:
    steps, gaps, before, after, beyond = _window(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    end = [a + b for a, b in zip(after, beyond, strict=True)]
    powers = F.pad(x.abs() ** p, torch_pads(before, end))
    return (_box(powers, kernel_shape, steps, gaps) * math.prod(kernel_shape)) ** (1 / p)


@op("GlobalLpPool", family="proportion")
def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    return torch.linalg.vector_norm(x, ord=p, dim=tuple(range(2, x.ndim)), keepdim=True)


@op("GlobalAveragePool", family="mean", linear=_global_builder)
def global_average_pool(x: Tensor) -> Tensor:
    return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


def first_maximum(x: Tensor, dims: Sequence[int], *, keepdim: bool) -> Tensor:
    """Maximum over axes; a gradient goes to the first of equal elements alone (amax would share it)."""
    dims = sorted(d % x.ndim for d in dims)
    kept = [d for d in range(x.ndim) if d not in dims]
    flat = x.permute(*kept, *dims).flatten(len(kept)) if dims else x.unsqueeze(-1)
    index = flat.detach().argmax(dim=-1, keepdim=True)
    best = flat.gather(-1, index).squeeze(-1)
    return best.reshape([1 if d in dims else x.shape[d] for d in range(x.ndim)]) if keepdim else best


@op("GlobalMaxPool", family="max")
def global_max_pool(x: Tensor) -> Tensor:
    return first_maximum(x, range(2, x.ndim), keepdim=True)
