"""Numbers that describe one heatmap by itself: how sparse, how spread out, where."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def gini(relevance: ArrayLike) -> float:
    """Gini index of |R|: 0 when all are equal, towards 1 when one holds everything.

    Σ_k (2k − n − 1) a_k / (n Σ a), a being |R| in ascending order; the sparseness of Chalasani et al. 2020
    (arXiv:1810.06583). NaN where all relevance is 0.

    Parameters
    ----------
    relevance : array of any shape
    """
    values = np.sort(np.abs(np.asarray(relevance, dtype=np.float64)), axis=None)
    total, count = values.sum(), values.size
    if not total:
        return float("nan")
    return float((2 * np.arange(1, count + 1) - count - 1) @ values / (count * total))


def entropy(heatmap: ArrayLike) -> float:
    """Shannon entropy of |R| as a distribution, over its largest value log n: 0 for one pixel, 1 for an even heatmap.

    NaN where all relevance is 0.
    """
    values = np.abs(np.asarray(heatmap, dtype=np.float64)).ravel()
    shares = values[values > 0] / (values.sum() or 1)
    if not shares.size:
        return float("nan")
    return float(-(shares @ np.log(shares)) / np.log(values.size))


def centre_and_spread(heatmap: ArrayLike) -> tuple[float, float, float]:
    """Where R⁺ lies.

    Parameters
    ----------
    heatmap : (H, W)

    Returns
    -------
    x, y : float
        Centroid, in shares of width and height, from the upper left corner.
    spread : float
        Root mean square distance from it, in shares of the diagonal.
        All are NaN where no relevance is positive.
    """
    positive = np.maximum(np.asarray(heatmap, dtype=np.float64), 0)
    total, (height, width) = positive.sum(), positive.shape
    if not total:
        return float("nan"), float("nan"), float("nan")
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    of_rows, of_columns = positive.sum(axis=1) / total, positive.sum(axis=0) / total
    y, x = of_rows @ rows, of_columns @ columns
    variance = of_rows @ (rows - y) ** 2 + of_columns @ (columns - x) ** 2
    return float(x / width), float(y / height), float(np.sqrt(variance) / np.hypot(height, width))
