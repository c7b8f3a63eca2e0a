"""Fourier transforms, each linear in its signal; complex numbers are a last axis of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lrp_onnx.graph import Node
from lrp_onnx.ops.registry import Linear, means, op


def _builder(node: Node, constants: Mapping[int, Tensor], active: Sequence[int]) -> Linear | None:
    forward = {"DFT": fourier, "STFT": short_time_fourier}[node.op_type]
    if any(name and p not in constants for p, name in enumerate(node.inputs) if p):
        return None
    return means(partial(_with, forward, [constants.get(p) for p in range(1, len(node.inputs))]), **node.attributes)


def _with(forward: Any, extra: Sequence[Tensor | None], x: Tensor, **attributes: Any) -> Tensor:
    return forward(x, *extra, **attributes)


def _complex(x: Tensor) -> Tensor:
    """(…, 1 or 2) -> complex (…)"""
    return torch.complex(x[..., 0], x[..., 1] if x.shape[-1] == 2 else torch.zeros_like(x[..., 0]))


@op("DFT", family="mean", inputs=(0,), linear=_builder, numbers=(1, 2))
def fourier(
    x: Tensor,
    dft_length: Tensor | None = None,
    axis_input: Tensor | None = None,
    *,
    axis: int = -2,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    along = (axis if axis_input is None else int(axis_input)) % x.ndim
    size = None if dft_length is None else int(dft_length)
    if inverse and onesided:
        return torch.fft.irfft(_complex(x), size, along).unsqueeze(-1)
    z = (torch.fft.ifft if inverse else torch.fft.fft)(_complex(x), size, along)
    return torch.view_as_real(z.narrow(along, 0, z.shape[along] // 2 + 1) if onesided else z)


@op("STFT", family="mean", inputs=(0,), linear=_builder, numbers=(1, 3))
def short_time_fourier(
    signal: Tensor,
    frame_step: Tensor,
    window: Tensor | None = None,
    frame_length: Tensor | None = None,
    *,
    onesided: int = 1,
) -> Tensor:
    """(N, L, 1 or 2) -> (N, frames, frequencies, 2)"""
    size = int(frame_length) if frame_length is not None else len(window)  # type: ignore[arg-type]  # one is given
    frames = _complex(signal).unfold(1, size, int(frame_step))
    frames = frames if window is None else frames * window
    return torch.view_as_real(torch.fft.fft(frames)[..., : size // 2 + 1 if onesided else size])
