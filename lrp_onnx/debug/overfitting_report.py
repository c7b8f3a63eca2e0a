"""Training against held-out heatmaps on disk: tables, the verdict, effects as a heat table, mean heatmaps by class."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.debug.heat_table import heat_table, most_columns
from lrp_onnx.debug.overfitting import ALL, MEASURES, Comparison, Seen, compare_stores
from lrp_onnx.debug.regions import Regions
from lrp_onnx.folders import folder_written_whole, refuse_folder
from lrp_onnx.hudd.records import write_csv
from lrp_onnx.render import SheetItem, contact_sheet, save_png, to_rgb
from lrp_onnx.render.figures import enlarge

TABLE, MEANS, IMAGES, VERDICT = "measures.csv", "class_means.csv", "images.csv", "verdict.json"
CHART, SHEET = "effects.png", "class_means.png"
_MOST_CLASSES = 24  # on the sheet
_CELL = 160  # pixels


def write_overfitting(
    training: str | os.PathLike[str],
    heldout: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    regions: Regions | str | os.PathLike[str] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Say whether a model decides worse, or looks at other things, on images that it was not trained on.

    Under `out` appear ``verdict.json``, ``measures.csv`` (`Compared`), ``class_means.csv`` (`MeanLikeness`),
    ``images.csv`` (a row an image), ``effects.png`` (A12 and p by measure and class) and ``class_means.png``.

    Parameters
    ----------
    training, heldout : path-like
        Stores of one model, made with the same options.
    out : path-like
        Folder.
    regions : Regions or path-like, optional
        Objects on images of both stores, see `read_regions`.
    seed : int
        Of the random splits, see `mean_likeness`.
    overwrite : bool
        Replace an earlier result at `out`.
    progress : callable, optional
        Called with (heatmaps done, in all).

    Raises
    ------
    LrpOnnxError
        DataError, StoreError or OutputError; what was at `out` stays.
    """
    folder = Path(out)
    refuse_folder(folder, VERDICT, overwrite)
    seen, other, found = compare_stores(training, heldout, regions, seed=seed, progress=progress)
    sets = {"training": seen, "held-out": other}
    with folder_written_whole(folder, VERDICT, overwrite=overwrite) as new:
        _write_tables(new, sets, found)
        about = {"training": str(training), "heldout": str(heldout), "regions": regions and str(regions)}
        report = {**about, **asdict(found), "images": {name: len(one.paths) for name, one in sets.items()}}
        text = json.dumps(_plain(report), ensure_ascii=False, indent=1)
        (new / VERDICT).write_text(text, encoding="utf-8")
        save_png(_effects(found), new / CHART)
        save_png(_means_sheet(seen, other, found), new / SHEET)
    return found


def _write_tables(folder: Path, sets: dict[str, Seen], found: Comparison) -> None:
    rows = [asdict(row) for row in found.rows]
    write_csv(folder / TABLE, list(rows[0]), ([_cell(value) for value in row.values()] for row in rows))
    means = [asdict(row) for row in found.means]
    write_csv(folder / MEANS, list(means[0]), ([_cell(value) for value in row.values()] for row in means))
    write_csv(
        folder / IMAGES,
        ("set", "image", "class", *MEASURES, "object_area"),
        (
            (name, path, one.groups[at], *(_cell(float(one.values[m][at])) for m in MEASURES), _cell(one.areas[at]))
            for name, one in sets.items()
            for at, path in enumerate(one.paths)
        ),
    )


def _effects(found: Comparison) -> NDArray[np.uint8]:
    """A12 and adjusted p: rows are measures, columns classes, those with the largest effects where room is short."""
    cells = {(row.measure, row.group): row for row in found.rows}
    measures = [name for name in MEASURES if (name, ALL) in cells]

    def column(group: str, name: str) -> list[float]:
        return [getattr(cells.get((measure, group)), name, math.nan) for measure in measures]

    def effect(group: str) -> float:
        return float(np.nan_to_num(np.abs(np.array(column(group, "a12")) - 0.5)).max())

    groups = sorted((one.group for one in found.means), key=lambda group: -effect(group))
    room = most_columns(2) - 1
    shown = [ALL, *sorted(groups[:room])]
    left = f"; the {room} of {len(groups)} classes with the largest effects" if len(groups) > room else ""
    return heat_table(
        [
            ("A12: larger held out than in training", np.array([column(group, "a12") for group in shown]).T),
            ("p, adjusted for the number of tests", np.array([column(group, "p_adjusted") for group in shown]).T),
        ],
        [MEASURES[name] for name in measures],
        shown,
        title="Held-out against training images",
        subtitle=f"{found.finding.verdict}; A12 of 0.5: no difference{left}",
    )


def _means_sheet(training: Seen, heldout: Seen, found: Comparison) -> NDArray[np.uint8]:
    likely = sorted(found.means, key=lambda one: one.cosine - one.expected)[:_MOST_CLASSES]
    items = []
    for one in sorted(likely, key=lambda one: one.group):
        means = [seen.coarse[seen.groups == one.group].mean(axis=0) for seen in (training, heldout)]
        pictures = [enlarge(to_rgb(mean, cmap="hot", percentile=100), _CELL) for mean in means]
        caption = [
            f"{one.group}: {one.training} and {one.heldout} images",
            f"cosine {one.cosine:.2f}, of random splits {one.expected:.2f}",
        ]
        items.append(SheetItem(pictures, caption, one.expected - one.cosine >= 0.05))
    return contact_sheet(
        items,
        columns=3,
        title="Mean heatmaps",
        subtitle="of training images (left) and held-out images (right)",
        cmap="hot",
        cell=_CELL,
    )


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    return value if not isinstance(value, float) else "" if math.isnan(value) else f"{value:.6g}"


def _plain(value: Any) -> Any:
    """The same for JSON, which knows no NaN."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
