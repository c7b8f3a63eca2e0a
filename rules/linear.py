"""Relevance rules for linear operators; each is written once, against `Linear.forward` and `Linear.transpose`.

References: Bach et al. 2015 (epsilon, alpha-beta); Montavon et al. 2017 (z-plus, w-square, z-box), 2019 (gamma);
Fahmy et al. 2021 (hudd). Notation: x input, w weight, b bias, z output with bias, R relevance of z, x⁺ = max(x, 0),
x⁻ = min(x, 0), W^T the transpose with weight w, s(z) = z + eps·sign(z) with sign(0) = +1.

A rule writes to tensors that it made (a denominator, say) or owns (`Linear.owned`), and to no others: a new one costs
as much as a pass over it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lrp_onnx.errors import RuleError
from lrp_onnx.ops import Linear
from lrp_onnx.rules.registry import LinearBackward, linear_rule, no_bias

EPS = 1e-6


def stabilise(z: Tensor, eps: float | Tensor, *, nonnegative: bool = False, owned: bool = False) -> Tensor:
    """s(z) = z + eps·sign(z), with sign(0) = +1; less work where z is known to be nonnegative.

    -0.0 counts as negative, so z has to be a sum: that is -0.0 only where all of its terms are, which have no share in
    it. A tensor that may be written to: a new one, or z itself where the rule owns it.
    """
    if nonnegative:
        return z.add_(eps) if owned else z + eps
    size = eps.to(z.dtype) if isinstance(eps, Tensor) else z.new_full((), eps)
    return torch.copysign(size, z).add_(z)  # torch.where takes nine times as long


def over(r: Tensor, s: Tensor) -> Tensor:
    """R / s, written to s."""
    return torch.div(r, s, out=s) if r.shape == s.shape else r / s


def positive(t: Tensor | None) -> Tensor | None:
    """t⁺, None for None."""
    return None if t is None else t.clamp(min=0)


def negative(t: Tensor | None) -> Tensor | None:
    """t⁻, None for None."""
    return None if t is None else t.clamp(max=0)


def _sum(*terms: Tensor | float | None) -> Tensor | float:
    """The sum of what a denominator needs beside z: bias, stabiliser."""
    return sum(term for term in terms if term is not None)


def _once(make: Callable[[tuple[int, ...]], Tensor], op: Linear) -> Callable[[Tensor], Tensor]:
    """`make(shape of x)`, kept for the next x of that shape; of a single sample where that is enough."""
    last: dict[tuple[int, ...], Tensor] = {}

    def value(x: Tensor) -> Tensor:
        key = (1, *x.shape[1:]) if op.convolution else tuple(x.shape)
        if key not in last:
            last.clear()
            last[key] = make(key)
        return last[key]

    return value


def _weight(op: Linear, rule: str) -> Tensor:
    if op.weight is None:
        raise RuleError(f"rule '{rule}' needs an op with weights; use 'norm' for means")
    return op.weight


@linear_rule("epsilon", needs=("inputs", "rectified"), divisor="output")
def epsilon(op: Linear, *, eps: float = EPS, bias: str = "absorb") -> LinearBackward:
    """x ⊙ W^T(R / s(z)); with bias="ignore" z leaves b out, which conserves exactly."""
    ignore = no_bias(op, bias)
    left_out = op.bias if ignore else None

    def backward(x: Tensor, z: Tensor, r: Tensor) -> tuple[Tensor, Tensor | None]:
        known = op.rectified and left_out is None
        z = z if left_out is None else z - left_out
        s = stabilise(z, eps, nonnegative=known, owned=op.owned)
        g = over(r, s)
        return op.share(x, g, op.weight), None if ignore else op.bias_share(g, op.bias)

    return backward


@linear_rule("montavon-std", divisor="output")
def montavon_std(op: Linear, *, eps: float = 1e-9, factor: float = 0.25, bias: str = "absorb") -> LinearBackward:
    """epsilon with eps + factor·sqrt(mean z²) of each sample: the middle layers of Montavon et al. 2019."""
    ignore = no_bias(op, bias)

    def backward(x: Tensor, z: Tensor, r: Tensor) -> tuple[Tensor, Tensor | None]:
        if ignore and op.bias is not None:
            z = z - op.bias
        scale = eps + factor * (z * z).mean(dim=list(range(1, z.ndim)), keepdim=True).sqrt()
        g = over(r, stabilise(z, scale))
        return op.share(x, g, op.weight), None if ignore else op.bias_share(g, op.bias)

    return backward


Signs = tuple[Tensor, Tensor | None]

_FEW = 4  # input channels up to which one convolution of x⁺ beside x⁻ is faster than one of each


def _signs(op: Linear, x: Tensor) -> Signs:
    """x⁺ and x⁻; behind a ReLU there is no x⁻, and half of the work is left out."""
    return (x, None) if op.nonnegative else (x.clamp(min=0), x.clamp(max=0))


class _Signed:
    """x⁺ and x⁻ through a pair of weights: z = forward(x⁺, w) + forward(x⁻, v), and the relevance that flows back."""

    def __init__(self, op: Linear, on_positive: Tensor, on_negative: Tensor) -> None:
        self.op, self.w, self.v = op, on_positive, on_negative
        few = op.kernels is not None and op.kernels.shares and on_positive.shape[1] <= _FEW
        self.beside = torch.cat([self.w, self.v], dim=1) if few and not op.nonnegative else None

    def affine(self, x: Signs, offset: Tensor | float) -> Tensor:
        """z + offset."""
        above, below = x
        if below is None:
            return self.op.affine(above, self.w, offset)
        if self.beside is not None:
            return self.op.affine(torch.cat([above, below], dim=1), self.beside, offset)
        return self.op.affine(above, self.w, offset).add_(self.op.forward(below, self.v))

    def relevance(self, x: Signs, g: Tensor) -> Tensor:
        above, below = x
        if below is None:
            return self.op.share(above, g, self.w)
        if self.beside is not None:
            of_above, of_below = self.op.share(torch.cat([above, below], dim=1), g, self.beside).chunk(2, dim=1)
            return of_above + of_below
        return self.op.share(above, g, self.w).add_(self.op.share(below, g, self.v))


def _reading(z: bool) -> tuple[str, ...]:
    """What a rule needs that reads x, and z, or max(z, 0) for it, only if `z`."""
    return ("inputs", "rectified") if z else ("inputs",)


@linear_rule("z-plus", needs=lambda op: _reading(op.rectified and not op.nonnegative), divisor="more")
def z_plus(op: Linear, *, eps: float = EPS, bias: str = "absorb") -> LinearBackward:
    """g = R / s(x⁺w⁺ + x⁻w⁻ + b⁺); x⁺ ⊙ W⁺^T g + x⁻ ⊙ W⁻^T g.

    In front of a ReLU relevance arrives only where z > 0: there (z + |x||w| + |b|) / 2 is the denominator, one product
    in place of two, of x⁺ and of x⁻.
    """
    weight = _weight(op, "z-plus")
    part = _Signed(op, weight.clamp(min=0), weight.clamp(max=0))
    ignore = no_bias(op, bias)
    left_out, b = (op.bias, None) if ignore else (None, positive(op.bias))

    if op.rectified and not op.nonnegative and left_out is None:
        half, rest = weight.abs() / 2, _sum(None if op.bias is None else op.bias.abs() / 2, eps)

        def before_relu(x: Tensor, z: Tensor, r: Tensor) -> tuple[Tensor, Tensor | None]:
            g = over(r, op.affine(x.abs(), half, rest).add_(z, alpha=0.5))
            return part.relevance(_signs(op, x), g), op.bias_share(g, b)

        return before_relu
    offset = _sum(b, eps)  # the denominator is never negative

    def backward(x: Tensor, _: Tensor, r: Tensor) -> tuple[Tensor, Tensor | None]:
        signs = _signs(op, x)
        g = over(r, part.affine(signs, offset))
        return part.relevance(signs, g), op.bias_share(g, b)

    return backward


@linear_rule("alpha-beta", needs=lambda op: _reading(op.rectified))
def alpha_beta(
    op: Linear, *, alpha: float = 2.0, beta: float = 1.0, eps: float = EPS, bias: str = "absorb"
) -> LinearBackward:
    """alpha·(part of z_a) − beta·(part of z_b), z_a = x⁺w⁺ + x⁻w⁻ + b⁺, z_b = x⁺w⁻ + x⁻w⁺ + b⁻; not renormalised.

    In front of a ReLU relevance arrives only where z > 0: there z_a = z − z_b adds up what is not negative, and needs
    no product of its own.
    """
    if abs(alpha - beta - 1) > 1e-9 or beta < 0:
        raise RuleError(f"alpha-beta wants alpha − beta = 1 and beta >= 0, not alpha={alpha}, beta={beta}")
    weight = _weight(op, "alpha-beta")
    if beta == 0:
        return z_plus(op, eps=eps, bias=bias)
    up, down = weight.clamp(min=0), weight.clamp(max=0)
    ignore = no_bias(op, bias)
    activating, inhibiting = _Signed(op, up, down), _Signed(op, down, up)
    left_out = op.bias if ignore else None
    b_a, b_b = (None, None) if ignore else (positive(op.bias), negative(op.bias))
    above, below = _sum(b_a, eps), _sum(b_b, -eps)  # z_a >= 0 >= z_b
    by_difference = op.rectified and left_out is None

    def backward(x: Tensor, z: Tensor, r: Tensor) -> tuple[Tensor, Tensor | None]:
        signs = _signs(op, x)
        z_b = inhibiting.affine(signs, below)
        z_a = torch.sub(z, z_b, out=z if op.owned else None) if by_difference else activating.affine(signs, above)
        g = over(r, z_a).mul_(alpha)
        relevance, absorbed = activating.relevance(signs, g), op.bias_share(g, b_a)
        g = over(r, z_b).mul_(beta)
        relevance.sub_(inhibiting.relevance(signs, g))
        share = op.bias_share(g, b_b)
        return relevance, absorbed if absorbed is None or share is None else absorbed - share

    return backward


@linear_rule("gamma", needs=lambda op: _reading(not (op.positive_support and op.nonnegative)), divisor="more")
def gamma(op: Linear, *, gamma: float = 0.25, eps: float = EPS, bias: str = "absorb") -> LinearBackward:
    """Generalised gamma rule.

    Where z > 0: weights w + γw⁺ on x⁺, w + γw⁻ on x⁻, bias b + γb⁺; where z < 0: w + γw⁻ on x⁺, w + γw⁺ on x⁻, bias
    b + γb⁻; z = 0 gives 0. The sign test uses z without γ; with bias="ignore", without b too.

    As w⁺ = (w + |w|) / 2 and w⁻ = (w − |w|) / 2, that is (1 + γ/2) x ⊙ W^T g + γ/2 |x| ⊙ |W|^T (σg), with σ = sign(z)
    and g = σR / ((1 + γ/2) |z| + γ/2 (|x||w| + |b|) + eps): three products, whatever the signs of x and z.
    """
    if gamma < 0:
        raise RuleError(f"rule 'gamma': gamma is {gamma}; expected 0 or more")
    weight = _weight(op, "gamma")
    left_out, b = (op.bias, None) if no_bias(op, bias) else (None, op.bias)

    if op.positive_support and op.nonnegative and left_out is None:  # neither z < 0 nor x < 0: two products
        more, b_more = weight + gamma * weight.clamp(min=0), None if b is None else b + gamma * b.clamp(min=0)
        offset = _sum(b_more, eps)

        def before_relu(x: Tensor, _: Tensor, r: Tensor) -> tuple[Tensor, Tensor | None]:
            g = over(r, op.affine(x, more, offset, low=eps))
            return op.share(x, g, more), op.bias_share(g, b_more)

        return before_relu
    plain, sized = (1 + gamma / 2) * weight, gamma / 2 * weight.abs()
    b_plain, b_sized = (None, None) if b is None else ((1 + gamma / 2) * b, gamma / 2 * b.abs())
    offset = _sum(b_sized, eps)

    def backward(x: Tensor, z: Tensor, r: Tensor) -> tuple[Tensor, Tensor | None]:
        z = z if left_out is None else op.forward(x, weight)  # z − b would cancel where the bias is most of it
        size, sign = x if op.nonnegative else x.abs(), z.sign()
        g = over(r, op.affine(size, sized, offset).add_(z.abs(), alpha=1 + gamma / 2)).mul_(sign)
        h = g * sign
        relevance = op.share(x, g, plain).add_(op.share(size, h, sized))
        share, more = op.bias_share(g, b_plain), op.bias_share(h, b_sized)
        return relevance, share if share is None or more is None else share + more

    return backward


@linear_rule("z-box", needs=("inputs", "rectified"), zeros="lost")
def z_box(
    op: Linear,
    *,
    low: float | Sequence[float] | None = None,
    high: float | Sequence[float] | None = None,
    eps: float = EPS,
) -> LinearBackward:
    """z' = f(x) − f⁺(l) − f⁻(h); x ⊙ W^T g − l ⊙ W⁺^T g − h ⊙ W⁻^T g with g = R / s(z').

    As W = W⁺ + W⁻, that is (x − l) ⊙ W⁺^T g + (x − h) ⊙ W⁻^T g, which takes one transpose less.
    l and h, the lowest and highest possible input, come from the engine (`Linear.bounds`), which carries `low` and
    `high` (or the model's preprocessing) from the model's input to x. The bias cancels out of z'.
    """
    weight = _weight(op, "z-box")
    if op.bounds is None:
        raise RuleError(
            "z-box needs the lowest and highest input: the model has no preprocessing metadata, so give them, "
            "e.g. composite('epsilon-gamma-box', low=-3.0, high=3.0) or --low -3 --high 3"
        )
    low_x, high_x = op.bounds
    up, down = weight.clamp(min=0), weight.clamp(max=0)

    def constant(shape: tuple[int, ...]) -> Tensor:
        z = op.forward(low_x.expand(shape), up).add_(op.forward(high_x.expand(shape), down))
        return z if op.bias is None else z.add_(op.bias)

    offset = _once(constant, op)

    def backward(x: Tensor, z: Tensor, r: Tensor) -> tuple[Tensor, Tensor | None]:
        g = over(r, stabilise(z - offset(x), eps))
        return op.share(x - low_x, g, up).add_(op.share(x - high_x, g, down)), None

    return backward


@linear_rule("w-square", needs=("inputs",), zeros="lost")
def w_square(op: Linear, *, eps: float = EPS, bias: str = "absorb") -> LinearBackward:
    """w² in place of x·w, b² in the denominator."""
    weight = _weight(op, "w-square") ** 2
    b = None if no_bias(op, bias) or op.bias is None else op.bias**2
    offset = _sum(b, eps)
    denominator = _once(lambda shape: op.forward(weight.new_ones(shape), weight).add_(offset), op)

    def backward(x: Tensor, _: Tensor, r: Tensor) -> tuple[Tensor, Tensor | None]:
        g = r / denominator(x)
        return op.transpose(g, weight, x.shape), op.bias_share(g, b)

    return backward


@linear_rule("flat", needs=("inputs",), zeros="lost")
def flat(op: Linear, *, eps: float = EPS) -> LinearBackward:
    """Ones in place of w and x, no bias: relevance spreads evenly over each window (its taps inside the input)."""
    ones = torch.ones_like(_weight(op, "flat"))
    denominator = _once(lambda shape: op.forward(ones.new_ones(shape), ones).add_(eps), op)

    def backward(x: Tensor, _: Tensor, r: Tensor) -> tuple[Tensor, Tensor | None]:
        g = r / denominator(x)
        return op.transpose(g, ones, x.shape), None

    return backward


@linear_rule("hudd", needs=("inputs", "rectified"))
def hudd(op: Linear, *, eps: float = 1e-9) -> LinearBackward:
    """The HUDD toolset's rules: dense: z-plus on the weights, x as it is; convolutions: x ⊙ W^T(R / (z + eps))."""
    weight = _weight(op, "hudd")
    if op.convolution:

        def convolution(x: Tensor, z: Tensor, r: Tensor) -> tuple[Tensor, Tensor | None]:
            g = over(r, z.add_(eps) if op.owned else z + eps)
            return op.share(x, g, weight), op.bias_share(g, op.bias)

        return convolution
    up = weight.clamp(min=0)

    def dense(x: Tensor, _: Tensor, r: Tensor) -> tuple[Tensor, Tensor | None]:
        return op.share(x, over(r, op.affine(x, up, eps)), up), None

    return dense
