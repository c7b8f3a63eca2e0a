"""What the model saw of a stored sample, rebuilt from the sample's file."""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.data import open_dataset
from lrp_onnx.preprocess import Preprocess


class Photographs:
    """Reads pictures by the paths that a store keeps: a file, or `file.npy[row]`.

    Parameters
    ----------
    preprocess : Preprocess or None
        Of the model; without it nothing can be rebuilt.
    """

    def __init__(self, preprocess: Preprocess | None) -> None:
        self._preprocess = preprocess
        self._open = lru_cache(maxsize=1)(open_dataset)  # an array file holds many samples

    def read(self, path: str) -> NDArray[np.uint8] | None:
        """The picture, uint8 (H, W, 3); None when it cannot be rebuilt."""
        if self._preprocess is None:
            return None
        position = 0
        if in_array := re.fullmatch(r"(.+)\[(\d+)\]", path):
            path, position = in_array[1], int(in_array[2])
        try:
            return self._preprocess.inverse(self._open(path).read(position, self._preprocess))
        except Exception:  # decoders raise anything on a file that moved or broke; the heatmap can still be shown
            return None
