"""How store files get onto the disk: opened, replaced in one step, compressed, with errors in one clear line."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lrp_onnx.errors import StoreError
from lrp_onnx.store.layout import FORMAT, FORMAT_VERSION, PLUGIN_COMPRESSIONS, RESULTS, StoreSpec


def open_file(path: Path, mode: str) -> h5py.File:
    """Open a heatmap store, with the compression that it needs."""
    # A chunk cache would only copy what is written in whole chunks. Of chunks that are not compressed it would read all
    # for each sample. Readers of compressed ones, who come back to a chunk row by row, keep the library's.
    file = open_hdf5(path, mode, "heatmap store", FORMAT, FORMAT_VERSION, rdcc_nbytes=0)
    compression = file.attrs.get("compress")
    if mode == "r" and compression:
        file.close()
        file = open_hdf5(path, mode, "heatmap store", FORMAT, FORMAT_VERSION)
    if compression in PLUGIN_COMPRESSIONS:
        _plugin(compression)
    return file


def open_hdf5(path: Path, mode: str, kind: str, form: str, version: int, **options: Any) -> h5py.File:
    """Open an HDF5 file of one of our formats, for reading ("r") or writing ("r+").

    Parameters
    ----------
    kind : str
        What errors call such a file.
    form, version : str, int
        What its attribute `format` must be, and `format_version` at most.

    Raises
    ------
    StoreError
        When there is no such file, it is something else, newer than this program, or open for writing elsewhere.
    """
    if not path.is_file():
        raise StoreError(f"{path}: no such {kind}")
    # With "earliest" no flag in the file tells readers to refuse it after a kill.
    options |= {} if mode == "r" else {"libver": "earliest"}
    try:
        file = h5py.File(path, mode, **options)
    except BlockingIOError as error:
        raise StoreError(f"{path} is open for writing in another process; wait for it to end") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be opened as HDF5 ({_reason(error)}); it should be a {kind}") from error
    there, its_version = file.attrs.get("format"), file.attrs.get("format_version", 0)
    if there == form and its_version <= version:
        return file
    file.close()
    if there != form:
        raise StoreError(f"{path}: HDF5, but not a {kind} (no attribute format='{form}')")
    raise StoreError(f"{path}: {kind} of format version {its_version}; this program reads up to {version}: update it")


@contextmanager
def replacing(path: Path) -> Iterator[h5py.File]:
    """A new file beside `path` that takes its place when the block ends well and is gone when it does not."""
    new = path.with_name(f".{path.name}.new")
    try:
        with disk_errors(path):
            with h5py.File(new, "w", libver="earliest", rdcc_nbytes=0) as file:
                yield file
            new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def copy_chunks(source: h5py.File, packed: h5py.File) -> None:
    """Fill a laid out, compressed file with what another of the same layout holds, a chunk at a time."""

    def copy(name: str, dataset: Any) -> None:
        if isinstance(dataset, h5py.Dataset) and dataset.chunks:
            for part in dataset.iter_chunks():
                packed[name][part] = dataset[part]

    source.visititems(copy)
    for name in ("predicted_value", *(f"samples/{name}" for name in RESULTS)):
        if name in source:
            packed[name][...] = source[name][...]
    packed.attrs["created"] = source.attrs["created"]
    packed.attrs["complete"] = True


def compression_filters(spec: StoreSpec) -> dict[str, Any]:
    """The keywords that make h5py compress as `spec` asks; empty for no compression."""
    if spec.compress == "gzip":
        return {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    if spec.compress == "lzf":
        return {"compression": "lzf", "shuffle": True}
    if spec.compress:
        plugin = _plugin(spec.compress)
        return dict(plugin.Zstd() if spec.compress == "zstd" else plugin.LZ4(), shuffle=True)
    return {}


def _plugin(compression: str) -> Any:
    try:
        return importlib.import_module("hdf5plugin")
    except ImportError as error:
        raise StoreError(f"compression '{compression}' needs a package: pip install hdf5plugin") from error


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({_reason(error)}); what was there before is unharmed") from error


def _reason(error: OSError) -> str:
    """The operating system's words, which HDF5 buries in a long message."""
    inner = re.search(r"error message = '([^']+)'", str(error))
    return inner[1] if inner else error.strerror or str(error)


def brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def runs(rows: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Split row numbers into stretches without gaps, (slice of the file, slice of `rows`): HDF5 writes such at once."""
    ends = [*(np.flatnonzero(np.diff(rows) != 1) + 1), len(rows)]
    start = 0
    for end in ends:
        yield slice(int(rows[start]), int(rows[end - 1]) + 1), slice(start, int(end))
        start = int(end)
