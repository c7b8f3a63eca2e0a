"""Ops that pick elements by index or by value: Gather, Scatter, TopK and kin."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from lrp_onnx.errors import UnsupportedOpError
from lrp_onnx.graph import Node
from lrp_onnx.ops.activations import cast
from lrp_onnx.ops.registry import Family, moved, op

route = partial(op, family="route", inputs=(0,))


@route("Gather")
def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    axis = axis % x.ndim
    if indices.is_cpu and indices.numel() == 1:  # a view, where `index_select` copies, and its adjoint adds up
        picked = x[(slice(None),) * axis + (int(indices),)]
        return picked.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])
    index = moved(indices.long(), x.device)
    index = torch.where(index < 0, index + x.shape[axis], index)
    picked = x.index_select(axis, index.flatten())
    return picked.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


@route("GatherElements")
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    index = moved(indices.long(), x.device)
    return x.gather(axis, torch.where(index < 0, index + x.shape[axis], index))


@route("GatherND")
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    index = moved(indices.long(), x.device)
    depth, batches = index.shape[-1], math.prod(x.shape[:batch_dims])
    batch = torch.arange(batches, device=x.device)[:, None]
    rows = index.reshape(batches, -1, depth).unbind(-1)
    picked = x.reshape(batches, *x.shape[batch_dims:])[(batch, *rows)]
    return picked.reshape([*index.shape[:-1], *x.shape[batch_dims + depth :]])


def _scatter_family(node: Node) -> Family:
    kinds: dict[str, Family] = {"none": "route", "add": "sum", "mul": "proportion", "max": "max", "min": "max"}
    return kinds.get(node.attributes.get("reduction", "none"), "other")


scatter = partial(op, family="route", family_of=_scatter_family)
_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scattered(x: Tensor, axis: int, index: Tensor, updates: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return x.scatter(axis, index, updates)
    if reduction not in _REDUCTIONS:
        raise UnsupportedOpError(f"reduction '{reduction}' is not known")
    return x.scatter_reduce(axis, index, updates, _REDUCTIONS[reduction])


@scatter("ScatterElements", "Scatter", inputs=(0, 2))
def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    index = moved(indices.long(), x.device)
    return _scattered(x, axis, torch.where(index < 0, index + x.shape[axis], index), updates, reduction)


@scatter("ScatterND", inputs=(0, 2))
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    *rows, depth = indices.shape
    index = torch.zeros(rows, dtype=torch.long, device=x.device)  # of the slice that each update goes to
    for size, part in zip(x.shape, moved(indices.long(), x.device).unbind(-1), strict=False):
        index = index * size + torch.where(part < 0, part + size, part)
    rest = math.prod(x.shape[depth:])
    flat, new = x.reshape(-1, rest), updates.reshape(-1, rest)
    return _scattered(flat, 0, index.reshape(-1, 1).expand(-1, rest), new, reduction).reshape(x.shape)


@op("TensorScatter", family="route", inputs=(0, 1))
def tensor_scatter(
    past: Tensor, update: Tensor, write_indices: Tensor | None = None, *, axis: int = -2, mode: str = "linear"
) -> Tensor:
    along = axis % past.ndim
    count, size = update.shape[along], past.shape[along]
    first = torch.zeros(len(past), dtype=torch.long) if write_indices is None else write_indices.long()
    index = moved(first, past.device)[:, None] + torch.arange(count, device=past.device)  # (N, count)
    index = index % size if mode == "circular" else index
    shape = [len(past) if d == 0 else count if d == along else 1 for d in range(past.ndim)]
    return past.scatter(along, index.reshape(shape).expand(update.shape), update)


@route("ReverseSequence")
def reverse_sequence(x: Tensor, sequence_lens: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    time = torch.arange(x.shape[time_axis], device=x.device)
    lengths = moved(sequence_lens.long(), x.device)[:, None]
    index = torch.where(time < lengths, lengths - 1 - time, time)  # (N, T)
    index = index if batch_axis < time_axis else index.T
    shape = [s if d in (batch_axis, time_axis) else 1 for d, s in enumerate(x.shape)]
    return x.gather(time_axis, index.reshape(shape).expand(x.shape))


@route("Compress", numbers=(1,))
def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    kept = moved(condition.nonzero().flatten(), x.device)
    return x.flatten().index_select(0, kept) if axis is None else x.index_select(axis, kept)


@route("Trilu", numbers=(1,))
def trilu(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    diagonal = 0 if k is None else int(k)
    return x.triu(diagonal) if upper else x.tril(diagonal)


@op("TopK", family="max", inputs=(0,), numbers=(1,))
def top_k(x: Tensor, k: Tensor, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    values, indices = x.sort(dim=axis, descending=bool(largest), stable=True)  # of equal elements the first comes first
    count = int(k)
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)


# ---- nothing flows through these


@op("OneHot", inputs=(), numbers=(1,))
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


@op("Unique", inputs=())
def unique(x: Tensor, *, axis: int | None = None, sorted: int = 1) -> tuple[Tensor, ...]:
    """Values, where each is first, which of the values each element is, and how often each is there."""
    x = x.flatten() if axis is None else x
    along = axis or 0
    values, inverse, counts = torch.unique(x, dim=along, return_inverse=True, return_counts=True)
    first = torch.full_like(counts, len(inverse)).scatter_reduce(
        0, inverse, torch.arange(len(inverse), device=x.device), "amin"
    )
    if not sorted:  # in order of appearance
        order = first.argsort()
        values, first, counts = values.index_select(along, order), first[order], counts[order]
        inverse = order.argsort()[inverse]
    return values, first, inverse, counts


@op("EyeLike", inputs=())
def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    ones = torch.ones_like(x).triu(k).tril(k)
    return ones if dtype is None else cast(ones, to=dtype)
