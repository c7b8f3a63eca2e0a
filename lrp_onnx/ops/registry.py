"""What an ONNX op means in torch: the `Op` record and its registry, and `Linear`, which relevance rules work on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from lrp_onnx.errors import UnsupportedOpError
from lrp_onnx.graph import Node

Family = Literal[
    "linear",  # weights times activations: Conv, Gemm, MatMul …
    "mean",  # linear in one input, without weights: pooling means, Resize
    "sum",  # adds up several inputs: Add, Sub, Sum, Mean
    "activation",  # elementwise, one input
    "max",  # one input element wins
    "route",  # moves elements without changing them
    "identity",  # hands on what it gets: Identity, Dropout, Cast
    "product",  # Mul
    "quotient",  # Div
    "normalisation",  # LayerNormalization and kin
    "softmax",
    "recurrent",  # LSTM, GRU, RNN
    "proportion",  # each element has a share in the result by its own part in it: ReduceL2, LpPool, ReduceProd …
    "other",  # known in the forward pass, no default rule
]

LinearBuilder = Callable[[Node, Mapping[int, Tensor], Sequence[int]], "Linear | None"]


@dataclass(frozen=True)
class Op:
    """One ONNX op.

    Attributes
    ----------
    family : Family
        Decides the rule that the op gets by default.
    forward : callable
        Takes the op's inputs in order (None where absent) and its attributes as keyword arguments, with ONNX's
        defaults; gives a tensor or a tuple of tensors.
    inputs : tuple of int, callable or None
        Positions of the inputs that a gradient could flow to (None: all). Shapes, indices and axes are left out.
    counts_outputs : bool
        `forward` also takes `outputs`, the number of outputs that the node has.
    detached : tuple of int
        Positions that LRP holds constant as long as another input is active (the denominator of Div).
    linear : callable or None
        Builds the `Linear` of a node, or None where the node is not linear (MatMul of two activations).
    adjoint : callable or None
        `adjoint(relevance, shapes, **attributes)`, the transpose of an op that only moves or sums elements, where it is
        cheaper than differentiating `forward`.
    held : callable or None
        Of a normalisation: `held(g, x, *other inputs, **attributes)`, the transpose at x with 1/std held constant, a
        new tensor, where that is cheaper than differentiating `forward`.
    family_of : callable or None
        The family of a node whose attributes make it another one than `family`.
    numbers : tuple of int
        Positions of the inputs that torch takes as Python numbers: axes, sizes, a value to fill with. They stay on the
        CPU, so that nothing waits for an accelerator to tell them.
    """

    op_type: str
    family: Family
    forward: Callable[..., Tensor | tuple[Tensor, ...]]
    inputs: tuple[int, ...] | Callable[[Node], tuple[int, ...]] | None = None
    counts_outputs: bool = False
    detached: tuple[int, ...] = ()
    linear: LinearBuilder | None = None
    adjoint: Callable[..., Sequence[Tensor]] | None = None
    held: Callable[..., Tensor] | None = None
    family_of: Callable[[Node], Family] | None = None
    numbers: tuple[int, ...] = ()

    def differentiable(self, node: Node) -> tuple[int, ...]:
        """Input positions of `node` that a gradient could flow to."""
        positions = self.inputs(node) if callable(self.inputs) else self.inputs
        every = range(len(node.inputs))
        return tuple(p for p in (every if positions is None else positions) if node.input(p))


class FusedKernels(Protocol):
    """Kernels that spare passes over memory where they can take what they are given; None where they cannot.

    `shares` tells whether there is one for `share` at all; `tiles` is that of `Linear`.
    """

    @property
    def shares(self) -> bool: ...
    def affine(self, x: Tensor, weight: Tensor, offset: Tensor | float, low: float | None) -> Tensor | None: ...
    def share(self, x: Tensor, g: Tensor, weight: Tensor, tiles: bool) -> Tensor | None: ...


@dataclass(frozen=True)
class Linear:
    """A linear operator z = forward(x, weight) + bias and its transpose; all that a relevance rule needs to know.

    Attributes
    ----------
    forward : callable
        (x, weight) -> z without the bias; with weights a new tensor, which the caller may write to.
    transpose : callable
        (s, weight, shape of x) -> tensor like x: the adjoint of `forward` with that weight; likewise.
    weight : Tensor or None
        None for an op without weights (a mean).
    bias : Tensor or None
        Broadcasts against z.
    nonnegative : bool
        x >= 0 is known, so every term with x⁻ vanishes.
    positive_support : bool
        The relevance that arrives is zero wherever z <= 0 (z goes into a ReLU and nowhere else).
    rectified : bool
        The rule is given max(z, 0) in place of z, as it said that it may be (`Rule.needs`).
    owned : bool
        Nobody reads the z that the rule is given after it, so that it may write to it.
    convolution : bool
        A convolution, transposed or not: x[i] gives z[i] and nothing else.
    bounds : tuple of two Tensors or None
        Lowest and highest possible x, for the z-box rule.
    tiles : bool
        `share` may round a result by what is beside it (`lrp_onnx.ops.winograd`): g is large nowhere because what its
        relevance was divided by vanishes.
    kernels : FusedKernels or None
        What does more in one pass over memory than `forward` and `transpose`.
    """

    forward: Callable[[Tensor, Any], Tensor]
    transpose: Callable[[Tensor, Any, Sequence[int]], Tensor]
    weight: Tensor | None
    bias: Tensor | None = None
    nonnegative: bool = False
    positive_support: bool = False
    rectified: bool = False
    owned: bool = False
    convolution: bool = False
    bounds: tuple[Tensor, Tensor] | None = None
    tiles: bool = False
    kernels: FusedKernels | None = None

    def affine(self, x: Tensor, weight: Any, offset: Tensor | float, low: float | None = None) -> Tensor:
        """forward(x, weight) + offset, and at least `low`: a new tensor."""
        fused = self.kernels.affine(x, weight, offset, low) if self.kernels else None
        if fused is not None:
            return fused
        z = self.forward(x, weight).add_(offset)
        return z if low is None else z.clamp_(min=low)

    def share(self, x: Tensor, g: Tensor, weight: Any) -> Tensor:
        """Relevance that the input takes: x ⊙ W^T g, a new tensor."""
        fused = self.kernels.share(x, g, weight, self.tiles) if self.kernels else None
        if fused is not None:
            return fused
        flow = self.transpose(g, weight, x.shape)
        return x * flow if self.weight is None else flow.mul_(x)

    def bias_share(self, g: Tensor, bias: Tensor | None) -> Tensor | None:
        """Relevance that the bias takes: the sum of g ⊙ bias."""
        if bias is None:
            return None
        if g.ndim == 4 and bias.numel() == g.shape[1] and g.is_contiguous(memory_format=torch.channels_last):
            return torch.mv(g.permute(0, 2, 3, 1).reshape(-1, g.shape[1]), bias.flatten()).sum()  # twice as fast
        other = [d for d in range(g.ndim) if bias.ndim < g.ndim - d or bias.shape[d - g.ndim] == 1]
        g = g.sum(dim=other, keepdim=True) if other else g  # reading g once is all that this costs
        return (g * bias).sum()


OPS: dict[tuple[str, str], Op] = {}


def op(
    *op_types: str,
    family: Family = "other",
    domain: str = "",
    **fields: Any,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated forward function for one or more ONNX op types."""

    def register(forward: Callable[..., Any]) -> Callable[..., Any]:
        for op_type in op_types:
            OPS[domain, op_type] = Op(op_type, family, forward, **fields)
        return forward

    return register


def find(node: Node) -> Op | None:
    """The registered op of a node, with the family that the node has; None where there is none."""
    found = OPS.get((node.domain, node.op_type))
    return replace(found, family=found.family_of(node)) if found and found.family_of else found


class Tensors(Protocol):
    """The tensors of one node in one backward pass, as `lrp_onnx.rules.registry.Call` holds them."""

    @property
    def inputs(self) -> Sequence[Tensor | None]: ...
    @property
    def shapes(self) -> Sequence[Sequence[int] | None]: ...


@dataclass(frozen=True, eq=False)
class Site:
    """A node on the relevance path, bound to its op and its constants: what a rule is built for.

    Attributes
    ----------
    active : tuple of int
        Input positions that receive relevance.
    constants : dict of int to Tensor
        Inputs that are constants of the model, by position.
    linear : Linear or None
        The linear view, if the op has one here.
    gates : frozenset of int
        Input positions that are the output of a Sigmoid or Softmax, reshaped or cast perhaps.
    rectified : bool
        As in `Linear`, for every op.
    """

    node: Node
    op: Op | None
    active: tuple[int, ...]
    constants: Mapping[int, Tensor] = field(default_factory=dict)
    linear: Linear | None = None
    gates: frozenset[int] = frozenset()
    rectified: bool = False

    def forward(self, inputs: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """Run the op; `inputs` by position, None where the site's constants stand in."""
        return run(self.node, self.op, [self.constants.get(p, x) for p, x in enumerate(inputs)])

    def vjp(self, inputs: Sequence[Tensor | None], relevance: Sequence[Tensor | None]) -> list[Tensor]:
        """Vector-Jacobian product at `inputs`: one tensor for each active input."""
        primals = [inputs[p] for p in self.active]
        wanted = [k for k, r in enumerate(relevance) if r is not None]

        def function(*active: Tensor) -> tuple[Tensor, ...]:
            full = list(inputs)
            for position, value in zip(self.active, active, strict=True):
                full[position] = value
            outputs = self.forward(full)
            return tuple(outputs[k] for k in wanted)

        pull = pullback(function, *primals)
        return list(pull(tuple(relevance[k] for k in wanted)))

    def adjoint(self, call: Tensors, relevance: Sequence[Tensor | None]) -> list[Tensor]:
        """Transpose of an op that is linear in its active inputs; reads their shapes, not their values."""
        first = relevance[0]
        if self.op is not None and self.op.adjoint is not None and first is not None:
            every = self.op.adjoint(first, call.shapes, **self.node.attributes)
            return [every[p] for p in self.active]
        like = next(r for r in relevance if r is not None)
        zeros = list(call.inputs)
        for p in self.active:
            zeros[p] = like.new_zeros(()).expand(tuple(call.shapes[p] or ()))  # one number in memory
        return self.vjp(zeros, relevance)


def run(node: Node, op: Op | None, inputs: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Forward pass of one node in torch."""
    if op is None:
        raise UnsupportedOpError(f"{node}: no forward pass in torch is known for op '{label(node)}'")
    try:
        counted = {"outputs": len(node.outputs)} if op.counts_outputs else {}
        result = op.forward(*together(op, inputs), **node.attributes, **counted)
    except UnsupportedOpError as error:
        raise UnsupportedOpError(f"{node}: {error}") from error
    except TypeError as error:
        raise UnsupportedOpError(f"{node}: an attribute or input is not supported in torch ({error})") from error
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def numbers_of(node: Node) -> tuple[int, ...]:
    """`Op.numbers` of a node's op."""
    found = OPS.get((node.domain, node.op_type))
    return found.numbers if found else ()


def together(op: Op, inputs: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The inputs of an op on one device: what the host computed, of shapes and places, follows to the accelerator."""
    data = [x for p, x in enumerate(inputs) if x is not None and p not in op.numbers]
    there = next((x.device for x in data if not x.is_cpu), None)
    if there is None:
        return inputs
    return [x if x is None or p in op.numbers else moved(x, there) for p, x in enumerate(inputs)]


def moved(x: Tensor, device: torch.device) -> Tensor:
    """x on the device; the host waits for nothing but what it is to read."""
    return x.to(device, non_blocking=x.is_cpu)


def label(node: Node) -> str:
    """Op type with its domain where that is not ONNX's own."""
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def pullback(function: Callable[..., Any], *primals: Tensor | None) -> Callable[..., tuple[Tensor, ...]]:
    """The vector-Jacobian product of `function` at `primals`.

    By autograd, not `torch.func.vjp`: inside of that, older torch cannot read axes and sizes out of a tensor.
    """
    return linearised(function, *primals)[1]


def linearised(
    function: Callable[..., Any], *primals: Tensor | None
) -> tuple[list[Tensor], Callable[..., tuple[Tensor, ...]]]:
    """The outputs of `function` at `primals`, and its vector-Jacobian product there."""
    with torch.enable_grad():
        leaves = [p.detach().requires_grad_() for p in primals if p is not None]
        result = function(*leaves)
    outputs = [result] if isinstance(result, Tensor) else list(result)

    def pull(relevance: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
        given = [relevance] if isinstance(relevance, Tensor) else list(relevance)
        reached = [(z, r) for z, r in zip(outputs, given, strict=True) if z.requires_grad]
        if not reached:
            return tuple(torch.zeros_like(leaf) for leaf in leaves)
        zs, rs = zip(*reached, strict=True)
        return torch.autograd.grad(zs, leaves, rs, materialize_grads=True)

    return [output.detach() for output in outputs], pull


def pushforward(function: Callable[..., Tensor], *primals: Tensor) -> Tensor:
    """The derivative of `function` at `primals` times `primals`: what they would give if it were linear.

    As the derivative of the pullback, which every op has; forward differentiation in torch takes a second to import.
    """
    with torch.enable_grad():
        leaves = [p.detach().requires_grad_() for p in primals]
        result = function(*leaves)
        weight = torch.zeros_like(result, requires_grad=True)
        flows = torch.autograd.grad(result, leaves, weight, create_graph=True)
    return torch.autograd.grad(flows, weight, primals)[0]


def means(forward: Callable[..., Tensor], **attributes: Any) -> Linear:
    """`Linear` of an op without weights; its transpose is found by differentiation (exact: the op is linear)."""
    apply = partial(forward, **attributes)

    def transpose(s: Tensor, _: Any, shape: Sequence[int]) -> Tensor:
        return pullback(apply, s.new_zeros(tuple(shape)))(s)[0]

    return Linear(lambda x, _: apply(x), transpose, weight=None)


def ints(value: Tensor | Sequence[int] | int | None) -> list[int] | None:
    """Axes, sizes and the like, given as an attribute or as an input tensor."""
    if value is None:
        return None
    if isinstance(value, int):
        return [value]
    return [int(v) for v in (value.flatten().tolist() if isinstance(value, Tensor) else value)]


def unbroadcast(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Sum a tensor back to the shape that was broadcast to its own."""
    if tuple(x.shape) == tuple(shape):
        return x
    extra = x.ndim - len(shape)
    dims = [d for d in range(x.ndim) if d < extra or (shape[d - extra] == 1 and x.shape[d] != 1)]
    return x.sum(dim=dims, keepdim=True).reshape(tuple(shape)) if dims else x.reshape(tuple(shape))


def resolve_pads(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str,
) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial axis; source: ONNX's definition of `auto_pad`."""
    n = len(kernel)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max((math.ceil(i / s) - 1) * s + (k - 1) * d + 1 - i, 0)
            for i, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
        ]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        return (small, large) if auto_pad == "SAME_UPPER" else (large, small)
    if auto_pad == "VALID" or not pads:
        return [0] * n, [0] * n
    return list(pads[:n]), list(pads[n:])


def torch_pads(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """The order that `torch.nn.functional.pad` wants: last axis first, (before, after) pairs."""
    return [p for pair in zip(reversed(before), reversed(after), strict=True) for p in pair]
