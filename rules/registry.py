"""What a relevance rule is: a factory called once per node, giving the function that is called once per batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from lrp_onnx.errors import RuleError
from lrp_onnx.ops import Family, Linear, Site


@dataclass(frozen=True, eq=False)
class Call:
    """The tensors of one node in one backward pass.

    Attributes
    ----------
    inputs, outputs : sequence of Tensor or None
        Activations by position; None where the rule said that it does not need them.
    shapes : sequence of tuple of int or None
        Shapes of the inputs by position.
    relevance : sequence of Tensor or None
        Relevance of the outputs by position; None where nothing arrived.
    """

    inputs: Sequence[Tensor | None]
    outputs: Sequence[Tensor | None]
    shapes: Sequence[Sequence[int] | None]
    relevance: Sequence[Tensor | None]


@dataclass(frozen=True, eq=False)
class Shares:
    """What a node hands on: relevance for each active input, and how much its bias absorbed, if it has one.

    None for an input that gets nothing, so that the walk does not carry zeros through all that is below it.
    """

    inputs: Sequence[Tensor | None]
    bias: Tensor | None = None


Backward = Callable[[Call], Shares]
Zeros = Literal["kept", "moved", "lost"]
Divisor = Literal["output", "more", "other"]
Needs = Collection[str] | Callable[[Linear], Collection[str]]


@dataclass(frozen=True)
class Rule:
    """A named rule.

    Attributes
    ----------
    build : callable
        (site, **parameters) -> Backward; modified weights are computed here, once.
    needs : set of {"inputs", "outputs", "rectified", "extras"}
        For linear rules also a function that gives it for a `Linear`, whose `rectified` tells whether the rule would be
        given max(z, 0).
        The activations that the rule reads: the active inputs, the outputs, or only the other inputs that are not
        constants (indices, say). Shapes are always there. "rectified" in place of "outputs": the rule may be given
        max(z, 0) for an output z where the relevance of z is zero wherever z <= 0, in front of a ReLU. It is enough
        where the relevance is only divided by something of z, and cheaper: the next node needs max(z, 0) anyway.
    zeros : "kept", "moved" or "lost"
        Whether the relevance of an input element is zero where the element itself is zero: always; if the same holds
        for the output; or not. Behind a ReLU this tells the rule below that relevance arrives only where z > 0.
    parameters : dict of str to object
        Names that the rule takes, and their defaults.
    divisor : "output", "more" or "other"
        What the relevance is divided by, unless biases are ignored: the output; no less than it where it is positive;
        or anything else, which may vanish where the output does not. Rounding in tiles (`Linear.tiles`) is for the
        first two.
    """

    name: str
    build: Callable[..., Backward]
    needs: Needs
    zeros: Zeros
    parameters: Mapping[str, Any]
    divisor: Divisor = "other"

    def needs_at(self, linear: Linear | None) -> frozenset[str]:
        """What the rule needs for an op with that linear view, if it has one."""
        if callable(self.needs):
            return frozenset(self.needs(linear) if linear else ())
        return frozenset(self.needs)

    def check(self, given: Mapping[str, Any]) -> None:
        """Raise RuleError where one of `given` is no parameter of the rule, or has a value that it cannot have."""
        for name, value in given.items():
            if name not in self.parameters:
                taken = ", ".join(self.parameters) or "no parameters"
                raise RuleError(f"rule '{self.name}' takes {taken}, not '{name}'")
            array, default = np.asarray(value), self.parameters[name]
            if isinstance(default, float) and (array.ndim or array.dtype.kind not in "fiu"):
                raise RuleError(f"rule '{self.name}': {name} is {value!r}; expected a number")
            if name == "eps" and not value > 0:  # 0 would divide by zero wherever an activation is zero
                raise RuleError(f"rule '{self.name}': eps is {value!r}; expected a number above 0, such as 1e-9")


RULES: dict[str, Rule] = {}


def rule(
    name: str,
    *,
    needs: Needs = ("inputs", "outputs"),
    zeros: Zeros = "lost",
    families: Sequence[Family] = (),
    divisor: Divisor = "other",
) -> Callable[[Callable[..., Backward]], Callable[..., Backward]]:
    """Register a rule: the decorated function takes a `Site` and keyword parameters and gives a `Backward`.

    With `families`, the rule is refused for ops of any other family.
    """

    def register(build: Callable[..., Backward]) -> Callable[..., Backward]:
        def build_for_family(site: Site, **parameters: Any) -> Backward:
            family = site.op.family if site.op else "unknown"
            if families and family not in families:
                raise RuleError(
                    f"{site.node}: rule '{name}' is for ops of family {' or '.join(families)}, this op is of family "
                    f"{family}; choose another rule"
                )
            return build(site, **parameters)

        RULES[name] = Rule(name, build_for_family, needs, zeros, _parameters(build), divisor)
        return build

    return register


LinearBackward = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]


def linear_rule(
    name: str,
    *,
    needs: Needs = ("inputs", "outputs"),
    zeros: Zeros = "kept",
    divisor: Divisor = "other",
) -> Callable[[Callable[..., LinearBackward]], Callable[..., LinearBackward]]:
    """Register a rule for linear ops.

    The decorated function takes a `Linear` and keyword parameters, and gives a function of x, z and the relevance R of
    z, which gives the relevance of x and what the bias absorbed.
    """

    def register(build: Callable[..., LinearBackward]) -> Callable[..., LinearBackward]:
        def build_for_site(site: Site, **parameters: Any) -> Backward:
            if site.linear is None:
                raise RuleError(
                    f"{site.node}: rule '{name}' is for linear ops with weights; choose another rule for this op"
                )
            return on_linear(site, build(site.linear, **parameters))

        RULES[name] = Rule(name, build_for_site, needs, zeros, _parameters(build), divisor)
        return build

    return register


def on_linear(site: Site, backward: LinearBackward) -> Backward:
    """Lift a function of (x, z, R) to the node's `Call`."""
    position = site.active[0]

    def call_backward(call: Call) -> Shares:
        x, z, r = call.inputs[position], call.outputs[0], call.relevance[0]
        relevance, absorbed = backward(x, z, r)  # type: ignore[arg-type]  # None only where the rule does not read it
        return Shares([relevance], absorbed)

    return call_backward


def _parameters(build: Callable[..., Any]) -> dict[str, Any]:
    signature = inspect.signature(build)
    return {p.name: p.default for p in signature.parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def find(name: str) -> Rule:
    """The rule of that name; RuleError with the known names otherwise."""
    try:
        return RULES[name]
    except KeyError:
        raise RuleError(f"no rule is named '{name}'; known: {', '.join(sorted(RULES))}") from None


def no_bias(op: Linear, bias: str) -> bool:
    """Whether the rule is to leave the bias out; checks the parameter."""
    if bias not in ("absorb", "ignore"):
        raise RuleError(f"bias must be 'absorb' or 'ignore', not '{bias}'")
    return bias == "ignore" or op.bias is None
