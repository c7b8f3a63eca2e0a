"""The samples of a heatmap store as the model took them, read from where the store says or from where they are now."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.data import Dataset, open_dataset
from lrp_onnx.data.dataset import Sample, reason_of
from lrp_onnx.errors import DataError, StoreError
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.store import HeatmapStore

Arrays = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]


def stored_dataset(store: HeatmapStore, rows: NDArray[np.int64], data: str | os.PathLike[str] | None = None) -> Dataset:
    """The data set that some rows of a store came from, in their order.

    Parameters
    ----------
    store : HeatmapStore
    rows : int array (n,)
        At least one.
    data : path-like, optional
        Where the data set is now, as `heatmaps` was given it; left out, samples are where the store says.

    Raises
    ------
    DataError
        When there is nothing there, or it is another data set: a sample has another name, or there are too few.
    """
    samples = store.samples
    paths, index = samples["path"][rows].tolist(), samples["index"][rows].tolist()
    in_array = re.fullmatch(r"(.+)\[\d+\]", paths[0])
    if data is None and in_array is None:
        return Dataset(store.path, [Sample(path, None, row) for path, row in zip(paths, index, strict=True)])
    whole = open_dataset(in_array[1] if data is None and in_array else Path(str(data)), unknown="unlabelled")
    if max(index) >= len(whole):
        raise DataError(f"{whole.root}: {len(whole)} samples, and {store.path} has heatmaps of row {max(index)}")
    chosen = whole.subset(index)
    for there, here in zip(chosen.paths, paths, strict=True):
        if _name(there) != _name(here):
            raise DataError(f"{whole.root}: holds {there} where {store.path} has {here}; name the data set it is of")
    return chosen


def _name(path: str) -> str:
    """A file's name; of array files, which get new names easily, the row alone."""
    name = PurePosixPath(path.replace("\\", "/")).name
    row = re.search(r"\[\d+\]$", name)
    return row[0] if row else name


def stored_arrays(
    store: str | os.PathLike[str], *, data: str | os.PathLike[str] | None = None, limit: int | None = None
) -> Arrays:
    """Inputs, explained classes and heatmaps of a store's finished samples, as evaluation libraries take them.

    All are held in memory.

    Parameters
    ----------
    store : path-like
    data
        See `stored_dataset`.
    limit : int, optional
        The first so many samples.

    Returns
    -------
    x : float32 (N, C, H, W)
        Channels first, also of NHWC models.
    y : int64 (N,)
        The class that each heatmap explains.
    a : float32 (N, C, H, W)
        Heatmaps.

    Raises
    ------
    DataError, StoreError
        When samples cannot be read, or a heatmap explains no single class.
    """
    with HeatmapStore(store) as heatmaps:
        rows = classified_rows(heatmaps)[:limit]
        preprocess = None if heatmaps.preprocess is None else Preprocess.from_json(heatmaps.preprocess)
        dataset = stored_dataset(heatmaps, rows, data)
        inputs = [read_input(dataset, row, preprocess) for row in range(len(dataset))]
        last = preprocess is not None and preprocess.layout == "NHWC"
        x = np.stack([np.moveaxis(one, -1, 0) if last and one.ndim == 3 else one for one in inputs])
        return x.astype(np.float32), heatmaps.samples["target"][rows].astype(np.int64), heatmaps.attribution[rows]


def read_input(dataset: Dataset, row: int, preprocess: Preprocess | None) -> NDArray[np.float32]:
    """One sample as the model takes it, without batch; DataError with path and reason when that fails."""
    try:
        return dataset.read(row, preprocess)
    except Exception as error:  # decoders raise anything on broken files
        raise DataError(f"{dataset.samples[row].path}: cannot be read ({reason_of(error)})") from error


def classified_rows(store: HeatmapStore) -> NDArray[np.int64]:
    """Finished samples of a store whose heatmaps explain one class each.

    Raises
    ------
    StoreError
        When there are none, or the store holds regressions.
    """
    if store.target_values is not None or store.prediction.ndim != 2:
        what = "a regression" if store.target_values is not None else f"outputs of shape {store.prediction.shape[1:]}"
        raise StoreError(f"{store.path}: heatmaps of {what}; this needs heatmaps that explain classes")
    rows = store.done
    if not len(rows):
        raise StoreError(f"{store.path}: holds no finished heatmap; compute heatmaps first")
    if (store.samples["target"][rows] < 0).any():
        raise StoreError(
            f"{store.path}: heatmaps that explain every output at once; compute them again with --seed auto and "
            "--target predicted"
        )
    return rows
