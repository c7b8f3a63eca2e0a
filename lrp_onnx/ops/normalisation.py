"""Normalisations and Softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lrp_onnx.errors import UnsupportedOpError
from lrp_onnx.ops.registry import op


def _column(v: Tensor, x: Tensor) -> Tensor:
    return v.reshape(1, -1, *[1] * (x.ndim - 2))


@op("BatchNormalization", family="identity", inputs=(0,))
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    spatial: int = 1,
) -> Tensor:
    if training_mode:
        raise UnsupportedOpError("BatchNormalization in training mode: export the model for inference")
    factor = scale / torch.sqrt(variance + epsilon)
    return x * _column(factor, x) + _column(bias - mean * factor, x)


@op("LRN", family="identity")
def lrn(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    squares = torch.nn.functional.pad((x * x).flatten(2), (0, 0, before, after))
    total = squares.unfold(1, size, 1).sum(-1).reshape(x.shape)
    return x / (bias + alpha / size * total) ** beta


def _scale(x: Tensor, dims: Sequence[int], epsilon: float, hold_scale: bool, centred: bool) -> Tensor:
    """1/std of x over dims; constant for differentiation where `hold_scale`, as LRP wants it."""
    source, dims = x.detach() if hold_scale else x, list(dims)
    if centred:
        source = source - source.mean(dim=dims, keepdim=True)
    return torch.rsqrt((source * source).mean(dim=dims, keepdim=True) + epsilon)


def _layer_held(
    g: Tensor, x: Tensor, scale: Tensor | None = None, *_: Tensor, axis: int = -1, epsilon: float = 1e-5, **__: int
) -> Tensor:
    normalised = x.shape[axis % x.ndim :]
    reciprocal = torch.native_layer_norm(x, normalised, None, None, epsilon)[2]  # of std
    flow = g * reciprocal if scale is None else (g * scale).mul_(reciprocal)
    return flow.sub_(flow.mean(dim=list(range(-len(normalised), 0)), keepdim=True))


@op("LayerNormalization", family="normalisation", inputs=(0,), held=_layer_held)
def layer_normalization(
    x: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    hold_scale: bool = False,
) -> Tensor:
    dims = list(range(axis % x.ndim, x.ndim))
    z = (x - x.mean(dim=dims, keepdim=True)) * _scale(x, dims, epsilon, hold_scale, centred=True)
    z = z if scale is None else z * scale
    return z if bias is None else z + bias


def _rms_held(
    g: Tensor, x: Tensor, scale: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, **_: int
) -> Tensor:
    flow = g * _scale(x, list(range(axis % x.ndim, x.ndim)), epsilon, hold_scale=True, centred=False)
    return flow if scale is None else flow.mul_(scale)


@op("RMSNormalization", family="normalisation", inputs=(0,), held=_rms_held)
def rms_normalization(
    x: Tensor,
    scale: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    hold_scale: bool = False,
) -> Tensor:
    z = x * _scale(x, list(range(axis % x.ndim, x.ndim)), epsilon, hold_scale, centred=False)
    return z if scale is None else z * scale


op("RMSNormalization", domain="lrp_onnx", family="normalisation", inputs=(0,), held=_rms_held)(rms_normalization)


@op("InstanceNormalization", family="normalisation", inputs=(0,))
def instance_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5, hold_scale: bool = False
) -> Tensor:
    dims = list(range(2, x.ndim))
    z = (x - x.mean(dim=dims, keepdim=True)) * _scale(x, dims, epsilon, hold_scale, centred=True)
    return z * _column(scale, x) + _column(bias, x)


@op("GroupNormalization", family="normalisation", inputs=(0,))
def group_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    hold_scale: bool = False,
) -> Tensor:
    grouped = x.reshape(x.shape[0], num_groups, -1)
    z = (grouped - grouped.mean(dim=2, keepdim=True)) * _scale(grouped, [2], epsilon, hold_scale, centred=True)
    per_channel = math.prod(scale.shape) == x.shape[1]  # one value a group up to opset 20, a channel from 21
    scale, bias = (v if per_channel else v.repeat_interleave(x.shape[1] // num_groups) for v in (scale, bias))
    return z.reshape(x.shape) * _column(scale, x) + _column(bias, x)


@op("MeanVarianceNormalization", family="normalisation", inputs=(0,))
def mean_variance_normalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3), hold_scale: bool = False) -> Tensor:
    return (x - x.mean(dim=list(axes), keepdim=True)) * _scale(x, axes, 1e-18, hold_scale, centred=True)


@op("LpNormalization", family="normalisation", inputs=(0,))
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2, hold_scale: bool = False) -> Tensor:
    norm = torch.linalg.vector_norm(x.detach() if hold_scale else x, ord=p, dim=axis, keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


@op("Softmax", family="softmax")
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.softmax(x, dim=axis)


@op("Hardmax", inputs=())
def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(dim=axis, keepdim=True), 1.0)


@op("LogSoftmax", family="activation")
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.log_softmax(x, dim=axis)
