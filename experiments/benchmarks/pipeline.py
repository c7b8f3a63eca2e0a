"""How much of the engine's own rate is left when `heatmaps` reads JPEGs and writes a store: decode, explain, write."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
import torchvision
from PIL import Image

from lrp_onnx import Explainer, compute_heatmaps, load
from lrp_onnx.converters import convert
from lrp_onnx.engine import DEFAULT_COMPOSITE

SIZE = 500, 375  # of the pictures, pixels


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m experiments.benchmarks.pipeline", description=__doc__)
    options.add_argument("--count", type=int, default=1000, help="pictures")
    options.add_argument("--batch", type=int, default=8, help="samples at a time")
    options.add_argument("--composite", default=DEFAULT_COMPOSITE)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder / "pictures", chosen.count)
        model = folder / "model.onnx"
        write_model(model)
        engine = engine_of(model, chosen.composite, chosen.batch, max(chosen.count // 4, chosen.batch))

        def command(layers: str) -> float:
            start = time.perf_counter()
            compute_heatmaps(
                model,
                folder / "pictures",
                folder / "h.h5",
                composite=chosen.composite,
                layers=layers,
                layer_dtype="float16",
                batch_size=chosen.batch,
                overwrite=True,
            )
            return chosen.count / (time.perf_counter() - start)

        # the engine before, between and after, so that a change of the machine's mood shows
        before, small, between, large, after = engine(), command("input"), engine(), command("all"), engine()
    print(
        f"\nMobileNetV2, {chosen.count} JPEGs of {SIZE[0]} x {SIZE[1]}, batches of {chosen.batch}, {chosen.composite}, "
    )
    print(f"{chosen.threads} threads\n\n| | images a second | share of the engine |\n| --- | --- | --- |")
    print(f"| engine, in memory | {before:.1f}, {between:.1f}, {after:.1f} | |")
    print(f"| heatmaps of the input | {small:.1f} | {small / ((before + between) / 2):.0%} |")
    print(f"| and of all layers, float16 | {large:.1f} | {large / ((between + after) / 2):.0%} |")
    print(f"\nAll layers take {small / large:.2f} times as long as the input alone.")


def engine_of(model: Path, composite: str, batch: int, count: int) -> Callable[[], float]:
    """What measures the rate of explanations of one batch in memory, images a second."""
    explainer = Explainer(load(model), composite)
    x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    def measure() -> float:
        explainer.explain(x)
        start = time.perf_counter()
        for _ in range(count // batch):
            explainer.explain(x)
        return count // batch * batch / (time.perf_counter() - start)

    return measure


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
