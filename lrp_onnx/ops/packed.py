"""2-D convolutions on the CPU with weights packed once, in the order that the kernels read.

What a packed weight gives is what the plain one gives: the same kernels run, without the copy before every call (but
for `times` with `tiles`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lrp_onnx.ops import winograd
from lrp_onnx.ops.made import MadeOnce

_LAST = torch.channels_last


def _pointwise() -> Any:
    return torch.ops.mkldnn._convolution_pointwise


def _available() -> bool:
    """Whether this torch has the kernels; they are private, so that another version may lack them."""
    kernels = hasattr(torch.ops.mkldnn, "_convolution_pointwise") and hasattr(_pointwise(), "binary")
    return kernels and hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight") and torch.backends.mkldnn.is_available()


AVAILABLE = _available()


class PackedConvolution:
    """A 2-D convolution without groups or bias, for as many weights as it is called with.

    Parameters
    ----------
    strides, pads, dilations : sequence of int
        For each spatial axis; `pads` on both sides of it.
    flipped : bool
        Convolve with the kernel turned around and its channels exchanged, which is the adjoint of a convolution of
        stride 1.
    """

    def __init__(
        self, strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int], *, flipped: bool = False
    ) -> None:
        self._geometry = list(pads), list(strides), list(dilations), 1
        self._flipped = flipped
        self._plain = max(*strides, *dilations) == 1
        self._packs, self._matrices = MadeOnce(), MadeOnce()  # packed weights, and those of `winograd`

    @staticmethod
    def fits(x: Tensor, w: Tensor) -> bool:
        """Whether the kernels for packed weights can take x (N, C, H, W) as it is in memory."""
        return (
            AVAILABLE
            and x.ndim == 4
            and x.dtype == w.dtype
            and x.dtype in (torch.float32, torch.bfloat16)
            and x.device.type == w.device.type == "cpu"
            and x.numel() > 0
            and not (x.requires_grad or w.requires_grad)  # these kernels have no gradient
            and not w.is_inference()  # which have no version to tell by whether they were written to
            and x.is_contiguous(memory_format=_LAST)
        )

    def __call__(
        self, x: Tensor, w: Tensor, *, offset: Tensor | float | None = None, low: float | None = None
    ) -> Tensor:
        """x (N, A, H, W) and w (B, A, h, w), if flipped (A, B, h, w) -> (N, B, H, W), a new tensor, channels last.

        `offset`, one or (1, B, 1, 1), is added, and what is below `low` becomes `low`, in the same pass.
        """
        channels = w.shape[1 if self._flipped else 0]
        bias = None
        if offset is not None:  # the kernel reads one number a channel, whatever the strides are
            bias = torch.as_tensor(offset, dtype=x.dtype).expand(1, channels, 1, 1).flatten().contiguous()
        clamp = ("none", []) if low is None else ("hardtanh", [low, math.inf])
        return _pointwise().default(x, self._packed(x, w), bias, *self._geometry, *clamp, "")

    def times(self, x: Tensor, w: Tensor, factor: Tensor, *, tiles: bool = False) -> Tensor:
        """The convolution of x and w ⊙ factor (N, B, H, W), in one pass; `tiles`: by `winograd` where it is faster."""
        if tiles and self._plain and winograd.pays(x, w, self._geometry[0]):
            matrices = self._matrices(w, lambda: winograd.transformed(self._kernel(w)))
            return winograd.convolve(x, matrices, self._geometry[0], factor)
        return _pointwise().binary(x, factor, self._packed(x, w), None, *self._geometry, "mul", None, None, [], None)

    def _kernel(self, w: Tensor) -> Tensor:
        return w.flip(2, 3).transpose(0, 1) if self._flipped else w

    def _packed(self, x: Tensor, w: Tensor) -> Tensor:
        def make() -> Tensor:
            plain = self._kernel(w).contiguous(memory_format=_LAST).to_mkldnn()
            pack = torch._C._nn.mkldnn_reorder_conv2d_weight
            return pack(plain, *self._geometry, list(x.shape))  # type: ignore[call-arg]  # torch's stub lacks a size

        # the kernel, and with it the order of the weights, is chosen by the size of the picture, not of the batch
        return self._packs(w, make, x.shape[2:])
