"""The clusters in the report: what is in each, what its images look like, how its relevance differs from the rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.hudd.clusters import NOISE, Clustering
from lrp_onnx.hudd.outputs import INSPECTED, ClusterSummary, summarise
from lrp_onnx.hudd.report.contrast import (
    LEAST_DIFFERENCE,
    LEAST_IMAGES,
    MeanHeatmap,
    class_weights,
    correct_rows,
    differences,
    mean_heatmaps,
)
from lrp_onnx.hudd.report.pictures import Scale, Shown, largest_of, mean_picture, shown
from lrp_onnx.hudd.samples import Samples
from lrp_onnx.render.figures import number
from lrp_onnx.render.page import Picture
from lrp_onnx.store import HeatmapStore

Progress = Callable[[str, int, int], None]
_MEDOID, _OTHER, _MEAN, _NOISE = 250, 110, 220, 80  # heights of pictures on the page
_MOST_NOISE = 24  # images of the noise that are shown
_MOST_DIFFERENCES = 3  # in a sentence


@dataclass(frozen=True)
class Mean:
    """A mean heatmap on the page, with its scale."""

    picture: Picture
    title: str
    scale: Scale


@dataclass(frozen=True)
class ClusterSection:
    """A cluster on the page.

    Attributes
    ----------
    summary : ClusterSummary
    share : float
        Of all clustered failures.
    losses : (float, float) or None
        Mean and largest loss, for regression.
    shown : sequence of Shown
        The medoid, then up to four more, from the nearest to it to the farthest.
    means : sequence of Mean
        Of the cluster; then, where there is something to hold it against, of that, and the difference.
    contrast : sequence of str
        What the cluster is held against, and where relevance differs, in sentences.
    """

    summary: ClusterSummary
    share: float
    losses: tuple[float, float] | None
    shown: Sequence[Shown]
    means: Sequence[Mean]
    contrast: Sequence[str]


def cluster_sections(
    store: HeatmapStore,
    rows: NDArray[np.int64],
    clustering: Clustering,
    correct: HeatmapStore | None,
    progress: Progress,
) -> list[ClusterSection]:
    """The sections of all clusters, the largest first; `rows` (n,) says which row of the store each image is.

    Raises
    ------
    DataError, StoreError
        When the two stores do not fit each other, or hold values that are not finite.
    """
    samples = Samples(store)
    summaries = [one for one in summarise(store, rows, clustering) if one.cluster != NOISE]
    means = _means(samples, rows, clustering, correct, progress)
    sections = []
    for summary in summaries:
        members = np.flatnonzero(clustering.labels == summary.cluster)
        loss = samples.columns["loss"][rows[members]].astype(np.float64)
        losses = (float(loss.mean()), float(loss.max())) if samples.targets is not None else None
        sections.append(
            ClusterSection(
                summary=summary,
                share=len(members) / len(rows),
                losses=losses if losses and np.isfinite(losses).all() else None,
                shown=[
                    shown(samples, int(rows[image]), _MEDOID if place == 0 else _OTHER, _where(clustering, image))
                    for place, image in enumerate(_spread(clustering, summary.cluster))
                ],
                means=_mean_pictures(summary.cluster, means),
                contrast=_contrast(samples, rows[members], means, summary.cluster),
            )
        )
        progress("Showing", len(sections), len(summaries))
    return sections


def noise_shown(store: HeatmapStore, rows: NDArray[np.int64], clustering: Clustering) -> list[Shown]:
    """The first images of the noise, small."""
    samples, noise = Samples(store), np.flatnonzero(clustering.labels == NOISE)[:_MOST_NOISE]
    return [shown(samples, int(rows[image]), _NOISE) for image in noise.tolist()]


@dataclass(frozen=True, eq=False)
class _Means:
    """Mean heatmaps of clusters, of what each is held against, and the classes of all correctly handled images."""

    own: dict[int, MeanHeatmap]
    other: dict[int, MeanHeatmap]
    classes: NDArray[np.int64]


def _means(
    samples: Samples,
    rows: NDArray[np.int64],
    clustering: Clustering,
    correct: HeatmapStore | None,
    progress: Progress,
) -> _Means:
    store, clusters = samples.store, list(clustering.medoids)
    inside = np.flatnonzero(clustering.labels != NOISE)
    kept = correct_rows(store, correct) if correct is not None else np.empty(0, dtype=np.int64)
    expected, classes = store.labels[rows], correct.labels[kept] if correct is not None else kept
    if (expected < 0).all():  # without classes every image handled correctly is as good as any other
        classes, expected = np.zeros_like(classes), np.zeros_like(expected)
    weights = {cluster: class_weights(expected[clustering.labels == cluster], classes) for cluster in clusters}
    weights = {cluster: of_class for cluster, of_class in weights.items() if of_class}
    needed = np.isin(classes, [name for of_class in weights.values() for name in of_class])
    total = len(inside) + int(needed.sum())
    own = mean_heatmaps(
        store,
        rows[inside],
        clustering.labels[inside],
        {cluster: {cluster: 1.0} for cluster in clusters},
        lambda done: progress("Averaging", done, total),
    )
    if correct is None:
        return _Means(own, {}, classes)
    other = mean_heatmaps(
        correct,
        kept[needed],
        classes[needed],
        weights,
        lambda done: progress("Averaging", len(inside) + done, total),
    )
    return _Means(own, other, classes)


def _spread(clustering: Clustering, cluster: int) -> list[int]:
    """The medoid and up to four others, at equal steps from the nearest to it to the farthest."""
    medoid, distance = clustering.medoids[cluster], clustering.distance_to_medoid
    others = [image for image in np.flatnonzero(clustering.labels == cluster).tolist() if image != medoid]
    others.sort(key=lambda image: (distance[image], image))
    places = np.unique(np.linspace(0, len(others) - 1, min(len(others), INSPECTED - 1)).round().astype(int))
    return [medoid, *(others[place] for place in places.tolist())]


def _where(clustering: Clustering, image: int) -> str:
    if image in clustering.medoids.values():
        return "medoid: the image closest to all others of the cluster"
    return f"distance to the medoid {clustering.distance_to_medoid[image]:.3g}"


def _mean_pictures(cluster: int, means: _Means) -> list[Mean]:
    """The cluster and what it is held against in one scale, so that colours compare; their difference in its own."""
    mean, against = means.own[cluster], means.other.get(cluster)
    parts = [(mean, f"mean of the {_images(mean.images)} of cluster {cluster}")]
    parts += [(against, f"mean of {_images(against.images)} handled correctly")] if against else []
    largest = largest_of(*(part for part, _ in parts))
    signed = [(part.values, title, largest) for part, title in parts]
    if against is not None:
        difference = MeanHeatmap(mean.images, mean.values - against.values, None, None)
        signed.append((difference.values, "difference: cluster minus correct", largest_of(difference)))
    return [
        Mean(
            mean_picture(values, f"heatmap, {title}", _MEAN, most),
            title,
            Scale(f"−{_percent(most)}" if most else "0", f"+{_percent(most)}" if most else "0"),
        )
        for values, title, most in signed
    ]


def _contrast(samples: Samples, rows: NDArray[np.int64], means: _Means, cluster: int) -> list[str]:
    """What the cluster is held against, and where relevance differs."""
    if not means.classes.size:
        return []
    label_of = {samples.expected(row): int(samples.columns["label"][row]) for row in rows.tolist()}
    classes = {name for name, label in label_of.items() if label >= 0}
    lacking = {name for name in classes if label_of[name] not in means.classes}
    mean, against = means.own[cluster], means.other.get(cluster)
    if against is None:
        return [f"There is no correctly handled image of the expected class {_either(classes)} to hold it against."]
    held = f"Held against {_images(against.images)} handled correctly"
    if classes:
        held += f" of the expected class {_either(classes - lacking)}"
        held += ", weighted as the classes are in the cluster" if len(classes - lacking) > 1 else ""
        held += f"; of {_either(lacking)} there is none" if lacking else ""
    return [f"{held}.", *([] if mean.shares is None else [_measured(mean, against)])]


def _measured(mean: MeanHeatmap, against: MeanHeatmap) -> str:
    found = differences(mean, against)
    if found is None:
        fewest = _images(min(mean.images, against.images))
        return f"With {fewest} on one side, fewer than {LEAST_IMAGES}, nothing is said about where relevance differs."
    if not found:
        least = f"{100 * LEAST_DIFFERENCE:.0f} points"
        return (
            "Measured: in none of the nine fields of the picture (3 × 3) does the share of |relevance| differ by "
            f"{least} or more and beyond chance."
        )
    shown = found[:_MOST_DIFFERENCES]
    parts = [
        f"{word} {_and([f'{one.field} ({one.share:.0%} against {one.other:.0%})' for one in side])}"
        for word, side in (
            ("more at the", [one for one in shown if one.share > one.other]),
            ("less at the", [one for one in shown if one.share < one.other]),
        )
        if side
    ]
    more = len(found) - len(shown)
    return (
        "Measured: compared with correct images, the relevance of the cluster lies "
        f"{' and '.join(parts)} of the picture, in a grid of 3 × 3 fields"
        + (f"; {more} more field{'s differ' if more > 1 else ' differs'}." if more else ".")
    )


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def _and(parts: list[str]) -> str:
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last


def _either(names: set[str]) -> str:
    *others, last = sorted(names)
    return f"{', '.join(others)} or {last}" if others else last


def _percent(share: float) -> str:
    return f"{number(100 * share)}%"
