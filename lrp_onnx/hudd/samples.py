"""What a person sees of the samples of a store: image and heatmap side by side, classes, the image file in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.folders import link_or_copy
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.render import SheetItem, bar_strip, contact_sheet, overlay, reduce_channels, save_png, to_rgb
from lrp_onnx.render.photographs import Photographs
from lrp_onnx.render.regressed import Regressed, numbers
from lrp_onnx.store import HeatmapStore

RGB = NDArray[np.uint8]  # (H, W, 3)
FRAME_SECONDS = 0.6  # HUDD's: 100 images a minute
_HEIGHT = 240  # pixels of a picture in a GIF
_BLANK = 235
_LONGEST_NAME = 60  # characters, so that a number before it stays within what file systems take


class Samples:
    """The samples of an open heatmap store, by row.

    Parameters
    ----------
    store : HeatmapStore
    heatmaps : bool
        Whether `pictures` shows the heatmap of the input beside the image.
    """

    def __init__(self, store: HeatmapStore, *, heatmaps: bool = True) -> None:
        self.store, self.heatmaps = store, heatmaps
        self.columns, self.classes, self.targets = store.samples, store.classes or [], store.target_values
        self.regressed = None if self.targets is None else Regressed(store)
        self.preprocess = Preprocess.from_json(store.preprocess) if store.preprocess else None
        self.photographs = Photographs(self.preprocess)

    def path(self, row: int) -> str:
        return str(self.columns["path"][row])

    def name(self, row: int) -> str:
        """The file's name."""
        return PurePosixPath(self.path(row).replace("\\", "/")).name

    def expected(self, row: int) -> str:
        """Class or regression target; empty when there is none."""
        if self.regressed is not None:
            return self.regressed.expected(row)
        return self._class(int(self.columns["label"][row]))

    def predicted(self, row: int) -> str:
        """Class, or regressed values; empty for maps."""
        if self.regressed is not None:
            return self.regressed.predicted(row)
        predicted = int(self.columns["predicted"][row])
        if predicted >= 0:
            return self._class(predicted)
        return numbers(self.store.prediction[row]) if self.store.prediction.ndim == 2 else ""

    def _class(self, index: int) -> str:
        return "" if index < 0 else str(self.classes[index]) if index < len(self.classes) else str(index)

    def lines(self, row: int) -> list[str]:
        """Expected and predicted for a caption, as many lines for each sample of a store; for regression the loss."""
        if self.regressed is not None:
            return self.regressed.lines(row)
        expected = self.expected(row)
        return [
            f"expected {expected}, predicted {self.predicted(row)}" if expected else f"predicted {self.predicted(row)}"
        ]

    def verdict(self, row: int) -> str:
        """The same in one line."""
        return ", ".join(self.lines(row))

    def image(self, row: int) -> RGB | None:
        """What the model saw, uint8 (H, W, 3), rebuilt from the sample's file; None when that is impossible."""
        return self.photographs.read(self.path(row))

    def pictures(self, row: int) -> list[RGB]:
        """As many for each sample of a store: the image (grey when it is gone) and the heatmap over it.

        Samples that are no pictures are shown by their heatmap alone.
        """
        relevance = np.asarray(self.store.attribution[row], dtype=np.float64)
        if relevance.ndim < 2 or 1 in relevance.shape[-2:]:
            return [bar_strip(relevance.ravel(), height=_HEIGHT)]
        heatmap = reduce_channels(relevance)
        if self.preprocess is None:
            return [to_rgb(heatmap)]
        image = self.image(row)
        shown = np.full((*heatmap.shape, 3), _BLANK, dtype=np.uint8) if image is None else image
        return [shown, overlay(shown, heatmap)] if self.heatmaps else [shown]

    def place(self, row: int, folder: Path, number: int) -> bool:
        """Put the image into a folder, named after a number and its own name; False when there is no image.

        A hard link where the file system allows it, else a copy; what comes out of an array file becomes a PNG.
        """
        target = folder / f"{number:04d}-{self.name(row)[-_LONGEST_NAME:]}"
        try:
            link_or_copy(self.path(row), target)
        except FileNotFoundError:
            image = self.image(row)
            if image is None:
                return False
            save_png(image, target.with_name(f"{target.name}.png"))
        return True


def save_gif(items: Iterator[SheetItem], path: Path) -> None:
    """Write an endless animation, a frame an item; all must have as many caption lines, and pictures of one size."""
    from PIL import Image

    frames = (Image.fromarray(contact_sheet([item], cell=_HEIGHT)) for item in items)
    next(frames).save(
        path, format="GIF", save_all=True, append_images=frames, duration=round(1000 * FRAME_SECONDS), loop=0
    )
