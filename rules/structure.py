"""Relevance rules for everything that is not linear with weights: pass, sums, maxima, routing, products, attention.

Source for products, Softmax and normalisations: Achtibat et al. 2024 (AttnLRP).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lrp_onnx.errors import RuleError
from lrp_onnx.ops import Site, pullback, run, unbroadcast
from lrp_onnx.rules.linear import EPS, epsilon, over, stabilise
from lrp_onnx.rules.registry import Backward, Call, Shares, on_linear, rule


def _tensor(value: Tensor | None) -> Tensor:
    assert value is not None, "the walk gives a rule what it needs"
    return value


def _summed_back(site: Site, r: Tensor, shape: Sequence[int] | None) -> Tensor:
    """Relevance of the output as relevance of an input that was broadcast to it."""
    wanted = r.shape if shape is None else tuple(shape)
    sizes = zip(reversed(wanted), reversed(r.shape), strict=False)
    if len(wanted) > r.ndim or any(small not in (1, large) for small, large in sizes):
        raise RuleError(
            f"{site.node}: its rule hands relevance on as it is, but the op makes shape {tuple(r.shape)} of "
            f"{tuple(wanted)}; choose another rule"
        )
    return unbroadcast(r, wanted)


def _arrived(call: Call) -> Tensor:
    return _tensor(call.relevance[0])


@rule("pass", needs=(), zeros="moved")
def pass_on(site: Site) -> Backward:
    """R as it is (summed back to the input's shape where the op broadcast it)."""
    position = site.active[0]
    if len(site.active) > 1:
        raise RuleError(f"{site.node}: rule 'pass' wants one active input, this node has {len(site.active)}")

    return lambda call: Shares([_summed_back(site, _arrived(call), call.shapes[position])])


@rule("norm", needs=("inputs", "rectified"), zeros="kept", families=("mean", "sum"))
def norm(site: Site, *, eps: float = EPS, bias: str = "absorb") -> Backward:
    """epsilon on an op without weights: each input takes its signed part x_i / s(z) of the relevance.

    What a constant adds to the sum counts as a bias.
    """
    if site.linear is not None:
        return on_linear(site, epsilon(site.linear, eps=eps, bias=bias))
    has_constant = bool(site.constants)
    ignore = has_constant and bias == "ignore"

    def backward(call: Call) -> Shares:
        z, inputs = call.outputs[0], call.inputs
        assert z is not None
        nonnegative = site.rectified and not ignore
        if ignore:
            only = [torch.zeros_like(site.constants[p]) if p in site.constants else x for p, x in enumerate(inputs)]
            (z,) = run(site.node, site.op, only)
        g = over(_arrived(call), stabilise(z, eps, nonnegative=nonnegative))
        flows = site.adjoint(call, [g])
        shares = [_tensor(inputs[p]) * flow for p, flow in zip(site.active, flows, strict=True)]
        if ignore or not has_constant:
            return Shares(shares)
        return Shares(shares, (g * z).sum() - sum(share.sum() for share in shares))

    return backward


@rule("winner-takes-all", needs=("inputs",), zeros="moved", families=("max",))
def winner_takes_all(site: Site) -> Backward:
    """All relevance to the element that won, ties to the first: the gradient of a maximum."""
    return lambda call: Shares(site.vjp(call.inputs, call.relevance))


@rule("route", needs=("extras",), zeros="moved", families=("route",))
def route(site: Site) -> Backward:
    """The exact transpose of an op that only moves elements."""
    return lambda call: Shares(site.adjoint(call, call.relevance))


@rule("product", needs=(), zeros="moved", families=("product",))
def product(site: Site, *, gate: str = "signal") -> Backward:
    """Mul: by a constant, pass; of two activations, R/2 each (AttnLRP).

    Where one side is a gate, the output of a Sigmoid or Softmax, the other side takes all. gate="half" halves there
    too: relevance then goes through the gate, whose Sigmoid does not vanish where its input z does, and R / z of the
    layer below explodes (EfficientNetB0 with epsilon: 2e5 at the input for a logit of 0.5).
    """
    if gate not in ("half", "signal"):
        raise RuleError(f"gate must be 'half' or 'signal', not '{gate}'")
    signals = [p for p in site.active if p not in site.gates]
    winners = signals if gate == "signal" and signals else list(site.active)

    def backward(call: Call) -> Shares:
        r = _arrived(call) / len(winners)
        zero = torch.zeros_like(r)
        return Shares([_summed_back(site, r if p in winners else zero, call.shapes[p]) for p in site.active])

    return backward


@rule("quotient", needs=(), zeros="moved", families=("quotient",))
def quotient(site: Site) -> Backward:
    """Div: all relevance to the numerator."""
    if site.active != (0,):
        raise RuleError(f"{site.node}: its numerator does not depend on the input; choose --rule Div=gradient or pass")
    return pass_on(site)


@rule("bilinear", zeros="kept", families=("linear",))
def bilinear(site: Site, *, eps: float = EPS) -> Backward:
    """MatMul or Einsum of several activations: an equal share of R to each, through epsilon (AttnLRP)."""

    def backward(call: Call) -> Shares:
        g = over(_arrived(call), stabilise(_tensor(call.outputs[0]), eps).mul_(len(site.active)))
        flows = site.vjp(call.inputs, [g])
        return Shares([_tensor(call.inputs[p]) * flow for p, flow in zip(site.active, flows, strict=True)])

    return backward


@rule("softmax", zeros="kept", families=("softmax",))
def softmax(site: Site) -> Backward:
    """x ⊙ (R − softmax·ΣR) along the op's axis (AttnLRP)."""
    axis = site.node.attributes.get("axis", -1)

    def backward(call: Call) -> Shares:
        r = _arrived(call)
        return Shares([_tensor(call.inputs[0]) * (r - _tensor(call.outputs[0]) * r.sum(dim=axis, keepdim=True))])

    return backward


@rule("held-scale", zeros="kept", families=("normalisation",))
def held_scale(site: Site, *, eps: float = EPS, bias: str = "absorb") -> Backward:
    """Normalisation with 1/std held constant, so that it is linear in x, through epsilon (AttnLRP)."""
    op = site.op
    assert op is not None, "the rule is for one family of known ops"

    def backward(call: Call) -> Shares:
        rest = [site.constants.get(p, call.inputs[p]) for p in range(1, len(call.inputs))]

        def frozen(x: Tensor) -> Tensor:
            return op.forward(x, *rest, **site.node.attributes, hold_scale=True)  # type: ignore[return-value]

        x, z = _tensor(call.inputs[0]), _tensor(call.outputs[0])
        if bias == "ignore":
            z = torch.func.jvp(frozen, (x,), (x,))[1]
        g = over(_arrived(call), stabilise(z, eps))
        share = x * pullback(frozen, x)(g)[0]
        absorbed = None if bias == "ignore" else (g * z).sum() - share.sum()
        return Shares([share], absorbed)

    return backward
