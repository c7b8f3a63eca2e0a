"""Time and memory of one explanation as ratios to torch's forward pass plus input gradient of the same network.

Command: `make bench`, or `python -m experiments.benchmarks --networks alexnet resnet50 --batch 1 16 --rounds 9`.
Data: random input and random weights, torch seed 0. Contenders take turns within a round; the ratio is the median over
the rounds of the ratio within a round, so that a busy machine slows all alike. The tables go to docs/performance.md:
those that a run makes replace the ones of the same name, the others stay.
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
from experiments.benchmarks.precision import errors

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"

INTRODUCTION = """\
One explanation (forward pass, walk, relevance of the input) as a ratio to torch's own forward pass plus
input gradient of the same network; less is faster. Networks at 224x224 with random weights. Contenders take
turns within a round; the median over the rounds of the ratio within a round. Empty: the library cannot run it.
`make bench` measures the first table, `make bench-peers` with zennit, captum and lxt beside it, and
`BENCH="--batch 16 --rounds 3 --memory"` and `BENCH="--errors"` the others; each says what it was measured on."""

WHY_HEADING = "What the time goes into, and what is left out"
WHY = """\
- ONNX Runtime runs the forward pass and hands out what the walk reads, pictures channels last, which the kernels of
  the walk want. Behind a ReLU that is max(z, 0), which the next layer needs anyway.
- A 2-D convolution without groups runs with weights packed once in the order that the kernels read, for every
  weight that a rule makes; the adjoint of one of stride 1 is a convolution with the kernel turned around. Other
  memory formats, precisions, devices and versions of torch take the plain kernels, with the same result.
- A 3x3 convolution of stride 1 with 128 channels or more and 16x16 outputs or more has a quarter of the
  multiplications: Winograd's F(4x4, 3x3), 0.4 to 0.8 times as long, for 4 times the memory of its weights. Its
  rounding, twice that of the direct kernels, is relative to the largest sum in a tile of 6x6. So it is left to the
  direct kernels where what a rule divides by may vanish and its relevance not (biases ignored, the inhibiting part of
  alpha-beta, a rule such as flat above): there dark areas would reach bright ones beside them. Heatmaps of VGG-16 and
  ResNet-50 are as far from float64 as without it. Denominators come from the direct kernels, and nothing is in tiles
  above which a step divides by less than its output.
- The same kernels add the bias and the stabiliser, and multiply by x, before a result leaves the cache: bit for bit
  what separate passes give. A denominator is computed in the memory of the activation that nobody reads any more.
- Of a large dense layer and a single sample, rows of the weights are read only where relevance arrives, if that is
  in 70 % of the units or fewer: one row behind a one-hot seed.
- No activation is kept for its shape alone: what the declared sizes leave open, such as a Reshape to -1, onnx infers
  for the sizes of the run. That was half of what ViT read.
- Attention and normalisations do not compute their forward pass again for their transpose, what is only reordered keeps
  its sum, and nothing is walked below a gate that gets nothing (half of EfficientNet's steps).
- Behind a ReLU there is no negative input, and half of the terms of z-plus, alpha-beta and gamma are not computed.
- In front of a ReLU relevance arrives only where z > 0, and z is there: of alpha-beta, z_a is z − z_b (three
  convolutions and not four), and of z-plus with an input of both signs the denominator is (z + |x||w| + |b|) / 2 (three
  and not four). Gamma of signed inputs and sums takes three and not eight (see `rules/linear.py`). No
  denominator cancels: heatmaps are as far from float64 as without.
- A large batch goes in parts of as many samples as have 512 MiB of activations, or of 8 while these have no 2 GiB
  (`Explainer(…, at_once=N)` sets the number), so that memory does not grow with it: 8 samples of VGG-16 (2, 4, 8, 16 at
  a time: 0.99, 1, 0.97, 1.05 times as long) and of ViT, whose matrix products are faster for many rows (1.12, 1.05,
  0.99, 1 times as long as all 16; rise of memory with cp-lrp 0.8, 2.3, 2.0, 5.0 GB, with epsilon 0.5 GB for 2 and 3.4
  for 8, of torch's gradient 2.2 to 2.5 GB). Samples that may depend on each other stay together; where shapes do not
  tell, as in transformers, a try with two samples does.
- What the session was opened from is freed once it is open: the model's weights are there one time less.
- `dtype="bfloat16"` (`heatmaps --dtype bfloat16`) rounds what layers with weights multiply in the walk to 8 bits of
  precision, for kernels that some processors have (AMX, AVX-512 BF16, tensor cores); without these it is refused. The
  forward pass, and with it the decision, stays float32. It is for large dense convolutions and attention; grouped
  convolutions, as of MobileNet, stay float32.

Tried and left out:

- R / (z + eps) piece by piece within the cache, and the adjoint of max-pooling without autograd (a thousandth of the
  time) or in bands of rows that threads share (0.4 %);
- the forward pass by the walk's own kernels, activations channels last and ReLU in the kernel, in place of ONNX
  Runtime: as fast (0.98 to 1.05 times), and no longer what is deployed;
- dense layers with packed weights: 242 to 269 GFLOP/s in place of 214 to 262 for the 197 tokens of ViT, for a second
  copy of the weights;
- torch.compile for what lies between convolutions of VGG-16 (R / (z + eps) and what the bias takes): 9.7 ms in place
  of 8.4 ms, for it makes new memory, and half a minute of compiling;
- a CUDA graph of forward pass and walk. Nothing between input and relevance waits for the device, which is what
  capturing needs, but models that compute positions or matrices of Resize on the host copy these in every run, which
  a capture refuses."""


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
    parser.add_argument("--errors", action="store_true", help="in place of time: how far off each precision is")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 …")
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: torch finds no CUDA device on this machine")
    if options.device != "cpu" and options.memory:
        parser.error("--memory measures the CPU's memory; leave it out on an accelerator")
    torch.set_num_threads(options.threads)
    wanted = list(dict.fromkeys([REFERENCE, *options.contenders]))

    where = machine(options.threads, options.device)
    with tempfile.TemporaryDirectory() as folder, quiet():
        paths = {network: Path(folder) / f"{network}.onnx" for network in options.networks}
        for network, path in paths.items():
            export(network, path)
        if options.errors:
            update(options.output, {"Precision": [f"{where}.", *errors(paths, options.device)]})
            return
        for batch in options.batch:
            times, peaks = {}, {}
            for network, path in paths.items():
                found = compete(network, path, batch, options.rounds, wanted, options.device)
                ratios = {n: f"{ratio:.2f}" for n, (_, ratio) in found.items()}
                times[network] = ratios | {REFERENCE: f"{1000 * found[REFERENCE][0]:.0f} ms"}
                made = {f"Batch {batch}: time": [f"{where}. {options.rounds} rounds.", "", *table(wanted, times)]}
                gc.collect()
                if options.memory:
                    rises = {n: growth(n, network, path, batch, options.threads) for n in found}
                    base = rises[REFERENCE]
                    shares = {n: f"{rise / base:.2f}" for n, rise in rises.items() if base and rise}
                    peaks[network] = shares | {REFERENCE: f"{base or 0:.0f} MiB"}
                    heading = f"Batch {batch}: rise of memory above the loaded model"
                    made[heading] = [f"{where}.", "", *table(wanted, peaks)]
                update(options.output, made)  # after each network: nothing is lost when it is interrupted
                print(
                    f"{network}, batch {batch}: {times[network]} {peaks.get(network, '')}", file=sys.stderr, flush=True
                )


def table(rows: Sequence[str], columns: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A table of contenders by network, in Markdown."""
    head = [row(["", *columns]), row(["---"] * (len(columns) + 1))]
    return head + [row([name, *(column.get(name, "") for column in columns.values())]) for name in rows]


def update(page: Path, made: Mapping[str, Sequence[str]]) -> None:
    """Write sections, by heading, into the page; those that it has besides stay."""
    parts = page.read_text().split("\n## ")[1:] if page.exists() else []
    known = {heading: body.strip("\n") for heading, _, body in (part.partition("\n") for part in parts)}
    sections = known | {heading: "\n".join(lines) for heading, lines in made.items()} | {WHY_HEADING: WHY}
    first = sorted(sections, key=lambda heading: (heading == WHY_HEADING, heading == "Precision"))
    texts = [f"# Performance\n\n{INTRODUCTION}", *(f"## {heading}\n\n{sections[heading]}" for heading in first)]
    page.write_text("\n\n".join(texts) + "\n")


if __name__ == "__main__":
    main()
