"""Elementwise activations, and ops that hand their input on unchanged."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lrp_onnx.ops.registry import op

activation = partial(op, family="activation", inputs=(0,))
identity = partial(op, family="identity", inputs=(0,))

activation("Relu")(torch.relu)
activation("Sigmoid")(torch.sigmoid)
activation("Tanh")(torch.tanh)
activation("Erf")(torch.erf)
activation("Softsign")(F.softsign)
activation("HardSwish")(F.hardswish)
activation("Mish")(F.mish)


@activation("Softplus")
def softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))  # F.softplus is linear beyond a threshold


@activation("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return torch.where(x >= 0, x, alpha * x)


@activation("PRelu")
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x >= 0, x, slope * x)


@activation("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


@activation("Celu")
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


@activation("Selu")
def selu(x: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> Tensor:
    return gamma * F.elu(x, alpha)


@activation("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return torch.where(x > alpha, x, torch.zeros_like(x))


@activation("Shrink")
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    return torch.where(x > lambd, x - bias, torch.where(x < -lambd, x + bias, torch.zeros_like(x)))


@activation("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


@activation("Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


@activation("Swish")
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return x * torch.sigmoid(alpha * x)


op("Swish", domain="lrp_onnx", family="activation", inputs=(0,))(swish)


@activation("Clip")
def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None, **bounds: float) -> Tensor:
    lowest = bounds.get("min") if low is None else low.to(x)
    highest = bounds.get("max") if high is None else high.to(x)
    return x if lowest is None and highest is None else torch.clamp(x, lowest, highest)  # type: ignore[arg-type]


@identity("Identity")
def same(x: Tensor) -> Tensor:
    return x


@identity("Dropout")
def dropout(x: Tensor, *_: Tensor | None, **__: object) -> tuple[Tensor, Tensor]:
    return x, torch.ones((), dtype=torch.bool, device=x.device).expand(x.shape)  # at inference the mask keeps all


_FLOATS = {1: torch.float32, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}
INTEGERS = {  # and bool
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    12: torch.uint32,
    13: torch.uint64,
}


@op("Cast", family="identity", inputs=lambda node: (0,) if node.attributes.get("to") in _FLOATS else ())
def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    if to in _FLOATS:  # floats stay in the precision of the run: float64 parity must not drop to float32 inside
        return x if x.is_floating_point() else x.to(torch.get_default_dtype())
    return x.to(INTEGERS[to])


@op("CastLike", family="identity", inputs=(0,))
def cast_like(x: Tensor, like: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return x if x.is_floating_point() and like.is_floating_point() else x.to(like.dtype)
