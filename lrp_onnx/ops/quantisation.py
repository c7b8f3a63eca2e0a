"""Rounding to integers and back, as quantised models have it around every layer; relevance passes through both."""

from __future__ import annotations

import torch
from torch import Tensor

from lrp_onnx.errors import UnsupportedOpError
from lrp_onnx.ops.activations import INTEGERS, activation


def _along(value: Tensor, x: Tensor, axis: int, block_size: int) -> Tensor:
    """One value for all, or one for each index along `axis`, ready to broadcast against x."""
    if block_size:
        raise UnsupportedOpError(f"quantisation in blocks of {block_size} (per tensor and per axis are supported)")
    return (
        value.reshape([-1 if d == axis % x.ndim else 1 for d in range(x.ndim)])
        if value.numel() > 1
        else value.squeeze()
    )


@activation("QuantizeLinear")
def quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    dtype = zero_point.dtype if zero_point is not None else INTEGERS.get(output_dtype, torch.uint8)
    levels = torch.round(x / _along(scale, x, axis, block_size))
    if zero_point is not None:
        levels = levels + _along(zero_point, x, axis, block_size).to(levels)
    limits = torch.iinfo(dtype)
    return levels.clamp(limits.min, limits.max).to(dtype)


@activation("DequantizeLinear")
def dequantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    levels = x.to(scale)
    if zero_point is not None:
        levels = levels - _along(zero_point, x, axis, block_size).to(scale)
    return levels * _along(scale, x, axis, block_size)


@activation("DynamicQuantizeLinear")
def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Levels, scale and zero point of eight bits that hold the range of x and zero."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / 255
    zero_point = torch.where(scale > 0, torch.round(-low / scale), 0.0).clamp(0, 255).to(torch.uint8)
    safe = torch.where(scale > 0, scale, 1.0)
    return quantize_linear(x, safe, zero_point), scale, zero_point
