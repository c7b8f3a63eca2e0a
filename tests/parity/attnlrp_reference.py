"""AttnLRP by its published formulas, in plain torch autograd, independent of lrp_onnx: relevance is the gradient.

Achtibat et al. 2024 (arXiv:2402.05602): equation 8 (epsilon), propositions 3.1 (softmax), 3.2 (products: uniform), 3.3
(matrix products), 3.4 (normalisation), equation 9 (identity for activations); stabilised by + eps, as in LXT.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

EPS = 1e-12


class _Epsilon(Function):
    """R_i = x_i · (Jᵀ (R / (z + eps)))_i / share for a function that is linear (or affine) in every input."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], share: int, *inputs: Tensor) -> Tensor:
        ctx.function, ctx.share = function, share
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            z = ctx.function(*leaves)
        flows = torch.autograd.grad(z, leaves, relevance / (z.detach() + EPS) / ctx.share)
        return None, None, *(x.detach() * flow for x, flow in zip(leaves, flows, strict=True))


class _Softmax(Function):
    """R_i = x_i (R_i − s_i Σ R); what is masked (−inf) counts as 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        s = torch.softmax(x, dim=-1)
        ctx.save_for_backward(x, s)
        return s

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> Tensor:
        x, s = ctx.saved_tensors
        x = torch.where(torch.isneginf(x), torch.zeros_like(x), x)
        return x * (relevance - s * relevance.sum(-1, keepdim=True))


class _Identity(Function):
    """R as it is, through a function of one tensor."""

    @staticmethod
    def forward(ctx: Any, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return function(x)

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[None, Tensor]:
        return None, relevance


class _Product(Function):
    """R / 2 to either factor."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return a * b

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor, Tensor]:
        return relevance / 2, relevance / 2


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _Epsilon.apply(lambda x: torch.nn.functional.linear(x, weight, bias), 1, x)


def add(a: Tensor, b: Tensor) -> Tensor:
    return _Epsilon.apply(torch.add, 1, a, b)


def add_constant(x: Tensor, constant: Tensor) -> Tensor:
    return _Epsilon.apply(lambda x: x + constant, 1, x)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    return _Epsilon.apply(torch.matmul, 2, a, b)


def scale(x: Tensor, constant: Tensor | float) -> Tensor:
    return _Identity.apply(lambda x: x * constant, x)


def activation(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return _Identity.apply(function, x)


def softmax(x: Tensor) -> Tensor:
    return _Softmax.apply(x)


def product(a: Tensor, b: Tensor) -> Tensor:
    return _Product.apply(a, b)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """1 / std is held; what is left, the centring, the weight and the bias, goes through epsilon."""
    std = torch.sqrt(x.detach().var(dim=-1, keepdim=True, correction=0) + eps)
    return _Epsilon.apply(lambda x: (x - x.mean(dim=-1, keepdim=True)) / std * weight + bias, 1, x)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _Identity.apply(lambda x: weight * x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + eps), x)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot products of (batch, heads, tokens, width), with an additive mask."""
    scores = scale(matmul(q, k.transpose(-1, -2)), q.shape[-1] ** -0.5)
    return matmul(softmax(scores if mask is None else add_constant(scores, mask)), v)


def attention_to_values(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """The same with the weights held constant (CP-LRP, Ali et al. 2022): the values take all."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    weights = torch.softmax(scores if mask is None else scores + mask, dim=-1).detach()
    return _Epsilon.apply(lambda v: weights @ v, 1, v)


def heads(x: Tensor, count: int) -> Tensor:
    """(batch, tokens, width) as (batch, heads, tokens, width / heads)."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    """The reverse of `heads`."""
    return x.transpose(1, 2).flatten(2)
