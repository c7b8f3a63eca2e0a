"""Distances between heatmaps, a block of rows at a time, so that the heatmaps never have to fit into memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.errors import DataError
from lrp_onnx.store.disk import runs

if TYPE_CHECKING:
    import h5py
    import torch

METRICS = ("euclidean", "cosine")
SCALINGS = ("none", "unit-l2")
REDUCTIONS = ("none", "channels", "spatial")
DTYPES = ("float32", "float64")
MEMORY = 2 << 30

_SLAB = (
    8192  # features in one product: short sums in float32, added up in float64, are 15 times as exact as one long sum
)
_MOST_ROWS = 2048  # more rows in a block are no faster, and a tile of distances takes their square
_READ = 8 << 20
# A Gram product loses the distance of two rows whose squared distance is this small beside their squared norms.
_LOST = {"float32": 1e-2, "float64": 1e-6}
_FEW = 0.01  # so few lost pairs of a tile are cheaper one by one than in a second product


class Block(NamedTuple):
    """Some heatmaps as rows (b, features), and the sum of squares of each, float64 (b,)."""

    rows: torch.Tensor
    squares: torch.Tensor


class HeatmapRows:
    """The heatmaps of one layer as rows of features: chosen, reduced and scaled, read from start to stop.

    Parameters
    ----------
    source : array or h5py dataset (N, …)
    rows : int array (n,), optional
        Which rows, in this order; all when left out.
    metric, scaling, reduce, dtype : str
        As in `pairwise`.
    name : str
        What errors call the heatmaps.

    Raises
    ------
    DataError
        When an option or a row is unknown, or there is no feature.
    """

    def __init__(
        self,
        source: NDArray[Any] | h5py.Dataset,
        rows: NDArray[np.int64] | None = None,
        *,
        metric: str = "euclidean",
        scaling: str = "none",
        reduce: str = "none",
        dtype: str = "float32",
        name: str = "heatmaps",
    ) -> None:
        for word, value, known in (
            ("metric", metric, METRICS),
            ("scaling", scaling, SCALINGS),
            ("reduce", reduce, REDUCTIONS),
            ("dtype", dtype, DTYPES),
        ):
            if value not in known:
                raise DataError(f"{word} {value!r}; expected one of {', '.join(known)}")
        count = len(source)
        self.rows = np.arange(count) if rows is None else np.asarray(rows, dtype=np.int64)
        if self.rows.size and (self.rows.min() < 0 or self.rows.max() >= count):
            raise DataError(f"{name}: rows {self.rows.min()} to {self.rows.max()} asked, but there are {count} rows")
        self.source, self.name, self.dtype = source, name, dtype
        self.shape = tuple(int(size) for size in source.shape[1:])
        self.reduce = reduce if len(self.shape) > 1 else "none"  # features without positions
        self.unit, self.cosine = scaling == "unit-l2" or metric == "cosine", metric == "cosine"
        kept = {"none": self.shape, "channels": self.shape[:1], "spatial": self.shape[1:]}[self.reduce]
        self.features = math.prod(kept)
        if not self.features:
            raise DataError(f"{name}: heatmaps of shape {self.shape} have no values to compare")

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, start: int, stop: int, into: torch.Tensor) -> Block:
        """Rows start to stop, in the first rows of a buffer that `buffer` made."""
        import torch

        block = into[: stop - start]
        squares = torch.empty(len(block), dtype=torch.float64)
        batch = max(1, _READ // (4 * math.prod(self.shape)))
        raw = np.empty((min(batch, len(block)), *self.shape), dtype=self.source.dtype)
        for first in range(start, stop, batch):
            rows = self.rows[first : min(first + batch, stop)]
            for there, here in runs(rows):
                if hasattr(self.source, "read_direct"):
                    self.source.read_direct(raw, there, here)
                else:
                    raw[here] = self.source[there]
            # torch, because numpy takes five times as long to widen float16
            values = torch.from_numpy(raw[: len(rows)])
            if self.reduce == "channels":
                values = values.flatten(2).sum(2, dtype=torch.float64)
            elif self.reduce == "spatial":
                values = values.sum(1, dtype=torch.float64)
            part = block[first - start : first - start + len(rows)]
            part.copy_(values.reshape(len(rows), -1))
            norms = torch.linalg.vector_norm(part, dim=1, dtype=torch.float64)
            if not norms.isfinite().all():
                bad = rows[int(torch.argmin(norms.isfinite().int()))]
                raise DataError(f"{self.name}: row {bad} holds values that are not finite; make its heatmap again")
            if self.unit:
                part /= torch.where(norms > 0, norms, 1)[:, None].to(part.dtype)
                norms = torch.linalg.vector_norm(part, dim=1, dtype=torch.float64)
            squares[first - start : first - start + len(rows)] = norms.square()
        return Block(block, squares)

    def buffer(self, blocks: list[tuple[int, int]]) -> torch.Tensor:
        """Room for any of the blocks. Used again and again: fresh memory for each block took a third of the time."""
        import torch

        most = max((stop - start for start, stop in blocks), default=0)
        return torch.empty((most, self.features), dtype=getattr(torch, self.dtype))

    def blocks(self, memory: int) -> list[tuple[int, int]]:
        """Stretches of rows such that two blocks of them fit into two thirds of `memory` bytes."""
        size = memory // (3 * self.features * np.dtype(self.dtype).itemsize)
        size = max(1, min(_MOST_ROWS, size))
        return [(start, min(start + size, len(self))) for start in range(0, len(self), size)]


def pairwise(
    heatmaps: NDArray[Any] | h5py.Dataset,
    *,
    rows: NDArray[np.int64] | None = None,
    metric: str = "euclidean",
    scaling: str = "unit-l2",
    reduce: str = "none",
    dtype: str = "float32",
    memory: int = MEMORY,
) -> NDArray[Any]:
    """Distances between all pairs of heatmaps, condensed as scipy's `pdist` gives them.

    Parameters
    ----------
    heatmaps : array or h5py dataset (N, …)
        Relevance, channels first; an h5py dataset is read in blocks.
    rows : int array (n,), optional
        Compare these rows only.
    metric : {"euclidean", "cosine"}
        "cosine" is 1 - cos; a heatmap of zeros is 1 away from all others.
    scaling : {"unit-l2", "none"}
        "unit-l2" divides each heatmap by its norm, so that the size of the logit does not count.
    reduce : {"none", "channels", "spatial"}
        What to compare: every value; the sum of each channel; the sum of each position over the channels. Heatmaps
        without positions are compared as they are.
    dtype : {"float32", "float64"}
        Of the arithmetic and the result. With "float32" the error is below 1e-5 of the distance (1e-7 is usual) or 1e-7
        of the norms, whichever is larger; with "float64" below 1e-9 of the distance. Identical heatmaps are exactly 0
        apart with both.
    memory : int
        Bytes that the blocks may take, beside the result.

    Returns
    -------
    array (n (n - 1) / 2,) of `dtype`

    Raises
    ------
    DataError
        When an option is unknown or a heatmap is not finite.
    """
    reader = HeatmapRows(heatmaps, rows, metric=metric, scaling=scaling, reduce=reduce, dtype=dtype)
    count = len(reader)
    condensed = np.empty(count * (count - 1) // 2, dtype=dtype)
    for place, segment in segments(reader, memory):
        condensed[place : place + len(segment)] = segment
    return condensed


def segments(reader: HeatmapRows, memory: int = MEMORY) -> Iterator[tuple[int, NDArray[Any]]]:
    """Stretches of the condensed distances in order, each with its first position."""
    count, place = len(reader), 0
    blocks = reader.blocks(memory)
    one, two = reader.buffer(blocks), reader.buffer(blocks[1:])
    for here, (start, stop) in enumerate(blocks):
        strip = np.empty((stop - start, count - start), dtype=reader.dtype)
        block = reader.read(start, stop, one)
        for first, last in blocks[here:]:
            other = block if first == start else reader.read(first, last, two)
            strip[:, first - start : last - start] = _tile(reader, block, other)
        right = np.arange(count - start) > np.arange(stop - start)[:, None]
        segment = strip[right]
        yield place, segment
        place += len(segment)


def between(one: HeatmapRows, other: HeatmapRows, memory: int = MEMORY) -> Iterator[tuple[slice, slice, NDArray[Any]]]:
    """Distances of every row of `one` to every row of `other`, tile by tile, each with where its rows and columns lie.

    Raises
    ------
    DataError
        When the heatmaps of the two have different shapes.
    """
    if one.shape != other.shape:
        raise DataError(
            f"{one.name} have the shape {one.shape}, {other.name} {other.shape}; both must come from the same layer "
            "of the same model"
        )
    blocks, others = one.blocks(memory), other.blocks(memory)
    first_buffer, second_buffer = one.buffer(blocks), other.buffer(others)
    for start, stop in blocks:
        block = one.read(start, stop, first_buffer)
        for first, last in others:
            tile = _tile(one, block, other.read(first, last, second_buffer))
            yield slice(start, stop), slice(first, last), tile


def _tile(reader: HeatmapRows, one: Block, other: Block) -> NDArray[Any]:
    import torch

    squared = _squared_distances(one, other, reader.dtype)
    if not reader.cosine:
        return squared.sqrt_().to(one.rows.dtype).numpy()
    squared /= 2  # of unit vectors that is 1 - cos
    squared[torch.logical_xor(one.squares[:, None] > 0, other.squares[None, :] > 0)] = 1
    return squared.to(one.rows.dtype).numpy()


def _squared_distances(one: Block, other: Block, dtype: str) -> torch.Tensor:
    """|x - y|² = |x|² + |y|² - 2 x·y, float64; where that difference cancels, first the product, then the pair itself
    is computed again in float64."""
    import torch

    scale = one.squares[:, None] + other.squares[None, :]
    for precision in ("float32", "float64") if dtype == "float32" else ("float64",):
        squared = scale - 2 * _gram(one.rows, other.rows, getattr(torch, precision))
        lost = squared < _LOST[precision] * scale
        if one is other:
            lost.fill_diagonal_(False)
        if int(lost.sum()) <= _FEW * lost.numel():
            break
    _recompute(squared, lost, one.rows, other.rows)
    if one is other:
        squared.fill_diagonal_(0)
    return squared


def _gram(one: torch.Tensor, other: torch.Tensor, precision: torch.dtype) -> torch.Tensor:
    import torch

    gram = torch.zeros((len(one), len(other)), dtype=torch.float64)
    for start in range(0, one.shape[1], _SLAB):
        slab = slice(start, start + _SLAB)
        gram += one[:, slab].to(precision) @ other[:, slab].to(precision).T
    return gram


def _recompute(squared: torch.Tensor, lost: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> None:
    """Replace the lost distances by sums of squared differences; equal rows, of which there may be many, by 0."""
    import torch

    pairs = lost.nonzero()
    if not len(pairs):
        return
    keys = [{row: hash(rows[row].numpy().tobytes()) for row in pairs[:, side].unique().tolist()}
            for side, rows in enumerate((one, other))]  # fmt: skip
    chunk = max(1, _SLAB * 64 // one.shape[1])
    for row, columns in _by_row(pairs.numpy()):
        squared[row, columns] = 0
        different = torch.from_numpy(columns[[keys[1][column] != keys[0][row] for column in columns.tolist()]])
        for some in different.split(chunk):
            squared[row, some] = (other[some].double() - one[row].double()).square_().sum(1)


def _by_row(pairs: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    starts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(pairs)], strict=True):
        yield int(pairs[start, 0]), pairs[start:stop, 1]
