"""Whether two sets of images differ, class by class: rank tests with effect sizes, and mean heatmaps by permutation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
MEDIUM = 0.14  # |A12 − 0.5| from where Vargha & Delaney call an effect medium
PERMUTATIONS = 999


def rank_test(strata: Sequence[tuple[ArrayLike, ArrayLike]]) -> tuple[float, float]:
    """Mann-Whitney U test of two sets that are compared within strata (classes) only.

    U is summed over the strata, and so are its mean and its variance, corrected for ties; p is two-sided, by the normal
    approximation without continuity correction. For a single stratum this is scipy's `mannwhitneyu(b, a)`.

    Parameters
    ----------
    strata : sequence of (values, values)
        First and second set, (n,) and (m,), in each; NaN is left out.

    Returns
    -------
    a12 : float
        Probability that a value of the second set is larger than one of the first in the same stratum, ties counting
        half (Vargha & Delaney 2000, doi:10.3102/10769986025002101): 0.5 where they do not differ.
    p : float
        Both are NaN where no stratum has values in both sets.
    """
    from scipy.special import ndtr
    from scipy.stats import rankdata

    wins = pairs = variance = 0.0
    for first, second in strata:
        a, b = (known for values in (first, second) for known in [np.asarray(values, dtype=np.float64)])
        a, b = a[np.isfinite(a)], b[np.isfinite(b)]
        n, m, total = len(a), len(b), len(a) + len(b)
        if not n or not m:
            continue
        ranks = rankdata(np.concatenate([a, b]))
        wins += float(ranks[n:].sum()) - m * (m + 1) / 2
        pairs += n * m
        _, ties = np.unique(ranks, return_counts=True)
        variance += n * m / 12 * (total + 1 - float((ties**3 - ties).sum()) / (total * max(total - 1, 1)))
    if not pairs:
        return float("nan"), float("nan")
    z = abs(wins - pairs / 2) / np.sqrt(variance) if variance > 0 else 0.0
    return wins / pairs, float(2 * ndtr(-z))


def holm(p_values: ArrayLike) -> Floats:
    """p-values adjusted for how many there are (Holm 1979); NaN stays and does not count."""
    values = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(values.shape, np.nan)
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known])]
    adjusted[order] = np.minimum(1, np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)))
    return adjusted


def mean_likeness(
    strata: Sequence[tuple[Floats, Floats]], *, seed: int = 0, permutations: int = PERMUTATIONS
) -> tuple[Floats, Floats, float]:
    """How alike the mean heatmaps of two sets are, against random splits of the same images.

    Parameters
    ----------
    strata : sequence of (heatmaps, heatmaps)
        (n, D) and (m, D) of each class, at least one in each set.
    seed : int
        Of the splits.

    Returns
    -------
    cosines : float64 (strata,)
        Between the mean of the first and that of the second set.
    expected : float64 (strata,)
        Mean of the same over random splits into sets of the same sizes.
    p : float
        Share of the random splits, the images' own among them, whose mean cosine over the classes is as low.
    """
    random = np.random.default_rng(seed)
    found = np.empty((len(strata), permutations + 1))
    for row, (first, second) in enumerate(strata):
        both, n = np.concatenate([first, second]), len(first)
        chosen = np.zeros((permutations + 1, len(both)))
        chosen[0, :n] = 1
        for split in chosen[1:]:
            split[random.permutation(len(both))[:n]] = 1
        sums = chosen @ both  # means, but for a factor that cosines do not see
        found[row] = _cosines(sums, both.sum(axis=0) - sums)
    means = found.mean(axis=0)
    p = float((means <= means[0] + 1e-12).mean())
    return found[:, 0], found[:, 1:].mean(axis=1), p


def _cosines(ones: Floats, others: Floats) -> Floats:
    lengths = np.linalg.norm(ones, axis=1) * np.linalg.norm(others, axis=1)
    return np.asarray((ones * others).sum(axis=1) / np.where(lengths > 0, lengths, 1))
