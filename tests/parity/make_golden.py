"""Make the golden arrays of the parity test with zennit and captum, in an environment of their own.

pip install zennit captum torchvision
python tests/parity/make_golden.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from captum.attr import LRP
from captum.attr._utils.lrp_rules import EpsilonRule
from parity_networks import CAPTUM, CAPTUM_EPS, HIGH, LOW, NETWORKS, build, digest, image
from torch import nn
from zennit.attribution import Gradient
from zennit.canonizers import Canonizer, MergeBatchNorm
from zennit.composites import EpsilonAlpha2Beta1, EpsilonGammaBox, EpsilonPlus, EpsilonPlusFlat
from zennit.core import Composite
from zennit.torchvision import ResNetCanonizer

GOLDEN = Path(__file__).with_name("golden")


class IdentityAfterMerge(Canonizer):
    """Set the eps of merged BatchNorms to 0.

    zennit 0.5 leaves it, so that each "identity" divides by sqrt(1 + 1e-5): 5e-5 of the logit on ResNet-18.
    """

    def __init__(self) -> None:
        self.kept: list[tuple[nn.Module, float]] = []

    def apply(self, root_module: nn.Module) -> list[Canonizer]:
        instance = IdentityAfterMerge()
        for module in root_module.modules():
            if isinstance(module, MergeBatchNorm.batch_norm_type):
                instance.kept.append((module, module.eps))
                module.eps = 0.0
        return [instance]

    def register(self) -> None:
        """Nothing is registered module by module."""

    def remove(self) -> None:
        for module, eps in self.kept:
            module.eps = eps


def zennit_composite(name: str, canonizers: Sequence[Canonizer]) -> Composite:
    if name == "epsilon-gamma-box":
        low, high = (torch.tensor(v, dtype=torch.float64) for v in (LOW, HIGH))
        return EpsilonGammaBox(low=low, high=high, canonizers=canonizers)
    kinds = {
        "epsilon-plus": EpsilonPlus,
        "epsilon-plus-flat": EpsilonPlusFlat,
        "epsilon-alpha2-beta1": EpsilonAlpha2Beta1,
    }
    return kinds[name](canonizers=canonizers)


def by_zennit(model: nn.Module, x: torch.Tensor, name: str) -> torch.Tensor:
    expected = model(x)
    with Gradient(
        model=model, composite=zennit_composite(name, [ResNetCanonizer(), IdentityAfterMerge()])
    ) as attributor:
        output, relevance = attributor(x, at_predicted)
    if not torch.allclose(output, expected, rtol=1e-12, atol=1e-12):
        raise RuntimeError("zennit's canonised model computes something else than the model")
    return relevance


def at_predicted(output: torch.Tensor) -> torch.Tensor:
    """Initial relevance: the largest logit."""
    value, index = output.max(dim=1, keepdim=True)
    return torch.zeros_like(output).scatter_(1, index, value)


def by_captum(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """captum's epsilon rule, with a MaxPool that hands everything to the winner.

    captum stabilises MaxPool like a linear layer, z / (z + eps) of the winner's relevance: 5e-6 on AlexNet at 1e-9.
    """
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
        elif isinstance(module, nn.MaxPool2d):
            module.rule = EpsilonRule(epsilon=1e-20)
        elif isinstance(module, (nn.Conv2d, nn.Linear, nn.AdaptiveAvgPool2d)):
            module.rule = EpsilonRule(epsilon=CAPTUM_EPS)
    return LRP(model).attribute(x, target=int(model(x).argmax()))


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for network, composites in NETWORKS.items():
        arrays = {"output": build(network)(image()).detach().numpy().ravel()[:16]}
        for composite in composites:
            model = build(network)
            relevance = by_captum(model, image()) if composite == CAPTUM else by_zennit(model, image(), composite)
            arrays[composite] = digest(relevance)
        np.savez(GOLDEN / f"{network}.npz", **arrays)
