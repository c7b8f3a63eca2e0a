"""3x3 convolutions of stride 1 with a quarter of the multiplications: Winograd's F(4x4, 3x3) in matrix products.

A tile of 6x6 inputs gives 4x4 outputs: y = Aᵀ[(G w Gᵀ) ⊙ (B d Bᵀ)]A, summed over channels, so that each of the 36
elements of a tile is one matrix product over channels. Source: Lavin and Gray 2016, "Fast Algorithms for Convolutional
Neural Networks"; the matrices are those of Toom-Cook interpolation. With the points 0, ±5/8, ±3/2, infinity in place of
the usual 0, ±1, ±2 the float32 error is half as large: about twice that of the direct kernels.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_OUT, _IN = 4, 6  # rows and columns of a tile's outputs and inputs
_POINTS = (0.0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)  # and infinity; all products below but those of G are exact in float32


def _interpolation() -> tuple[Tensor, Tensor, Tensor]:
    """A (4, 6), G (6, 3) and B (6, 6) in float64."""
    others = [[q for q in _POINTS if q != p] for p in _POINTS]
    powers = [[p**i for i in range(_OUT)] for p in _POINTS]
    outputs = np.transpose([*powers, [0, 0, 0, 1]])
    weights = [
        [p**i / math.prod(p - q for q in rest) for i in range(3)] for p, rest in zip(_POINTS, others, strict=True)
    ]
    inputs = [[*np.poly(rest)[::-1], 0] for rest in others] + [np.poly(_POINTS)[::-1]]
    return (
        torch.tensor(outputs),
        torch.tensor([*weights, [0, 0, 1]], dtype=torch.float64),
        torch.tensor(np.array(inputs)),
    )


_A, _G, _B = _interpolation()
_WEIGHTS, _TO_TILES, _FROM_TILES = torch.kron(_G, _G), torch.kron(_B, _B).float(), torch.kron(_A, _A).float()

_CHANNELS = 128  # below, the passes over the tiles cost what the multiplications save
_OUTPUTS = 256  # rows times columns, below which it gains little, for 4 times the memory of the weights
_WASTE = 1.6  # outputs computed for one that is wanted, at the right and lower border
_ELEMENTS = 1 << 21  # of the largest matrix at a time, so that the four of them stay in a cache


def pays(x: Tensor, w: Tensor, pads: Sequence[int]) -> bool:
    """Whether the convolution of x (N, A, H, W) and w, 3x3 of stride 1, is faster so than by the direct kernels."""
    if tuple(w.shape[2:]) != (3, 3) or max(pads) > 2 or min(w.shape[:2]) < _CHANNELS or x.dtype != torch.float32:
        return False
    down, across = (size + 2 * pad - 2 for size, pad in zip(x.shape[2:], pads, strict=True))
    tiles = -(-down // _OUT) * -(-across // _OUT)
    wanted = down * across
    return min(down, across) > 0 and wanted >= _OUTPUTS and tiles * _OUT**2 <= _WASTE * wanted


def transformed(w: Tensor) -> Tensor:
    """w (B, A, 3, 3) as 36 matrices (A, B), computed in float64."""
    taps = w.permute(2, 3, 1, 0).reshape(9, -1)
    result = w.new_empty(_IN**2, taps.shape[1])
    for some in range(0, taps.shape[1], 1 << 16):  # float64 takes memory that is kept
        part = slice(some, some + (1 << 16))
        result[:, part] = torch.mm(_WEIGHTS, taps[:, part].double())
    return result.view(_IN**2, *w.shape[1::-1])


class _Workspace(threading.local):
    """Memory for the matrices of one chunk of tiles; kept, as new memory costs a tenth of the time in page faults."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """A tensor of that shape with anything in it, valid until the next call with the same name."""
        size = math.prod(shape)
        if name not in self._kept or self._kept[name].numel() < size:
            with torch.inference_mode(False):  # what is made in that mode cannot be written to outside of it
                self._kept[name] = torch.empty(size, dtype=torch.float32, device="cpu")
        return self._kept[name][:size].view(shape)


_workspace = _Workspace()


def convolve(x: Tensor, matrices: Tensor, pads: Sequence[int], factor: Tensor) -> Tensor:
    """Convolution of x (N, A, H, W) and what `transformed` gave for its weight, times `factor` (N, B, H', W').

    Channels last, as x and `factor` are.
    """
    pictures = x.permute(0, 2, 3, 1)
    n, down, across = len(x), x.shape[2] + 2 * pads[0] - 2, x.shape[3] + 2 * pads[1] - 2
    result = x.new_empty(n, down, across, matrices.shape[2])
    factors = factor.permute(0, 2, 3, 1)
    rows, columns = -(-down // _OUT), -(-across // _OUT)
    at_once = max(1, _ELEMENTS // (_IN**2 * columns * max(matrices.shape[1:])))  # rows of tiles
    samples, at_once = (at_once // rows, rows) if at_once >= rows else (1, at_once)
    for i in range(0, n, samples):
        for row in range(0, rows, at_once):
            part = pictures[i : i + samples]
            tiles = _tiles(part, row * _OUT - pads[0], min(at_once, rows - row), pads[1], columns)
            there = slice(i, i + samples), slice(row * _OUT, (row + at_once) * _OUT)
            _products(tiles, matrices, factors[there], result[there])
    return result.permute(0, 3, 1, 2)


def _tiles(pictures: Tensor, top: int, rows: int, left: int, columns: int) -> Tensor:
    """Overlapping tiles (6, 6, N, rows, columns, C) of pictures (N, H, W, C); the first begins at (top, -left)."""
    n, height, width, channels = pictures.shape
    padded = _workspace("padded", n, rows * _OUT + 2, columns * _OUT + 2, channels)
    first, last = max(0, top), min(height, top + padded.shape[1])
    inside = slice(first - top, last - top)
    padded[:, : inside.start].zero_()
    padded[:, inside.stop :].zero_()
    padded[:, inside, :left].zero_()
    padded[:, inside, left + width :].zero_()
    padded[:, inside, left : left + width] = pictures[:, first:last]
    sample, down, right, _ = padded.stride()
    tiles = _workspace("tiles", _IN, _IN, n, rows, columns, channels)
    strides = (down, right, sample, _OUT * down, _OUT * right, 1)
    return tiles.copy_(padded.as_strided(tiles.shape, strides, padded.storage_offset()))


def _products(tiles: Tensor, matrices: Tensor, factor: Tensor, result: Tensor) -> None:
    """Write the outputs of the tiles times `factor` to `result` (N, rows of outputs, columns of outputs, B)."""
    *_, n, rows, columns, c_in = tiles.shape
    c_out, count = matrices.shape[2], n * rows * columns
    inputs = _workspace("inputs", _IN**2, count * c_in)
    torch.mm(_TO_TILES, tiles.view(_IN**2, -1), out=inputs)
    products = _workspace("products", _IN**2, count, c_out)
    torch.bmm(inputs.view(_IN**2, count, c_in), matrices, out=products)
    outputs = _workspace("outputs", _OUT**2, count * c_out)
    torch.mm(_FROM_TILES, products.view(_IN**2, -1), out=outputs)
    z = outputs.view(_OUT, _OUT, n, rows, columns, c_out).permute(2, 3, 0, 4, 1, 5)  # (N, row, down, column, across, B)
    if result.shape[1:3] == (rows * _OUT, columns * _OUT):
        fine = n, rows, _OUT, columns, _OUT, c_out
        result, factor = result.view(fine), factor.view(fine)
    else:
        z = z.reshape(n, rows * _OUT, columns * _OUT, c_out)[:, : result.shape[1], : result.shape[2]]
    torch.mul(z, factor, out=result)
