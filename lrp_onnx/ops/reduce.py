"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lrp_onnx.graph import Node
from lrp_onnx.ops.pooling import first_maximum
from lrp_onnx.ops.registry import Linear, ints, means, op

Axes = Tensor | Sequence[int] | None


def _dims(x: Tensor, axes: Axes, noop_with_empty_axes: int = 0) -> list[int]:
    dims = ints(axes)
    if dims:
        return [d % x.ndim for d in dims]
    return [] if noop_with_empty_axes else list(range(x.ndim))


def _mean_builder(node: Node, constants: Mapping[int, Tensor], active: Sequence[int]) -> Linear | None:
    forward = {"ReduceMean": reduce_mean, "ReduceSum": reduce_sum}[node.op_type]
    attributes: dict[str, Any] = dict(node.attributes)
    if node.input(1):
        if 1 not in constants:
            return None
        attributes["axes"] = constants[1]
    return means(forward, **attributes)


@op("ReduceMean", family="mean", inputs=(0,), linear=_mean_builder, numbers=(1,))
def reduce_mean(x: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    dims = _dims(x, axes, noop_with_empty_axes)
    return x.mean(dim=dims, keepdim=bool(keepdims)) if dims else x


@op("ReduceSum", family="mean", inputs=(0,), linear=_mean_builder, numbers=(1,))
def reduce_sum(x: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    dims = _dims(x, axes, noop_with_empty_axes)
    return x.sum(dim=dims, keepdim=bool(keepdims)) if dims else x


@op("ReduceMax", family="max", inputs=(0,), numbers=(1,))
def reduce_max(x: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    dims = _dims(x, axes, noop_with_empty_axes)
    if not x.is_floating_point():
        return x.amax(dim=dims, keepdim=bool(keepdims)) if dims else x
    return first_maximum(x, dims, keepdim=bool(keepdims))


@op("ReduceMin", family="max", inputs=(0,), numbers=(1,))
def reduce_min(x: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    dims = _dims(x, axes, noop_with_empty_axes)
    if not x.is_floating_point():
        return x.amin(dim=dims, keepdim=bool(keepdims)) if dims else x
    return -first_maximum(-x, dims, keepdim=bool(keepdims))


@op("ReduceProd", family="proportion", inputs=(0,), numbers=(1,))
def reduce_prod(x: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    for d in sorted(_dims(x, axes, noop_with_empty_axes), reverse=True):
        x = x.prod(dim=d, keepdim=bool(keepdims))
    return x


@op("ReduceL1", family="proportion", inputs=(0,), numbers=(1,))
def reduce_l1(x: Tensor, axes: Axes = None, **options: int) -> Tensor:
    return reduce_sum(x.abs(), axes, **options)


@op("ReduceL2", family="proportion", inputs=(0,), numbers=(1,))
def reduce_l2(x: Tensor, axes: Axes = None, **options: int) -> Tensor:
    return reduce_sum(x * x, axes, **options).sqrt()


@op("ReduceSumSquare", family="proportion", inputs=(0,), numbers=(1,))
def reduce_sum_square(x: Tensor, axes: Axes = None, **options: int) -> Tensor:
    return reduce_sum(x * x, axes, **options)


@op("ReduceLogSum", family="proportion", inputs=(0,), numbers=(1,))
def reduce_log_sum(x: Tensor, axes: Axes = None, **options: int) -> Tensor:
    return reduce_sum(x, axes, **options).log()


@op("ReduceLogSumExp", family="max", inputs=(0,), numbers=(1,))
def reduce_log_sum_exp(x: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    dims = _dims(x, axes, noop_with_empty_axes)
    return x.logsumexp(dim=dims, keepdim=bool(keepdims)) if dims else x


@op("CumSum", family="sum", inputs=(0,), numbers=(1,))
def cumulative_sum(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    along = int(axis)
    x = x.flip(along) if reverse else x
    total = x.cumsum(along, dtype=x.dtype)
    total = total - x if exclusive else total
    return total.flip(along) if reverse else total


@op("CumProd", family="proportion", inputs=(0,), numbers=(1,))
def cumulative_product(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    along = int(axis)
    x = x.flip(along) if reverse else x
    if exclusive:
        x = torch.cat([torch.ones_like(x.narrow(along, 0, 1)), x.narrow(along, 0, x.shape[along] - 1)], along)
    product = x.cumprod(along, dtype=x.dtype)
    return product.flip(along) if reverse else product


@op("Det", family="proportion")
def determinant(x: Tensor) -> Tensor:
    return torch.linalg.det(x)


@op("ArgMax", inputs=())
def argmax(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if not select_last_index:
        return torch.argmax(x, dim=axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - torch.argmax(x.flip(axis), dim=axis, keepdim=bool(keepdims))


@op("ArgMin", inputs=())
def argmin(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return argmax(-x, axis=axis, keepdims=keepdims, select_last_index=select_last_index)
