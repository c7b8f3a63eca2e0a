"""Generic heatmaps: all heatmaps of a class or cluster, aligned on the object and stacked, with their spread."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.data.table import read_table
from lrp_onnx.debug.class_mean_pictures import MOST_ON_SHEET, group_page, group_stem, groups_sheet, small_pictures
from lrp_onnx.debug.class_names import unique_names
from lrp_onnx.debug.placed_regions import PlacedRegions
from lrp_onnx.debug.region_files import read_regions
from lrp_onnx.debug.regions import Regions
from lrp_onnx.debug.resampling import resample
from lrp_onnx.errors import DataError, StoreError
from lrp_onnx.folders import folder_written_whole
from lrp_onnx.hudd.clusters import NOISE
from lrp_onnx.hudd.records import CHOSEN, CLUSTERS, write_csv
from lrp_onnx.hudd.samples import Samples
from lrp_onnx.render import SheetItem, save_png
from lrp_onnx.render.colours import colour_map
from lrp_onnx.render.unit_heatmaps import cell_side, is_picture, unit_blocks
from lrp_onnx.store import HeatmapStore

Floats = NDArray[np.float64]

TABLE, SHEET = "class_means.csv", "sheet.png"
ALL, DECISIONS = "all", {1: "right", 0: "wrong", -1: "not known"}
BY_CLASS = "class"
CELLS = 96  # a side of the frame
MARGIN = 2.0  # edge of the frame, in sizes of the object


@dataclass(frozen=True)
class Placement:
    """Where the object of a heatmap is: its centre and the edge of the square as large as it, in pixels."""

    x: float
    y: float
    size: float


@dataclass(frozen=True, eq=False)
class GenericHeatmap:
    """The mean of aligned heatmaps.

    Attributes
    ----------
    group, decision : str
        Class or cluster; "all", "right", "wrong" or "not known".
    images : int
    mean, spread : float64 (96, 96)
        Mean and standard deviation of the density of relevance, every image having the same sum of |relevance|: 1 is
        what evenly spread relevance has. The frame is twice as large as the object. The spread of one image is 0.
    shown : float
        Mean share of an image's |relevance| that lies in the frame.
    alike : float
        Energy of the mean / mean energy (sums of squares): 1 when all images have the same heatmap, 1 / images when
        they have nothing in common.
    x, y, size, x_spread, y_spread, size_spread : float
        Mean and standard deviation of the object's place and size, as shares of the heatmap's width, height and shorter
        edge.
    """

    group: str
    decision: str
    images: int
    mean: Floats
    spread: Floats
    shown: float
    alike: float
    x: float
    y: float
    size: float
    x_spread: float
    y_spread: float
    size_spread: float


_COLUMNS = tuple(field.name for field in fields(GenericHeatmap) if field.name not in ("mean", "spread"))


@dataclass(frozen=True, eq=False)
class ClassMeans:
    """What `write_class_means` wrote.

    Attributes
    ----------
    folder, sheet, table : pathlib.Path
    pictures : tuple of pathlib.Path
        One a group.
    images : int
        Stacked.
    left_out : dict of str to int
        Reasons, and how many images were left out for each.
    """

    folder: Path
    sheet: Path
    table: Path
    pictures: tuple[Path, ...]
    images: int
    left_out: dict[str, int]


def write_class_means(
    store: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    by: str | os.PathLike[str] = BY_CLASS,
    regions: Regions | str | os.PathLike[str] | None = None,
    cmap: str = "seismic",
    limit: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ClassMeans:
    """Stack the heatmaps of each class or cluster into one, and those of right and of wrong decisions.

    Each heatmap is divided by the sum of its |relevance|, moved so that its object is in the middle, and scaled so that
    all objects are as large. Under `out` appear a picture and an ``.npz`` of the arrays a group, ``sheet.png`` and
    ``class_means.csv`` (see `GenericHeatmap`). One group is in memory at a time, and of it no single heatmap.

    Parameters
    ----------
    store, out : path-like
    by : str or path-like
        "class": expected class, for samples without a label the predicted one; or the folder or ``clusters.csv`` of
        `lrp-onnx cluster`, whose images are matched by path.
    regions : Regions or path-like, optional
        Where the objects are, see `read_regions`; by default they are where the relevance is (see `by_relevance`).
    cmap : str
    limit : int, optional
        At most so many samples, in the order of the store.
    overwrite : bool
        Replace an earlier result at `out`.
    progress : callable, optional
        Called with (images done, images in all).

    Raises
    ------
    LrpOnnxError
        DataError, StoreError or OutputError; what was at `out` stays.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, got {limit}")
    colour_map(cmap)
    marked = read_regions(regions) if isinstance(regions, (str, os.PathLike)) else regions
    with folder_written_whole(Path(out), TABLE, overwrite=overwrite) as folder, HeatmapStore(store) as heatmaps:
        if not is_picture(heatmaps.attribution.shape[1:]):
            raise StoreError(
                f"{heatmaps.path}: samples of shape {heatmaps.attribution.shape[1:]}; expected pictures, (channels, "
                "height, width), to align"
            )
        stacks = _Stacks(heatmaps, None if marked is None else PlacedRegions(heatmaps, marked))
        groups = _groups(Samples(heatmaps), by, heatmaps.done[:limit].tolist())
        total, done, images = sum(len(members) for _, members in groups), 0, 0
        rows: list[list[Any]] = []
        sheet: list[list[SheetItem]] = []
        pictures = []
        for place, (name, members) in enumerate(groups):

            def advance(of_group: int, before: int = done) -> None:
                if progress:
                    progress(before + of_group, total)

            found = stacks.of(name, members, advance)
            done += len(members)
            if not found:
                continue
            stem = group_stem(place, name)
            pictures.append(Path(out) / f"{stem}.png")
            save_png(group_page(found, cmap, by_region=marked is not None), folder / f"{stem}.png")
            _save_arrays(found, folder / f"{stem}.npz")
            sheet += [small_pictures(found, cmap)] if len(sheet) < MOST_ON_SHEET else []
            rows += [[_cell(getattr(one, name)) for name in _COLUMNS] for one in found]
            images += found[0].images
        if not rows:
            raise DataError(f"{heatmaps.path}: no heatmap can be aligned; {_reasons(stacks.left_out)}")
        save_png(groups_sheet(sheet, len(pictures), str(heatmaps.attrs["model"]), cmap), folder / SHEET)
        write_csv(folder / TABLE, _COLUMNS, rows)
    return ClassMeans(Path(out), Path(out) / SHEET, Path(out) / TABLE, tuple(pictures), images, stacks.left_out)


def by_relevance(heatmap: Floats) -> Placement | None:
    """Centre and size of |relevance| (H, W); None where there is none.

    The centre is the centroid. The size is √12 times the standard deviation along an axis (both axes alike): the edge
    of a square of evenly spread relevance.
    """
    weights = np.abs(heatmap)
    total = weights.sum()
    if not total:
        return None
    along = [weights.sum(axis=axis) / total for axis in (0, 1)]  # columns, rows
    places = [np.arange(len(shares)) + 0.5 for shares in along]
    x, y = (float(shares @ place) for shares, place in zip(along, places, strict=True))
    # a pixel is an area: relevance in one alone has the spread of a square of that size
    variances = [
        float(shares @ (place - centre) ** 2) + 1 / 12
        for shares, place, centre in zip(along, places, (x, y), strict=True)
    ]
    return Placement(x, y, math.sqrt(12 * sum(variances) / 2))


def by_region(mask: NDArray[np.bool_]) -> Placement:
    """Centre of a region's bounding box (H, W), and the edge of a square of its area."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    (top, bottom), (left, right) = ((int(found[0]), int(found[-1]) + 1) for found in (rows, columns))
    return Placement((left + right) / 2, (top + bottom) / 2, math.sqrt((right - left) * (bottom - top)))


def align(heatmap: Floats, place: Placement) -> Floats:
    """Density of relevance in the frame around an object, (96, 96); 1 is what a sum of 1, evenly spread, has."""
    half = MARGIN * place.size / 2
    frame = (place.x - half, place.y - half, place.x + half, place.y + half)
    return resample(heatmap, frame, (CELLS, CELLS)) * CELLS**2


class _Running:
    """Mean and standard deviation of arrays that come one at a time (Welford 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Floats = np.zeros(1)
        self._squares: Floats = np.zeros(1)

    def add(self, values: Floats) -> None:
        self.count += 1
        before = values - self.mean
        self.mean = self.mean + before / self.count
        self._squares = self._squares + before * (values - self.mean)

    @property
    def deviation(self) -> Floats:
        return np.sqrt(self._squares / max(1, self.count - 1))


class _Stack:
    """Aligned heatmaps of one group and decision: density, |density| and where the objects were."""

    def __init__(self) -> None:
        self.density, self.shown, self.place = _Running(), _Running(), _Running()

    def add(self, density: Floats, place: Floats) -> None:
        self.density.add(density)
        self.shown.add(np.abs(density).mean(keepdims=True))
        self.place.add(place)

    def done(self, group: str, decision: str) -> GenericHeatmap:
        mean, images = self.density.mean, self.density.count
        energy = float((mean**2).sum())
        around = float((self.density.deviation**2).sum()) * (images - 1) / images
        x, y, size = map(float, self.place.mean)
        x_spread, y_spread, size_spread = map(float, self.place.deviation)
        return GenericHeatmap(
            group=group,
            decision=decision,
            images=images,
            mean=mean,
            spread=self.density.deviation,
            shown=float(self.shown.mean.item()),
            alike=energy / (energy + around) if energy else 0.0,
            x=x,
            y=y,
            size=size,
            x_spread=x_spread,
            y_spread=y_spread,
            size_spread=size_spread,
        )


class _Stacks:
    """Stacks groups of one store; remembers what was left out."""

    def __init__(self, store: HeatmapStore, placed: PlacedRegions | None) -> None:
        self._store, self._placed = store, placed
        self._with_region = set(placed.rows) if placed else set()
        self._side = cell_side(*store.attribution.shape[-2:])
        self._correct = store.samples["correct"]
        self.left_out: dict[str, int] = {}

    def of(self, group: str, rows: NDArray[np.int64], progress: Callable[[int], None]) -> list[GenericHeatmap]:
        """All images of a group; then, where they differ from these, those of each decision."""
        stacks: dict[str, _Stack] = {}
        for start, heatmaps in unit_blocks(self._store, rows):
            for row, heatmap in zip(rows[start : start + len(heatmaps)].tolist(), heatmaps, strict=True):
                place = self._place(row, heatmap)
                if place is None:
                    continue
                height, width = heatmap.shape
                shares = np.array([place.x / width, place.y / height, place.size / min(height, width)])
                density = align(heatmap, place)
                for name in (ALL, DECISIONS[int(self._correct[row])]):
                    stacks.setdefault(name, _Stack()).add(density, shares)
            progress(start + len(heatmaps))
        kept = [name for name in (ALL, *DECISIONS.values()) if name in stacks]
        if len(kept) == 2:  # all have one decision
            kept = [ALL]
        return [stacks[name].done(group, name) for name in kept]

    def _place(self, row: int, heatmap: Floats) -> Placement | None:
        if not heatmap.any():
            self._leave_out("no relevance")
            return None
        if self._placed is None:
            return by_relevance(heatmap)
        marked = self._placed.at(row) if row in self._with_region else None
        if marked is None:
            self._leave_out("no region that the model sees")
            return None
        place = by_region(marked.region)
        return Placement(place.x / self._side, place.y / self._side, place.size / self._side)

    def _leave_out(self, reason: str) -> None:
        self.left_out[reason] = self.left_out.get(reason, 0) + 1


def _groups(samples: Samples, by: str | os.PathLike[str], rows: list[int]) -> list[tuple[str, NDArray[np.int64]]]:
    """Rows of each class in the order of the model, or of each cluster by number, noise last."""
    if str(by) == BY_CLASS:
        labels = np.where(samples.columns["label"] < 0, samples.columns["predicted"], samples.columns["label"])
        of_row: Mapping[int, int] = {row: int(labels[row]) for row in rows}
        classes = unique_names(samples.classes)
        names = {label: _class_name(classes, label) for label in of_row.values()}
    else:
        table = _clusters(Path(by))
        of_row = {row: table[path] for row in rows if (path := samples.path(row)) in table}
        if not of_row:
            raise DataError(f"{samples.store.path}: holds no image of the clusters in {by}; expected the same paths")
        names = {c: "noise" if c == NOISE else f"cluster {c}" for c in of_row.values()}
    order = sorted(names, key=lambda group: (group < 0, group))
    members: dict[int, list[int]] = {group: [] for group in order}
    for row, group in of_row.items():
        members[group].append(row)
    return [(names[group], np.array(members[group])) for group in order]


def _class_name(classes: Sequence[str], label: int) -> str:
    if label < 0:
        return "all images"
    return f"class {classes[label] if label < len(classes) else label}"


def _clusters(given: Path) -> dict[str, int]:
    """Cluster of each image, by its path."""
    file = next((one for one in (given / CHOSEN / CLUSTERS, given / CLUSTERS, given) if one.is_file()), None)
    if file is None:
        raise DataError(f"{given}: is neither '{BY_CLASS}' nor a folder of `lrp-onnx cluster` or its {CLUSTERS}")
    table = read_table(file, {"image", "cluster"})
    try:
        return {row["image"]: int(row["cluster"]) for _, row in table.rows}
    except (KeyError, ValueError) as error:
        raise DataError(f"{file}: expected columns image and cluster, with whole numbers in the second") from error


def _save_arrays(found: list[GenericHeatmap], path: Path) -> None:
    arrays = {
        f"{one.decision.replace(' ', '_')}_{name}": getattr(one, name) for one in found for name in ("mean", "spread")
    }
    np.savez_compressed(path, **{name: values.astype(np.float32) for name, values in arrays.items()})


def _cell(value: str | int | float) -> str | int:
    return f"{value:.6g}" if isinstance(value, float) else value


def _reasons(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count} left out for {reason}" for reason, count in left_out.items()) or "none is finished"
