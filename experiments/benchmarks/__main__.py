"""Time of one explanation as a ratio to torch's forward pass plus input gradient of the same network.

Command: `make bench`, or `python -m experiments.benchmarks --networks alexnet resnet50 --batch 1 --rounds 9`.
Data: random input and random weights, torch seed 0. Contenders take turns within a round; medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchvision

from lrp_onnx import rules
from lrp_onnx.converters import convert
from lrp_onnx.engine import Explainer
from lrp_onnx.graph import load

COMPOSITES = ("epsilon", "epsilon-plus", "epsilon-gamma-box", "epsilon-alpha2-beta1")


def contenders(network: str, batch: int) -> dict[str, Callable[[], object]]:
    """Name -> function to time; "torch gradient" is the reference."""
    torch.manual_seed(0)
    module = getattr(torchvision.models, network)(weights=None).eval()
    x = torch.randn(batch, 3, 224, 224)
    graph = load(convert(module, example=x).model)

    def gradient() -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        logits = module(leaf)
        return torch.autograd.grad(logits.max(1).values.sum(), leaf)[0]

    result: dict[str, Callable[[], object]] = {"torch gradient": gradient}
    for name in COMPOSITES:
        bounds = {"low": -3.0, "high": 3.0} if name.endswith("box") else {}
        explainer = Explainer(graph, rules.composite(name, **bounds))
        result[name] = lambda explainer=explainer: explainer.explain(x)
    return result


def measure(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds by name."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()  # warm up
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["alexnet", "vgg16", "resnet50"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {options.batch}\n")
    print(f"| network | torch gradient, ms | {' | '.join(COMPOSITES)} |")
    print("| --- " * (len(COMPOSITES) + 2) + "|")
    for network in options.networks:
        times = measure(contenders(network, options.batch), options.rounds)
        reference = times["torch gradient"]
        ratios = " | ".join(f"{times[name] / reference:.2f}" for name in COMPOSITES)
        print(f"| {network} | {1000 * reference:.0f} | {ratios} |")


if __name__ == "__main__":
    main()
