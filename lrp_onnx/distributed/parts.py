"""A data set in parts, each small enough to be sent to a worker, and whole again there."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lrp_onnx.data import Dataset
from lrp_onnx.inputs import Feed, first_row

_FEWEST, _MOST = 16, 4096
_BATCHES = 64  # in a part, as long as there are no more than _MOST


@dataclass(frozen=True, eq=False)
class SharedArray:
    """The array of a data set, which goes to each worker once: by the name of its file where that is read as needed."""

    array: np.ndarray | Path | None

    @classmethod
    def of(cls, dataset: Dataset) -> SharedArray:
        return cls(dataset.root.resolve() if isinstance(dataset.array, np.memmap) else dataset.array)

    def back_in(self, part: Dataset) -> Dataset:
        """The part with the array that `parts_of` left out."""
        array = np.load(self.array, mmap_mode="r") if isinstance(self.array, Path) else self.array
        return replace(part, array=array)


def parts_of(dataset: Dataset, batch_size: int) -> list[Dataset]:
    """Parts of whole batches, without the array; the same whoever computes them."""
    bare = replace(dataset, array=None)
    return [bare.subset(rows) for rows in split(len(dataset), batch_size)]


def split(count: int, batch_size: int) -> list[range]:
    """The rows of each part."""
    batches = math.ceil(count / batch_size)
    each = max(min(_BATCHES, math.ceil(batches / _FEWEST)), math.ceil(batches / _MOST)) * batch_size
    return [range(start, min(start + each, count)) for start in range(0, count, each)]


def readable(dataset: Dataset, feed: Feed) -> Dataset:
    """The first sample that can be read, without the array: a part may hold none.

    Raises
    ------
    DataError
        As `first_row`.
    """
    row, _, _ = first_row(dataset, feed)
    return replace(dataset.subset([row]), array=None)


def read_by_workers(trial: Dataset, array: SharedArray) -> list[Path]:
    """A file that workers must see to read the data; none where the data is sent to them."""
    file = array.array if isinstance(array.array, Path) else Path(trial.samples[0].path)
    return [file] if file.exists() else []
