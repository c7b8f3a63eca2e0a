"""Several heatmap stores, made side by side of the parts of one data set, as one store."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lrp_onnx.errors import StoreError
from lrp_onnx.store.disk import brief, open_file, replacing
from lrp_onnx.store.layout import NO_LABEL, RESULTS, LayerInfo, StoreSpec, file_identity, lay_out

# What the parts of one data set may differ in.
_OF_SAMPLES = {"number of samples", "paths", "index", "labels", "target values"}
_KNOWN = ("label", "index", "target_value", "token", "samples/path")
_COMPUTED = ("prediction", "predicted_value", "conservation", *(f"samples/{name}" for name in RESULTS))


def join_stores(path: str | os.PathLike[str], shards: Sequence[str | os.PathLike[str]]) -> None:
    """One store with the samples of several, in their order; an existing file is replaced in one step.

    Heatmaps stay where they are: `attribution` and `layers/…` are virtual datasets over the shards, by paths relative
    to `path`, so that file and shards can be moved together. All else is copied.

    Parameters
    ----------
    path : path-like
    shards : sequence of path-like
        Stores that were made alike, of other samples each.

    Raises
    ------
    StoreError
        When a shard cannot be read or was made otherwise than the first, or the file cannot be written.
    """
    path = Path(path)
    parts = [_read(Path(shard)) for shard in shards]  # one file open at a time: there may be thousands
    first = parts[0]
    for part in parts[1:]:
        for name, there in part.identity.items():
            if there != first.identity[name]:
                difference = f"{brief(first.identity[name])} in {first.path}, {brief(there)} in this one"
                raise StoreError(f"{part.path}: cannot be joined, {name} differs: {difference}")
    arrays = {name: np.concatenate([part.arrays[name] for part in parts]) for name in first.arrays}
    with replacing(path) as joined:
        lay_out(joined, _spec(first, arrays), elsewhere={name: _layout(name, path, parts) for name in first.heatmaps})
        for name in arrays.keys() & set(_COMPUTED):
            joined[name][...] = arrays[name]
        joined.attrs.modify("complete", all(part.attrs["complete"] for part in parts))


@dataclass(frozen=True, eq=False)
class _Part:
    """A shard without its heatmaps, of which `heatmaps` has shape and type by name."""

    path: Path
    identity: dict[str, Any]
    attrs: dict[str, Any]
    arrays: dict[str, np.ndarray]
    heatmaps: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
    layers: dict[str, LayerInfo]


def _read(path: Path) -> _Part:
    with open_file(path, "r") as file:
        layers = sorted(file["layers"].values(), key=lambda dataset: dataset.attrs["order"])
        heatmaps = [file["attribution"], *layers]
        return _Part(
            path=path,
            identity={name: value for name, value in file_identity(file).items() if name not in _OF_SAMPLES},
            attrs=dict(file.attrs),
            arrays={
                name: file[name].asstr()[:] if name in ("samples/path", "token") else file[name][...]
                for name in (*_KNOWN, *_COMPUTED)
                if name in file
            },
            heatmaps={dataset.name.lstrip("/"): (dataset.shape, dataset.dtype) for dataset in heatmaps},
            layers={
                d.attrs["tensor"]: LayerInfo(d.shape[1:], d.attrs["node"], d.attrs["op_type"], int(d.attrs["order"]))
                for d in layers
            },
        )


def _spec(first: _Part, arrays: dict[str, np.ndarray]) -> StoreSpec:
    """What the store would have been laid out by, had it been made in one piece."""
    attrs, labels = first.attrs, arrays["label"].astype(np.int64)
    inner = [dtype.name for name, (_, dtype) in first.heatmaps.items() if name != "attribution"]
    return StoreSpec(
        paths=arrays["samples/path"].tolist(),
        index=arrays["index"],
        labels=np.where(labels == NO_LABEL, -1, labels),
        target_values=arrays.get("target_value"),
        input_shape=first.heatmaps["attribution"][0][1:],
        outputs=first.arrays["prediction"].shape[1:],
        layers=first.layers,
        conservation=first.identity["conservation"],
        **{name: attrs[name] for name in ("model", "model_sha256", "composite", "target", "seed")},
        preprocess=None if attrs["preprocess"] == "null" else attrs["preprocess"],
        dtype=attrs.get("dtype", "float32"),
        batch_axis=None if attrs.get("batch_axis", "null") == "null" else attrs["batch_axis"],
        classes=json.loads(attrs["classes"]),
        loss=attrs["loss"],
        threshold=json.loads(attrs["threshold"]),
        target_names=json.loads(attrs["target_names"]),
        tokens=arrays.get("token"),
        layer_dtype=inner[0] if inner else "float32",
        compress=attrs["compress"] or None,
        batch_size=int(attrs.get("batch_size", 0)) or None,
    )


def _layout(name: str, path: Path, parts: Sequence[_Part]) -> h5py.VirtualLayout:
    shapes = [part.heatmaps[name][0] for part in parts]
    dtype = parts[0].heatmaps[name][1]
    layout = h5py.VirtualLayout((sum(shape[0] for shape in shapes), *shapes[0][1:]), dtype)
    start = 0
    for part, shape in zip(parts, shapes, strict=True):
        there = os.path.relpath(part.path.resolve(), path.parent.resolve())
        # HDF5 takes "%" in these two names for a format
        source = h5py.VirtualSource(there.replace("%", "%%"), name.replace("%", "%%"), shape, dtype)
        layout[start : start + shape[0]] = source
        start += shape[0]
    return layout
