"""Relevance moved to another grid of cells, so that none is made and none is lost."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Frame = tuple[float, float, float, float]  # left, top, right, bottom


def resample(relevance: ArrayLike, frame: Frame, shape: tuple[int, int]) -> Floats:
    """Divide a frame of a heatmap into cells, and sum the relevance in each.

    A pixel that lies in several cells is shared out by area. What lies outside of the frame is left out, and where the
    frame reaches beyond the heatmap there is no relevance.

    Parameters
    ----------
    relevance : (H, W)
    frame : (float, float, float, float)
        Left, top, right and bottom, in pixels of the heatmap: the one in column i and row j covers i..i+1 and j..j+1.
    shape : (int, int)
        Rows and columns of cells.

    Returns
    -------
    ndarray
        float64, of that shape.
    """
    values = np.asarray(relevance, dtype=np.float64)
    left, top, right, bottom = frame
    return (
        _shares((top, bottom), shape[0], values.shape[0]) @ values @ _shares((left, right), shape[1], len(values[0])).T
    )


def _shares(ends: tuple[float, float], cells: int, pixels: int) -> Floats:
    """Of each pixel the share that lies in each cell, (cells, pixels)."""
    edges = np.linspace(*ends, cells + 1)[:, None]
    first = np.arange(pixels)
    return np.clip(np.minimum(edges[1:], first + 1) - np.maximum(edges[:-1], first), 0, None)
