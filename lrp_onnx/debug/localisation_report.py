"""Heatmaps of a store against hand-labelled regions as a whole: tables, matrices, charts and a contact sheet."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from lrp_onnx.debug.confusion import MARGIN, Confusion, confusion, grade, shown, shows
from lrp_onnx.debug.localisation import SMOOTHING, THRESHOLD, Localisation, localise
from lrp_onnx.debug.localisation_charts import localisation_sheet, matrices_chart, parts_chart
from lrp_onnx.debug.parts import ALL_CLASSES, FACTOR, Carried, PartRow, carried, mean, parts_table
from lrp_onnx.debug.placed_regions import PlacedRegions
from lrp_onnx.debug.region_files import read_regions
from lrp_onnx.debug.regions import Regions
from lrp_onnx.errors import DataError, StoreError
from lrp_onnx.folders import folder_written_whole
from lrp_onnx.hudd.records import write_csv
from lrp_onnx.hudd.samples import Samples
from lrp_onnx.render import save_png
from lrp_onnx.store import HeatmapStore

IMAGES, SUMMARY, CONFUSION, PARTS, PARTS_BY_IMAGE = (
    "images.csv",
    "summary.json",
    "confusion.csv",
    "parts.csv",
    "parts_by_image.csv",
)
DECISIONS = {1: "right", 0: "wrong", -1: "not known"}
_MEANS = ("area", "mass", "mass_abs", "rank", "pointing", "iou_best", "iou", "covered", "precise")


@dataclass(frozen=True, eq=False)
class ImageResult:
    """One image: its row in the store, path, expected and predicted class ("" where there is none), the class that it
    is counted under, whether the decision is right, the share of its region that the model's crop leaves, measures,
    scores and parts."""

    row: int
    path: str
    label: str
    predicted: str
    group: str
    decision: str
    visible: float
    found: Localisation
    score01: int
    score03: int
    carried: Carried


@dataclass(frozen=True, eq=False)
class Localised:
    """What `localise_store` found and wrote.

    Attributes
    ----------
    folder : pathlib.Path
    images : tuple of ImageResult
    summary : dict
        What summary.json holds.
    parts : tuple of PartRow
        What parts.csv holds.
    without_region, without_image : tuple of str
        Finished samples that have no region, and images of regions that are no finished sample.
    skipped : dict of str to str
        Path and reason of each image whose regions say nothing about its heatmap.
    notes : tuple of str
    """

    folder: Path
    images: tuple[ImageResult, ...]
    summary: dict[str, Any]
    parts: tuple[PartRow, ...]
    without_region: tuple[str, ...]
    without_image: tuple[str, ...]
    skipped: dict[str, str]
    notes: tuple[str, ...]


def localise_store(
    store: str | os.PathLike[str],
    regions: Regions | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    threshold: float = THRESHOLD,
    smoothing: float = SMOOTHING,
    margin: float = MARGIN,
    factor: float = FACTOR,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Localised:
    """Judge the heatmaps of a store by regions that people marked.

    Under `out` appear ``images.csv`` (a row an image), ``parts_by_image.csv``, ``summary.json`` (means over all images,
    by decision and by class; each beside what a uniform heatmap would get), ``confusion.csv`` and ``.png``,
    ``parts.csv`` and ``.png``, and ``sheet.png``, the best and the worst images.

    Parameters
    ----------
    store, out : path-like
    regions : Regions or path-like
        See `read_regions`.
    threshold, smoothing
        What of a heatmap is red, see `red_area` and `smooth`.
    margin
        Share of the region that must be red for the heatmap to show the object, see `shows` and `grade`.
    factor
        How much denser than the rest a part must be, see `carried`.
    overwrite : bool
        Replace an earlier result at `out`.
    progress : callable, optional
        Called with (images done, images in all).

    Raises
    ------
    LrpOnnxError
        DataError, StoreError or OutputError; what was at `out` stays.
    """
    for name, value, high in (("threshold", threshold, 1), ("smoothing", smoothing, 1), ("margin", margin, 1)):
        if not (0 < value <= high or (name == "smoothing" and value == 0)):
            raise DataError(f"{name} is {value}; expected a share, above 0 and at most 1")
    if not factor >= 1:
        raise DataError(f"factor is {factor}; expected at least 1")
    marked = regions if isinstance(regions, Regions) else read_regions(regions)
    with folder_written_whole(Path(out), IMAGES, overwrite=overwrite) as folder, HeatmapStore(store) as heatmaps:
        samples, placed = Samples(heatmaps), PlacedRegions(heatmaps, marked)
        rules = {"threshold": threshold, "smoothing": smoothing, "margin": margin, "factor": factor}
        images = []
        for done, row in enumerate(placed.rows, start=1):
            if (image := _measure(samples, placed, row, rules)) is not None:
                images.append(image)
            if progress:
                progress(done, len(placed.rows))
        if not images:
            path, reason = next(iter(placed.skipped.items()))
            raise DataError(f"{marked.source}: no region can be used; the first, of {path}: {reason}")
        parts = _parts(images)
        summary = _summary(images, parts, placed, rules, {"store": str(heatmaps.path), "regions": str(marked.source)})
        _write(folder, images, parts, summary)
        save_png(matrices_chart(_matrices(images, margin), margin), folder / "confusion.png")
        save_png(parts_chart(parts, factor), folder / "parts.png")
        save_png(localisation_sheet(samples, placed, images), folder / "sheet.png")
    return Localised(
        Path(out),
        tuple(images),
        summary,
        tuple(parts),
        tuple(placed.without_region),
        tuple(placed.without_image),
        placed.skipped,
        tuple(_notes(placed)),
    )


def _measure(samples: Samples, placed: PlacedRegions, row: int, rules: dict[str, float]) -> ImageResult | None:
    marked = placed.at(row)
    if marked is None:
        return None
    relevance = np.asarray(samples.store.attribution[row], dtype=np.float64)
    try:
        found = localise(relevance, marked.region, threshold=rules["threshold"], smoothing=rules["smoothing"])
    except DataError as error:
        raise StoreError(f"{samples.store.path}, {samples.path(row)}: {error}") from error
    label, predicted = samples.expected(row), samples.predicted(row)
    return ImageResult(
        row=row,
        path=samples.path(row),
        label=label,
        predicted=predicted,
        group=label or predicted,
        decision=DECISIONS[int(samples.columns["correct"][row])],
        visible=marked.visible,
        found=found,
        score01=shows(found, rules["margin"]),
        score03=grade(found, rules["margin"]),
        carried=carried(relevance, marked, factor=rules["factor"]),
    )


def _matrices(images: Sequence[ImageResult], margin: float) -> dict[str, tuple[Confusion, Confusion]]:
    """Macro and micro matrix of all classes and of each, of the images whose decision is known to be right or wrong."""
    judged = [image for image in images if image.decision != DECISIONS[-1]]
    groups = {ALL_CLASSES: judged}
    for image in judged:
        groups.setdefault(image.group, []).append(image)
    return {
        group: (
            confusion([one.decision == "right" for one in members], [shows(one.found, margin) for one in members]),
            confusion([one.decision == "right" for one in members], [shown(one.found) for one in members]),
        )
        for group, members in groups.items()
    }


def _parts(images: Sequence[ImageResult]) -> list[PartRow]:
    groups: dict[tuple[str, str], list[Carried]] = {}
    classes = sorted({image.group for image in images} - {""})  # boxes and maps decide for none
    for group in [ALL_CLASSES, *classes]:
        for decision in DECISIONS.values():
            members = [i.carried for i in images if i.decision == decision and group in (ALL_CLASSES, i.group)]
            if members:
                groups[group, decision] = members
    return parts_table(groups)


def _means(images: Sequence[ImageResult]) -> dict[str, Any]:
    return {
        "images": len(images),
        **{name: _json(mean(getattr(image.found, name) for image in images)) for name in _MEANS},
        "size_ratio_median": median(image.found.size_ratio for image in images),
        "sizes": dict(Counter(image.found.size for image in images).most_common()),
        "score_0_1": mean(image.score01 for image in images),
        "score_0_3": mean(image.score03 for image in images),
    }


def _summary(
    images: Sequence[ImageResult],
    parts: Sequence[PartRow],
    placed: PlacedRegions,
    rules: dict[str, float],
    sources: dict[str, str],
) -> dict[str, Any]:
    decisions = {name: [image for image in images if image.decision == name] for name in DECISIONS.values()}
    classes = sorted({image.group for image in images} - {""})  # boxes and maps decide for none
    overall = _matrices(images, rules["margin"])[ALL_CLASSES]
    return {
        **sources,
        "rules": rules,
        "images": len(images),
        "without_region": placed.without_region,
        "without_image": placed.without_image,
        "skipped": placed.skipped,
        "notes": _notes(placed),
        "baseline": "a uniform heatmap gets `area` for mass, mass_abs, rank, pointing, iou_best and precise",
        "all": _means(images),
        "by_decision": {name: _means(members) for name, members in decisions.items() if members},
        "by_class": {group: _means([image for image in images if image.group == group]) for group in classes},
        "confusion": {name: asdict(matrix) for name, matrix in zip(("macro", "micro"), overall, strict=True)},
        "parts": [{name: _json(value) for name, value in asdict(row).items()} for row in parts],
    }


def _notes(placed: PlacedRegions) -> list[str]:
    if not placed.part_names:
        return []
    return [f"not the name of a class of the model, so taken as parts: {', '.join(placed.part_names)}"]


def _write(folder: Path, images: Sequence[ImageResult], parts: Sequence[PartRow], summary: dict[str, Any]) -> None:
    measures = list(asdict(images[0].found))
    plain = ("label", "predicted", "decision")
    write_csv(
        folder / IMAGES,
        ("image", *plain, "visible", *measures, "score_0_1", "score_0_3", "carried_by"),
        (
            (
                image.path,
                *(getattr(image, name) for name in plain),
                *map(_cell, (image.visible, *asdict(image.found).values(), image.score01, image.score03)),
                image.carried.part,
            )
            for image in images
        ),
    )
    write_csv(
        folder / PARTS_BY_IMAGE,
        ("image", "part", "area", "mass", "carried"),
        (
            (image.path, name, _cell(share.area), _cell(share.mass), int(name == image.carried.part))
            for image in images
            for name, share in image.carried.shares.items()
        ),
    )
    columns = list(asdict(parts[0]))
    write_csv(folder / PARTS, columns, ([_cell(value) for value in asdict(row).values()] for row in parts))
    write_csv(
        folder / CONFUSION,
        ("matrix", "group", "tp", "fn", "fp", "tn", "agreement"),
        (
            (kind, group, *map(_cell, (*asdict(matrix).values(), matrix.agreement)))
            for place, kind in enumerate(("macro", "micro"))
            for group, both in _matrices(images, summary["rules"]["margin"]).items()
            for matrix in [both[place]]
        ),
    )
    (folder / SUMMARY).write_text(json.dumps(summary, ensure_ascii=False, indent=1), encoding="utf-8")


def _cell(value: Any) -> Any:
    return value if not isinstance(value, float) else "" if math.isnan(value) else f"{value:.6g}"


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
