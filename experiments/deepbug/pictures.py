"""Two pictures of the study: what each network stands, and what it looks at."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.deepbug.bench import COMPOSITE, Bench
from experiments.deepbug.boards import CLASSES, NEW
from lrp_onnx.debug.heat_table import heat_table
from lrp_onnx.debug.stability import ALL
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.render import SheetItem, contact_sheet, overlay, reduce_channels
from lrp_onnx.store import HeatmapStore

_SHOWN = 2  # pictures of a class on the sheet, and as many of new themes


def write_pictures(folders: Sequence[Path], bench: Bench, out: Path) -> None:
    """Write ``variations.png``, and ``heatmaps.jpg``: pictures of each class beside the heatmaps of each model."""
    found = [_stability(folder) for folder in folders]
    names = list(found[0])
    panels = [
        (heading, np.array([[one[name][column] for one in found] for name in names]))
        for heading, column in (("share of right answers", 0), ("heatmap: rank correlation", 1))
    ]
    models = [folder.name for folder in folders]
    title = "Kings and queens under variations"
    table = heat_table(panels, names, models, title=title, subtitle=f"40 pictures each; heatmaps by {COMPOSITE}")
    Image.fromarray(table).save(out / "variations.png", optimize=True)
    sheet = contact_sheet(
        _items(folders),
        columns=2,
        title=f"Picture, and heatmaps of {', '.join(models)}",
        subtitle=f"{COMPOSITE}, predicted class; red speaks for it; caption: what each model says",
        cell=140,
    )
    Image.fromarray(sheet).save(out / "heatmaps.jpg", quality=80, optimize=True)


def _stability(folder: Path) -> dict[str, tuple[float, float]]:
    with (folder / "stability" / "stability.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"] == ALL]
    return {row["variation"]: (float(row["accuracy"]), float(row["rank"])) for row in rows}


def _items(folders: Sequence[Path]) -> list[SheetItem]:
    """The first pictures of each class, and of new themes those on which most models are wrong."""
    stores = [HeatmapStore(folder / "plain.h5") for folder in folders]
    samples = stores[0].samples
    preprocess = Preprocess.from_json(stores[0].preprocess or "{}")
    wrong = np.sum([store.samples["correct"][:] == 0 for store in stores], axis=0)
    new = np.array([Path(path).stem.endswith(NEW) for path in samples["path"]])
    rows = []
    for label in range(len(CLASSES)):
        of_class = samples["label"] == label
        rows += np.flatnonzero(of_class & ~new)[:_SHOWN].tolist()
        rows += sorted(np.flatnonzero(of_class & new).tolist(), key=lambda row: -wrong[row])[:_SHOWN]
    items = []
    for row in rows:
        with Image.open(str(samples["path"][row])) as image:
            seen = preprocess.inverse(preprocess(image))
        said = [CLASSES[int(store.samples["predicted"][row])] for store in stores]
        pictures = [seen, *(overlay(seen, reduce_channels(store.attribution[row])) for store in stores)]
        heading = f"{CLASSES[int(samples['label'][row])]}, {'new theme' if new[row] else 'theme of the training'}"
        items.append(SheetItem(pictures, [" | ".join(said)], bool(wrong[row]), heading))
    for store in stores:
        store.close()
    return items
