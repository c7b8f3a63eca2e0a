"""What a heatmap store holds and where: the groups, datasets, dimension scales and attributes of the HDF5 file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import h5py
import numpy as np

from lrp_onnx import __version__
from lrp_onnx.errors import StoreError

FORMAT, FORMAT_VERSION = "lrp-onnx-heatmaps", 1
NO_LABEL = 65535  # in /label, which is uint16 so that ViRelAy reads it
CHUNK_BYTES = 1 << 20
LAYER_DTYPES = ("float32", "float16")
COMPRESSIONS = ("gzip", "lzf", "zstd", "lz4")
PLUGIN_COMPRESSIONS = ("zstd", "lz4")
# The attributes by which a resumed run is known to be the same.
RUN_ATTRIBUTES = ("model_sha256", "composite", "target", "seed", "preprocess", "classes", "compress")
# Those that came later, and what they are in a store that was made without them.
LATER_ATTRIBUTES = {"loss": "", "threshold": "null", "target_names": "null", "batch_axis": "null", "dtype": "float32"}
# The results of a sample that are one number each, and what they are before the sample is done.
RESULTS: dict[str, tuple[str, float]] = {
    "predicted": ("int32", -1),
    "correct": ("int8", -1),
    "loss": ("float32", math.nan),
    "worst": ("int32", -1),
    "target": ("int32", -1),
    "done": ("uint8", 0),
}
# A scale lists the datasets that use it in an attribute, where HDF5 has room for 64 KiB or some 4080 of them.
MOST_SCALED_LAYERS = 4000
AXES = {1: ("feature",), 3: ("channel", "height", "width"), 4: ("channel", "depth", "height", "width")}
# The words by which netCDF readers know a dimension that has a size but no values.
NETCDF_DIMENSION = "This is a netCDF dimension but not a netCDF variable. {:10d}"


@dataclass(frozen=True)
class LayerInfo:
    """An inner tensor: its shape without batch, as the model has it, the node that makes it, its place in the graph."""

    shape: tuple[int, ...]
    node: str
    op_type: str
    order: int


@dataclass(frozen=True, kw_only=True, eq=False)
class StoreSpec:
    """Everything that is known before the first heatmap, and that a resumed run must share with the interrupted one.

    Attributes
    ----------
    paths, index, labels, target_values
        Of each of the N samples: where it came from; its row in the data set; its class (int (N,), -1 for none, at most
        65534), None when there are none at all; its regression target, float (N, …), NaN where not known, or None.
    input_shape : tuple of int
        Shape of the model's input without batch; pictures channels first, (C, H, W).
    outputs : int or tuple of int
        Shape without batch of the output that the relevance starts from; K for K classes.
    layers : mapping of str to LayerInfo
        Inner tensors to store, by name.
    conservation : sequence of str
        Names of the tensors whose summed relevance is recorded.
    model, model_sha256, composite, target, seed : str
        How the heatmaps were made; `composite` as JSON, resolved per node.
    preprocess : str or None
        JSON of the preprocessing.
    classes : sequence of str or None
        Class names by index.
    loss, threshold, target_names
        Of regression: how samples are judged, "" for not; the largest loss of a correct one, or None; the names of the
        targets, or None.
    tokens : sequence of N sequences of T str, or None
        What the ids of a text stand for, "" for padding, where the input is (N, T) ids.
    layer_dtype : {"float32", "float16"}
    compress : {None, "gzip", "lzf", "zstd", "lz4"}
        The last two need the package hdf5plugin, to read too.
    dtype : {"float32", "float64", "bfloat16"}
        The precision that was computed with.
    batch_axis : str or None
        JSON of what was said of where the model's batch is, see `lrp_onnx.batch_axis`.
    batch_size : int or None
        How many samples were explained at a time, so that a resumed run can do the same.

    Raises
    ------
    StoreError
        When the parts do not fit each other.
    """

    paths: Sequence[str]
    index: Sequence[int] | np.ndarray
    labels: Sequence[int] | np.ndarray | None = None
    target_values: np.ndarray | None = None
    input_shape: tuple[int, ...]
    outputs: int | tuple[int, ...]
    layers: Mapping[str, LayerInfo] = field(default_factory=dict)
    conservation: Sequence[str] = ()
    model: str
    model_sha256: str
    composite: str
    target: str
    seed: str
    preprocess: str | None = None
    classes: Sequence[str] | None = None
    loss: str = ""
    threshold: float | None = None
    target_names: Sequence[str] | None = None
    tokens: Sequence[Sequence[str]] | np.ndarray | None = None
    layer_dtype: str = "float32"
    compress: str | None = None
    dtype: str = "float32"
    batch_axis: str | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if not len(self):
            raise StoreError("a heatmap store needs at least one sample, and there is none")
        for name in ("index", "labels", "target_values", "tokens"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self):
                raise StoreError(f"{len(self)} paths, but {len(values)} {name} for the heatmap store")
        labels = np.asarray([] if self.labels is None else self.labels)
        if labels.size and (labels.min() < -1 or labels.max() >= NO_LABEL):
            raise StoreError(f"labels from {labels.min()} to {labels.max()}; a store holds -1 (none) to {NO_LABEL - 1}")
        if self.layer_dtype not in LAYER_DTYPES:
            raise StoreError(f"layer dtype {self.layer_dtype!r}; expected one of {', '.join(LAYER_DTYPES)}")
        if self.compress is not None and self.compress not in COMPRESSIONS:
            raise StoreError(f"compression {self.compress!r}; expected one of {', '.join(COMPRESSIONS)}, or none")

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def label_array(self) -> np.ndarray:
        """What /label holds: uint16 (N,), 65535 for none."""
        labels = np.full(len(self), -1) if self.labels is None else np.asarray(self.labels)
        return np.where(labels < 0, NO_LABEL, labels).astype(np.uint16)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one row of /prediction."""
        return (self.outputs,) if isinstance(self.outputs, int) else tuple(self.outputs)

    @property
    def needed_bytes(self) -> int:
        """Size on disk of the arrays when all rows are written, without compression."""
        numbers = math.prod(self.input_shape) + math.prod(self.output_shape) + len(self.conservation)
        inner = sum(math.prod(info.shape) for info in self.layers.values())
        return len(self) * (4 * numbers + np.dtype(self.layer_dtype).itemsize * inner)

    def identity(self) -> dict[str, Any]:
        """What must be the same to resume; `file_identity` is the same of a file."""
        return {
            **{name: getattr(self, name) for name in ("model_sha256", "composite", "target", "seed")},
            "preprocess": "null" if self.preprocess is None else self.preprocess,
            "batch_axis": "null" if self.batch_axis is None else self.batch_axis,
            "classes": json.dumps(self.classes and list(self.classes), ensure_ascii=False),
            "compress": self.compress or "",
            "dtype": self.dtype,
            "loss": self.loss,
            "threshold": json.dumps(self.threshold),
            "target_names": json.dumps(self.target_names and list(self.target_names), ensure_ascii=False),
            "number of samples": len(self),
            "paths": list(self.paths),
            "index": np.asarray(self.index).tolist(),
            "labels": self.label_array.tolist(),
            "target values": _comparable(self.target_values),
            "input shape": tuple(self.input_shape),
            "output shape": self.output_shape,
            "layers": {name: (tuple(info.shape), self.layer_dtype) for name, info in self.layers.items()},
            "conservation": list(self.conservation),
        }


def file_identity(file: h5py.File) -> dict[str, Any]:
    """What `StoreSpec.identity` was of the run that made this file."""
    layers = sorted(file["layers"].values(), key=lambda dataset: dataset.attrs["order"])
    return {
        **{name: file.attrs[name] for name in RUN_ATTRIBUTES},
        **{name: file.attrs.get(name, missing) for name, missing in LATER_ATTRIBUTES.items()},
        "number of samples": len(file["attribution"]),
        "paths": file["samples/path"].asstr()[:].tolist(),
        "index": file["index"][:].tolist(),
        "labels": file["label"][:].tolist(),
        "target values": _comparable(file["target_value"][:] if "target_value" in file else None),
        "input shape": file["attribution"].shape[1:],
        "output shape": file["prediction"].shape[1:],
        "layers": {dataset.attrs["tensor"]: (dataset.shape[1:], dataset.dtype.name) for dataset in layers},
        "conservation": file["tensor"].asstr()[:].tolist() if "conservation" in file else [],
    }


def _comparable(values: Any) -> list[Any] | None:
    """Numbers as lists; None in place of NaN, which would not equal itself."""
    if values is None:
        return None
    numbers = np.asarray(values, dtype=np.float32)
    lists = numbers.astype(object)
    lists[np.isnan(numbers)] = None
    return lists.tolist()


def layer_key(tensor: str) -> str:
    """The name of a tensor under /layers: percent-encoded where HDF5 would see a path, so that no two share a key."""
    special = re.compile(r"[%/\x00-\x1f]|^\.+$")
    return special.sub(lambda found: "".join(f"%{ord(character):02X}" for character in found[0]), tensor)


def lay_out(
    file: h5py.File,
    spec: StoreSpec,
    filters: Mapping[str, Any] | None = None,
    elsewhere: Mapping[str, h5py.VirtualLayout] | None = None,
) -> None:
    """Write into an empty file everything that is known, and make room for everything that is not.

    Datasets named in `elsewhere` become virtual. Without filters every byte that `write` will fill is given its place
    in the file here, so that writing a row later changes no HDF5 metadata: a process killed in the middle leaves a file
    that opens. The file is sparse; it takes disk space as rows come. With `filters` (h5py's compression keywords) that
    is impossible, as sizes are not known.
    """
    known = spec.identity()
    file.attrs.update(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        lrp_onnx_version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=spec.model,
        complete=False,
        batch_size=spec.batch_size or 0,
        **{name: known[name] for name in (*RUN_ATTRIBUTES, *LATER_ATTRIBUTES)},
    )
    count, outputs = len(spec), spec.output_shape

    def room(name: str, shape: tuple[int, ...], dtype: str, axes: Sequence[str]) -> h5py.Dataset:
        if elsewhere and name in elsewhere:
            dataset = file.create_virtual_dataset(name, elsewhere[name])
        else:
            sample_bytes = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
            chunks = (max(1, min(count, CHUNK_BYTES // sample_bytes)), *shape)
            place = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            if not filters:
                place.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            dataset = file.create_dataset(
                name, (count, *shape), dtype, chunks=chunks, fill_time="never", dcpl=place, **(filters or {})
            )
        if len(spec.layers) <= MOST_SCALED_LAYERS or not name.startswith("layers/"):
            _attach_scales(file, dataset, ("batch", *axes))
        return dataset

    room("attribution", spec.input_shape, "float32", _axes(spec.input_shape))
    names = spec.classes if spec.classes is not None and outputs == (len(spec.classes),) else None
    if names is not None:
        _named_scale(file, "class", names)
    room("prediction", outputs, "float32", ("class",) if len(outputs) == 1 else _axes(outputs))
    if spec.conservation:
        _named_scale(file, "tensor", spec.conservation)
        room("conservation", (len(spec.conservation),), "float32", ("tensor",))
    file.create_group("layers")
    for tensor, info in spec.layers.items():
        dataset = room(f"layers/{layer_key(tensor)}", info.shape, spec.layer_dtype, _axes(info.shape))
        dataset.attrs.update(tensor=tensor, node=info.node, op_type=info.op_type, order=info.order)

    file["label"] = spec.label_array
    file["index"] = np.asarray(spec.index, dtype=np.uint32)
    file.create_dataset("samples/path", data=list(spec.paths), dtype=h5py.string_dtype())
    for name, (dtype, before) in RESULTS.items():
        file[f"samples/{name}"] = np.full(count, before, dtype)
    for name in ("label", "index", *(f"samples/{name}" for name in ("path", *RESULTS))):
        _attach_scales(file, file[name], ("batch",))
    if spec.tokens is not None:
        file.create_dataset("token", data=[list(row) for row in spec.tokens], dtype=h5py.string_dtype())
        _attach_scales(file, file["token"], ("batch", *_axes(spec.input_shape)))
    if spec.target_values is not None:
        file["target_value"] = np.float32(spec.target_values)
        file["predicted_value"] = np.full(file["target_value"].shape, math.nan, np.float32)
        axes = tuple(f"value{axis}" for axis in range(1, file["target_value"].ndim))
        for name in ("target_value", "predicted_value"):
            _attach_scales(file, file[name], ("batch", *axes))


def _axes(shape: tuple[int, ...]) -> tuple[str, ...]:
    return AXES.get(len(shape)) or tuple(f"axis{axis}" for axis in range(1, len(shape) + 1))


def _named_scale(file: h5py.File, name: str, values: Sequence[str]) -> None:
    file.create_dataset(name, data=list(values), dtype=h5py.string_dtype()).make_scale(name)


def _attach_scales(file: h5py.File, dataset: h5py.Dataset, axes: Sequence[str]) -> None:
    """Name the dataset's dimensions. All scales lie in the root, where netCDF readers of any group look for them."""
    for axis, (name, size) in enumerate(zip(axes, dataset.shape, strict=True)):
        if name in file and len(file[name]) != size:
            name = f"{name}_{size}"  # such as the channels of an inner layer
        if name not in file:
            file.create_dataset(name, (size,), ">f4").make_scale(NETCDF_DIMENSION.format(size))
        dataset.dims[axis].label = name
        dataset.dims[axis].attach_scale(file[name])
