"""What the rules must give where the answer is known: gradients by torch, and rules that coincide."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lrp_onnx.engine import Explainer
from lrp_onnx.graph import Graph, load
from lrp_onnx.rules import composite

X = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 3, 12, 12)))
EPS = 2.0**-17  # ONNX keeps it as float32, so it has to be exact there


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.two = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.two(torch.relu(self.one(x))) + x, x.mean(dim=1, keepdim=True)], dim=1)


def rectified() -> nn.Module:
    """Only ReLU and MaxPool: piecewise linear, without a bias even homogeneous."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 5, bias=False),
    )


def smooth() -> nn.Module:
    """Residual, concatenation, batch norm, and activations that no LRP rule would differentiate."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6, eps=EPS),
        nn.SiLU(),
        Block(),
        nn.GELU(),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.ConvTranspose2d(7, 4, 3, stride=2, output_padding=1),
        nn.Hardswish(),
        nn.Softplus(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.LayerNorm(16, eps=EPS),
        nn.Linear(16, 8),
        nn.Softmax(dim=-1),
        nn.Linear(8, 5),
    )


def relus() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(384, 16),
        nn.ReLU(),
        nn.Linear(16, 5),
    )


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double().eval()


def exported(model: nn.Module) -> Graph:
    file = io.BytesIO()
    torch.onnx.export(model, (X,), file, dynamo=False, opset_version=17, input_names=["x"])
    return load(file.getvalue())


def by_engine(model: nn.Module, name: str, seed: str = "one", **parameters: float) -> Tensor:
    explainer = Explainer(exported(model), composite(name, **parameters), dtype="float64")
    return explainer.explain(X, seed=seed).relevance["x"]  # type: ignore[arg-type]


def by_autograd(model: nn.Module) -> Tensor:
    x = X.clone().requires_grad_()
    model(x).max(dim=1).values.sum().backward()
    assert x.grad is not None
    return x.grad


def assert_close(found: Tensor, wanted: Tensor, tolerance: float = 1e-10) -> None:
    assert wanted.abs().max() > 1e-6
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("make", [rectified, smooth, relus])
def test_gradient_composite_is_the_gradient(make: Callable[[], nn.Module]) -> None:
    model = seeded(make)
    assert_close(by_engine(model, "gradient"), by_autograd(model))


@pytest.mark.parametrize("make", [rectified, smooth])
def test_input_x_gradient_is_the_input_times_the_gradient(make: Callable[[], nn.Module]) -> None:
    model = seeded(make)
    assert_close(by_engine(model, "input-x-gradient"), X * by_autograd(model))


def test_inner_input_x_gradient_is_the_activation_times_its_gradient() -> None:
    model = seeded(relus)
    hidden = model[:4](X).detach().requires_grad_()
    model[4:](hidden).max(dim=1).values.sum().backward()
    graph = exported(model)
    name = [n for n in graph.nodes if n.op_type == "Relu"][1].outputs[0]
    found = Explainer(graph, "input-x-gradient", dtype="float64").explain(X, layers=[name]).relevance[name]
    assert hidden.grad is not None
    assert_close(found, (hidden * hidden.grad).detach())


def test_epsilon_of_a_relu_network_tends_to_input_x_gradient() -> None:
    model = seeded(rectified)
    wanted = X * by_autograd(model)  # homogeneous: relevance starts at the logit, which is what it sums up to
    assert_close(by_engine(model, "epsilon", seed="logit", eps=1e-14), wanted, 1e-9)
    coarse = by_engine(model, "epsilon", seed="logit", eps=1e-2)
    assert (coarse - wanted).abs().max() > 1e-3 * wanted.abs().max()


def test_alpha1_beta0_is_z_plus() -> None:
    model = seeded(relus)
    by = composite("epsilon-alpha2-beta1", alpha=1.0, beta=0.0)
    found = Explainer(exported(model), by, dtype="float64").explain(X).relevance["x"]
    assert_close(found, by_engine(model, "epsilon-plus", seed="logit"), 1e-13)


def test_gamma_of_nothing_is_epsilon_and_a_large_gamma_z_plus() -> None:
    model = seeded(rectified)
    graph = exported(model)

    def by(name: str, **parameters: float) -> Tensor:
        return Explainer(graph, composite(name, **parameters), dtype="float64").explain(X).relevance["x"]

    # attnlrp has epsilon on the first layer, gamma on the other convolutions
    assert_close(by("attnlrp", gamma=0.0), by("epsilon"), 1e-9)
    plus = by("epsilon-plus-flat")
    assert_close(by("epsilon-gamma-box", gamma=1e9, low=-3.0, high=3.0).sum(), plus.sum(), 1e-3)


def hooked(model: nn.Module, hook: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Backward pass in which each ReLU hands on hook(its gradient, the gradient from above)."""
    handles = [
        m.register_full_backward_hook(lambda _, down, up: (hook(down[0], up[0]),))
        for m in model.modules()
        if isinstance(m, nn.ReLU)
    ]
    try:
        return by_autograd(model)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("make", [rectified, relus])
def test_guided_backprop_equals_torch_hooks(make: Callable[[], nn.Module]) -> None:
    model = seeded(make)
    found = by_engine(model, "guided-backprop")
    assert_close(found, hooked(model, lambda down, _: down.clamp(min=0)))
    assert (found - by_autograd(model)).abs().max() > 1e-3 * found.abs().max()


@pytest.mark.parametrize("make", [rectified, relus])
def test_deconvnet_equals_torch_hooks(make: Callable[[], nn.Module]) -> None:
    model = seeded(make)
    found = by_engine(model, "deconvnet")
    assert_close(found, hooked(model, lambda _, up: up.clamp(min=0)))
    assert (found - by_autograd(model)).abs().max() > 1e-3 * found.abs().max()
