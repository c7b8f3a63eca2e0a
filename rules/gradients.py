"""The plain gradient and its two classic variations, as rules, so that they run on the same walk."""

from __future__ import annotations

import torch

from lrp_onnx.ops import Site
from lrp_onnx.rules.registry import Backward, Call, Shares, rule


@rule("gradient", needs=("inputs",))
def gradient(site: Site) -> Backward:
    """The vector-Jacobian product of the op."""
    linear = site.linear
    if linear is None:
        return lambda call: Shares(site.vjp(call.inputs, call.relevance))
    position = site.active[0]

    def backward(call: Call) -> Shares:
        return Shares([linear.transpose(call.relevance[0], linear.weight, call.shapes[position])])  # type: ignore[arg-type]

    return backward


@rule("guided", needs=("inputs",), families=("activation",))
def guided(site: Site) -> Backward:
    """Guided backpropagation (Springenberg et al. 2014): at a ReLU, positive signals where its input is positive."""
    passes = gradient(site)

    def backward(call: Call) -> Shares:
        return Shares([None if share is None else share.clamp(min=0) for share in passes(call).inputs])

    return backward


@rule("deconvnet", needs=(), families=("activation",))
def deconvnet(site: Site) -> Backward:
    """Deconvolution (Zeiler and Fergus 2014): at a ReLU only positive signals, whatever the input was."""
    return lambda call: Shares([call.relevance[0].clamp(min=0)])  # type: ignore[union-attr]


@rule("straight-through", needs=("outputs",), families=("activation",))
def straight_through(site: Site) -> Backward:
    """QuantizeLinear, whose gradient is zero: as if it did not round (Bengio et al. 2013), but for what it clips."""
    clips = site.node.op_type == "QuantizeLinear"

    def backward(call: Call) -> Shares:
        relevance, levels = call.relevance[0], call.outputs[0]
        assert relevance is not None and levels is not None
        if not clips:  # a range that is taken from the data holds all of it
            return Shares([relevance])
        limits = torch.iinfo(site.constants[2].dtype if 2 in site.constants else levels.dtype)
        values = levels.to(torch.int32)
        return Shares([relevance * ((values > limits.min) & (values < limits.max))])

    return backward
