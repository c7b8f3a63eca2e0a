"""Heatmaps of a varied picture, moved back onto those of the original, and how alike the two are there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.debug.variations import Matrix, Size
from lrp_onnx.preprocess import Preprocess

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def move_back(
    relevance: Floats, homography: Matrix, original: Size, varied: Size, preprocess: Preprocess
) -> tuple[Floats, Mask]:
    """Move the heatmap of a varied picture to where the original's heatmap has the same points.

    A point of the model's input is led back through resize and crop to the original picture, by the homography to the
    varied one, and through resize and crop into its input. Relevance is a density, so that it is multiplied by how much
    larger an area becomes on that way: where nothing leaves the frame, its sum stays about what it was.

    Parameters
    ----------
    relevance : float (H, W)
        Of the model's input, for the varied picture.
    homography : float (3, 3)
        From the original picture to the varied one, in pixels (`Chosen.geometry`).
    original, varied : (int, int)
        Width and height of both pictures.
    preprocess : Preprocess

    Returns
    -------
    moved : float64 (H, W)
        Interpolated linearly; 0 where not valid.
    valid : bool (H, W)
        Pixels whose centre shows a point of the original that the model sees in the varied picture too.
    """
    from scipy.ndimage import map_coordinates

    height, width = relevance.shape
    rows, columns = np.mgrid[:height, :width] + 0.5
    here = np.stack([columns, rows, np.ones_like(rows)])  # (3, H, W)
    of_original, of_varied = preprocess.geometry(*original), preprocess.geometry(*varied)
    there = of_varied @ homography @ np.linalg.inv(of_original)
    on_original = np.tensordot(np.linalg.inv(of_original), here, axes=1)
    on_varied = np.tensordot(homography, on_original, axes=1)
    moved_to = np.tensordot(there, here, axes=1)
    depth = moved_to[2]
    with np.errstate(divide="ignore", invalid="ignore"):  # what lies behind the camera is not valid
        x, y = moved_to[0] / depth, moved_to[1] / depth
        on_varied = on_varied / on_varied[2]
        growth = np.abs(np.linalg.det(there)) / np.abs(depth) ** 3
    valid = (depth > 0) & _within(on_original, original) & _within(on_varied, varied)
    valid &= (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
    places = np.where(valid, [y - 0.5, x - 0.5], 0.0)
    moved = map_coordinates(np.asarray(relevance, dtype=np.float64), places, order=1, mode="nearest")
    return np.where(valid, moved * np.where(valid, growth, 0.0), 0.0), valid


def _within(points: Floats, size: Size) -> Mask:
    width, height = size
    inside: Mask = (points[0] >= 0) & (points[0] <= width) & (points[1] >= 0) & (points[1] <= height)
    return inside


def similarity(one: Floats, other: Floats, valid: Mask, smooth: float = 0.0) -> tuple[float, float]:
    """How alike two heatmaps are where both are valid.

    Parameters
    ----------
    one, other : float (H, W)
    valid : bool (H, W)
    smooth : float
        Standard deviation in pixels by which both are blurred first, with nothing from outside the valid part: LRP
        scatters over neighbouring pixels in ways that a shift by a fraction of a pixel changes.

    Returns
    -------
    rank : float
        Spearman's rank correlation, -1 to 1; NaN when a heatmap is constant or nothing is valid.
    cosine : float
        Of the angle between the two, -1 to 1; NaN when a heatmap is 0 or nothing is valid.
    """
    from scipy.ndimage import gaussian_filter
    from scipy.stats import rankdata

    pair = [np.where(valid, heatmap, 0.0) for heatmap in (one, other)]
    if smooth:
        pair = [gaussian_filter(heatmap, smooth, mode="constant") for heatmap in pair]
    a, b = (heatmap[valid] for heatmap in pair)
    if not a.size:
        return np.nan, np.nan
    ranks_a, ranks_b = (rankdata(values) - (a.size + 1) / 2 for values in (a, b))
    return _cosine(ranks_a, ranks_b), _cosine(a, b)


def _cosine(one: Floats, other: Floats) -> float:
    length = np.linalg.norm(one) * np.linalg.norm(other)
    return float(np.clip(one @ other / length, -1, 1)) if length else np.nan
