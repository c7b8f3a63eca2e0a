"""Time and memory of one explanation as ratios to torch's forward pass plus input gradient of the same network.

Command: `make bench`, or `python -m experiments.benchmarks --networks alexnet resnet50 --batch 1 16 --rounds 9`.
Data: random input and random weights, torch seed 0. Contenders take turns within a round; the ratio is the median over
the rounds of the ratio within a round, so that a busy machine slows all alike. The tables go to docs/performance.md.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnxruntime
import torch

from experiments.benchmarks.contenders import NETWORKS, REFERENCE, Run, contender, export, names, quiet
from experiments.benchmarks.memory import growth

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"

WHY = """## What the time goes into, and what is left out

- ONNX Runtime runs the forward pass and hands out what the walk reads, pictures channels last, which the kernels of
  the walk want. Behind a ReLU that is max(z, 0), which the next layer needs anyway.
- A 2-D convolution without groups runs with weights packed once in the order that the kernels read, for every
  weight that a rule makes; the adjoint of one of stride 1 is a convolution with the kernel turned around. Other
  memory formats, precisions, devices and versions of torch take the plain kernels, with the same result.
- Of a large dense layer and a single sample, rows of the weights are read only where relevance arrives, if that is
  in half of the units or fewer: one row behind a one-hot seed.
- Behind a ReLU there is no negative input, and half of the terms of z-plus, alpha-beta and gamma are not computed.
- A large batch goes in parts of as many samples as have 256 MiB of activations (`Explainer(…, at_once=N)` sets the
  number), so that memory does not grow with it: 4 samples of VGG-16. One thread took the same processor time for
  it. Samples that may depend on each other stay together.
- What the session was opened from is freed once it is open: the model's weights are there one time less.

Tried and left out: computing R / (z + eps) piece by piece within the cache, each piece with memory of its own (no
faster), and the adjoint of max-pooling without autograd (a thousandth of the time).""".splitlines()


def measure(runs: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds by contender, one a round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_initialized():  # which works on when a call has returned
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return times


def compete(
    network: str, path: Path, batch: int, rounds: int, wanted: Sequence[str], device: str
) -> dict[str, tuple[float, float]]:
    """Median seconds and median ratio to the reference, for each contender that can run the network."""
    torch.manual_seed(0)
    x = torch.randn(batch, 3, 224, 224).to(device)
    runs: dict[str, Run] = {}
    for name in wanted:
        try:
            run = contender(name, network, path, x)
            run()  # warm up
        except Exception as error:  # each library has its own ways to refuse a network
            print(f"{network}: {name} cannot run it: {str(error).splitlines()[:1]}", file=sys.stderr)
        else:
            runs[name] = run
    times = measure(runs, rounds)
    paired = {n: [t / r for t, r in zip(seconds, times[REFERENCE], strict=True)] for n, seconds in times.items()}
    return {name: (statistics.median(times[name]), statistics.median(paired[name])) for name in runs}


def machine(threads: int, device: str = "cpu") -> str:
    """One line on what the figures were measured on."""
    facts = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in facts.read_text().splitlines() if "model name" in line]
    processor = f"{len(models)} x {models[0]}" if models else platform.processor()
    if device != "cpu":
        processor = f"{torch.cuda.get_device_name(device)} beside {processor}"
    return (
        f"{processor}, {threads} thread{'s' * (threads > 1)}; {platform.system()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}"
    )


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--contenders", nargs="+", default=names(), choices=names(), metavar="NAME")
    parser.add_argument("--memory", action="store_true", help="also measure peak memory, each in its own process")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 …")
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: torch finds no CUDA device on this machine")
    if options.device != "cpu" and options.memory:
        parser.error("--memory measures the CPU's memory; leave it out on an accelerator")
    torch.set_num_threads(options.threads)
    wanted = list(dict.fromkeys([REFERENCE, *options.contenders]))

    lines = [
        "# Performance",
        "",
        "One explanation (forward pass, walk, relevance of the input) as a ratio to torch's own forward pass plus",
        "input gradient of the same network; less is faster. Networks at 224x224 with random weights. Contenders take",
        f"turns within a round; medians over {options.rounds} rounds of the ratio within a round. Empty: the library",
        "cannot run it. Written by `make bench` (`make bench-peers` adds zennit and captum).",
        "",
        machine(options.threads, options.device) + ".",
    ]
    with tempfile.TemporaryDirectory() as folder, quiet():
        for batch in options.batch:
            table, peaks = [], []
            for network in options.networks:
                path = Path(folder) / f"{network}.onnx"
                if not path.exists():
                    export(network, path)
                found = compete(network, path, batch, options.rounds, wanted, options.device)
                ratios = [f"{found[n][1]:.2f}" if n in found else "" for n in wanted[1:]]
                table.append(row([network, f"{1000 * found[REFERENCE][0]:.0f} ms", *ratios]))
                print(table[-1], file=sys.stderr, flush=True)
                gc.collect()
                if options.memory:
                    rises = {n: growth(n, network, path, batch, options.threads) for n in found}
                    base = rises[REFERENCE]
                    shares = [f"{rise / base:.2f}" if base and (rise := rises.get(n)) else "" for n in wanted[1:]]
                    peaks.append(row([network, f"{base or 0:.0f} MiB", *shares]))
                    print(peaks[-1], file=sys.stderr, flush=True)
            head = [row(["network", *wanted]), row(["---"] * (len(wanted) + 1))]
            lines += ["", f"## Batch {batch}: time", "", *head, *table]
            if peaks:
                lines += ["", f"## Batch {batch}: rise of memory above the loaded model", "", *head, *peaks]
    lines += ["", *WHY]
    options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
