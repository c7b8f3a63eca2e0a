"""`HeatmapStore`: writes heatmaps so that no crash loses what is done, and reads them lazily."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import h5py
import numpy as np

from lrp_onnx.errors import StoreError
from lrp_onnx.store.disk import brief, compression_filters, copy_chunks, disk_errors, open_file, replacing, runs
from lrp_onnx.store.layout import NO_LABEL, RESULTS, StoreSpec, file_identity, lay_out, layer_key


@dataclass(frozen=True, eq=False)
class Row:
    """One finished sample; `attribution` (C, H, W) and `prediction` (K,) are float32, `label` is -1 for none."""

    row: int
    path: str
    index: int
    label: int
    predicted: int
    correct: int
    loss: float
    worst: int
    target: int
    attribution: np.ndarray
    prediction: np.ndarray


class _Place(NamedTuple):
    """Where arrays of a store go. HDF5 looks names up anew each time, in as long as it takes to write a small array."""

    dataset: h5py.Dataset
    shape: tuple[int, ...]  # of a row
    dtype: np.dtype[Any]


class HeatmapStore:
    """A heatmap store on disk; `HeatmapStore(path)` opens it for reading, `create` and `resume` for writing.

    Use it as a context manager, or call `close`.

    Parameters
    ----------
    path : path-like

    Raises
    ------
    StoreError
        When there is no such file, it is no heatmap store, or another process is writing it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._spec: StoreSpec | None = None
        self._places: dict[str, _Place] = {}
        self._file = open_file(self.path, "r")

    @classmethod
    def create(cls, path: str | os.PathLike[str], spec: StoreSpec, *, overwrite: bool = False) -> Self:
        """Start a store, ready for `write`.

        An existing file is replaced when the new one has been laid out in full, not before.

        Raises
        ------
        StoreError
            When the file exists and `overwrite` is False, or the folder cannot be written or has too little space.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise StoreError(f"{path} exists already; use --resume to go on with it or --overwrite to replace it")
        compression_filters(spec)  # a missing package should show before the work, not after it
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(path.parent).free
        if spec.needed_bytes > free:
            raise StoreError(
                f"{path}: {spec.needed_bytes / 1e9:.1f} GB of heatmaps do not fit, {free / 1e9:.1f} GB are free; "
                "store fewer layers or samples, inner layers as float16, or choose another disk"
            )
        with replacing(path) as file:
            lay_out(file, spec)
        return cls._for_writing(path, spec)

    @classmethod
    def resume(cls, path: str | os.PathLike[str], spec: StoreSpec) -> Self:
        """Go on with an interrupted store; when there is none yet, start it.

        Raises
        ------
        StoreError
            Naming the first difference, when the store was made from another model, data set, composite, target, seed
            or set of layers.
        """
        path = Path(path)
        if not path.exists():
            return cls.create(path, spec)
        compression_filters(spec)
        store = cls._for_writing(path, spec)
        there = file_identity(store._file)
        for name, asked in spec.identity().items():
            if there[name] != asked:
                store.close()
                difference = f": {brief(there[name])} in the store, {brief(asked)} now"
                raise StoreError(f"{path}: cannot resume, {name} differs{difference}; use --overwrite to start anew")
        return store

    @classmethod
    def _for_writing(cls, path: Path, spec: StoreSpec) -> Self:
        store = cls.__new__(cls)
        store.path, store._spec, store._file = path, spec, open_file(path, "r+")
        store._places = {}
        return store

    def write(
        self,
        rows: np.ndarray,
        *,
        attribution: np.ndarray,
        prediction: np.ndarray,
        predicted: np.ndarray | None = None,
        correct: np.ndarray | None = None,
        loss: np.ndarray | None = None,
        worst: np.ndarray | None = None,
        predicted_value: np.ndarray | None = None,
        target: np.ndarray | None = None,
        layers: Mapping[str, np.ndarray] | None = None,
        conservation: np.ndarray | None = None,
    ) -> None:
        """Store some samples in full, then mark them done.

        After a kill at any moment the file opens, and each row is either done and whole, or pending. (Data is handed to
        the operating system, not forced to the platter: a power cut is another matter.)

        Parameters
        ----------
        rows : int array (n,)
            Positions in the store.
        attribution : (n, C, H, W)
            Relevance of the input; pictures channels first.
        prediction : (n, K)
        predicted, correct, loss, worst, target : (n,), optional
            Class, 0 or 1, loss, output or landmark with the largest error, and the output that the relevance started
            from; left out, they are -1, and NaN for loss.
        predicted_value : (n, …), optional
            What the model gives for each regression target.
        layers : mapping of str to (n, …)
            Relevance of every inner tensor of the store, by tensor name.
        conservation : (n, L)
            Sum of the relevance at each recorded tensor.

        Raises
        ------
        StoreError
            When arrays do not fit the store, values exceed float16, or the disk is full; earlier rows stay.
        """
        spec = self._writer_spec()
        if spec.compress and self.complete:
            raise StoreError(f"{self.path} is finished and compressed, so nothing can be added; use --overwrite")
        rows = np.asarray(rows, dtype=np.int64)
        if rows.ndim != 1 or not rows.size or rows.min() < 0 or rows.max() >= len(self):
            raise StoreError(f"{self.path}: rows {rows.tolist()} do not lie in 0 to {len(self) - 1}")
        layers = layers or {}
        if set(layers) != set(spec.layers):
            odd = sorted(set(layers) ^ set(spec.layers))
            raise StoreError(f"{self.path}: layers given and layers of the store differ in {', '.join(odd[:3])}")
        given: dict[str, Any] = {"attribution": attribution, "prediction": prediction}
        if spec.conservation or conservation is not None:
            given["conservation"] = conservation
        given |= {f"layers/{layer_key(tensor)}": values for tensor, values in layers.items()}
        if any(self._file["samples/done"][there].any() for there, _ in runs(rows)):
            raise StoreError(f"{self.path}: rows {rows.tolist()} hold some that are done; write only rows of pending()")
        results = {"predicted": predicted, "correct": correct, "loss": loss, "worst": worst, "target": target}
        given |= {} if predicted_value is None else {"predicted_value": predicted_value}
        given |= {f"samples/{name}": values for name, values in results.items() if values is not None}
        arrays = {name: self._fit(name, values, len(rows)) for name, values in given.items()}
        with disk_errors(self.path):
            for name, values in arrays.items():
                for there, here in runs(rows):
                    self._places[name].dataset.write_direct(values, here, there)
            self._file.flush()
            for there, _ in runs(rows):
                self._file["samples/done"][there] = 1
            self._file.flush()

    def _fit(self, name: str, values: Any, count: int) -> np.ndarray:
        if name not in self._places:
            if name not in self._file:
                raise StoreError(f"{self.path}: was created without {name}")
            dataset = self._file[name]
            self._places[name] = _Place(dataset, dataset.shape[1:], dataset.dtype)
        place = self._places[name]
        expected = (count, *place.shape)
        try:
            fitted = _narrowed(values) if place.dtype == np.float16 else np.ascontiguousarray(values, place.dtype)
        except FloatingPointError as error:
            raise StoreError(f"{self.path}: {name} has values beyond {place.dtype}; store it as float32") from error
        except (TypeError, ValueError) as error:
            raise StoreError(f"{self.path}: {name} is not an array of numbers of shape {expected}") from error
        if fitted.shape != expected:
            raise StoreError(f"{self.path}: {name} has shape {fitted.shape}; expected {expected}")
        return fitted

    def finish(self) -> None:
        """Mark the store complete, compress it if it is to be, and go on with it for reading.

        Compression happens here, into a second file that then replaces the first: HDF5 cannot compress in place and
        survive a kill. Until then the disk holds both.
        """
        spec = self._writer_spec()
        packing = compression_filters(spec)
        with disk_errors(self.path):
            if packing and not self.complete:
                with replacing(self.path) as packed:
                    lay_out(packed, spec, packing)
                    copy_chunks(self._file, packed)
                    self._file.close()
            else:
                self._file.attrs.modify("complete", True)
                self._file.close()
        self._spec, self._file = None, open_file(self.path, "r")
        self._places = {}

    def _writer_spec(self) -> StoreSpec:
        if self._spec is None:
            raise StoreError(f"{self.path} is open for reading; use HeatmapStore.resume to write to it")
        return self._spec

    def close(self) -> None:
        """Close the file; allowed more than once."""
        with disk_errors(self.path):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._file["attribution"])

    def __iter__(self) -> Iterator[Row]:
        """Finished samples in order, read one at a time."""
        samples = self.samples
        columns = [name for name in samples if name != "done"]
        for row in np.flatnonzero(samples["done"]).tolist():
            values = {name: samples[name][row] for name in columns}
            values = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
            yield Row(row=row, attribution=self.attribution[row], prediction=self.prediction[row], **values)

    def pending(self) -> np.ndarray:
        """Rows that are not done, int64, ascending."""
        return np.flatnonzero(self._file["samples/done"][:] == 0)

    @property
    def done(self) -> np.ndarray:
        """Rows that are done, int64, ascending."""
        return np.flatnonzero(self._file["samples/done"][:])

    @property
    def attribution(self) -> h5py.Dataset:
        """Relevance of the input, float32 (N, C, H, W), read when indexed."""
        return self._file["attribution"]

    @property
    def prediction(self) -> h5py.Dataset:
        """Output that the relevance started from, float32 (N, K), read when indexed."""
        return self._file["prediction"]

    @property
    def labels(self) -> np.ndarray:
        """Expected class of each sample, int64 (N,), -1 for none."""
        labels = self._file["label"][:].astype(np.int64)
        return np.where(labels == NO_LABEL, -1, labels)

    @property
    def target_values(self) -> np.ndarray | None:
        """Regression targets, float32 (N, …), NaN where not known; or None."""
        return self._file["target_value"][:] if "target_value" in self._file else None

    @property
    def predicted_values(self) -> np.ndarray | None:
        """What the model gave for each regression target, float32 (N, …), NaN where not known; or None."""
        return self._file["predicted_value"][:] if "predicted_value" in self._file else None

    @property
    def target_names(self) -> list[str] | None:
        """Names of the regression targets."""
        return json.loads(self._file.attrs.get("target_names", "null"))

    @property
    def tokens(self) -> np.ndarray | None:
        """What the ids of each text stand for, str (N, T), "" for padding; None for other data."""
        return self._file["token"].asstr()[:] if "token" in self._file else None

    @property
    def samples(self) -> dict[str, np.ndarray]:
        """What is known of each sample, columns (N,): path, index, label, and those of `RESULTS`."""
        group = self._file["samples"]
        paths = group["path"].asstr()[:]
        columns = {"path": paths, "index": self._file["index"][:], "label": self.labels}
        missing = {name: np.full(len(paths), before, dtype) for name, (dtype, before) in RESULTS.items()}
        return columns | {name: group[name][:] if name in group else missing[name] for name in RESULTS}

    @property
    def layer_names(self) -> list[str]:
        """Inner tensors in the store, in graph order."""
        layers = sorted(self._file["layers"].values(), key=lambda dataset: dataset.attrs["order"])
        return [dataset.attrs["tensor"] for dataset in layers]

    def layer(self, name: str) -> h5py.Dataset:
        """Relevance of an inner tensor, (N, …), read when indexed; its `attrs` say tensor, node, op_type and order.

        Raises
        ------
        StoreError
            When the store does not hold that tensor.
        """
        key = layer_key(name)
        if key not in self._file["layers"]:
            held = ", ".join(self.layer_names[:5]) or "no inner layers"
            raise StoreError(f"{self.path}: no layer '{name}'; it holds {held}")
        return self._file["layers"][key]

    @property
    def conservation(self) -> tuple[list[str], np.ndarray] | None:
        """Tensor names (L) and the sum of the relevance at each, float32 (N, L); None when it was not recorded."""
        if "conservation" not in self._file:
            return None
        return self._file["tensor"].asstr()[:].tolist(), self._file["conservation"][:]

    @property
    def attrs(self) -> dict[str, Any]:
        """All attributes of the file as they are; `composite`, `preprocess` and `classes` are JSON text."""
        return dict(self._file.attrs)

    @property
    def complete(self) -> bool:
        """Whether the run that wrote the store came to its end."""
        return bool(self._file.attrs["complete"])

    @property
    def batch_size(self) -> int | None:
        """How many samples were explained at a time; None where the store does not say."""
        return int(self._file.attrs.get("batch_size", 0)) or None

    @property
    def classes(self) -> list[str] | None:
        """Class names by index."""
        return json.loads(self._file.attrs["classes"])

    @property
    def preprocess(self) -> str | None:
        """JSON of the preprocessing, as `Preprocess.from_json` reads it."""
        text = self._file.attrs["preprocess"]
        return None if text == "null" else text

    @property
    def batch_axis(self) -> Any:
        """Where the model's batch was said to be, as `batch_first` takes it; None where nothing was said."""
        return json.loads(self._file.attrs.get("batch_axis", "null"))


def _narrowed(values: Any) -> np.ndarray:
    """As float16, by torch, which takes a tenth of numpy's time; FloatingPointError for finite values beyond it."""
    if getattr(values, "dtype", None) == np.float16:
        return np.ascontiguousarray(values)
    import torch

    wide = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    narrow = wide.half()
    if not narrow.isfinite().all() and int(narrow.isinf().sum()) > int(wide.isinf().sum()):
        raise FloatingPointError("overflow in float16")
    return narrow.numpy()
