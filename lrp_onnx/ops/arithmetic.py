"""Sums, products, elementwise functions, comparisons and maxima of several inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce

import torch
from torch import Tensor

from lrp_onnx.ops.registry import op, unbroadcast


def _sum_adjoint(r: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    return [unbroadcast(r, shape) for shape in shapes]


@op("Add", "Sum", family="sum", adjoint=_sum_adjoint)
def add(*terms: Tensor) -> Tensor:
    return reduce(torch.add, terms)


@op("Sub", family="sum", adjoint=lambda r, shapes: [unbroadcast(r, shapes[0]), unbroadcast(-r, shapes[1])])
def sub(a: Tensor, b: Tensor) -> Tensor:
    return a - b


@op("Mean", family="sum", adjoint=lambda r, shapes: [unbroadcast(r / len(shapes), s) for s in shapes])
def mean(*terms: Tensor) -> Tensor:
    return reduce(torch.add, terms) / len(terms)


@op("Mul", family="product")
def mul(a: Tensor, b: Tensor) -> Tensor:
    return a * b


@op("Div", family="quotient", detached=(1,))
def div(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point() or b.is_floating_point():
        return a / b
    return torch.div(a, b, rounding_mode="trunc")  # ONNX divides integers as C does


def _first_wins(better: Callable[[Tensor, Tensor], Tensor], *terms: Tensor) -> Tensor:
    # torch.maximum would split the gradient of a tie
    return reduce(lambda best, new: torch.where(better(new, best), new, best), terms)


op("Max", family="max")(partial(_first_wins, torch.gt))
op("Min", family="max")(partial(_first_wins, torch.lt))


@op("Pow", family="activation", detached=(1,))
def power(x: Tensor, exponent: Tensor) -> Tensor:
    return torch.pow(x, exponent.to(x) if x.is_floating_point() else exponent).to(x.dtype)


@op("Mod", inputs=(0,))
def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@op("Neg", family="sum", adjoint=lambda r, _: [-r])
def negative(x: Tensor) -> Tensor:
    return -x


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tan": torch.tan,
    "Asin": torch.asin,
    "Acos": torch.acos,
    "Atan": torch.atan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Asinh": torch.asinh,
    "Acosh": torch.acosh,
    "Atanh": torch.atanh,
}
for _name, _function in _FUNCTIONS.items():
    op(_name, family="activation", inputs=(0,))(_function)

_TESTS: dict[str, Callable[..., Tensor]] = {
    "Equal": torch.eq,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Not": torch.logical_not,
    "Xor": torch.logical_xor,
    "IsNaN": torch.isnan,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "BitwiseNot": torch.bitwise_not,
}
for _name, _function in _TESTS.items():
    op(_name, inputs=())(_function)


@op("IsInf", inputs=())
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    return (torch.isposinf(x) & bool(detect_positive)) | (torch.isneginf(x) & bool(detect_negative))


@op("BitShift", inputs=())
def bit_shift(x: Tensor, by: Tensor, *, direction: str) -> Tensor:
    shift = torch.bitwise_left_shift if direction == "LEFT" else torch.bitwise_right_shift
    return shift(x, by)


@op("Where", family="route", inputs=(1, 2))
def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)
