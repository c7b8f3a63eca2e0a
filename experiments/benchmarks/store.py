"""How fast heatmaps get into a store and out of it, beside plain files of the same bytes.

Command: `python -m experiments.benchmarks.store --folder /dev/shm` (a minute on a quiet core; there the disk does not
decide). Times are of the processor, so that a busy machine does not either; with `--clock`, which a disk needs, of the
clock. It prints a table of docs/scaling.md: one inner layer, written through `HeatmapStore` eight samples at a
time and finished (which compresses), read in order eight samples at a time, and read a sample at a time at random.

Data: half of the values are zero, as behind a ReLU, the others are normal times a scale of their own for each channel.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.benchmarks.__main__ import machine, row
from lrp_onnx.memory import keep_freed_memory
from lrp_onnx.store import HeatmapStore, LayerInfo, StoreSpec, layout

LAYERS = {"large": (64, 112, 112), "small": (160, 7, 7)}
BATCH, SINGLE, ROUNDS = 8, 64, 3
MEBI = 1 << 20


class Rates(NamedTuple):
    """Bytes of heatmaps a second, and bytes of heatmaps to a byte of file."""

    write: float
    read: float
    single: float
    gain: float


def heatmaps(shape: tuple[int, ...], dtype: str, size: int) -> np.ndarray:
    """About `size` bytes of them, a multiple of the batch."""
    random = np.random.default_rng(0)
    count = max(1, size // (math.prod(shape) * np.dtype(dtype).itemsize) // BATCH) * BATCH
    values = random.standard_normal((count, *shape), dtype=np.float32)
    values *= random.lognormal(-5, 2, (count, shape[0], 1, 1)).astype(np.float32)
    values *= random.random(values.shape, dtype=np.float32) < 0.5
    return values.astype(dtype)


def stored(folder: Path, values: np.ndarray, compress: str | None, now: Callable[[], float]) -> Rates:
    path, count, nothing = folder / "h.h5", len(values), np.zeros((BATCH, 1), np.float32)
    spec = StoreSpec(
        paths=[f"{sample}.png" for sample in range(count)],
        index=np.arange(count),
        input_shape=(1, 1, 1),
        outputs=1,
        layers={"layer": LayerInfo(values.shape[1:], "conv", "Conv", 0)},
        model="model.onnx",
        model_sha256="0" * 64,
        composite="{}",
        target="predicted",
        seed="logit",
        layer_dtype=values.dtype.name,
        compress=compress,
    )
    start = now()
    with HeatmapStore.create(path, spec) as store:
        for rows in np.split(np.arange(count), count // BATCH):
            there = slice(rows[0], rows[-1] + 1)
            store.write(rows, attribution=nothing[..., None, None], prediction=nothing, layers={"layer": values[there]})
        store.finish()
    write = now() - start
    size = path.stat().st_blocks * 512
    read, single = (opened(path, values, order, now) for order in orders(count))
    path.unlink()
    return Rates(values.nbytes / write, read, single, values.nbytes / size)


def opened(path: Path, values: np.ndarray, order: list[slice], now: Callable[[], float]) -> float:
    start = now()
    with HeatmapStore(path) as store:
        layer = store.layer("layer")
        for there in order:
            found = layer[there]
    seconds = now() - start
    np.testing.assert_array_equal(found, values[order[-1]])
    return total(order) * values[0].nbytes / seconds


def plain(folder: Path, values: np.ndarray, now: Callable[[], float]) -> Rates:
    """The bound: `pwrite` to a file and `np.fromfile` of the same pieces."""
    path, size = folder / "h.raw", values[0].nbytes
    start = now()
    file = os.open(path, os.O_CREAT | os.O_WRONLY)
    for first in range(0, len(values), BATCH):
        os.pwrite(file, values[first : first + BATCH].data, first * size)
    os.close(file)
    write, reads = now() - start, []
    for order in orders(len(values)):
        start = now()
        for there in order:
            np.fromfile(path, values.dtype, (there.stop - there.start) * values[0].size, offset=there.start * size)
        reads.append(total(order) * size / (now() - start))
    path.unlink()
    read, single = reads
    return Rates(values.nbytes / write, read, single, 1)


def total(order: list[slice]) -> int:
    return sum(there.stop - there.start for there in order)


def orders(count: int) -> tuple[list[slice], list[slice]]:
    """Batches in order, and some samples at random, which may take a whole chunk each."""
    shuffled = np.random.default_rng(0).permutation(count)[:SINGLE].tolist()
    return (
        [slice(first, first + BATCH) for first in range(0, count, BATCH)],
        [slice(sample, sample + 1) for sample in shuffled],
    )


def compare(folder: Path, size: int, now: Callable[[], float]) -> list[list[str]]:
    """The rows of the table."""
    lines = []
    compressions = [None, "gzip", "lzf", *(("zstd", "lz4") if find_spec("hdf5plugin") else ())]
    chunk_bytes = {"1 MiB": layout.CHUNK_BYTES, "one sample": 1}
    for layer, shape in LAYERS.items():
        for dtype in ("float32", "float16"):
            values = heatmaps(shape, dtype, size)
            what = f"{layer}, {values[0].nbytes / 1024:,.0f} KiB", dtype
            lines.append([*what, "a plain file", "", *cells([plain(folder, values, now) for _ in range(ROUNDS)])])
            print(*lines[-1], file=sys.stderr, flush=True)
            for compress in compressions:
                for chunks, most in chunk_bytes.items():
                    if chunks == "one sample" and values[0].nbytes * 2 > layout.CHUNK_BYTES:
                        continue  # it is what they hold anyway
                    before, layout.CHUNK_BYTES = layout.CHUNK_BYTES, most
                    try:
                        rates = [stored(folder, values, compress, now) for _ in range(ROUNDS)]
                    finally:
                        layout.CHUNK_BYTES = before
                    held = chunks if values[0].nbytes * 2 <= layout.CHUNK_BYTES else "one sample"
                    lines.append([*what, compress or "none", held, *cells(rates)])
                    print(*lines[-1], file=sys.stderr, flush=True)
    return lines


def cells(rounds: list[Rates]) -> list[str]:
    middle = Rates(*(statistics.median(values) for values in zip(*rounds, strict=True)))
    return [*(f"{rate / 1e6:,.0f}" for rate in middle[:3]), f"{middle.gain:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write; the folder for temporary files when left out")
    parser.add_argument("--size", type=int, default=128, help="MiB of heatmaps in each store")
    parser.add_argument("--clock", action="store_true", help="by the clock, not by processor time")
    options = parser.parse_args()
    now = time.perf_counter if options.clock else time.process_time
    keep_freed_memory()  # as the commands do
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        lines = compare(Path(name), options.size * MEBI, now)
    print(f"{machine(1)}; MB/s {'by the clock' if options.clock else 'of processor time'}.\n")
    columns = ["a sample", "type", "compression", "a chunk", "write", "read", "read singly", "smaller by"]
    print("\n".join([row(columns), row(["---"] * len(columns)), *map(row, lines)]))


if __name__ == "__main__":
    main()
