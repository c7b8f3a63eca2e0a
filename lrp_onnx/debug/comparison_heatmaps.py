"""The heatmaps of two models for one picture, on one grid of cells, and how alike they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.debug.alignment import similarity
from lrp_onnx.debug.placed_regions import picture_size
from lrp_onnx.debug.resampling import resample
from lrp_onnx.errors import StoreError
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.render import reduce_channels
from lrp_onnx.render.unit_heatmaps import is_picture
from lrp_onnx.store import HeatmapStore

Floats = NDArray[np.float64]
Size = tuple[int, int]  # width, height


class HeatmapPairs:
    """Compares heatmaps of two stores, image by image.

    Where both models get pictures in the same way, pixels are compared. Else both heatmaps are summed in the cells of
    the part of the picture that both models see, as many cells as the coarser input has pixels there.

    Parameters
    ----------
    a, b : HeatmapStore
        Open.
    smooth : float
        Standard deviation by which heatmaps are blurred first, % of the short edge: LRP scatters over neighbouring
        pixels in ways that say nothing about where a model looks.

    Attributes
    ----------
    same_input : bool
        Whether pixels are compared.
    chance : list of float
        Rank correlation of A's heatmap of an image with B's of the one before, if that has another source: what two
        heatmaps have in common without being of the same picture. Only of pairs on grids of one shape.
    """

    def __init__(self, a: HeatmapStore, b: HeatmapStore, smooth: float) -> None:
        self._stores, self._smooth = (a, b), smooth
        self._shapes = a.attribution.shape[1:], b.attribution.shape[1:]
        self._preprocess = [Preprocess.from_json(one.preprocess) if one.preprocess else None for one in (a, b)]
        self._pictures = all(map(is_picture, self._shapes))
        ways = {(one.size, one.resize, one.crop) for one in self._preprocess if one}
        alike = self._shapes[0][-2:] == self._shapes[1][-2:] if self._pictures else self._shapes[0] == self._shapes[1]
        self.same_input = alike and len(ways) < 2
        self.chance: list[float] = []
        self._before: tuple[str, Floats] | None = None

    def compare(self, rows: tuple[int, int], path: str, source: str) -> tuple[float, float]:
        """Rank correlation and cosine, see `similarity`; NaN where the two cannot be brought to one grid.

        `source` is what the image is a variation of, or its path.

        Raises
        ------
        StoreError
            When a heatmap holds NaN or infinite values.
        """
        pair = self.bring(rows, path)
        if pair is None:
            return np.nan, np.nan
        one, other = pair
        blur, everywhere = (
            self._smooth / 100 * min(one.shape) if self._pictures else 0.0,
            np.ones(one.shape, dtype=bool),
        )
        if self._before and self._before[0] != source and self._before[1].shape == one.shape:
            self.chance.append(similarity(one, self._before[1], everywhere, blur)[0])
        self._before = source, other
        return similarity(one, other, everywhere, blur)

    def bring(self, rows: tuple[int, int], path: str) -> tuple[Floats, Floats] | None:
        """Both heatmaps on one grid, (H, W) each; None when that is impossible."""
        if self.same_input:
            one, other = (self._read(side, row) for side, row in enumerate(rows))
            return one, other
        one_way, other_way = self._preprocess
        if not self._pictures or one_way is None or other_way is None:
            return None
        size = self._size(path, one_way, other_way)
        if size is None:
            return None
        places = [_places(way, size) for way in (one_way, other_way)]
        ends = []
        for axis in (0, 1):
            scales, views = zip(*(place[axis] for place in places), strict=True)
            low, high = max(0.0, *(view[0] for view in views)), min(size[axis], *(view[1] for view in views))
            if high <= low:
                return None
            ends.append((low, high, max(1, round((high - low) * min(scales)))))
        (left, right, columns), (top, bottom, lines) = ends
        moved = []
        for side, row in enumerate(rows):
            matrix = (one_way, other_way)[side].geometry(*size)
            (x, y, _), (far_x, far_y, _) = matrix @ (left, top, 1), matrix @ (right, bottom, 1)
            moved.append(resample(self._read(side, row), (x, y, far_x, far_y), (lines, columns)))
        return moved[0], moved[1]

    def _size(self, path: str, one: Preprocess, other: Preprocess) -> Size | None:
        """Width and height of the picture; when both models see all of it stretched, any will do."""
        if one.resize == other.resize == "stretch":
            return one.size[1], one.size[0]
        return picture_size(path)

    def _read(self, side: int, row: int) -> Floats:
        store = self._stores[side]
        values = np.asarray(store.attribution[row], dtype=np.float64)
        if not np.isfinite(values).all():
            raise StoreError(
                f"{store.path}: row {row} ({store.samples['path'][row]}) holds NaN or infinite relevance; compute it "
                "again with another composite or in float64"
            )
        return reduce_channels(values) if self._pictures else values.reshape(1, -1)


def _places(way: Preprocess, size: Size) -> list[tuple[float, tuple[float, float]]]:
    """For columns and rows: pixels of the input for one of the picture, and what of the picture the model sees."""
    matrix = way.geometry(*size)
    edges = way.size[1], way.size[0]
    return [
        (matrix[axis, axis], (-matrix[axis, 2] / matrix[axis, axis], (edge - matrix[axis, 2]) / matrix[axis, axis]))
        for axis, edge in enumerate(edges)
    ]
