"""Does a model look at other things on held-out images: its heatmaps there against those on its training images."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lrp_onnx.debug.heatmap_statistics import centre_and_spread, entropy, gini
from lrp_onnx.debug.placed_regions import PlacedRegions
from lrp_onnx.debug.region_files import read_regions
from lrp_onnx.debug.regions import Regions
from lrp_onnx.debug.two_samples import MEDIUM, holm, mean_likeness, rank_test
from lrp_onnx.errors import StoreError
from lrp_onnx.render import reduce_channels
from lrp_onnx.store import HeatmapStore
from lrp_onnx.stored_inputs import classified_rows

Floats = NDArray[np.float64]
Progress = Callable[[int, int], None]

ALL = "all classes"
LEVEL = 0.01  # of significance, after Holm's correction
GAP = 0.05  # of accuracy, confidence or cosine: smaller ones are not worth a word
DECISIONS = {"correct": "accuracy", "confidence": "confidence"}
LOOKS = {
    "mass": "relevance on the object",
    "entropy": "entropy of the relevance",
    "gini": "sparseness (Gini index)",
    "x": "centroid from the left",
    "y": "centroid from the top",
    "spread": "spread around the centroid",
    "typical": "likeness to the class mean",
}
MEASURES = {**DECISIONS, **LOOKS}
_GRID = 32  # heatmaps are compared with each other on so many cells along an edge at most
_MOST = 500  # images of a class and set whose heatmaps are compared with each other


@dataclass(frozen=True, eq=False)
class Seen:
    """What the heatmaps of one store say.

    Attributes
    ----------
    paths : tuple of str
    groups : array of str (N,)
        The class that an image is counted under: the expected one, or without a label the predicted.
    values : dict of str to float64 (N,)
        By measure; NaN where not known.
    areas : float64 (N,)
        Share of the picture that is the object: what a uniform heatmap gets for `mass`.
    coarse : float32 (N, h, w)
        R⁺ on a grid, of length 1 (0 where there is none).
    """

    paths: tuple[str, ...]
    groups: NDArray[np.str_]
    values: dict[str, Floats]
    areas: Floats
    coarse: NDArray[np.float32]


@dataclass(frozen=True)
class Compared:
    """One measure of one class, in training and held out.

    Attributes
    ----------
    measure, group : str
    training, heldout : int
        Images for which it is known.
    training_mean, heldout_mean : float
    a12 : float
        Probability that it is larger on a held-out image than on a training image of the same class; 0.5: alike.
    p, p_adjusted : float
        Of the rank test, and after Holm's correction for the number of rows.
    differs : bool
        Significant and worth a word: see `compare_seen`.
    """

    measure: str
    group: str
    training: int
    heldout: int
    training_mean: float
    heldout_mean: float
    a12: float
    p: float
    p_adjusted: float
    differs: bool


@dataclass(frozen=True)
class MeanLikeness:
    """Cosine between the mean heatmaps of a class in training and held out, and of random splits; see
    `mean_likeness`."""

    group: str
    training: int
    heldout: int
    cosine: float
    expected: float


@dataclass(frozen=True)
class Finding:
    """What the comparison comes to.

    Attributes
    ----------
    decides_worse, looks_elsewhere, beside_object : bool
        Fewer or less sure decisions on held-out images; other heatmaps there; no more relevance on the object than a
        uniform heatmap has, in either set.
    verdict : str
        In one sentence.
    reasons : tuple of str
        A sentence for each row that differs.
    """

    decides_worse: bool
    looks_elsewhere: bool
    beside_object: bool
    verdict: str
    reasons: tuple[str, ...]

    @property
    def suspicious(self) -> bool:
        """Whether there is any sign of overfitting, or of a shortcut."""
        return self.decides_worse or self.looks_elsewhere or self.beside_object


@dataclass(frozen=True, eq=False)
class Comparison:
    """Rows of all classes first, then by class; likenesses by class; `p_mean` is that of the mean heatmaps."""

    rows: tuple[Compared, ...]
    means: tuple[MeanLikeness, ...]
    p_mean: float
    finding: Finding


def see(
    store: HeatmapStore, regions: Regions | str | os.PathLike[str] | None = None, progress: Progress | None = None
) -> Seen:
    """Measure every finished heatmap of a store.

    Parameters
    ----------
    store : HeatmapStore
        Of pictures, each explained for one class.
    regions : Regions or path-like, optional
        Objects; images without one have no `mass`.
    progress : callable, optional
        Called with (heatmaps done, in all).

    Raises
    ------
    DataError, StoreError
        When regions and store do not fit each other, or the store holds something else or NaN.
    """
    rows = classified_rows(store)
    if len(store.attribution.shape) != 4 or 1 in store.attribution.shape[2:]:
        raise StoreError(f"{store.path}: samples of shape {store.attribution.shape[1:]}; expected pictures")
    marked = regions if isinstance(regions, Regions) or regions is None else read_regions(regions)
    placed = None if marked is None else PlacedRegions(store, marked)
    with_region = set() if placed is None else set(placed.rows)
    samples, classes = store.samples, store.classes or []
    labels = np.where(samples["label"][rows] >= 0, samples["label"][rows], samples["predicted"][rows])
    names = [classes[label] if label < len(classes) else str(label) for label in labels.tolist()]
    values = {name: np.full(len(rows), np.nan) for name in MEASURES}
    correct = samples["correct"][rows].astype(np.float64)
    values["correct"] = np.where(correct < 0, np.nan, correct)
    areas, coarse = np.full(len(rows), np.nan), []
    for at, row in enumerate(rows.tolist()):
        heatmap = reduce_channels(store.attribution[row])
        if not np.isfinite(heatmap).all():
            raise StoreError(f"{store.path}, {samples['path'][row]}: the relevance holds NaN or infinite values")
        positive = np.maximum(heatmap, 0)
        values["confidence"][at] = _probability(store.prediction[row], int(labels[at]))
        values["entropy"][at], values["gini"][at] = entropy(positive), gini(positive)
        values["x"][at], values["y"][at], values["spread"][at] = centre_and_spread(positive)
        region = placed.at(row) if placed is not None and row in with_region else None
        if region is not None and positive.any():
            values["mass"][at] = positive[region.region].sum() / positive.sum()
            areas[at] = region.region.mean()
        coarse.append(_on_grid(positive))
        if progress:
            progress(at + 1, len(rows))
    paths = tuple(str(path) for path in samples["path"][rows])
    return Seen(paths, np.array(names), values, areas, np.stack(coarse))


def _probability(logits: NDArray[np.floating], label: int) -> float:
    pair = logits.astype(np.float64) if len(logits) > 1 else np.array([0.0, float(logits[0])])
    odds = np.exp(pair - pair.max())
    return float(odds[label] / odds.sum())


def _on_grid(positive: Floats) -> NDArray[np.float32]:
    height, width = (min(edge, _GRID) for edge in positive.shape)
    scaled = (positive / (positive.max() or 1)).astype(np.float32)
    small = np.asarray(Image.fromarray(scaled).resize((width, height), Image.Resampling.BOX))
    return np.asarray(small / (np.linalg.norm(small) or 1), dtype=np.float32)


def compare_seen(training: Seen, heldout: Seen, *, seed: int = 0) -> Comparison:
    """Hold held-out images against training images, class by class.

    A row differs when its adjusted p is at most 0.01 and the difference is worth a word: for accuracy and confidence a
    loss of 0.05, for what the heatmaps look like an effect of A12 that Vargha and Delaney call medium (0.14 from 0.5).
    The mean heatmaps differ when their p is at most 0.01 and their cosine 0.05 below that of random splits.

    Raises
    ------
    StoreError
        When no class is in both.
    """
    groups = sorted(set(training.groups.tolist()) & set(heldout.groups.tolist()))
    if not groups:
        raise StoreError("training and held-out heatmaps have no class in common; compute both of labelled images")
    members = {group: (training.groups == group, heldout.groups == group) for group in groups}
    _typicality(training, heldout, members)
    rows = [
        _row(measure, group, [(training.values[measure][t], heldout.values[measure][h]) for t, h in chosen])
        for group, chosen in [(ALL, list(members.values())), *((g, [m]) for g, m in members.items())]
        for measure in MEASURES
    ]
    rows = [row for row in rows if row.training and row.heldout]
    rows = [_judged(row, p) for row, p in zip(rows, holm([row.p for row in rows]).tolist(), strict=True)]
    strata = [
        (_flat(training.coarse[in_training][:_MOST]), _flat(heldout.coarse[held][:_MOST]))
        for in_training, held in members.values()
    ]
    cosines, expected, p_mean = mean_likeness(strata, seed=seed)
    means = [
        MeanLikeness(g, int(members[g][0].sum()), int(members[g][1].sum()), float(c), float(e))
        for g, c, e in zip(groups, cosines, expected, strict=True)
    ]
    return Comparison(tuple(rows), tuple(means), p_mean, _finding(rows, means, p_mean, training, heldout))


def _flat(coarse: NDArray[np.float32]) -> Floats:
    return coarse.reshape(len(coarse), -1).astype(np.float64)


def _typicality(training: Seen, heldout: Seen, members: dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]) -> None:
    """Cosine of each heatmap with the mean of the class's other training heatmaps."""
    for known, asked in members.values():
        own, others = _flat(training.coarse[known]), _flat(heldout.coarse[asked])
        total = own.sum(axis=0)
        if len(own) > 1:
            training.values["typical"][known] = _cosines(own, total - own)
        heldout.values["typical"][asked] = _cosines(others, np.broadcast_to(total, others.shape))


def _cosines(ones: Floats, others: Floats) -> Floats:
    lengths = np.linalg.norm(ones, axis=1) * np.linalg.norm(others, axis=1)
    return np.where(lengths > 0, (ones * others).sum(axis=1) / np.where(lengths > 0, lengths, 1), np.nan)


def _row(measure: str, group: str, strata: Sequence[tuple[Floats, Floats]]) -> Compared:
    """Means over the classes' images that are known; a class that one set lacks is in neither mean."""
    known = [(a[np.isfinite(a)], b[np.isfinite(b)]) for a, b in strata]
    known = [(a, b) for a, b in known if len(a) and len(b)]
    a12, p = rank_test(known)
    training, heldout = (np.concatenate([pair[side] for pair in known]) if known else np.empty(0) for side in (0, 1))
    means = [float(values.mean()) if len(values) else float("nan") for values in (training, heldout)]
    return Compared(measure, group, len(training), len(heldout), means[0], means[1], a12, p, p, False)


def _judged(row: Compared, p: float) -> Compared:
    lost, effect = row.training_mean - row.heldout_mean, abs(row.a12 - 0.5)
    large = lost >= GAP if row.measure in DECISIONS else effect >= MEDIUM
    values = {**vars(row), "p_adjusted": p, "differs": bool(p <= LEVEL and large)}
    return Compared(**values)


def _finding(
    rows: Sequence[Compared], means: Sequence[MeanLikeness], p_mean: float, training: Seen, heldout: Seen
) -> Finding:
    reasons = [_sentence(row) for row in rows if row.differs]
    worse = any(row.differs for row in rows if row.measure in DECISIONS)
    elsewhere = any(row.differs for row in rows if row.measure in LOOKS)
    cosine, expected = (float(np.mean([getattr(one, name) for one in means])) for name in ("cosine", "expected"))
    if p_mean <= LEVEL and expected - cosine >= GAP:
        elsewhere = True
        reasons.append(
            f"mean heatmaps of the classes: cosine {cosine:.2f} between training and held-out images, {expected:.2f} "
            f"between random splits of both (p {p_mean:.2g})"
        )
    beside = False
    for name, seen in (("training", training), ("held-out", heldout)):
        known = np.isfinite(seen.values["mass"])
        if not known.any():
            continue
        mass, area = float(seen.values["mass"][known].mean()), float(seen.areas[known].mean())
        if mass <= area:
            beside = True
            reasons.append(
                f"{name} images: {mass:.0%} of the relevance on the object, which is {area:.0%} of the picture"
            )
    heldout_parts = [text for there, text in ((worse, "decides worse"), (elsewhere, "looks at other things")) if there]
    parts = [f"{' and '.join(heldout_parts)} on held-out images"] if heldout_parts else []
    parts += ["looks beside the object"] if beside else []
    verdict = f"the model {', and '.join(parts)}" if parts else "no sign of overfitting in decisions and heatmaps"
    return Finding(worse, elsewhere, beside, verdict, tuple(reasons))


def _sentence(row: Compared) -> str:
    numbers = f"{row.training_mean:.2f} in training, {row.heldout_mean:.2f} held out"
    return f"{row.group}, {MEASURES[row.measure]}: {numbers} (A12 {row.a12:.2f}, p {row.p_adjusted:.1g})"


def compare_stores(
    training: str | os.PathLike[str],
    heldout: str | os.PathLike[str],
    regions: Regions | str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Seen, Seen, Comparison]:
    """The comparison of two stores of one model, made alike; see `see` and `compare_seen`.

    Raises
    ------
    DataError, StoreError
        When one cannot be read, or they are of two models, composites, targets or seeds.
    """
    report = progress or (lambda done, total: None)
    with HeatmapStore(training) as first, HeatmapStore(heldout) as second:
        for name in ("model_sha256", "composite", "target", "seed"):
            if first.attrs[name] != second.attrs[name]:
                raise StoreError(
                    f"{first.path} and {second.path} differ in {name}; compute both with the same model and options"
                )
        total = len(first.done) + len(second.done)
        seen = see(first, regions, lambda done, _: report(done, total))
        other = see(second, regions, lambda done, _: report(len(seen.paths) + done, total))
    return seen, other, compare_seen(seen, other, seed=seed)
