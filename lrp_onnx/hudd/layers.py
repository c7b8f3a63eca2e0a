"""Which layers of a heatmap store can tell the causes of errors apart, and add something to the others."""

from __future__ import annotations

import math

import h5py
import numpy as np
from numpy.typing import NDArray

from lrp_onnx.hudd.clusters import INPUT
from lrp_onnx.store import HeatmapStore
from lrp_onnx.store.disk import runs

_ROWS_TRIED = 64
_READ = 8 << 20  # bytes of one layer at a time


def eligible_layers(store: HeatmapStore, profile: str = "default") -> list[str]:
    """Layers that can tell causes apart: the inner ones without those that say nothing, or nothing more.

    The relevance of the tensor that it starts from, and of the same tensor in another shape, is that of one output and
    0 for all others. It separates the predicted classes perfectly, and would always win.

    An activation hands its relevance on as it came, so that a ReLU repeats its convolution. Of layers that are equal in
    every finished row the first counts.

    In profile `default` only layers with positions count (pixels, tokens) where there are any. Heatmaps of dense layers
    behind them follow the predicted class, which everybody knows already, and their few neurons give them the smaller
    distances.

    Returns
    -------
    list of str
        In graph order; "input" alone when nothing else is left.
    """
    names, outputs = store.layer_names, int(np.prod(store.prediction.shape[1:]))
    start = store.conservation[0][-1] if store.conservation is not None else None
    rows = store.done
    while names and (names[-1] == start or _one_output(store.layer(names[-1])[rows[:_ROWS_TRIED]], outputs)):
        names.pop()
    kept: list[str] = []
    for name in names:
        # the nearest first: it is the likeliest to be the same
        if not any(_equal(store.layer(name), store.layer(other), rows) for other in reversed(kept)):
            kept.append(name)
    placed = [name for name in kept if sum(size > 1 for size in store.layer(name).shape[1:]) > 1]
    return (placed if profile == "default" and placed else kept) or [INPUT]


def _one_output(relevance: NDArray[np.floating], outputs: int) -> bool:
    flat = relevance.reshape(len(relevance), -1)
    return flat.shape[1] == outputs and bool(((flat != 0).sum(axis=1) <= 1).all())


def _equal(one: h5py.Dataset, other: h5py.Dataset, rows: NDArray[np.int64]) -> bool:
    """Whether two layers hold the same in all of some rows; most that do not differ in the first of them."""
    if one.shape != other.shape:
        return False
    batch = max(1, _READ // (one.dtype.itemsize * math.prod(one.shape[1:])))
    parts = [slice(0, 1), *(slice(start, start + batch) for start in range(1, len(rows), batch))]
    return all(np.array_equal(one[there], other[there]) for part in parts for there, _ in runs(rows[part]))
