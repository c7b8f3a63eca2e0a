"""What variations do to a model: accuracy, confidence, decisions and heatmaps, by class and variation."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.data.table import read_table
from lrp_onnx.debug.alignment import move_back, similarity
from lrp_onnx.debug.explained import of_classes
from lrp_onnx.debug.heat_table import heat_table, most_columns
from lrp_onnx.debug.variation_images import COLUMNS
from lrp_onnx.debug.variations import ORIGINAL, Matrix
from lrp_onnx.errors import DataError
from lrp_onnx.folders import folder_written_whole, refuse_folder
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.render import reduce_channels, save_png
from lrp_onnx.store import HeatmapStore

TABLE, PER_IMAGE, REPORT, CHART = "stability.csv", "images.csv", "stability.json", "stability.png"
ALL = "all classes"
_MOST_SENTENCES = 12


@dataclass(frozen=True)
class VariedPicture:
    """One picture of a manifest: what was done to it, and size in pixels."""

    image: str
    path: str
    label: str
    source: str
    variation: str
    size: tuple[int, int]
    homography: Matrix


@dataclass(frozen=True)
class Judged:
    """What the model makes of one picture, against the original; None where it is not known.

    Attributes
    ----------
    image, label, source, variation : str
        As in the manifest; the variation with its value.
    predicted : int or None
        Class index; None where the heatmaps are of no classes.
    correct : int or None
        1 or 0.
    confidence : float or None
        Softmax probability of the true class (of one logit: its sigmoid).
    kept : int or None
        1 if the original gets the same class.
    rank, cosine : float or None
        Likeness of the heatmap to the original's, see `similarity`.
    valid : float
        Share of the model's input on which the heatmaps are compared.
    loss : float or None
        As `heatmaps` and `test` have it.
    number : float or None
        What the heatmap explains, where that is no class: a box's score, say, or a regressed number.
    """

    image: str
    label: str
    source: str
    variation: str
    predicted: int | None
    correct: int | None
    confidence: float | None
    kept: int | None
    rank: float | None
    cosine: float | None
    valid: float
    loss: float | None = None
    number: float | None = None


@dataclass(frozen=True)
class Summary:
    """One class under one variation: number of images, and means over those of them for which a number is known."""

    label: str
    variation: str
    images: int
    accuracy: float | None
    confidence: float | None
    kept: float | None
    rank: float | None
    cosine: float | None
    loss: float | None = None
    number: float | None = None


@dataclass(frozen=True)
class Stability:
    """What `write_stability` found and wrote.

    Attributes
    ----------
    folder, table, chart : pathlib.Path
    summaries : tuple of Summary
        By class, then variation; `ALL` classes first.
    worst : tuple of str
        A sentence for each class and variation that costs most right answers (without labels: decisions; where there
        are none of those: that changes heatmaps most).
    notes : tuple of str
    """

    folder: Path
    table: Path
    chart: Path
    summaries: tuple[Summary, ...]
    worst: tuple[str, ...]
    notes: tuple[str, ...]


def write_stability(
    store: str | os.PathLike[str],
    manifest: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    smooth: float = 2.0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Stability:
    """Write how stable a model's answers and heatmaps are under variations.

    ``stability.csv`` and ``stability.json`` hold `Summary` rows, ``images.csv`` a `Judged` row a picture, and
    ``stability.png`` accuracy and rank correlation as coloured tables.

    Parameters
    ----------
    store : path-like
        Heatmaps of the manifest's pictures. Made with ``target="predicted"`` they tell whether the model looks at the
        same place, whatever it sees there; with ``target="label"`` whether one class keeps its evidence.
    manifest : path-like
        Of `write_variations`.
    out : path-like
        Folder.
    smooth : float
        Standard deviation by which heatmaps are blurred before they are compared, % of the input's short edge.
    overwrite : bool
    progress : callable, optional
        Called with (pictures done, pictures in all).

    Raises
    ------
    StoreError, DataError
        When one cannot be read, or they do not fit each other.
    OutputError
        When `out` holds something that may not be replaced, or cannot be written.
    """
    folder = Path(out)
    refuse_folder(folder, REPORT, overwrite)
    if not 0 <= smooth <= 100:
        raise DataError(f"smooth is {smooth}; expected 0 to 100, % of the short edge")
    pictures = read_manifest(manifest)
    with HeatmapStore(store) as heatmaps:
        judged = list(_judge(heatmaps, pictures, Path(manifest), smooth, progress or (lambda done, total: None)))
        about = {"store": str(heatmaps.path), "model": heatmaps.attrs["model"], "target": heatmaps.attrs["target"]}
    order = list(dict.fromkeys(picture.variation for picture in pictures))
    summaries = tuple(summarise(judged, order))
    worst = tuple(worst_rows(summaries))
    left_out = len(pictures) - len(judged)
    notes = (f"pictures left out, because they or their original have no heatmap in the store: {left_out}",)
    with folder_written_whole(folder, REPORT, overwrite=overwrite) as new:
        _write_csv(new / TABLE, Summary, summaries)
        _write_csv(new / PER_IMAGE, Judged, judged)
        rows = [asdict(summary) for summary in summaries]
        report = {**about, "smooth": smooth, "pictures": len(judged), "worst": worst, "rows": rows}
        (new / REPORT).write_text(json.dumps(report, ensure_ascii=False, indent=2), encoding="utf-8")
        save_png(_chart(summaries, order, f"{about['model']}, heatmaps of {about['target']}"), new / CHART)
    return Stability(folder, folder / TABLE, folder / CHART, summaries, worst, notes if left_out else ())


def read_manifest(path: str | os.PathLike[str]) -> list[VariedPicture]:
    """Read what `write_variations` wrote.

    Raises
    ------
    DataError
        When it cannot be read, is something else, or is empty.
    """
    table = read_table(Path(path))
    if missing := [name for name in COLUMNS if name not in table.header]:
        raise DataError(f"{path}: no column '{missing[0]}'; expected the manifest that `lrp-onnx vary` wrote")
    here = Path(path).parent.resolve()
    pictures = []
    for line, row in table.rows:
        try:
            homography = np.array([float(number) for number in row["homography"].split()]).reshape(3, 3)
            size = int(row["width"]), int(row["height"])
        except (KeyError, ValueError) as error:
            raise DataError(f"{path}, line {line}: expected width, height and nine numbers as homography") from error
        name = row["variation"] + (f"={row['value']}" if row["value"] else "")
        file = str(here / row["image"])
        pictures.append(VariedPicture(row["image"], file, row["label"], row["source"], name, size, homography))
    if not pictures:
        raise DataError(f"{path}: holds no pictures; run `lrp-onnx vary` again, as it was interrupted")
    return pictures


def _judge(
    store: HeatmapStore,
    pictures: Sequence[VariedPicture],
    manifest: Path,
    smooth: float,
    progress: Callable[[int, int], None],
) -> Iterator[Judged]:
    if store.preprocess is None or store.attribution.ndim != 4:
        raise DataError(f"{store.path}: holds no heatmaps of pictures, or not how pictures became inputs")
    preprocess = Preprocess.from_json(store.preprocess)
    samples, numbers = store.samples, _numbers(store)
    row_of = {str(path): row for row, path in enumerate(samples["path"]) if samples["done"][row]}
    if not any(picture.path in row_of for picture in pictures):
        raise DataError(
            f"{store.path}: holds no heatmap of a picture in {manifest}; make it with `lrp-onnx heatmaps` of the "
            "manifest, where it is now"
        )
    deviation = smooth / 100 * min(preprocess.size)
    originals = {picture.source: picture for picture in pictures if picture.variation == ORIGINAL}
    heatmap, shown = np.zeros(preprocess.size), ""  # the original's, read once for all its variations
    for done, picture in enumerate(pictures, start=1):
        original = originals.get(picture.source)
        if original is not None and picture.path in row_of and original.path in row_of:
            row, original_row = row_of[picture.path], row_of[original.path]
            if shown != original.path:
                heatmap, shown = reduce_channels(store.attribution[original_row]), original.path
            relevance = reduce_channels(store.attribution[row])
            moved, valid = move_back(relevance, picture.homography, original.size, picture.size, preprocess)
            rank, cosine = similarity(heatmap, moved, valid, deviation)
            correct = int(samples["correct"][row])
            predicted, before = (int(samples["predicted"][at]) for at in (row, original_row))
            classes = numbers is None
            yield Judged(
                picture.image,
                picture.label,
                picture.source,
                picture.variation,
                predicted if classes else None,
                correct if correct >= 0 else None,
                _confidence(store.prediction[row], int(samples["label"][row])) if classes else None,
                int(predicted == before) if classes else None,
                _known(rank),
                _known(cosine),
                float(valid.mean()),
                _known(samples["loss"][row]),
                None if numbers is None else _known(numbers[row]),
            )
        progress(done, len(pictures))


def _numbers(store: HeatmapStore) -> NDArray[np.floating] | None:
    """What each heatmap explains, (N,), NaN where that is not recorded; None where heatmaps are of classes."""
    if of_classes(store):
        return None
    recorded = store.conservation
    if recorded is None or store.attrs["seed"] != "logit":
        return np.full(len(store), np.nan)
    return recorded[1][:, -1]  # the sum of the relevance at the output, where it starts


def _confidence(logits: NDArray[np.floating], label: int) -> float | None:
    if label < 0 or logits.ndim != 1:
        return None
    pair = logits.astype(np.float64) if len(logits) > 1 else np.array([0.0, float(logits[0])])
    odds = np.exp(pair - pair.max())
    return float(odds[label] / odds.sum())


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def summarise(judged: Sequence[Judged], variations: Sequence[str]) -> Iterator[Summary]:
    """Means by class and variation, all classes first, then by name; variations in the order given."""
    labels = sorted({one.label for one in judged} - {""})
    for label in (ALL, *labels):
        for variation in variations:
            group = [one for one in judged if one.variation == variation and label in (ALL, one.label)]
            if group:
                names = ("correct", "confidence", "kept", "rank", "cosine", "loss", "number")
                means = (_mean(getattr(one, name) for one in group) for name in names)
                yield Summary(label, variation, len(group), *means)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def worst_rows(summaries: Sequence[Summary]) -> Iterator[str]:
    """A sentence for each class and variation that costs right answers, or decisions; the most costly first.

    Where there are neither, by how much heatmaps change.
    """
    before = {one.label: one for one in summaries if one.variation == ORIGINAL}
    classes = {one.label for one in summaries} - {ALL} or {ALL}

    def cost(one: Summary) -> float:
        original = before[one.label]
        if one.accuracy is None or original.accuracy is None:
            like = one.kept if one.kept is not None else one.rank
            return 1.0 if like is None else 1 - like
        return original.accuracy - one.accuracy

    rows = [one for one in summaries if one.label in classes and one.variation != ORIGINAL and cost(one) > 0]
    rows.sort(key=lambda one: (-cost(one), -one.images, 1.0 if one.rank is None else one.rank))
    for one in rows[:_MOST_SENTENCES]:
        said, original = [], before[one.label]
        if one.accuracy is not None:
            said.append(f"{one.accuracy:.0%} right instead of {original.accuracy:.0%}")
        if one.kept is not None:
            said.append(f"{one.kept:.0%} of decisions kept")
        if one.rank is not None:
            said.append(f"heatmap rank correlation {one.rank:.2f}")
        if one.number is not None and original.number is not None:
            said.append(f"number explained {one.number:.4g} instead of {original.number:.4g}")
        images = f"{one.images} image{'' if one.images == 1 else 's'}"
        yield f"{one.label}, {one.variation}: {', '.join(said)} ({images})"


def _chart(summaries: Sequence[Summary], variations: Sequence[str], about: str) -> NDArray[np.uint8]:
    """Rows are variations, columns classes: those that lose most where there is no room for all."""
    labelled = any(one.accuracy is not None for one in summaries)
    decided = labelled or any(one.kept is not None for one in summaries)
    quality = "accuracy" if labelled else "kept" if decided else "rank"
    found = {(one.label, one.variation): one for one in summaries}
    labels = list(dict.fromkeys(one.label for one in summaries))

    def numbers(label: str, name: str) -> list[float]:
        column = [getattr(found.get((label, variation)), name, None) for variation in variations]
        return [np.nan if value is None else value for value in column]

    def loss(label: str) -> float:
        values = np.array(numbers(label, quality))
        return float(np.nanmean(values[0] - values)) if np.isfinite(values).any() else 0.0

    classes = sorted(labels[1:], key=lambda label: -loss(label))
    left = "accuracy: share of right answers" if labelled else "share of decisions kept"
    shown = [(left, quality)] if decided else []
    shown.append(("heatmap stability: rank correlation" if decided else "rank correlation", "rank"))
    room = most_columns(len(shown)) - 1
    if len(classes) > room:
        about += f"; the {room} of {len(classes)} classes that lose most, all others in {TABLE}"
    columns = [ALL, *sorted(classes[:room])] if len(classes) != 1 else classes
    tables = [(heading, np.array([numbers(label, name) for label in columns]).T) for heading, name in shown]
    return heat_table(tables, variations, columns, title="Stability under variations", subtitle=about)


def _write_csv(path: Path, kind: type[Judged] | type[Summary], rows: Iterable[Judged | Summary]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([field.name for field in fields(kind)])
        table.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in astuple(row)] for row in rows)
