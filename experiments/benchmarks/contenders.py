"""What takes part in the benchmark: our composites, torch and ONNX Runtime alone, and libraries that are installed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import torch
import torchvision
from torch import Tensor, nn

from lrp_onnx import rules
from lrp_onnx.graph import Graph, load
from lrp_onnx.ops import has_bfloat16

NETWORKS = ("alexnet", "vgg16", "resnet50", "mobilenet_v2", "efficientnet_b0", "vit_b_16")
COMPOSITES = ("epsilon", "epsilon-plus", "epsilon-plus-flat", "epsilon-gamma-box", "epsilon-alpha2-beta1")
FOR_ATTENTION = ("attnlrp", "cp-lrp")  # of networks that have some
NARROW, NARROWED = "bfloat16", ("epsilon", "epsilon-plus", "epsilon-gamma-box")
REFERENCE = "torch gradient"
LOW, HIGH = -3.0, 3.0

Run = Callable[[], object]


def network(name: str) -> nn.Module:
    """The torchvision architecture with random weights, seed 0, in eval mode.

    Batch normalisation has the statistics of random pictures, as after training: with those that it begins with,
    activations die out, and relevance is what no float32 can hold (EfficientNet: 1e-88).
    """
    torch.manual_seed(0)
    module: nn.Module = getattr(torchvision.models, name)(weights=None).eval()
    for head in module.modules():
        if (
            isinstance(head, nn.Linear) and not head.weight.any()
        ):  # transformers begin with zeros: no logit, no relevance
            nn.init.trunc_normal_(head.weight, std=0.02)
    norms = [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = None  # the mean of all batches, here of one
    if norms:
        with torch.no_grad():
            module(torch.randn(4, 3, 224, 224))
    return module.eval()


def export(name: str, path: Path) -> None:
    """Write the network as ONNX."""
    from lrp_onnx.converters import convert

    onnx.save(convert(network(name), example=torch.randn(1, 3, 224, 224)).model, path)


def names() -> list[str]:
    """All contenders of this environment; the reference first."""
    peers = [f"zennit {composite}" for composite in COMPOSITES] if find_spec("zennit") else []
    peers += ["captum epsilon"] if find_spec("captum") else []
    peers += ["lxt cp-lrp"] if find_spec("lxt") else []
    narrow = [f"{composite} {NARROW}" for composite in NARROWED] if has_bfloat16(torch.device("cpu")) else []
    return [REFERENCE, "torch forward", "ONNX Runtime forward", *COMPOSITES, *FOR_ATTENTION, *narrow, *peers]


def prepared(name: str) -> rules.Composite:
    """The composite of that name, with the bounds of the pictures where it takes some."""
    return rules.composite(name, **({"low": LOW, "high": HIGH} if name.endswith("box") else {}))


def contender(name: str, network_name: str, path: Path, x: Tensor) -> Run:
    """The function to time, on the device of x; raises whatever the library raises for a network that it cannot do."""
    attention = network_name.startswith("vit")
    if name.removeprefix("lxt ") in FOR_ATTENTION and not attention:
        raise ValueError(f"{network_name} has no attention")
    if name.removesuffix(f" {NARROW}") in (*COMPOSITES, *FOR_ATTENTION) or name == "ONNX Runtime forward":
        return _ours(name, path, x)
    module = network(network_name).to(x.device)
    if name == "lxt cp-lrp":
        return _lxt(module, x)
    if name.startswith("zennit "):
        return _zennit(name.removeprefix("zennit "), module, x)
    if name == "captum epsilon":
        return _captum(module, x)

    def forward() -> Tensor:
        with torch.no_grad():
            return module(x)  # type: ignore[no-any-return]

    def gradient() -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(module(leaf).max(1).values.sum(), leaf)[0]

    return {"torch forward": forward, REFERENCE: gradient}[name]


def _ours(name: str, path: Path, x: Tensor) -> Run:
    from lrp_onnx.engine import Explainer
    from lrp_onnx.runtime import open_session

    graph = _graph(path)
    if name == "ONNX Runtime forward":
        if x.device.type != "cpu":
            raise ValueError("ONNX Runtime is used on the CPU alone")
        session = open_session(graph.model, threads=torch.get_num_threads())
        feed = {session.get_inputs()[0].name: x.numpy()}
        return lambda: session.run(None, feed)
    composite, _, narrow = name.partition(" ")
    explainer = Explainer(graph, prepared(composite), device=str(x.device), dtype="bfloat16" if narrow else "float32")
    explainer.open()  # which is a part of loading the model
    return lambda: explainer.explain(x)


@lru_cache(maxsize=1)
def _graph(path: Path) -> Graph:
    """One for all contenders: of VGG-16, a copy for each would not fit into memory."""
    return load(path)


def _zennit(name: str, module: nn.Module, x: Tensor) -> Run:
    from zennit import composites, rules, types
    from zennit.attribution import Gradient
    from zennit.canonizers import SequentialMergeBatchNorm
    from zennit.torchvision import ResNetCanonizer

    resnet = isinstance(module, torchvision.models.ResNet)
    options: dict[str, Any] = {"canonizers": [ResNetCanonizer() if resnet else SequentialMergeBatchNorm()]}
    if name == "epsilon":
        layers = [
            (types.Activation, rules.Pass()),
            (types.AvgPool, rules.Norm()),
            *([(rules.Sum, rules.Norm())] if hasattr(rules, "Sum") else []),
            (types.Linear, rules.Epsilon()),
        ]
        composite = composites.LayerMapComposite(layer_map=layers, **options)
    else:
        made = {
            "epsilon-plus": composites.EpsilonPlus,
            "epsilon-plus-flat": composites.EpsilonPlusFlat,
            "epsilon-gamma-box": composites.EpsilonGammaBox,
            "epsilon-alpha2-beta1": composites.EpsilonAlpha2Beta1,
        }
        if name == "epsilon-gamma-box":
            options |= {"low": torch.full_like(x[:1], LOW), "high": torch.full_like(x[:1], HIGH)}
        composite = made[name](**options)

    def seed(output: Tensor) -> Tensor:
        value, index = output.max(dim=1, keepdim=True)
        return torch.zeros_like(output).scatter_(1, index, value)

    def run() -> Tensor:
        with Gradient(model=module, composite=composite) as attributor:
            return attributor(x, seed)[1]

    return run


def _captum(module: nn.Module, x: Tensor) -> Run:
    from captum.attr import LRP
    from captum.attr._utils.lrp_rules import EpsilonRule

    for part in module.modules():
        if isinstance(part, nn.ReLU):
            part.inplace = False
        elif isinstance(part, (nn.Conv2d, nn.Linear, nn.AdaptiveAvgPool2d, nn.MaxPool2d)):
            part.rule = EpsilonRule()
    target = module(x).argmax(1)
    return lambda: LRP(module).attribute(x, target=target)


def _lxt(module: nn.Module, x: Tensor) -> Run:
    """It patches classes of torch, which is undone behind each run."""
    from lxt.efficient.models.vit_torch import cp_LRP

    module.requires_grad_(False)
    kept = {kind: kind.forward for kind in cp_LRP}
    for kind, patch in cp_LRP.items():
        patch(kind)
    patched = {kind: kind.forward for kind in cp_LRP}

    def use(forwards: dict[type[nn.Module], Any]) -> None:
        for kind, forward in forwards.items():
            kind.forward = forward

    use(kept)

    def run() -> Tensor:
        leaf = x.clone().requires_grad_()
        use(patched)
        try:
            return leaf * torch.autograd.grad(module(leaf).max(1).values.sum(), leaf)[0]
        finally:
            use(kept)

    return run


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of the libraries, which would stand in the table's way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
