"""Heatmaps in which every image counts alike: each divided by the sum of its |relevance|."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.errors import StoreError
from lrp_onnx.store import HeatmapStore

Floats = NDArray[np.float64]

_MOST_CELLS = 256  # a side; more than a page shows
_BLOCK_BYTES = 1 << 25


def is_picture(shape: tuple[int, ...]) -> bool:
    """Whether relevance of such a shape extends in two directions."""
    return len(shape) >= 2 and 1 not in shape[-2:]


def unit_blocks(store: HeatmapStore, rows: NDArray[np.int64]) -> Iterator[tuple[int, Floats]]:
    """Read heatmaps, some rows at a time, so that memory does not grow with their number.

    Parameters
    ----------
    store : HeatmapStore
    rows : int array (n,)
        Ascending.

    Yields
    ------
    (int, float64 (b, H, W) or (b, D))
        Place in `rows` of the first of b heatmaps, and these: relevance summed over channels, and large pictures in
        square cells of pixels, at most 256 a side, relevance summed. |Relevance| sums to 1, or 0 where there is none.

    Raises
    ------
    StoreError
        When a heatmap holds NaN or infinite values.
    """
    dataset = store.attribution
    size = max(1, min(256, _BLOCK_BYTES // (8 * max(1, int(np.prod(dataset.shape[1:]))))))
    for start in range(0, len(rows), size):
        block = rows[start : start + size]
        values = np.asarray(dataset[block], dtype=np.float64)
        if is_picture(dataset.shape[1:]):
            values = _cells(values.reshape(len(block), -1, *values.shape[-2:]).sum(axis=1))
        else:
            values = values.reshape(len(block), -1)
        total = np.abs(values).reshape(len(block), -1).sum(axis=1)
        if not np.isfinite(total).all():
            row = int(block[np.argmin(np.isfinite(total))])
            raise StoreError(
                f"{store.path}: row {row} ({store.samples['path'][row]}) holds NaN or infinite relevance; compute it "
                "again with another composite or in float64"
            )
        yield start, values / np.where(total > 0, total, 1).reshape(-1, *[1] * (values.ndim - 1))


def cell_side(height: int, width: int) -> int:
    """Pixels of the model's input on a side of a cell of `unit_blocks`."""
    return -(-max(height, width) // _MOST_CELLS)


def _cells(heatmaps: Floats) -> Floats:
    """(b, H, W) with at most 256 cells a side, each the sum of a square of pixels."""
    height, width = heatmaps.shape[1:]
    side = cell_side(height, width)
    if side == 1:
        return heatmaps
    padded = np.pad(heatmaps, ((0, 0), (0, -height % side), (0, -width % side)))
    return padded.reshape(len(heatmaps), padded.shape[1] // side, side, -1, side).sum(axis=(2, 4))
