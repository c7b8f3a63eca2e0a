"""Strips over the epochs of a training: what the same image, and the best and worst of each class, are seen by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.data import Dataset
from lrp_onnx.debug.training_record import EpochRecord, ImageRecord, spread
from lrp_onnx.graph import Graph
from lrp_onnx.inputs import classes_of, feed_for
from lrp_onnx.render import SheetItem, contact_sheet, overlay, reduce_channels, save_png
from lrp_onnx.render.figures import enlarge
from lrp_onnx.store import HeatmapStore

RGB = NDArray[np.uint8]  # (H, W, 3)
FOLDER, PANEL = "strips", "panel"
_WIDTH, _MARGINS, _GUTTER, _WIDEST = 1200, 56, 26, 176  # of a contact sheet, pixels
_COLUMNS = 8
_SCANNED = 256  # images whose values say what is black and white
_ROLES = {"best": "highest", "worst": "lowest"}


class Strips:
    """Draws the strips of one run; overlays already drawn are kept while they are shown.

    Parameters
    ----------
    directory : pathlib.Path
        Of the run; stores are read from there.
    graph : Graph
    dataset : Dataset
        The validation images.
    watch : sequence of int
        Classes with a strip of their own.
    target : str
        What is explained.
    """

    def __init__(self, directory: Path, graph: Graph, dataset: Dataset, watch: Sequence[int], target: str) -> None:
        self.directory, self.dataset, self.watch = directory, dataset, watch
        self._feed, self._classes = feed_for(graph, dataset), classes_of(graph) or ()
        self._explains = "the true class" if target == "label" else "the predicted class"
        self._overlays: dict[tuple[int, int], RGB] = {}  # by epoch and validation row
        self._pictures: dict[int, RGB] = {}  # by validation row
        values = None if dataset.array is None else dataset.array[:_SCANNED]
        self._range = (0.0, 1.0) if values is None else (float(np.min(values)), float(np.max(values)))

    def draw(self, epochs: Sequence[EpochRecord]) -> list[Path]:
        """Write ``strips/panel.png`` and one strip for each watched class; epochs are thinned out to fit 1200 pixels.

        The panel's columns are the image and seven epochs, a class's are eight epochs.
        """
        drawn = [epoch for epoch in epochs if epoch.store]
        shown = {PANEL: spread(drawn, _COLUMNS - 1), **{strip_stem(c): spread(drawn, _COLUMNS) for c in self.watch}}
        self._load([epoch for some in shown.values() for epoch in some])
        folder = self.directory / FOLDER
        about = f"explains {self._explains}; red speaks for it, blue against it"
        paths = []
        for stem, label in ((PANEL, None), *((strip_stem(c), c) for c in self.watch)):
            items = self._panel(shown[stem]) if label is None else self._class(label, shown[stem])
            if not items:
                continue
            columns = len(shown[stem]) + (label is None)
            title = "The same images" if label is None else f"Class {self.name(label)}"
            thinned = "" if len(shown[stem]) == len(drawn) else f", {len(shown[stem])} of {len(drawn)} epochs"
            room = min((_WIDTH - _MARGINS - _GUTTER * (columns - 1)) // columns, _WIDEST)
            height, width = items[-1].pictures[0].shape[:2]
            sheet = contact_sheet(
                items, columns=columns, title=title, subtitle=about + thinned, cell=max(1, room * height // width)
            )
            paths.append(save_png(sheet, folder / f"{stem}.png"))
        return paths

    def overlays(self, epoch: EpochRecord) -> dict[str, RGB]:
        """The heatmaps over their images of an epoch that was drawn last, by what they are."""
        named = {}
        for image in epoch.images:
            what = f"image {image.row}" if image.role == "panel" else f"{_ROLES[image.role]} score"
            named[f"{self.name(image.label)}/{what}"] = self._overlays[epoch.epoch, image.row]
        return named

    def name(self, label: int) -> str:
        """A class by its name, or by its index where there are no names."""
        return self._classes[label] if label < len(self._classes) else str(label)

    def picture(self, row: int) -> RGB:
        """A validation image for people."""
        preprocess = self._feed.preprocess
        values = self.dataset.read(row, preprocess)
        if preprocess is not None and values.shape == preprocess.shape:
            return preprocess.inverse(values)
        low, high = self._range
        scaled = (values.astype(np.float64) - low) / ((high - low) or 1.0)
        pixels = np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)
        if pixels.ndim == 3 and not self._feed.channels_last:
            pixels = np.moveaxis(pixels, 0, -1)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.shape[-1] != 3:  # more channels than eyes can see: their mean
            pixels = pixels.mean(axis=-1, keepdims=True).astype(np.uint8).repeat(3, axis=-1)
        return np.ascontiguousarray(pixels)

    def _load(self, epochs: Sequence[EpochRecord]) -> None:
        """Overlays and images of these epochs, at the size they are shown in; those of others are forgotten."""
        kept: dict[tuple[int, int], RGB] = {}
        for epoch in {epoch.epoch: epoch for epoch in epochs}.values():
            wanted = {(epoch.epoch, image.row): image.store_row for image in epoch.images}
            if all(key in self._overlays for key in wanted):
                kept |= {key: self._overlays[key] for key in wanted}
                continue
            with HeatmapStore(self.directory / epoch.store) as store:
                for key, store_row in wanted.items():
                    relevance = reduce_channels(store.attribution[store_row])
                    kept[key] = self._small(overlay(self.picture(key[1]), relevance))
        rows = {row for _, row in kept}
        self._pictures = {
            row: self._pictures[row] if row in self._pictures else self._small(self.picture(row)) for row in rows
        }
        self._overlays = kept

    def _small(self, picture: RGB) -> RGB:
        height, width = picture.shape[:2]
        return picture if width <= _WIDEST else enlarge(picture, max(1, height * _WIDEST // width))

    def _panel(self, epochs: Sequence[EpochRecord]) -> list[SheetItem]:
        rows = [image.row for image in epochs[-1].images if image.role == "panel"]
        items = []
        for row in rows:
            images = {e.epoch: next((i for i in e.images if i.role == "panel" and i.row == row), None) for e in epochs}
            label = int(self.dataset.labels[row])
            heading = f"image {row}, {self.name(label)}"
            items.append(SheetItem([self._pictures[row]], ["the image"], heading=heading))
            items += [self._item(epoch, image, heading, numbered=True) for epoch, image in images.items()]
        return items

    def _class(self, label: int, epochs: Sequence[EpochRecord]) -> list[SheetItem]:
        """For best and worst a row of images and, under it, a row of heatmaps."""
        items: list[SheetItem] = []
        for role, word in _ROLES.items():
            heading = f"the image of {self.name(label)} with the {word} score"
            images = {e.epoch: next((i for i in e.images if i.role == role and i.label == label), None) for e in epochs}
            if not any(images.values()):
                continue
            for epoch, image in images.items():
                shown = self._blank() if image is None else self._pictures[image.row]
                caption = [f"epoch {epoch}", *([] if image is None else [f"image {image.row}"])]
                items.append(SheetItem([shown], caption, heading=heading))
            items += [self._item(epoch, image, heading, numbered=False) for epoch, image in images.items()]
        return items

    def _item(self, epoch: int, image: ImageRecord | None, heading: str, *, numbered: bool) -> SheetItem:
        """The heatmap of an image in an epoch; an empty place where the epoch does not have it."""
        caption = [f"epoch {epoch}"] if numbered else []
        if image is None:
            return SheetItem([self._blank()], caption, heading=heading)
        caption.append(f"{self.name(image.predicted)} {image.confidence:.2f}")
        wrong = image.predicted != image.label
        if wrong:
            caption.append(f"{self.name(image.label)} {image.score:.2f}")
        return SheetItem([self._overlays[epoch, image.row]], caption, wrong, heading)

    def _blank(self) -> RGB:
        return np.full_like(next(iter(self._overlays.values())), 255)


def strip_stem(label: int) -> str:
    """Name of the strip of a class, without folder and suffix."""
    return f"class-{label:04d}"
