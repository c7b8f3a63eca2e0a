"""Whether explanations on a CUDA device are those of the CPU, whether anything waits for it, and how fast they are.

Command: `python -m experiments.benchmarks.accelerator`, about five minutes; what the time does not suffice for is said.
Exit code 0 where all holds, 1 where something does not, 2 where there is no CUDA device. Data: random input and
weights, torch seed 0.

Relevance is compared by |a - b| / |b|, b in float64 on the CPU. In float64 the device may differ by 1e-9, as only the
order of sums does; in float32 by five times what the CPU's own float32 does. Convolutions and products are in true
float32: an explanation turns TF32 off, and so are the forward pass and the gradient that its speed stands beside.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.benchmarks.contenders import HIGH, LOW, NETWORKS, export, network, quiet
from lrp_onnx import rules
from lrp_onnx.accelerator import true_float32
from lrp_onnx.engine import Explainer
from lrp_onnx.graph import Graph, load

COMPOSITES = ("epsilon", "epsilon-plus", "epsilon-gamma-box")
EXACT, ROUNDING, FLOOR = 1e-9, 5.0, 1e-5

Run = Callable[[], object]


@dataclass(frozen=True)
class Parity:
    """Relative differences to float64 on the CPU: of the device in float64, and of both in float32; and waits."""

    exact: float
    device: float
    cpu: float
    waits: int

    @property
    def holds(self) -> bool:
        """Whether the device agrees with the CPU, and nothing waited for it."""
        return self.exact <= EXACT and self.device <= max(ROUNDING * self.cpu, FLOOR) and not self.waits


def explainer(graph: Graph, composite: str, device: str, dtype: str = "float32") -> Explainer:
    bounds = {"low": LOW, "high": HIGH} if composite.endswith("box") else {}
    made = Explainer(graph, rules.composite(composite, **bounds), device=device, dtype=dtype)  # type: ignore[arg-type]
    made.open()
    return made


def parity(graph: Graph, composite: str, device: str, x: Tensor) -> Parity:
    """Explain x (N, …), on the CPU, in both places and precisions."""
    places = {(d, t): explainer(graph, composite, d, t) for d in ("cpu", device) for t in ("float64", "float32")}
    target = places["cpu", "float64"].explain(x).target  # of equal logits rounding may choose another
    found = {place: _relevance(made, x, target) for place, made in places.items()}
    wanted = found["cpu", "float64"]
    differences = {place: float((r - wanted).norm() / wanted.norm()) for place, r in found.items()}
    there = x.to(device)
    return Parity(
        differences[device, "float64"],
        differences[device, "float32"],
        differences["cpu", "float32"],
        waits(lambda: places[device, "float32"].explain(there), device),
    )


def _relevance(made: Explainer, x: Tensor, target: object) -> Tensor:
    relevance = made.explain(x, target=target).relevance  # type: ignore[arg-type]
    return next(iter(relevance.values())).double().cpu()


def waits(run: Run, device: str) -> int:
    """How often a run makes the host wait for the device, as CUDA's debug mode tells; not for the target at the end."""
    if torch.device(device).type != "cuda":
        return 0
    run()  # what is done once: libraries that are loaded, kernels that are chosen
    torch.cuda.synchronize(device)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in told)


def contenders(module: nn.Module, graph: Graph, device: str) -> dict[str, Callable[[Tensor], object]]:
    """What is timed, by name: functions of a batch on the device."""

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            return module(x)  # type: ignore[no-any-return]

    def gradient(x: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(module(leaf).max(1).values.sum(), leaf)[0]

    return {"forward": forward, "gradient": gradient} | {c: explainer(graph, c, device).explain for c in COMPOSITES}


def images_per_second(run: Callable[[Tensor], object], x: Tensor, seconds: float) -> float:
    """Runs for about so many seconds, after two to warm up."""

    def elapsed(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            run(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return time.perf_counter() - start

    with true_float32(x.device, x.dtype):
        elapsed(1)
        times = max(1, int(seconds / max(elapsed(1), 1e-6)))
        return times * len(x) / elapsed(times)


def report(
    name: str,
    module: nn.Module,
    graph: Graph,
    device: str,
    shape: Sequence[int],
    batches: Sequence[int],
    seconds: float,
) -> Iterator[tuple[str, bool]]:
    """The lines of one network, each with whether what it says holds."""
    torch.manual_seed(0)
    for composite in COMPOSITES:
        p = parity(graph, composite, device, torch.randn(2, *shape))
        numbers = [f"{value:.1e}" for value in (p.exact, p.device, p.cpu)]
        yield _row(name, composite, *numbers, p.waits, "yes" if p.holds else "NO"), p.holds
    runs = contenders(module.to(device), graph, device)
    for batch in batches:
        x = torch.randn(batch, *shape).to(device)
        yield _row(name, f"batch {batch}", *_speeds(runs, x, seconds).values()), True


def _speeds(runs: Mapping[str, Callable[[Tensor], object]], x: Tensor, seconds: float) -> dict[str, str]:
    return {name: f"{images_per_second(run, x, seconds):.0f}" for name, run in runs.items()}


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 …")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--seconds", type=float, default=0.3, help="for each figure of speed")
    parser.add_argument("--minutes", type=float, default=4.5, help="after these no network is begun")
    options = parser.parse_args(arguments)
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        print(f"there is no CUDA device for --device {options.device} on this machine", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else options.device
    print(f"{name}, torch {torch.__version__}; TF32 of convolutions is {_tf32()} outside of an explanation")
    print(_row("network", "composite", "float64", "float32", "float32 of the CPU", "waits", "agrees"))
    print(_row("network", "images/s", "forward", "gradient", *COMPOSITES))
    start, holds = time.monotonic(), True
    with tempfile.TemporaryDirectory() as folder, quiet():
        for done, one in enumerate(options.networks):
            if time.monotonic() - start > 60 * options.minutes:
                print(f"no time for {', '.join(options.networks[done:])}; name them: --networks …")
                break
            path = Path(folder) / f"{one}.onnx"
            export(one, path)
            lines = report(one, network(one), load(path), options.device, (3, 224, 224), options.batch, options.seconds)
            for line, good in lines:
                print(line, flush=True)
                holds = holds and good
    print("relevance agrees, and nothing waits" if holds else "NOT all holds: see above")
    return 0 if holds else 1


def _tf32() -> str:
    cudnn = torch.backends.cudnn
    return "on" if (cudnn.conv.fp32_precision == "tf32" if hasattr(cudnn, "conv") else cudnn.allow_tf32) else "off"


if __name__ == "__main__":
    sys.exit(main())
