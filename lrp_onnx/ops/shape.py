"""Ops that move elements, and the shape arithmetic that exporters leave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrp_onnx.ops.registry import ints, op, torch_pads, unbroadcast

route = partial(op, family="route", inputs=(0,))

Ints = Tensor | Sequence[int] | None


def _reshaped(r: Tensor, shapes: Sequence[Sequence[int]], **_: Any) -> list[Tensor]:
    return [r.reshape(tuple(shapes[0]))]


@route("Reshape", adjoint=_reshaped, numbers=(1,))
def reshape(x: Tensor, shape: Ints = None, *, allowzero: int = 0) -> Tensor:
    sizes = ints(shape) or []
    return x.reshape([x.shape[i] if s == 0 and not allowzero else s for i, s in enumerate(sizes)])


@route("Flatten", adjoint=_reshaped)
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@route("Squeeze", adjoint=_reshaped, numbers=(1,))
def squeeze(x: Tensor, axes: Ints = None) -> Tensor:
    dims = ints(axes)
    drop = [d for d in range(x.ndim) if x.shape[d] == 1] if dims is None else [d % x.ndim for d in dims]
    return x.reshape([s for d, s in enumerate(x.shape) if d not in drop])


@route("Unsqueeze", adjoint=_reshaped, numbers=(1,))
def unsqueeze(x: Tensor, axes: Ints = None) -> Tensor:
    dims = ints(axes) or []
    ndim = x.ndim + len(dims)
    at = {d % ndim for d in dims}
    sizes = iter(x.shape)
    return x.reshape([1 if d in at else next(sizes) for d in range(ndim)])


def _transposed(r: Tensor, shapes: Sequence[Sequence[int]], *, perm: Sequence[int] | None = None) -> list[Tensor]:
    order = list(perm) if perm else list(reversed(range(r.ndim)))
    return [r.permute([order.index(d) for d in range(r.ndim)])]


@route("Transpose", adjoint=_transposed)
def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(tuple(perm) if perm else tuple(reversed(range(x.ndim))))


@op(
    "Concat",
    family="route",
    adjoint=lambda r, shapes, axis: list(r.split([shape[axis] for shape in shapes], dim=axis)),
)
def concat(*parts: Tensor, axis: int) -> Tensor:
    return torch.cat(parts, dim=axis)


@route("Split", counts_outputs=True, numbers=(1,))
def split(
    x: Tensor, split: Ints = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int = 1
) -> tuple[Tensor, ...]:
    sizes = ints(split)
    if sizes is None:
        parts = num_outputs or outputs
        chunk = math.ceil(x.shape[axis] / parts)
        sizes = [chunk] * (parts - 1) + [x.shape[axis] - chunk * (parts - 1)]
    return torch.split(x, sizes, dim=axis)


@route("Slice", numbers=(1, 2, 3, 4))
def slice_(x: Tensor, starts: Ints = None, ends: Ints = None, axes: Ints = None, steps: Ints = None) -> Tensor:
    first, last = ints(starts) or [], ints(ends) or []
    dims, stride = ints(axes) or list(range(len(first))), ints(steps) or [1] * len(first)
    for d, start, end, step in zip(dims, first, last, stride, strict=True):
        index = range(x.shape[d])[slice(start, _end(end, step, x.shape[d]), step)]
        if step > 0:
            x = x[(slice(None),) * (d % x.ndim) + (slice(index.start, index.stop, step),)]
        else:
            x = x.index_select(d, index.start + step * torch.arange(len(index), device=x.device))
    return x


def _end(end: int, step: int, size: int) -> int | None:
    """ONNX counts a very negative end of a backward slice as "before the first element"."""
    return None if step < 0 and end < -size else end


@route("Pad", numbers=(1, 2, 3))
def pad(
    x: Tensor,
    pads: Ints = None,
    value: Tensor | float | None = None,
    axes: Ints = None,
    *,
    mode: str = "constant",
) -> Tensor:
    amounts = ints(pads) or []
    n = len(amounts) // 2
    dims = [d % x.ndim for d in ints(axes) or range(n)]
    before, after = [0] * x.ndim, [0] * x.ndim
    for k, d in enumerate(dims):
        before[d], after[d] = amounts[k], amounts[k + n]
    if mode == "constant":
        fill = 0.0 if value is None else float(value)
        return F.pad(x, torch_pads(before, after), value=fill)
    for d in dims:
        at = torch.arange(-before[d], x.shape[d] + after[d], device=x.device)
        last = x.shape[d] - 1
        if mode == "edge":
            at = at.clamp(0, last)
        elif mode == "wrap":
            at = at % x.shape[d]
        else:  # reflect: a triangle wave of period 2 · last
            at = last - (at % (2 * last) - last).abs() if last else torch.zeros_like(at)
        x = x.index_select(d, at)
    return x


def _expanded(r: Tensor, shapes: Sequence[Sequence[int]], **_: Any) -> list[Tensor]:
    return [unbroadcast(r, shapes[0])]


@route("Expand", adjoint=_expanded, numbers=(1,))
def expand(x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(tuple(x.shape), tuple(ints(shape) or ())))


@route("Tile", numbers=(1,))
def tile(x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(tuple(ints(repeats) or ()))


@route("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    b = blocksize
    if mode == "CRD":
        return F.pixel_shuffle(x, b)
    return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


@route("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    b = blocksize
    if mode == "CRD":
        return F.pixel_unshuffle(x, b)
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


# ---- shape arithmetic: nothing flows through it


@op("Shape", inputs=())
def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


@op("Size", inputs=())
def size(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


@op("ConstantOfShape", inputs=(), numbers=(0,))
def constant_of_shape(shape: Tensor, *, value: Any = None) -> Tensor:
    fill = torch.zeros(1) if value is None else torch.as_tensor(value)
    return fill.reshape(()).expand(tuple(ints(shape) or ())).clone()


@op("Range", inputs=(), numbers=(0, 1, 2))
def range_(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


@op("Constant", inputs=())
def constant(**attributes: Any) -> Tensor:
    (value,) = attributes.values()
    return torch.as_tensor(value)
