"""Distances and clusters of planted errors: time, memory, and what is lost where some errors stand for all.

Command: `python -m experiments.benchmarks.clustering` (small sizes, two minutes), or with `--full` (the sizes in
docs/scaling.md: a quarter of an hour, 6 GiB of memory, 3 GB of disk). It prints the tables of that page.

Data: 16 or 30 causes, each a random heatmap; an error is the heatmap of its cause plus noise, times a random scale,
in float16. Every figure is from a process of its own, on two threads or as many as `--threads` says; the rate of matrix
products is measured in the same process before and after the distances. `--folder /dev/shm` leaves the disk out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.cluster import hierarchy
from sklearn.metrics import adjusted_rand_score

from experiments.benchmarks.__main__ import machine, row
from experiments.resident import resident
from lrp_onnx.hudd import Distances, cluster, compute_distances, join_representatives, pairwise
from lrp_onnx.hudd.blocks import MEMORY, HeatmapRows
from lrp_onnx.hudd.distances import heatmaps_of
from lrp_onnx.store import HeatmapStore, LayerInfo, StoreSpec

CAUSES, NOISE = 16, 0.5
HARD = {"clear": (1024, 1.0), "faint": (512, 0.6), "none": (2048, 0.0)}  # features, and how strong causes show
HARD_CAUSES, HARD_NOISE = 30, 2.0
ROUNDS = 3
BY = "clock", "processor"


def write_store(path: Path, layers: Mapping[str, tuple[int, float]], cause: np.ndarray, noise: float) -> None:
    """Planted errors, in layers of (features, strength of the causes)."""
    random = np.random.default_rng(0)
    spec = StoreSpec(
        paths=[f"{error}.png" for error in range(len(cause))],
        index=np.arange(len(cause)),
        input_shape=(1, 1, 1),
        outputs=1,
        layers={
            name: LayerInfo((size,), name, "Conv", order) for order, (name, (size, _)) in enumerate(layers.items())
        },
        model="model.onnx",
        model_sha256="0" * 64,
        composite="{}",
        target="predicted",
        seed="logit",
        layer_dtype="float16",
    )
    causes = cause.max() + 1
    centres = {
        name: strength * random.standard_normal((causes, size), dtype=np.float32)
        for name, (size, strength) in layers.items()
    }
    with HeatmapStore.create(path, spec) as store:
        for rows in np.array_split(np.arange(len(cause)), -(-len(cause) // 64)):
            heatmaps = {}
            for name, (size, _) in layers.items():
                values = random.standard_normal((len(rows), size), dtype=np.float32)
                values *= noise
                values += centres[name][cause[rows]]
                heatmaps[name] = values * random.lognormal(-3, 1, (len(rows), 1)).astype(np.float32)
            nothing = np.zeros((len(rows), 1))
            store.write(rows, attribution=nothing[:, :, None, None], prediction=nothing, layers=heatmaps)
        store.finish()


def now() -> np.ndarray:
    """By the clock, and of the processor: on a busy machine the clock says little. Both in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def matrix_rates(rows: int, features: int) -> np.ndarray:
    """Floating point operations a second of float32 products of the size of a tile, by clock and processor, (2,)."""
    values, seconds = torch.randn(rows, features), []
    torch.mm(values, values.T)
    for _ in range(ROUNDS):
        start = now()
        torch.mm(values, values.T)
        seconds.append(now() - start)
    return 2 * rows * rows * features / np.median(seconds, axis=0)


def compare(store: Path, distances: Path) -> dict[str, list[float]]:
    """Seconds for the distances of one layer, and their share of the machine's rate, the symmetric half counted; each
    by the clock and of the processor."""
    with HeatmapStore(store) as heatmaps:
        name, count = heatmaps.layer_names[0], len(heatmaps)
        features = heatmaps.layer(name).shape[1]
        rows = HeatmapRows(heatmaps.layer(name)).blocks(MEMORY)[0][1]
        before = matrix_rates(rows, features)
        start = now()
        compute_distances(heatmaps, distances, layers=[name])
        seconds = now() - start
        bounds = (before + matrix_rates(rows, features)) / 2
    rates = count * count * features / seconds
    return {"seconds": seconds.tolist(), "rate": rates.tolist(), "machine": bounds.tolist()}


def whole(store: Path, distances: Path, micro: int = 0) -> dict[str, Any]:
    """Distances of all layers and clusters, with the seconds of each step and the peak of memory."""
    times = [time.perf_counter()]
    with HeatmapStore(store) as heatmaps:
        compute_distances(heatmaps, distances, layers=heatmaps.layer_names, micro=micro)
        times.append(time.perf_counter())
        with Distances(distances) as between:
            found = cluster(between, min_size=1 if micro else None)
            times.append(time.perf_counter())
            if micro:
                found = join_representatives(found, between, heatmaps_of(heatmaps, found.layer))
            times.append(time.perf_counter())
    return {
        "seconds": np.diff(times).tolist(),
        "cpu": time.process_time(),
        "peak": resident("VmHWM") / 2**30,
        "k": found.k,
        "layer": found.layer,
        "labels": found.labels.tolist(),
    }


def link(method: str, count: int) -> dict[str, float]:
    """Seconds and memory of Ward's linkage, by scipy or by fastcluster (`pip install fastcluster`)."""
    if method == "scipy":
        linkage: Callable[..., Any] = hierarchy.linkage
    else:
        from fastcluster import linkage
    random = np.random.default_rng(0)
    heatmaps = random.normal(size=(CAUSES, 256))[random.integers(CAUSES, size=count)] + random.normal(size=(count, 256))
    condensed = pairwise(heatmaps, memory=1 << 28).astype(np.float64)
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to what is resident now
    start = time.perf_counter()
    linkage(condensed, "ward")
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak": resident("VmHWM") / 2**30}


STEPS: dict[str, Callable[..., dict[str, Any]]] = {"compare": compare, "whole": whole, "link": link}


def alone(threads: int, step: str, *arguments: object) -> dict[str, Any]:
    """What a step tells, run in a process of its own."""
    here = [sys.executable, "-m", "experiments.benchmarks.clustering", "--threads", str(threads)]
    run = subprocess.run([*here, "--step", step, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True)
    told = json.loads(run.stdout.splitlines()[-1])
    print(
        step, *arguments, {name: value for name, value in told.items() if name != "labels"}, file=sys.stderr, flush=True
    )
    return told


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    print("\n".join(["", title, "", row(columns), row(["---"] * len(columns)), *map(row, rows)]), flush=True)


def report_distances(folder: Path, sizes: list[tuple[int, int]], threads: int) -> None:
    rows = []
    for count, features in sizes:
        cause = np.random.default_rng(1).integers(CAUSES, size=count)
        write_store(folder / "h.h5", {"layer": (features, 1.0)}, cause, NOISE)
        one = alone(threads, "compare", folder / "h.h5", folder / "d.h5")
        for by, seconds, rate, bound in zip(BY, one["seconds"], one["rate"], one["machine"], strict=True):
            rates = f"{rate / 1e9:.0f}", f"{bound / 1e9:.0f}"
            rows.append([f"{count:,}", f"{features:,}", by, f"{seconds:.1f}", *rates, f"{rate / bound:.0%}"])
        clear(folder)
    table("Distances of one layer", ["errors", "features", "by", "s", "GFLOP/s", "of torch.mm", "share"], rows)


def report_whole(folder: Path, sizes: list[tuple[int, int, int]], threads: int) -> None:
    rows = []
    for count, features, micro in sizes:
        cause = np.random.default_rng(1).integers(CAUSES, size=count)
        write_store(folder / "h.h5", {"layer": (features, 1.0)}, cause, NOISE)
        one = alone(threads, "whole", folder / "h.h5", folder / "d.h5", micro)
        times = [f"{seconds:.0f}" for seconds in one["seconds"]]
        agreement = f"{adjusted_rand_score(cause, one['labels']):.3f}"
        size = f"{micro:,}" if micro else "all"
        total = f"{sum(one['seconds']):.0f}"
        rows.append(
            [
                f"{count:,}",
                f"{features:,}",
                size,
                *times,
                total,
                f"{one['cpu']:.0f}",
                f"{one['peak']:.1f}",
                str(one["k"]),
                agreement,
            ]
        )
        clear(folder)
    steps = ["distances s", "clusters s", "joining s", "together s", "CPU s", "peak GiB"]
    table("Distances and clusters", ["errors", "features", "clustered", *steps, "k", "ARI to causes"], rows)


def report_linkage(sizes: list[int], threads: int) -> None:
    rows, methods = [], ["scipy", *(["fastcluster"] if find_spec("fastcluster") else [])]
    for count in sizes:
        cells = [f"{count:,}"]
        for method in methods:
            runs = [alone(threads, "link", method, count) for _ in range(ROUNDS)]
            cells += [f"{statistics.median(run[name] for run in runs):.1f}" for name in ("seconds", "peak")]
        rows.append(cells)
    table("Ward's linkage", ["errors", *(word for name in methods for word in (f"{name} s", "peak GiB"))], rows)


def report_loss(folder: Path, sizes: list[tuple[int, list[int]]], threads: int) -> None:
    rows = []
    for count, micros in sizes:
        share = 1 / np.arange(1, HARD_CAUSES + 1) ** 0.7
        cause = np.random.default_rng(1).choice(HARD_CAUSES, count, p=share / share.sum())
        write_store(folder / "h.h5", HARD, cause, HARD_NOISE)
        exact: list[int] = []
        for micro in (0, *micros):
            one = alone(threads, "whole", folder / "h.h5", folder / f"d{micro}.h5", micro)
            exact = exact or one["labels"]
            scores = [f"{adjusted_rand_score(other, one['labels']):.3f}" for other in (exact, cause)]
            rows.append(
                [
                    f"{count:,}",
                    f"{micro:,}" if micro else "all",
                    one["layer"],
                    str(one["k"]),
                    *scores,
                    f"{one['cpu']:.0f}",
                ]
            )
        clear(folder)
    title = f"What is lost: {HARD_CAUSES} causes of unequal sizes, three layers"
    table(title, ["errors", "clustered", "layer", "k", "ARI to exact", "ARI to causes", "CPU s"], rows)


def clear(folder: Path) -> None:
    for path in folder.glob("*.h5"):
        path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the sizes of docs/scaling.md")
    parser.add_argument("--only", choices=["distances", "whole", "linkage", "loss"], help="one of the tables")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to write; the folder for temporary files when left out")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)  # what `alone` starts
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.step:
        name, *arguments = options.step
        print(json.dumps(STEPS[name](*(int(one) if one.isdigit() else one for one in arguments))))
        return
    full, threads = options.full, options.threads
    print(machine(threads) + ".")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        sizes = [(6000, 193_600), (20_000, 4096)] if full else [(2000, 49_152), (5000, 4096)]
        wholes = (
            [(20_000, 4096, 0), (20_000, 4096, 5000), (100_000, 4096, 5000)]
            if full
            else [(4000, 4096, 0), (4000, 4096, 1000)]
        )
        losses = [(10_000, [1000, 2500, 5000])] if full else [(3000, [300, 1000])]
        tables: dict[str, Callable[[], None]] = {
            "distances": lambda: report_distances(folder, sizes, threads),
            "whole": lambda: report_whole(folder, wholes, threads),
            "linkage": lambda: report_linkage([5000, 10_000, 20_000] if full else [2500, 5000], threads),
            "loss": lambda: report_loss(folder, losses, threads),
        }
        for name in [options.only] if options.only else tables:
            tables[name]()


if __name__ == "__main__":
    main()
