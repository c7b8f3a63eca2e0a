"""How much of the engine's own rate is left when `heatmaps` reads JPEGs and writes a store: decode, explain, write.

Command: `python -m experiments.benchmarks.pipeline --count 1000 --input-only`; without `--input-only` also with all
layers recorded, 26 MB a picture (`TMPDIR` says where). The engine explains one batch in memory again and again, all
threads on it; before, between and after, so that a change of the machine's mood shows. Shares are by the clock and,
for busy machines, by CPU time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
import torchvision
from PIL import Image

from lrp_onnx import Explainer, compute_heatmaps, load
from lrp_onnx.converters import convert
from lrp_onnx.engine import DEFAULT_COMPOSITE
from lrp_onnx.memory import keep_freed_memory

SIZE = 500, 375  # of the pictures, pixels


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m experiments.benchmarks.pipeline", description=__doc__)
    options.add_argument("--count", type=int, default=1000, help="pictures")
    options.add_argument("--batch", type=int, default=8, help="samples at a time")
    options.add_argument("--composite", default=DEFAULT_COMPOSITE)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--input-only", action="store_true", help="no inner layers")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_freed_memory()  # as the command does
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder / "pictures", chosen.count)
        model = folder / "model.onnx"
        write_model(model)
        explainer = Explainer(load(model), chosen.composite)
        x = torch.randn(chosen.batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        batches = max(2, chosen.count // 4 // chosen.batch)
        explainer.explain(x)

        def engine() -> Cost:
            return measured(lambda: [explainer.explain(x) for _ in range(batches)], batches * chosen.batch)

        def command(layers: str) -> Cost:
            def run() -> None:
                compute_heatmaps(
                    model,
                    folder / "pictures",
                    folder / "h.h5",
                    composite=chosen.composite,
                    layers=layers,
                    layer_dtype="float16",
                    batch_size=chosen.batch,
                )

            cost = measured(run, chosen.count)
            (folder / "h.h5").unlink()
            return cost

        asked = {"heatmaps of the input": "input"}
        if not chosen.input_only:
            asked["and of all layers, float16"] = "all"
        engines, costs = [engine()], []
        for layers in asked.values():
            costs.append(command(layers))
            engines.append(engine())
    print(
        f"\nMobileNetV2, {chosen.count} JPEGs of {SIZE[0]} x {SIZE[1]}, batches of {chosen.batch}, {chosen.composite},"
    )
    print(f"{chosen.threads} threads\n")
    print(
        "| | images a second | share of the engine | CPU ms an image | share by CPU |\n| --- | --- | --- | --- | --- |"
    )
    for cost in engines:
        print(f"| engine, in memory | {1 / cost.clock:.1f} | | {1000 * cost.cpu:.1f} | |")
    for what, cost, before, after in zip(asked, costs, engines, engines[1:], strict=False):
        clock, cpu = (before.clock + after.clock) / 2 / cost.clock, (before.cpu + after.cpu) / 2 / cost.cpu
        print(f"| {what} | {1 / cost.clock:.1f} | {clock:.0%} | {1000 * cost.cpu:.1f} | {cpu:.0%} |")
    if not chosen.input_only:
        small, large = costs
        print(f"\nAll layers take {large.clock / small.clock:.2f} times as long as the input alone, ", end="")
        print(f"{large.cpu / small.cpu:.2f} times the CPU time.")


class Cost(NamedTuple):
    """Seconds an image."""

    clock: float
    cpu: float


def measured(run: Callable[[], object], images: int) -> Cost:
    clock, cpu = time.perf_counter(), time.process_time()
    run()
    return Cost((time.perf_counter() - clock) / images, (time.process_time() - cpu) / images)


def write_model(path: Path) -> None:
    torch.manual_seed(0)
    net = torchvision.models.mobilenet_v2().eval()
    onnx.save(convert(net, example=torch.randn(1, 3, 224, 224), preprocess={"preset": "imagenet"}).model, path)


def write_pictures(folder: Path, count: int) -> None:
    """Clouds with noise, which take the decoder as long as a photograph of that size."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        clouds = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
        noisy = np.asarray(clouds, np.int16) + random.integers(-20, 21, (SIZE[1], SIZE[0], 3), np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05d}.jpg", quality=88)


if __name__ == "__main__":
    main()
