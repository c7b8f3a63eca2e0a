"""Linear operators on numbers rounded to bfloat16: products and sums by the kernels that a processor has for these.

A bfloat16 has the range of a float32 and 8 bits of precision, so that each factor and each result is off by 0.4 % at
most; the kernels add up in float32 (AMX and AVX-512 BF16 on CPUs, tensor cores on accelerators).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lrp_onnx.ops.made import MadeOnce
from lrp_onnx.ops.registry import Linear


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has such kernels; without, bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return device.type == "cpu" and supported is not None and bool(supported())


def narrowed(op: Linear) -> Linear:
    """The same operator on factors rounded to bfloat16, from float32 to float32.

    Means, and convolutions in groups or of other than two dimensions, stay as they are: rounded they are no faster.
    """
    if op.weight is None or (op.convolution and op.kernels is None):
        return op
    made = MadeOnce()

    def rounded(w: Tensor) -> Tensor:
        return made(w, w.bfloat16)

    def forward(x: Tensor, w: Any) -> Tensor:
        return op.forward(x.bfloat16(), rounded(w)).float()

    def transpose(s: Tensor, w: Any, shape: Sequence[int]) -> Tensor:
        return op.transpose(s.bfloat16(), rounded(w), shape).float()

    return replace(op, forward=forward, transpose=transpose, kernels=None)
