"""Ops that pick elements by index or by value: Gather, Scatter, TopK and kin."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from lrp_onnx.errors import UnsupportedOpError
from lrp_onnx.ops.activations import cast
from lrp_onnx.ops.registry import op

route = partial(op, family="route", inputs=(0,))


@route("Gather")
def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    index = indices.long().to(x.device)
    index = torch.where(index < 0, index + x.shape[axis], index)
    picked = x.index_select(axis, index.flatten())
    axis = axis % x.ndim
    return picked.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


@route("GatherElements")
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    index = indices.long().to(x.device)
    return x.gather(axis, torch.where(index < 0, index + x.shape[axis], index))


@route("GatherND")
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    index = indices.long().to(x.device)
    depth, batches = index.shape[-1], math.prod(x.shape[:batch_dims])
    batch = torch.arange(batches, device=x.device)[:, None]
    rows = index.reshape(batches, -1, depth).unbind(-1)
    picked = x.reshape(batches, *x.shape[batch_dims:])[(batch, *rows)]
    return picked.reshape([*index.shape[:-1], *x.shape[batch_dims + depth :]])


def _adds(reduction: str) -> bool:
    if reduction not in ("none", "add"):
        raise UnsupportedOpError(f"reduction '{reduction}' (none and add are supported)")
    return reduction == "add"


@op("ScatterElements", "Scatter", family="route", inputs=(0, 2))
def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    index = indices.long().to(x.device)
    index = torch.where(index < 0, index + x.shape[axis], index)
    return x.scatter_add(axis, index, updates) if _adds(reduction) else x.scatter(axis, index, updates)


@op("ScatterND", family="route", inputs=(0, 2))
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    return x.index_put(indices.long().to(x.device).unbind(-1), updates, accumulate=_adds(reduction))


@route("Compress")
def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    kept = condition.nonzero().flatten().to(x.device)
    return x.flatten().index_select(0, kept) if axis is None else x.index_select(axis, kept)


@route("Trilu")
def trilu(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    diagonal = 0 if k is None else int(k)
    return x.triu(diagonal) if upper else x.tril(diagonal)


@op("TopK", family="max", inputs=(0,))
def top_k(x: Tensor, k: Tensor, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    values, indices = x.sort(dim=axis, descending=bool(largest), stable=True)  # of equal elements the first comes first
    count = int(k)
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)


# ---- nothing flows through these


@op("OneHot", inputs=())
def one_hot(indices: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    index, count = indices.long(), int(depth)
    at = axis % (index.ndim + 1)
    classes = torch.arange(count, device=index.device).reshape([-1 if d == at else 1 for d in range(index.ndim + 1)])
    hit = torch.where(index < 0, index + count, index).unsqueeze(at) == classes
    off, on = values.unbind(0)
    return torch.where(hit, on, off)


@op("NonZero", inputs=())
def non_zero(x: Tensor) -> Tensor:
    return x.nonzero().T


@op("EyeLike", inputs=())
def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    ones = torch.ones_like(x).triu(k).tril(k)
    return ones if dtype is None else cast(ones, to=dtype)
