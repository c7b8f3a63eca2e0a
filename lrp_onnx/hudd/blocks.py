"""Distances between heatmaps, a block of rows at a time, so that the heatmaps never have to fit into memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.errors import DataError
from lrp_onnx.store.disk import open_file, runs

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
_STRIP = 192  # rows at a time of a tile on the diagonal, half of which nobody asks for; fewer multiply slowly
_WIDENED = 1 << 16  # values in float64 at a time, which a cache holds
_READ = 8 << 20
# A Gram product loses the distance of two rows whose squared distance is this small beside their squared norms.
_LOST = {"float32": 1e-2, "float64": 1e-6}
_FEW = 0.01  # so few lost pairs of a tile are cheaper one by one than in a second product
_NORMS = 1e-10, 1e10  # between these, squares fit into float32


class Block(NamedTuple):
    """Some heatmaps as rows (b, features), a factor for each, and the sum of squares once scaled, float64 (b,)."""

    rows: torch.Tensor
    scale: torch.Tensor
    squares: torch.Tensor


class HeatmapRows:
    """The heatmaps of one layer as rows of features: chosen, reduced and scaled, read from start to stop.

    Parameters
    ----------
    source : array or h5py dataset (N, …)
    rows : int array (n,), optional
        Which rows, in this order; all when left out.
    metric, scaling, reduce, dtype, device : str
        As in `pairwise`.
    name : str
        What errors call the heatmaps.

    Raises
    ------
    DataError
        When an option or a row is unknown, the device cannot be used, or there is no feature.
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
        device: str = "cpu",
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
        self.source, self.name, self.dtype, self.device = source, name, dtype, device
        _check_device(device)
        self.shape = tuple(int(size) for size in source.shape[1:])
        self.reduce = reduce if len(self.shape) > 1 else "none"  # features without positions
        self.unit, self.cosine = scaling == "unit-l2" or metric == "cosine", metric == "cosine"
        kept = {"none": self.shape, "channels": self.shape[:1], "spatial": self.shape[1:]}[self.reduce]
        self.features = math.prod(kept)
        if not self.features:
            raise DataError(f"{name}: heatmaps of shape {self.shape} have no values to compare")
        self._norms = np.full(len(self.rows), np.nan)  # rows are read many times; this needs to be done but once

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        """For other processes: a dataset goes by the names of its file and of itself."""
        if isinstance(self.source, np.ndarray):
            return vars(self)
        return vars(self) | {"source": (Path(self.source.file.filename).resolve(), self.source.name)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if isinstance(self.source, tuple):
            path, name = self.source
            self.source = open_file(path, "r")[name]

    def read(self, start: int, stop: int, into: torch.Tensor) -> Block:
        """Rows start to stop, in the first rows of a buffer that `buffer` made."""
        import torch

        block = into[: stop - start]
        batch = max(1, _READ // (4 * math.prod(self.shape)))
        raw = np.empty((min(batch, len(block)), *self.shape), dtype=self.source.dtype)
        for first in range(start, stop, batch):
            rows = self.rows[first : min(first + batch, stop)]
            for there, place in runs(rows):
                if hasattr(self.source, "read_direct"):
                    self.source.read_direct(raw, there, place)
                else:
                    raw[place] = self.source[there]
            # torch, because numpy takes five times as long to widen float16
            values = torch.from_numpy(raw[: len(rows)])
            if self.reduce == "channels":
                values = values.flatten(2).sum(2, dtype=torch.float64)
            elif self.reduce == "spatial":
                values = values.sum(1, dtype=torch.float64)
            part = block[first - start : first - start + len(rows)]
            part.copy_(values.reshape(len(rows), -1))
            norms = self._norms[first : first + len(rows)]
            if np.isnan(norms).any():
                norms[:] = _norms(part)
                if not np.isfinite(norms).all():
                    bad = rows[np.argmin(np.isfinite(norms))]
                    raise DataError(f"{self.name}: row {bad} holds values that are not finite; make its heatmap again")
            for row in np.flatnonzero(_powers(norms)) if self.unit else ():
                part[row] *= 2.0 ** float(_powers(norms[row]))
        norms = self._norms[start:stop]
        if self.unit:  # products are scaled, not rows: they are fewer
            norms = norms * 2.0 ** _powers(norms)
            scale, squares = np.divide(1, norms, out=np.ones(len(norms)), where=norms > 0), np.sign(norms)
        else:
            scale, squares = np.ones(len(norms)), norms**2
        return Block(
            *(values.to(self.device) for values in (block, torch.from_numpy(scale), torch.from_numpy(squares)))
        )

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
    device: str = "cpu",
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
    device : str
        Where torch multiplies, such as "cuda"; the blocks lie there too.

    Returns
    -------
    array (n (n - 1) / 2,) of `dtype`

    Raises
    ------
    DataError
        When an option is unknown, the device cannot be used, or a heatmap is not finite.
    """
    reader = HeatmapRows(heatmaps, rows, metric=metric, scaling=scaling, reduce=reduce, dtype=dtype, device=device)
    count = len(reader)
    condensed = np.empty(count * (count - 1) // 2, dtype=dtype)
    for place, segment in segments(reader, memory):
        condensed[place : place + len(segment)] = segment
    return condensed


def segments(
    reader: HeatmapRows, memory: int = MEMORY, strips: Iterable[int] | None = None
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Stretches of the condensed distances in order, each with its first position; of all blocks, or of some."""
    count, blocks = len(reader), reader.blocks(memory)
    one, two = reader.buffer(blocks), reader.buffer(blocks[1:])
    for here in range(len(blocks)) if strips is None else strips:
        start, stop = blocks[here]
        strip = np.empty((stop - start, count - start), dtype=reader.dtype)
        block = reader.read(start, stop, one)
        for first, last in blocks[here:]:
            other = block if first == start else reader.read(first, last, two)
            strip[:, first - start : last - start] = _tile(reader, block, other)
        yield start * count - start * (start + 1) // 2, np.concatenate([row[i + 1 :] for i, row in enumerate(strip)])


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


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch has no one way to say so
        raise DataError(f"device '{device}' cannot be used: {str(error).splitlines()[0]}") from error


def _tile(reader: HeatmapRows, one: Block, other: Block) -> NDArray[Any]:
    """Distances of the rows of two blocks; of a block to itself, only those above the diagonal are right."""
    import torch

    squared = _squared_distances(one, other, reader.dtype)
    tile = torch.empty(squared.shape, dtype=one.rows.dtype, device=squared.device)
    for some in _pieces(squared):
        part = squared[some]
        if reader.cosine:
            part /= 2  # of unit vectors that is 1 - cos
            part[torch.logical_xor(one.squares[some, None] > 0, other.squares > 0)] = 1
        else:
            part.sqrt_()
        tile[some] = part
    return tile.cpu().numpy()


def _squared_distances(one: Block, other: Block, dtype: str) -> torch.Tensor:
    """|x - y|² = |x|² + |y|² - 2 x·y, float64; where that difference cancels, first the product, then the pair itself
    is computed again in float64."""
    for precision in ("float32", "float64") if dtype == "float32" else ("float64",):
        squared = _products(one.rows, other.rows, precision)
        for some in _pieces(squared):
            part = squared[some]
            part *= -2 * one.scale[some, None]
            part *= other.scale
            part += one.squares[some, None]
            part += other.squares
        if one is other:
            squared.fill_diagonal_(math.inf)
        lost = _lost_pairs(squared, one.squares, other.squares, _LOST[precision])
        if len(lost) <= _FEW * squared.numel():
            break
    _recompute(squared, lost, one, other)
    if one is other:
        squared.fill_diagonal_(0)
    return squared


def _products(one: torch.Tensor, other: torch.Tensor, precision: str) -> torch.Tensor:
    """Scalar products of rows, float64; of rows among themselves those on and above the diagonal, and some below."""
    import torch

    products = torch.zeros((len(one), len(other)), dtype=torch.float64, device=one.device)
    room = torch.empty(products.shape, dtype=getattr(torch, precision), device=one.device)
    step = _STRIP if one is other else max(1, len(one))
    for start in range(0, one.shape[1], _SLAB):
        left = one[:, start : start + _SLAB].to(room.dtype)
        right = left if one is other else other[:, start : start + _SLAB].to(room.dtype)
        for top in range(0, len(one), step):
            rows, columns = left[top : top + step], right[top if one is other else 0 :]
            some = room.view(-1)[: len(rows) * len(columns)].view(len(rows), len(columns))
            torch.mm(rows, columns.T, out=some)
            sums = products[top : top + step, top if one is other else 0 :]
            for piece in _pieces(some):
                sums[piece].add_(some[piece])
    return products


def _pieces(matrix: torch.Tensor) -> Iterator[slice]:
    """Rows of a matrix, so many at a time that a cache holds them from one step to the next."""
    step = max(1, _WIDENED // max(1, matrix.shape[1]))
    return (slice(start, start + step) for start in range(0, len(matrix), step))


def _lost_pairs(squared: torch.Tensor, one: torch.Tensor, other: torch.Tensor, share: float) -> NDArray[np.int64]:
    """Where squared distances are below a share of their squared norms, (pairs, 2) by row."""
    if float(squared.min()) >= share * float(one.max() + other.max()):  # as ever so often, and one pass instead of four
        return np.empty((0, 2), dtype=np.int64)
    return (squared < share * (one[:, None] + other)).nonzero().cpu().numpy()


def _powers(norms: NDArray[np.float64]) -> NDArray[np.float64]:
    """The powers of two that bring rows of such norms to where squares fit into float32; 0 for rows that are there."""
    far = (norms > 0) & ((norms < _NORMS[0]) | (norms > _NORMS[1]))
    return np.where(far, np.clip(-np.floor(np.log2(np.where(far, norms, 1))), -126, 126), 0)


def _norms(rows: torch.Tensor) -> NDArray[np.float64]:
    """L2 norm of each row, float64; in pieces that a cache holds it is faster than torch's own wider accumulator."""
    import torch

    norms = []
    for some in rows.split(max(1, _WIDENED // rows.shape[1])):
        parts = [torch.linalg.vector_norm(part.double(), dim=1) for part in some.split(_WIDENED, dim=1)]
        norms.append(torch.linalg.vector_norm(torch.stack(parts), dim=0))
    return torch.cat(norms).numpy()


def _recompute(squared: torch.Tensor, pairs: NDArray[np.int64], one: Block, other: Block) -> None:
    """Replace lost distances by sums of squared differences; equal rows, of which there may be many, by 0."""
    import torch

    if not len(pairs):
        return
    keys = [{row: hash(block.rows[row].cpu().numpy().tobytes()) for row in np.unique(pairs[:, side]).tolist()}
            for side, block in enumerate((one, other))]  # fmt: skip
    chunk = max(1, _SLAB * 64 // one.rows.shape[1])
    for row, columns in _by_row(pairs):
        squared[row, columns] = 0
        different = torch.from_numpy(columns[[keys[1][column] != keys[0][row] for column in columns.tolist()]])
        for some in different.split(chunk):
            here = one.rows[row].double() * one.scale[row]
            squared[row, some] = (other.rows[some].double() * other.scale[some, None] - here).square_().sum(1)


def _by_row(pairs: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    starts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(pairs)], strict=True):
        yield int(pairs[start, 0]), pairs[start:stop, 1]
