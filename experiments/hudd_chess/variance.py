"""HUDD's RQ1: does a cluster have a parameter that varies much less inside it than over all errors?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

NOISE = -1
LEAST = 0.5  # by which the variance is lower


def spread(values: np.ndarray) -> float:
    """Variance of numbers (n,); of categories that of their one-hot form, which is Gini's impurity 1 - Σ p².

    Both are estimated without bias, so that a small cluster does not look tighter than it is; NaN for one value.
    """
    count = len(values)
    if count < 2:
        return float("nan")
    if values.dtype.kind == "f":
        return float(values.var(ddof=1))
    shares = np.unique(values, return_counts=True)[1] / count
    return float((1 - shares @ shares) * count / (count - 1))


def reductions(columns: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[int, dict[str, float]]:
    """By how much less each parameter (n,) varies in each cluster than over all n images: 1 where it does not vary.

    `labels` (n,) are clusters; -1, noise, is none, but its images count among all.
    """
    overall = {name: spread(values) for name, values in columns.items()}
    return {
        cluster: {name: 1 - spread(values[labels == cluster]) / overall[name] for name, values in columns.items()}
        for cluster in np.unique(labels[labels != NOISE]).tolist()
    }


def share_explained(columns: Mapping[str, np.ndarray], labels: np.ndarray) -> float:
    """Share of the clusters that have a parameter with at least 50 % less variance; NaN without clusters.

    An image alone has no variance, and is not explained.
    """
    found = [any(one >= LEAST for one in by_name.values()) for by_name in reductions(columns, labels).values()]
    return float(np.mean(found)) if found else float("nan")


def share_shifted(columns: Mapping[str, np.ndarray], labels: np.ndarray) -> float:
    """Share of the clusters that have such a parameter, a number, whose mean is a standard deviation off that of all.

    Stricter than HUDD: a cluster of pictures with little blur, say, is explained by blur, which cannot be its cause.
    """
    numbers = {name: values for name, values in columns.items() if values.dtype.kind == "f"}
    found = [
        any(
            one >= LEAST and abs(numbers[name][labels == cluster].mean() - numbers[name].mean()) >= numbers[name].std()
            for name, one in by_name.items()
        )
        for cluster, by_name in reductions(numbers, labels).items()
    ]
    return float(np.mean(found)) if found else float("nan")


def share_by_chance(columns: Mapping[str, np.ndarray], labels: np.ndarray, seed: int, repetitions: int = 50) -> float:
    """The same for random clusters of the same sizes, mean over `repetitions` permutations of the images."""
    random = np.random.default_rng(seed)
    return float(np.mean([share_explained(columns, random.permutation(labels)) for _ in range(repetitions)]))
