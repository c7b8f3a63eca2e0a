"""The distances file: for every layer of a heatmap store the distances between its images, resumable layer by layer."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from lrp_onnx import __version__
from lrp_onnx.errors import DataError, StoreError
from lrp_onnx.hudd.blocks import MEMORY, HeatmapRows, segments
from lrp_onnx.hudd.clusters import FEATURES, INPUT, PROFILES
from lrp_onnx.hudd.layers import eligible_layers
from lrp_onnx.hudd.micro import choose_representatives
from lrp_onnx.store import HeatmapStore, layer_key
from lrp_onnx.store.disk import brief, disk_errors, open_hdf5, replacing

if TYPE_CHECKING:
    from lrp_onnx.hudd.features import Features

FORMAT, FORMAT_VERSION = "lrp-onnx-distances", 1
SCALING = {"default": "unit-l2", "hudd": "none"}
DTYPE = {"default": "float32", "hudd": "float64"}
REPRESENTATIVES = "representatives"
# What must be the same for a file to be gone on with.
_IDENTITY = ("store_sha256", "metric", "scaling", "reduce", "dtype", "features", "representatives", "rows")


class Distances(Mapping[str, h5py.Dataset]):
    """A distances file, open for reading: condensed distances by layer, read when indexed.

    Use it as a context manager, or call `close`. Layers that an interrupted run did not finish are left out.

    Parameters
    ----------
    path : path-like

    Raises
    ------
    StoreError
        When there is no such file, it is something else, or another process is writing it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = _open(self.path, "r")
        self._keys = {dataset.attrs["tensor"]: name for name, dataset in _datasets(self._file) if _done(dataset)}

    def __getitem__(self, layer: str) -> h5py.Dataset:
        return self._file[self._keys[layer]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def rows(self) -> NDArray[np.int64]:
        """Row in the heatmap store of each of the n images, int64 (n,)."""
        return self._file["rows"][:].astype(np.int64)

    @property
    def representatives(self) -> NDArray[np.int64]:
        """Which of the n images the distances are between, int64 (m,), ascending; all where none stands for others."""
        if REPRESENTATIVES in self._file:
            return self._file[REPRESENTATIVES][:].astype(np.int64)
        return np.arange(len(self._file["rows"]))

    @property
    def paths(self) -> list[str]:
        """Where each image came from."""
        return self._file["path"].asstr()[:].tolist()

    @property
    def metric(self) -> str:
        return self._file.attrs["metric"]

    @property
    def scaling(self) -> str:
        return self._file.attrs["scaling"]

    @property
    def reduce(self) -> str:
        return self._file.attrs["reduce"]

    @property
    def dtype(self) -> str:
        return self._file.attrs["dtype"]

    @property
    def attrs(self) -> dict[str, Any]:
        """All attributes of the file: how the distances were made, from which store."""
        return dict(self._file.attrs)

    def close(self) -> None:
        """Close the file; allowed more than once."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def compute_distances(
    store: HeatmapStore,
    path: str | os.PathLike[str],
    *,
    profile: str = "default",
    layers: Sequence[str] | None = None,
    rows: NDArray[np.int64] | None = None,
    metric: str = "euclidean",
    reduce: str = "none",
    micro: int = 0,
    memory: int = MEMORY,
    device: str = "cpu",
    scheduler: str | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Write the distances between the heatmaps of a store, one dataset a layer; open them with `Distances`.

    When the file exists and was made alike, only layers that are missing are computed, so that a killed run goes on at
    the layer it was at and ends with the same file.

    Parameters
    ----------
    store : HeatmapStore
    path : path-like
        The file, HDF5: /rows (n,) uint32, /path (n,), /input and /layers/<key> (n (n - 1) / 2,) condensed distances
        with the attributes tensor, order, features, complete; the file's attributes say profile, metric, scaling,
        reduce, dtype, features (what they are of, in profile `features`), representatives, store and store_sha256.
        With `micro` also /representatives (m,) uint32, places among the n images: distances are between these only.
    profile : {"default", "hudd"}
        "default": heatmaps scaled to unit norm, distances in float32; "hudd": raw heatmaps, float64.
    layers : sequence of str, optional
        Inner tensors, and "input" for the model's input; those of `eligible_layers` when left out.
    rows : int array (n,), optional
        Rows of the store, ascending; all finished ones when left out.
    metric, reduce, memory, device
        As in `pairwise`.
    micro : int
        Compare only so many images, which stand for all (see `choose_representatives`); 0 compares all.
    scheduler : str, optional
        Where to compare, if not here: "local:N" or the address of a Dask scheduler; see `lrp_onnx.distributed`.
    overwrite : bool
        Replace a file that was made otherwise.
    progress : callable (layer, done, total), optional
        Called as pairs of images are done; before, with "" for the layer, as those are chosen that stand for all.

    Raises
    ------
    DataError
        When there are fewer than two images, or options, layers or rows are unknown.
    StoreError
        When the file was made otherwise and `overwrite` is False, or cannot be written.
    """
    path = Path(path)
    if profile not in PROFILES:
        raise DataError(f"profile {profile!r}; expected one of {', '.join(PROFILES)}")
    rows = _rows(store, rows)
    options: dict[str, Any] = {"metric": metric, "scaling": SCALING[profile], "reduce": reduce, "dtype": DTYPE[profile]}
    layers = layers if layers is not None else eligible_layers(store, profile)

    def readers(rows: NDArray[np.int64], **options: str) -> dict[str, HeatmapRows]:
        named = {layer: f"{store.path}, heatmaps of '{layer}'" for layer in layers}
        return {layer: HeatmapRows(heatmaps_of(store, layer), rows, name=named[layer], **options) for layer in layers}

    identity = {"store_sha256": store_hash(store, rows), **options, "features": "", "rows": rows.tolist()}
    identity |= {"profile": profile, "representatives": f"{micro} micro-clusters" if micro else ""}
    chosen, compared = None, rows
    if micro:
        chosen = _earlier_choice(path, identity, overwrite)
        if chosen is None:
            told = None if progress is None else partial(progress, "")
            # by their direction in every profile: layers are of different sizes
            scaled = readers(rows, metric=metric, scaling="unit-l2", reduce=reduce)
            chosen = choose_representatives(scaled, micro, memory=memory, progress=told)
        compared = rows[chosen]
    between = readers(compared, device=device, **options)
    compute = partial(_compute, path, store, between, identity, memory, overwrite, progress, chosen)
    if scheduler is None:
        compute()
        return
    from lrp_onnx.distributed import connect, segments_on

    with connect(scheduler) as client:
        compute(partial(segments_on, client))


def compute_feature_distances(
    store: HeatmapStore,
    path: str | os.PathLike[str],
    features: Features,
    *,
    memory: int = MEMORY,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Write the Euclidean distances between features of images, as if they were those of a layer called "features".

    Parameters
    ----------
    store : HeatmapStore
    path : path-like
        As in `compute_distances`.
    features : Features
        From `compute_features` on this store.
    memory, overwrite, progress
        As in `compute_distances`.

    Raises
    ------
    DataError
        When there are fewer than two images, or features are not finite.
    StoreError
        As in `compute_distances`.
    """
    rows = _rows(store, features.rows)
    options: dict[str, Any] = {"metric": "euclidean", "scaling": "none", "reduce": "none", "dtype": "float32"}
    name = f"{features.network}, activations of '{features.layer}'"
    readers = {FEATURES: HeatmapRows(features.values, name=name, **options)}
    origin = f"{features.layer} of {features.sha256}"
    identity = {"store_sha256": store_hash(store, rows), **options, "features": origin, "rows": rows.tolist()}
    identity |= {"profile": FEATURES, "representatives": ""}
    _compute(Path(path), store, readers, identity, memory, overwrite, progress)


def _compute(
    path: Path,
    store: HeatmapStore,
    readers: Mapping[str, HeatmapRows],
    identity: Mapping[str, Any],
    memory: int,
    overwrite: bool,
    progress: Callable[[str, int, int], None] | None,
    chosen: NDArray[np.int64] | None = None,
    spread: Callable[[HeatmapRows, int], Iterator[tuple[int, NDArray[Any]]]] = segments,
) -> None:
    _lay_out(path, store, readers, identity, overwrite, chosen)
    with disk_errors(path), _open(path, "r+") as file:
        for layer, reader in readers.items():
            dataset = file[_key(layer)]
            if _done(dataset):
                continue
            for place, segment in spread(reader, memory):
                dataset[place : place + len(segment)] = segment
                if progress is not None:
                    progress(layer, place + len(segment), len(dataset))
            file.flush()
            dataset.attrs.modify("complete", True)
            file.flush()


def store_hash(store: HeatmapStore, rows: NDArray[np.int64]) -> str:
    """SHA-256 (hex) of what made the heatmaps of some rows: model, composite, target, seed, images, predictions."""
    attrs = store.attrs
    names = ("model_sha256", "composite", "target", "seed", "preprocess", "lrp_onnx_version")
    samples = store.samples
    content = {name: str(attrs[name]) for name in names} | {
        "rows": rows.tolist(),
        "paths": samples["path"][rows].tolist(),
        "index": samples["index"][rows].tolist(),
        "target class": samples["target"][rows].tolist(),
        "layers": [(name, store.layer(name).shape, str(store.layer(name).dtype)) for name in store.layer_names],
    }
    digest = hashlib.sha256(json.dumps(content, ensure_ascii=False).encode())
    digest.update(np.ascontiguousarray(store.prediction[:][rows]).tobytes())
    return digest.hexdigest()


def _rows(store: HeatmapStore, rows: NDArray[np.int64] | None) -> NDArray[np.int64]:
    done = store.done
    chosen = done if rows is None else np.unique(np.asarray(rows, dtype=np.int64))
    pending = np.setdiff1d(chosen, done)
    if pending.size:
        raise DataError(f"{store.path}: row {pending[0]} has no finished heatmap; resume the store first")
    if len(chosen) < 2:
        raise DataError(f"{store.path}: {len(chosen)} image(s), so there is nothing to cluster; it takes two or more")
    return chosen


def heatmaps_of(store: HeatmapStore, layer: str) -> h5py.Dataset:
    """The heatmaps of a layer, or of the input."""
    return store.attribution if layer == INPUT else store.layer(layer)


def _key(layer: str) -> str:
    return INPUT if layer == INPUT else f"layers/{layer_key(layer)}"


def _datasets(file: h5py.File) -> list[tuple[str, h5py.Dataset]]:
    """The input first, then inner layers in graph order."""
    names = [INPUT] * (INPUT in file) + [f"layers/{key}" for key in file["layers"]]
    return sorted(((name, file[name]) for name in names), key=lambda pair: int(pair[1].attrs["order"]))


def _done(dataset: h5py.Dataset) -> bool:
    return bool(dataset.attrs["complete"])


def _open(path: Path, mode: str) -> h5py.File:
    return open_hdf5(path, mode, "distances file", FORMAT, FORMAT_VERSION)


def _earlier(path: Path, identity: Mapping[str, Any], overwrite: bool) -> h5py.File | None:
    """What an earlier run of the same kind left, open."""
    if overwrite or not path.is_file():
        return None
    old = _open(path, "r")
    there = {name: old.attrs.get(name, "") for name in _IDENTITY[:-1]} | {"rows": old["rows"][:].tolist()}
    for name in _IDENTITY:
        if there[name] != identity[name]:
            old.close()
            difference = f"{brief(there[name]) or 'none'} in the file, {brief(identity[name]) or 'none'} now"
            raise StoreError(f"{path}: made otherwise, {name} differs: {difference}; use --overwrite")
    return old


def _earlier_choice(path: Path, identity: Mapping[str, Any], overwrite: bool) -> NDArray[np.int64] | None:
    old = _earlier(path, identity, overwrite)
    if old is None:
        return None
    with old:
        return old[REPRESENTATIVES][:].astype(np.int64)


def _lay_out(
    path: Path,
    store: HeatmapStore,
    readers: Mapping[str, HeatmapRows],
    identity: Mapping[str, Any],
    overwrite: bool,
    chosen: NDArray[np.int64] | None,
) -> None:
    """Leave a file with room for every layer asked for, and with what an earlier run of the same kind computed.

    The room is made before anything is computed, in a file that then takes its place, so that later writes change no
    HDF5 metadata: a kill in their middle leaves a file that opens.
    """
    old = _earlier(path, identity, overwrite)
    try:
        if old is not None and all(_key(layer) in old for layer in readers):
            return
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            _describe(file, store, identity)
            if chosen is not None:
                file[REPRESENTATIVES] = chosen.astype(np.uint32)
            if old is not None:
                for name, dataset in _datasets(old):
                    old.copy(dataset, file, name)
            _make_room(file, store, readers)
            if old is not None:
                old.close()
    finally:
        if old is not None:
            old.close()


def _describe(file: h5py.File, store: HeatmapStore, identity: Mapping[str, Any]) -> None:
    file.attrs.update(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        lrp_onnx_version=__version__,
        store=store.path.name,
        **{name: value for name, value in identity.items() if name != "rows"},
    )
    rows = np.asarray(identity["rows"])
    file["rows"] = rows.astype(np.uint32)
    file.create_dataset("path", data=store.samples["path"][rows].tolist(), dtype=h5py.string_dtype())
    file.create_group("layers")


def _make_room(file: h5py.File, store: HeatmapStore, readers: Mapping[str, HeatmapRows]) -> None:
    for layer, reader in readers.items():
        if _key(layer) in file:
            continue
        place = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        place.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        pairs = len(reader) * (len(reader) - 1) // 2
        dataset = file.create_dataset(_key(layer), (pairs,), reader.dtype, fill_time="never", dcpl=place)
        order = int(store.layer(layer).attrs["order"]) if layer in store.layer_names else -1
        dataset.attrs.update(tensor=layer, order=order, features=reader.features, complete=False)
