"""Mean heatmaps of clusters and of correctly handled images, and where in the picture their relevance differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.errors import DataError
from lrp_onnx.render.unit_heatmaps import unit_blocks
from lrp_onnx.store import HeatmapStore

Floats = NDArray[np.float64]
Strata = Mapping[int, Mapping[int, float]]

FIELDS = (
    "top left", "top centre", "top right", "middle left", "centre", "middle right",
    "bottom left", "bottom centre", "bottom right",
)  # fmt: skip
LEAST_DIFFERENCE = 0.03  # of the relevance; less is not worth a sentence
LEVEL = 0.01  # chance that a cluster without any difference gets a sentence
LEAST_IMAGES = 5
# What must be the same for two heatmaps to be compared.
_ALIKE = ("model_sha256", "composite", "seed", "preprocess")


@dataclass(frozen=True, eq=False)
class MeanHeatmap:
    """The mean of heatmaps that were each divided by the sum of their |relevance|, so that every image counts alike.

    Attributes
    ----------
    images : int
    values : array (H, W) or (D,)
        Summed over channels; large pictures in square cells of pixels, relevance summed. (D,) for what is no picture.
    shares, deviations : array (9,), or None
        Mean share of the |relevance| of an image in each of `FIELDS`, and the standard error of that mean; None for
        what is no picture.
    """

    images: int
    values: Floats
    shares: Floats | None
    deviations: Floats | None


@dataclass(frozen=True)
class Difference:
    """A field of the picture, and the mean share of |relevance| in it: of a cluster, and of what it is held against."""

    field: str
    share: float
    other: float


def mean_heatmaps(
    store: HeatmapStore,
    rows: NDArray[np.int64],
    strata: NDArray[np.int64],
    weights: Strata,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[int, MeanHeatmap]:
    """Weighted mean heatmaps of several groups in one pass over the store, a block of rows in memory at a time.

    Parameters
    ----------
    store : HeatmapStore
    rows, strata : int arrays (n,)
        Rows to read, ascending, and which stratum each belongs to, such as its expected class.
    weights : mapping of int to mapping of int to float
        Of each group: the weights of its strata, which sum to 1. Within a stratum all images count alike.
    progress : callable (rows done), optional

    Raises
    ------
    StoreError
        When a heatmap holds NaN or infinite values.
    """
    names, places, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    share = np.array([[weights[group].get(name, 0.0) for name in names.tolist()] for group in weights])  # (groups, S)
    total: Floats | None = None
    of_field: list[Floats] = []
    for start, heatmaps in unit_blocks(store, rows):
        block = slice(start, start + len(heatmaps))
        added = np.tensordot((share / sizes)[:, places[block]], heatmaps, axes=1)
        total = added if total is None else total + added
        of_field.append(_field_shares(heatmaps))
        progress(block.stop)
    if total is None:
        return {}
    mean, variance = _by_stratum(np.concatenate(of_field), places, sizes)
    picture = total.ndim == 3
    return {
        group: MeanHeatmap(
            images=int(sizes[share[place] > 0].sum()),
            values=total[place],
            shares=share[place] @ mean if picture else None,
            deviations=np.sqrt(share[place] ** 2 @ (variance / sizes[:, None])) if picture else None,
        )
        for place, group in enumerate(weights)
    }


def differences(one: MeanHeatmap, other: MeanHeatmap) -> list[Difference] | None:
    """Fields whose shares of |relevance| differ by 3 points or more and not by chance, the largest difference first.

    Chance: Welch's t-test at the level of 1 %, Bonferroni-corrected for the nine fields, with the degrees of freedom of
    the smaller group, which is the strict side. None when nothing can be said: fewer than 5 images, or no pictures.
    """
    from scipy.stats import t

    if one.shares is None or other.shares is None or one.deviations is None or other.deviations is None:
        return None
    fewest = min(one.images, other.images)
    if fewest < LEAST_IMAGES:
        return None
    least = float(t.isf(LEVEL / (2 * len(FIELDS)), fewest - 1))
    apart = np.abs(one.shares - other.shares)
    clear = (apart >= LEAST_DIFFERENCE) & (apart >= least * np.hypot(one.deviations, other.deviations))
    found = sorted(np.flatnonzero(clear).tolist(), key=lambda field: -apart[field])
    return [Difference(FIELDS[field], float(one.shares[field]), float(other.shares[field])) for field in found]


def class_weights(labels: NDArray[np.int64], known: NDArray[np.int64]) -> dict[int, float]:
    """Share of each class among `labels` (n,), counting only classes that are in `known`; empty when none is."""
    classes, counts = np.unique(labels[np.isin(labels, known)], return_counts=True)
    return {int(name): count / counts.sum() for name, count in zip(classes, counts.tolist(), strict=True)}


def correct_rows(errors: HeatmapStore, correct: HeatmapStore) -> NDArray[np.int64]:
    """Rows of `correct` with a heatmap of an image that was handled correctly.

    Raises
    ------
    DataError
        There is none, or the two stores were made by different models or in different ways.
    """
    one, other = errors.attrs, correct.attrs
    differs = [name for name in _ALIKE if one[name] != other[name]]
    if errors.attribution.shape[1:] != correct.attribution.shape[1:]:
        differs.append("shape of the input")
    if differs:
        raise DataError(
            f"{correct.path}: cannot be held against {errors.path}, they differ in {', '.join(differs)}; make the "
            "heatmaps of correctly handled images with the same model and options"
        )
    done = correct.done
    rows = done[correct.samples["correct"][done] == 1]
    if not rows.size:
        raise DataError(
            f"{correct.path}: none of its {len(done)} images with a heatmap is known to be handled correctly; expected "
            "heatmaps of images that the model gets right"
        )
    return rows


def _field_shares(heatmaps: Floats) -> Floats:
    """Share of |relevance| in each of `FIELDS`, (b, 9); nothing, (b, 0), for what is no picture."""
    if heatmaps.ndim < 3:
        return np.zeros((len(heatmaps), 0))
    thirds = (np.array_split(np.abs(row), 3, axis=2) for row in np.array_split(heatmaps, 3, axis=1))
    return np.stack([field.sum(axis=(1, 2)) for row in thirds for field in row], axis=1)


def _by_stratum(values: Floats, places: NDArray[np.intp], sizes: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Mean and variance of values (n, F) in each of S strata, each (S, F)."""
    mean = np.stack([values[places == place].mean(axis=0) for place in range(len(sizes))])
    squares = np.stack([((values - mean[place])[places == place] ** 2).sum(axis=0) for place in range(len(sizes))])
    return mean, squares / np.maximum(sizes - 1, 1)[:, None]
