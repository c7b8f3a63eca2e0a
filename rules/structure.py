"""Relevance rules for everything that is not linear with weights: pass, sums, maxima, routing, products, attention.

Source for products, Softmax and normalisations: Achtibat et al. 2024 (AttnLRP).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lrp_onnx.errors import RuleError
from lrp_onnx.ops import Site, linearised, pullback, pushforward, run, unbroadcast
from lrp_onnx.ops.recurrent import Signal
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


@rule("norm", needs=("inputs", "rectified"), zeros="kept", families=("mean", "sum"), divisor="output")
def norm(site: Site, *, eps: float = EPS, bias: str = "absorb") -> Backward:
    """epsilon on an op without weights: each input takes its signed part x_i / s(z) of the relevance.

    What a constant adds to the sum counts as a bias, and so does what does not depend on the input's values, such as
    position embeddings.
    """
    if site.linear is not None:
        return on_linear(site, epsilon(site.linear, eps=eps, bias=bias))
    terms = site.op.differentiable(site.node) if site.op else ()  # indices and axes are none
    silent = [p for p in terms if p not in site.active]
    has_constant = bool(silent)
    ignore = has_constant and bias == "ignore"

    def backward(call: Call) -> Shares:
        z, inputs = call.outputs[0], call.inputs
        assert z is not None
        nonnegative = site.rectified and not ignore
        if ignore:
            only = [site.constants.get(p, x) for p, x in enumerate(inputs)]
            (z,) = run(site.node, site.op, [torch.zeros_like(x) if p in silent else x for p, x in enumerate(only)])  # type: ignore[arg-type]
        g = over(_arrived(call), stabilise(z, eps, nonnegative=nonnegative))
        flows = site.adjoint(call, [g])
        shares = [_tensor(inputs[p]) * flow for p, flow in zip(site.active, flows, strict=True)]
        if ignore:  # where the constant is all that there is, it has what arrives
            return Shares(shares, torch.where(z == 0, _arrived(call), 0.0).sum())
        if not has_constant:
            return Shares(shares)
        whole = torch.where(g == 0, g, g * z)  # z is -inf where a mask took everything
        return Shares(shares, whole.sum() - sum(share.sum() for share in shares))

    return backward


@rule("winner-takes-all", needs=("inputs",), zeros="moved", families=("max",))
def winner_takes_all(site: Site) -> Backward:
    """All relevance to the element that won, ties to the first: the gradient of a maximum."""
    return lambda call: Shares(site.vjp(call.inputs, call.relevance))


@rule("route", needs=("extras",), zeros="moved", families=("route",))
def route(site: Site) -> Backward:
    """The exact transpose of an op that only moves elements.

    What arrives at elements that come from a constant (a class token, a fixed position encoding) counts as a bias.
    """
    fixed = site.op is not None and not set(site.op.differentiable(site.node)) <= set(site.active)

    def backward(call: Call) -> Shares:
        shares = site.adjoint(call, call.relevance)
        if not fixed:
            return Shares(shares)
        arrived, handed = ([r.sum() for r in side if r is not None] for side in (call.relevance, shares))
        return Shares(shares, torch.stack(arrived).sum() - torch.stack(handed).sum())

    return backward


@rule("look-up", needs=("outputs",))
def look_up(site: Site, *, gradient: bool = False) -> Backward:
    """What arrives at an embedding, summed, to the id that picked it; of a gradient, gradient x embedding summed.

    Ids are names and not quantities, so that they have no gradient of their own.
    """
    node = site.node

    def backward(call: Call) -> Shares:
        r, shape = _arrived(call), call.shapes[site.active[0]]
        r = r * _tensor(call.outputs[0]) if gradient else r
        if node.op_type == "OneHot":
            return Shares([r.sum(dim=node.attributes.get("axis", -1))])
        if node.op_type == "Cast":  # the comparison behind it sums
            return Shares([r])
        table = site.constants[0].ndim
        axis = node.attributes.get("axis", 0) % table
        behind = r.ndim - (table - 1 - axis)  # (rows before the axis, ids …, the rest of a row)
        summed = [*range(axis), *range(behind, r.ndim)]
        return Shares([(r.sum(dim=summed) if summed else r).reshape(tuple(shape or ()))])

    return backward


@rule("product", needs=(), zeros="moved", families=("product",))
def product(site: Site, *, gate: str = "signal") -> Backward:
    """Mul: by a constant, pass; of two activations, R/2 each (AttnLRP).

    Where one side is a gate, the output of a Sigmoid or Softmax, the other side takes all. gate="half" halves there
    too: relevance then goes through the gate, whose Sigmoid does not vanish where its input z does, and R / z of the
    layer below explodes (EfficientNetB0 with epsilon: 2e5 at the input for a logit of 0.5).
    """
    if gate not in ("half", "signal"):
        raise RuleError(f"gate must be 'half' or 'signal', not '{gate}'")
    winners = _winners(site, gate == "signal")

    def backward(call: Call) -> Shares:
        r = _arrived(call) if len(winners) == 1 else _arrived(call) / len(winners)
        return Shares([_summed_back(site, r, call.shapes[p]) if p in winners else None for p in site.active])

    return backward


def _winners(site: Site, signal: bool) -> list[int]:
    """The active inputs that a product goes to: all, or those that are no gates, if there are any."""
    signals = [p for p in site.active if p not in site.gates]
    return signals if signal and signals else list(site.active)


@rule("quotient", needs=(), zeros="moved", families=("quotient",))
def quotient(site: Site) -> Backward:
    """Div: all relevance to the numerator; a constant over an activation is a function of that, and passes it on."""
    return pass_on(site)


@rule("bilinear", zeros="kept", families=("linear",))
def bilinear(site: Site, *, eps: float = EPS, attention: str = "all") -> Backward:
    """MatMul or Einsum of several activations: an equal share of R to each, through epsilon (AttnLRP).

    attention="values": where one side is a gate, as the output of attention's Softmax, the other takes all, so that
    nothing goes through queries and keys (CP-LRP, Ali et al. 2022).
    """
    if attention not in ("all", "values"):
        raise RuleError(f"attention must be 'all' or 'values', not '{attention}'")
    winners = _winners(site, attention == "values")

    def backward(call: Call) -> Shares:
        g = over(_arrived(call), stabilise(_tensor(call.outputs[0]), eps).mul_(len(winners)))
        flows = _flows(site, call, g, winners)
        return Shares([_tensor(call.inputs[p]) * flows[p] if p in flows else None for p in site.active])

    return backward


def _flows(site: Site, call: Call, g: Tensor, wanted: Sequence[int]) -> dict[int, Tensor]:
    """The transposes of a product of activations, by position."""
    factors = [site.constants.get(p, x) for p, x in enumerate(call.inputs)]
    if site.node.op_type != "MatMul" or min(_tensor(x).ndim for x in factors) < 2:
        return {p: flow for p, flow in zip(site.active, site.vjp(call.inputs, [g]), strict=True) if p in wanted}
    a, b = (_tensor(x) for x in factors)  # without the product itself once more
    return {p: unbroadcast(a.mT @ g if p else g @ b.mT, (a, b)[p].shape) for p in wanted}


@rule("softmax", zeros="kept", families=("softmax",))
def softmax(site: Site) -> Backward:
    """x ⊙ (R − s·ΣR) along the op's axis, s its output: the Taylor expansion at x (AttnLRP, proposition 3.1).

    What the expansion's constant term s ⊙ (1 − x + Σ s·x) takes counts as a bias. Inputs of -inf, from a mask, are 0.
    """
    axis = site.node.attributes.get("axis", -1)

    def backward(call: Call) -> Shares:
        r, x, s = _arrived(call), _tensor(call.inputs[0]), _tensor(call.outputs[0])
        x = torch.nan_to_num(x, nan=math.nan, posinf=math.inf, neginf=0.0)
        along = r.sum(dim=axis, keepdim=True)
        taken, expected = r * x, s * x
        constant = along.sum() - taken.sum() + (along * expected.sum(dim=axis, keepdim=True)).sum()
        return Shares([taken.addcmul_(expected, along, value=-1)], constant)

    return backward


@rule("proportional", zeros="kept", families=("proportion",))
def proportional(site: Site, *, eps: float = EPS) -> Backward:
    """x ⊙ J^T(R / s(J x)), J the derivative at x: to each element by its own part in the result.

    That is |x_i|^p / Σ|x|^p for a norm (Montavon et al. 2017), x_i / Σx for the logarithm of a sum, equal shares for a
    product.
    """

    def backward(call: Call) -> Shares:
        primals = [_tensor(call.inputs[p]) for p in site.active]
        inputs = [site.constants.get(p, x) for p, x in enumerate(call.inputs)]

        def function(*active: Tensor) -> Tensor:
            every = list(inputs)
            for p, x in zip(site.active, active, strict=True):
                every[p] = x
            return site.forward(every)[0]

        slope = pushforward(function, *primals)
        flows = pullback(function, *primals)(over(_arrived(call), stabilise(slope, eps)))
        return Shares([x * flow for x, flow in zip(primals, flows, strict=True)])

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
            z = pushforward(frozen, x)
        # + 0.0 makes 0.0 of -0.0, which a negative weight makes of an x at the mean
        g = over(_arrived(call), stabilise(z + 0.0, eps))
        flow = op.held(g, x, *rest, **site.node.attributes) if op.held else pullback(frozen, x)(g)[0]
        share = flow.mul_(x)
        absorbed = None if bias == "ignore" else (g * z).sum() - share.sum()
        return Shares([share], absorbed)

    return backward


@rule("held-gates", needs=("inputs",), zeros="kept", families=("recurrent",))
def held_gates(site: Site, *, eps: float = EPS, bias: str = "absorb") -> Backward:
    """LSTM, GRU, RNN: gates held constant, the signal takes all (Arras et al. 2017).

    That is "pass" at each activation, "product" at each gate and "epsilon" at each sum, through all time steps.
    """
    op = site.op
    assert op is not None, "the rule is for one family of known ops"
    if bias not in ("absorb", "ignore"):
        raise RuleError(f"bias must be 'absorb' or 'ignore', not '{bias}'")
    count = 2 if site.node.op_type == "LSTM" else 1  # of states

    def backward(call: Call) -> Shares:
        inputs = [site.constants.get(p, x) for p, x in enumerate(call.inputs)]

        def flow(*active: Tensor) -> list[Tensor]:
            carried = dict(zip(site.active, active, strict=True))
            if bias == "absorb":  # what a constant state or input brings is a bias, too
                carried = {p: x for p, x in enumerate(inputs) if x is not None} | carried
            x = carried.get(0, torch.zeros_like(_tensor(inputs[0])))
            states = tuple(carried.get(5 + k) for k in range(count))
            signal = Signal(x, states, bias == "absorb", eps)
            return list(op.forward(*inputs, **site.node.attributes, signal=signal))

        primals = [_tensor(call.inputs[p]) for p in site.active]
        outputs, pull = linearised(flow, *primals)
        arrived = (*call.relevance, None, None)
        g = [
            torch.zeros_like(z) if r is None else over(r, stabilise(z, eps))
            for z, r in zip(outputs, arrived, strict=False)
        ]
        shares = [x * part for x, part in zip(primals, pull(g), strict=True)]
        if bias == "ignore":
            return Shares(shares)
        total = torch.stack([(s * z).sum() for s, z in zip(g, outputs, strict=True)]).sum()
        return Shares(shares, total - sum(share.sum() for share in shares))

    return backward
