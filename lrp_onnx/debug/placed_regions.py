"""The hand-labelled regions of a heatmap store's samples, moved to where the heatmaps are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lrp_onnx.data import open_dataset
from lrp_onnx.data.dataset import as_picture
from lrp_onnx.debug.explained import of_classes
from lrp_onnx.debug.regions import Mask, Region, Regions, Size
from lrp_onnx.errors import DataError, StoreError
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.store import HeatmapStore

_POINTS = 4  # sampled along each edge of a heatmap pixel
_COVERED = 0.5  # share of a heatmap pixel from which on it belongs to a region
_ARRAY_ROW = re.compile(r"\[\d+\]$")
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF: rows and columns change places


@dataclass(frozen=True, eq=False)
class Marked:
    """What is marked on one sample, as masks of its heatmap, bool (H, W).

    Attributes
    ----------
    region : Mask
        The object: regions without a part, or where there are none, all parts together.
    parts : dict of str to Mask
        By name; they may overlap. Empty when no part is named.
    visible : float
        Share of the region that the model's crop leaves, 0 to 1.
    """

    region: Mask
    parts: dict[str, Mask]
    visible: float


class PlacedRegions:
    """Looks up what is marked on the finished samples of a store.

    A region belongs to the sample whose path ends with the region's image name. Of an image, the regions of its
    expected class count; of one without a label, those of the explained class; regions without a class count always.

    Parameters
    ----------
    store : HeatmapStore
        Open, of pictures.
    regions : Regions

    Attributes
    ----------
    rows : list of int
        Finished samples with a region, in the order of the store.
    without_region : list of str
        Paths of the other finished samples.
    without_image : list of str
        Images of the regions that are no finished sample.
    skipped : dict of str to str
        Path and reason of each sample so far whose regions say nothing about its heatmap.
    part_names : list of str
        Names taken as parts because the model has no such class.

    Raises
    ------
    StoreError
        When the samples are no pictures.
    DataError
        When an image name fits several samples, or none fits any.
    """

    def __init__(self, store: HeatmapStore, regions: Regions) -> None:
        shape = store.attribution.shape[1:]
        if len(shape) != 3 or 1 in shape[1:]:
            raise StoreError(
                f"{store.path}: samples of shape {shape}; regions need pictures, (channels, height, width)"
            )
        self._shape: tuple[int, int] = shape[1:]
        self._preprocess = Preprocess.from_json(store.preprocess) if store.preprocess else None
        self._classes, self._samples, self._sizes = store.classes, store.samples, regions.sizes
        self._of_classes = of_classes(store)
        self._array_size = lru_cache(maxsize=1)(_array_picture_size)
        finished = store.done.tolist()
        by_image: dict[str, list[Region]] = {}
        for region in regions.regions:
            by_image.setdefault(region.image, []).append(region)
        rows = _match(list(by_image), {row: self.path(row) for row in finished}, regions)
        if not rows:
            raise DataError(
                f"{regions.source}: no region is of an image in {store.path}; there are regions of "
                f"'{next(iter(by_image))}', and images such as '{self.path(finished[0]) if finished else ''}'"
            )
        self._regions: dict[int, list[Region]] = {}
        for name, row in rows.items():
            self._regions.setdefault(row, []).extend(by_image[name])
        self.rows = sorted(self._regions)
        self.without_region = [self.path(row) for row in finished if row not in self._regions]
        self.without_image = [name for name in by_image if name not in rows]
        self.skipped: dict[str, str] = {}
        meanings = {(region.name, region.meaning(self._classes)) for region in regions.regions if not region.part}
        self.part_names = sorted({part for name, (_, part) in meanings if part == name})

    def path(self, row: int) -> str:
        """Of a sample, as the store has it."""
        return str(self._samples["path"][row])

    def at(self, row: int) -> Marked | None:
        """What is marked on a sample of `rows`; None, with the reason in `skipped`, when that cannot be said.

        Raises
        ------
        DataError
            When a region covers nothing of its picture, or was drawn on one of another size.
        """
        wanted = self._wanted(row)
        meant = [(region, *region.meaning(self._classes)) for region in self._regions[row]]
        fitting = [(region, part) for region, name, part in meant if not wanted or name in ("", wanted)]
        if not fitting:
            self.skipped[self.path(row)] = f"no region of class '{wanted}'"
            return None
        preprocess, real = self._drawn_on(row)
        size = self._agreed(real, fitting[0][0].image, row)
        if size is None:
            self.skipped[self.path(row)] = "the size of its picture is not known, as it cannot be read"
            return None
        masks: dict[str, Mask] = {}
        for region, part in fitting:
            mask = region.mask(size)
            masks[part] = masks[part] | mask if part in masks else mask
        whole = masks.pop("") if "" in masks else np.any(list(masks.values()), axis=0)
        geometry = preprocess.geometry(*size) if preprocess else np.eye(3)
        covered = self._covered(whole, geometry)
        region_there = covered >= _COVERED
        if not region_there.any():
            self.skipped[self.path(row)] = "its region is outside of what the model sees, or below half a pixel there"
            return None
        parts = {part: self._covered(mask, geometry) >= _COVERED for part, mask in masks.items()}
        in_full = float(whole.sum() * np.linalg.det(geometry[:2, :2]))  # pixels of the input, if nothing is cropped
        return Marked(
            region_there,
            {part: mask for part, mask in parts.items() if mask.any()},
            min(1.0, float(covered.sum()) / in_full),
        )

    def _wanted(self, row: int) -> str:
        """The class whose regions count; empty for any."""
        columns = ("label", "target") if self._of_classes else ("label",)
        known = (int(self._samples[column][row]) for column in columns)
        index = next((number for number in known if number >= 0), None)
        if index is None:
            return ""
        return self._classes[index] if self._classes and index < len(self._classes) else str(index)

    def _drawn_on(self, row: int) -> tuple[Preprocess | None, Size | None]:
        """How the picture that regions are drawn on became the model's input, and its size; None where it cannot be
        read. Arrays of other than uint8 are the model's input themselves."""
        height, width = self._shape
        path = self.path(row)
        array = _ARRAY_ROW.sub("", path)
        if self._preprocess is None:
            return None, (width, height)
        if array == path:
            return self._preprocess, picture_size(path)
        try:
            size = self._array_size(array)
        except DataError:
            return self._preprocess, None
        return (None, (width, height)) if size is None else (self._preprocess, size)

    def _agreed(self, real: Size | None, image: str, row: int) -> Size | None:
        """Width and height of the picture, or else what the regions' file says of it."""
        declared = self._sizes.get(image)
        if declared and real and declared != real:
            raise DataError(
                f"the regions of {image} were drawn on {declared[0]} x {declared[1]} pixels, and {self.path(row)} has "
                f"{real[0]} x {real[1]}, upright; bring them to the same size"
            )
        return real or declared

    def _covered(self, mask: Mask, geometry: NDArray[np.float64]) -> NDArray[np.float64]:
        """Share of each pixel of the heatmap that a mask of the picture covers, (H, W) from 0 to 1."""
        (height, width), (tall, wide) = self._shape, mask.shape
        inverse = np.linalg.inv(geometry)
        columns = np.floor(inverse[0, 0] * _points(width) + inverse[0, 2]).astype(np.intp)
        rows = np.floor(inverse[1, 1] * _points(height) + inverse[1, 2]).astype(np.intp)
        seen = ((rows >= 0) & (rows < tall))[:, None] & ((columns >= 0) & (columns < wide))
        hit = mask[np.ix_(rows.clip(0, tall - 1), columns.clip(0, wide - 1))] & seen
        return np.asarray(hit.reshape(height, _POINTS, width, _POINTS).mean(axis=(1, 3)))


def _points(pixels: int) -> NDArray[np.float64]:
    return (np.arange(pixels * _POINTS) + 0.5) / _POINTS


def picture_size(path: str) -> Size | None:
    """Width and height of the upright picture; None when it cannot be read."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(_ORIENTATION) in _TURNED else (width, height)
    except Exception:  # decoders raise anything on a file that moved or broke; the regions' file may know the size
        return None


def _array_picture_size(path: str) -> Size | None:
    """Width and height of the pictures in an array file; None when it holds other than uint8 pictures."""
    array = open_dataset(path, unknown="unlabelled").array
    picture = as_picture(array[0]) if array is not None and array.dtype == np.uint8 else None
    return None if picture is None else picture.size


def _match(images: Sequence[str], paths: Mapping[int, str], regions: Regions) -> dict[str, int]:
    """The sample of each image that has one."""

    def parts_of(path: str) -> tuple[str, ...]:
        pure = PurePosixPath(path.replace("\\", "/"))
        return pure.with_suffix("").parts if regions.stems and not _ARRAY_ROW.search(path) else pure.parts

    by_name: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
    for row, path in paths.items():
        parts = parts_of(path)
        by_name.setdefault(parts[-1], []).append((row, parts))
    found = {}
    for image in images:
        wanted = PurePosixPath(image).parts
        rows = [row for row, parts in by_name.get(wanted[-1], []) if parts[-len(wanted) :] == wanted]
        if len(rows) > 1:
            raise DataError(
                f"{regions.source}: image '{image}' fits {len(rows)} samples, such as {paths[rows[0]]} and "
                f"{paths[rows[1]]}; name it with its folder"
            )
        if rows:
            found[image] = rows[0]
    return found
