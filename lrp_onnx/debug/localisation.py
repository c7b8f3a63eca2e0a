"""How well the relevance of one image lies on a marked region, in numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrp_onnx.debug.regions import Mask
from lrp_onnx.errors import DataError
from lrp_onnx.render import reduce_channels, robust_max

Heatmap = NDArray[np.float64]  # (H, W)

THRESHOLD = 0.2  # of the highest value, as Zhou et al. 2016 cut class activation maps to boxes
SMOOTHING = 0.02  # of the heatmap's edge: relevance of single pixels becomes areas, as an eye sees them
NOTHING, EVERYTHING, SMALL, LARGE, FITS = "nothing red", "everything red", "too small", "too large", "fits"
_EVERYTHING = 0.75  # of what is not the region


@dataclass(frozen=True)
class Localisation:
    """Relevance against a region. R⁺ is positive relevance, summed over channels; shares are 0 to 1.

    Measures that need positive relevance are NaN where there is none.

    Attributes
    ----------
    area : float
        Share of the heatmap that the region takes: what a uniform heatmap gets for `mass`, `mass_abs`, `rank` and
        `pointing`, for `iou_best`, and for `precise`.
    mass : float
        Σ R⁺ in the region / Σ R⁺: relevance mass accuracy (Arras et al. 2022, doi:10.1016/j.inffus.2021.11.008).
    mass_abs : float
        The same of |R|.
    rank : float
        Of the K pixels with the largest R, K being those of the region, the share in the region: relevance rank
        accuracy (ibid.). Pixels that tie for the last places count by their share in the region.
    pointing : float
        1 when the largest value of the smoothed R⁺ is in the region, else 0: the pointing game (Zhang et al. 2018,
        doi:10.1007/s11263-017-1059-x), with smoothing in place of their tolerance of 15 pixels. Pixels that tie count
        by their share in the region.
    iou_best, threshold_best : float
        Largest intersection over union of region and red area over all thresholds, and the largest such threshold.
    iou : float
        Intersection over union of region and red area (see `red_area`) at the fixed threshold.
    covered : float
        Share of the region that is red.
    precise : float
        Share of the red area that is in the region.
    size_ratio : float
        Red area / region.
    size : str
        "nothing red"; "everything red": at least three quarters of what is not the region; "too small": `size_ratio`
        below 1/2; "too large": above 2; or "fits".
    """

    area: float
    mass: float
    mass_abs: float
    rank: float
    pointing: float
    iou_best: float
    threshold_best: float
    iou: float
    covered: float
    precise: float
    size_ratio: float
    size: str


def localise(
    relevance: ArrayLike, region: Mask, *, threshold: float = THRESHOLD, smoothing: float = SMOOTHING
) -> Localisation:
    """Measure how relevance lies on a region.

    Parameters
    ----------
    relevance : (C, H, W) or (H, W)
        Summed over channels first.
    region : bool (H, W)
        Not empty.
    threshold, smoothing : float
        See `red_area`.

    Raises
    ------
    DataError
        When shapes differ, the region is empty, or relevance is not finite.
    """
    heatmap = reduce_channels(relevance)
    if heatmap.shape != region.shape or not region.any():
        raise DataError(
            f"a region of shape {region.shape} with {region.sum()} pixels for a heatmap of shape {heatmap.shape}; "
            "expected the same shape and at least one pixel"
        )
    if not np.isfinite(heatmap).all():
        raise DataError("the relevance holds NaN or infinite values; compute it again with another composite")
    smoothed = smooth(heatmap, smoothing)
    red = red_area(smoothed, threshold)
    best, at = _best_overlap(smoothed, region)
    both, ratio = float((red & region).sum()), float(red.sum() / region.sum())
    outside = red[~region]
    spread = outside.size > 0 and float(outside.mean()) >= _EVERYTHING
    return Localisation(
        area=float(region.mean()),
        mass=_share(np.maximum(heatmap, 0), region),
        mass_abs=_share(np.abs(heatmap), region),
        rank=_rank_accuracy(heatmap, region),
        pointing=float(region[smoothed == smoothed.max()].mean()) if red.any() else math.nan,
        iou_best=best,
        threshold_best=at,
        iou=both / float((red | region).sum()),
        covered=both / float(region.sum()),
        precise=both / float(red.sum()) if red.any() else math.nan,
        size_ratio=ratio,
        size=NOTHING
        if not red.any()
        else EVERYTHING
        if spread
        else SMALL
        if ratio < 0.5
        else LARGE
        if ratio > 2
        else FITS,
    )


def smooth(heatmap: Heatmap, smoothing: float = SMOOTHING) -> Heatmap:
    """R⁺ blurred by a Gaussian of standard deviation `smoothing` · √(H W) pixels, in units of its 99.5th percentile.

    The percentile is where `render` saturates its colours; the largest value would be that of a single hot spot. It
    gives way to the largest value where it is 0.
    """
    from scipy.ndimage import gaussian_filter

    blurred = gaussian_filter(np.maximum(heatmap, 0), smoothing * math.sqrt(heatmap.size))
    # rounded, because the filter's rounding errors would break ties
    return np.round(blurred / (robust_max(blurred) or 1.0), 9)


def red_area(smoothed: Heatmap, threshold: float = THRESHOLD) -> Mask:
    """What a heatmap shows: where R⁺ as `smooth` returns it reaches `threshold`; bool (H, W)."""
    return (smoothed > 0) & (smoothed >= threshold)


def _share(values: Heatmap, region: Mask) -> float:
    total = float(values.sum())
    return float(values[region].sum()) / total if total else math.nan


def _rank_accuracy(heatmap: Heatmap, region: Mask) -> float:
    if heatmap.max() <= 0:
        return math.nan
    size = int(region.sum())
    last = np.partition(heatmap.ravel(), -size)[-size]  # the value of rank K
    above, tied = heatmap > last, heatmap == last
    places = size - int(above.sum())
    return float((above & region).sum() + places * region[tied].mean()) / size


def _best_overlap(smoothed: Heatmap, region: Mask) -> tuple[float, float]:
    """Largest intersection over union of the region with what reaches a threshold, and the threshold of the largest."""
    order = np.argsort(-smoothed, axis=None, kind="stable")
    values, inside = smoothed.ravel()[order], np.cumsum(region.ravel()[order])
    if values[0] <= 0:
        return math.nan, math.nan
    ends = np.flatnonzero(np.append(values[1:] != values[:-1], True) & (values > 0))  # equal values are cut together
    overlap = inside[ends] / (ends + 1 + region.sum() - inside[ends])
    best = int(overlap.argmax())
    return float(overlap[best]), float(values[ends[best]])
