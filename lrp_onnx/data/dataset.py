"""`Dataset`: samples in a fixed order, and `batches` of them, read ahead of the model."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from lrp_onnx.errors import DataError
from lrp_onnx.preprocess import Preprocess

NO_LABEL = -1
BATCHES_AHEAD = 2  # enough to hide decoding behind the model; more would only hold memory
_MOST_READERS = 16


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture, array row or text.

    Attributes
    ----------
    path : str
        Where it is.
    label : int or None
        Its class.
    index : int
        Its row in the whole data set.
    target : tuple of float or None
        What is to be regressed.
    others : mapping of str to (str or numpy.ndarray)
        Of a model with several inputs, what the others get, by name: a file or an array, without batch.
    tokens : tuple of str
        What the ids of a text stand for; "" for padding.
    """

    path: str
    label: int | None
    index: int
    target: tuple[float, ...] | None = None
    others: Mapping[str, str | np.ndarray] = field(default_factory=dict, compare=False)
    tokens: tuple[str, ...] = ()


@dataclass(eq=False)
class Dataset:
    """Samples in a fixed order, whatever they were read from. Made by `open_dataset`.

    Attributes
    ----------
    root : pathlib.Path
        The folder, manifest or array file.
    samples : sequence of Sample
        Paths are absolute; a row of an array file is written ``file[row]``.
    classes : tuple of str or None
        Class names by index: the model's when given, else those of the data; None when there are none.
    array : numpy.ndarray or None
        The inputs of a .npy or .npz file, addressed by `Sample.index`.
    failures : dict of str to str
        Path and reason of each sample that could not be read so far.
    target_names : tuple of str or None
        Names of the regression targets, where the data has them.
    """

    root: Path
    samples: Sequence[Sample]
    classes: tuple[str, ...] | None = None
    array: np.ndarray | None = None
    failures: dict[str, str] = field(default_factory=dict)
    target_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def of_pictures(self) -> bool:
        """Whether samples are files of pictures, which need preprocessing."""
        return self.array is None and not (self.samples and self.samples[0].path.endswith(".npy"))

    def subset(self, rows: Iterable[int]) -> Dataset:
        """The samples at `rows` only; each keeps its `index` in the whole data set."""
        chosen = [self.samples[row] for row in rows]
        return Dataset(self.root, chosen, self.classes, self.array, target_names=self.target_names)

    @cached_property
    def paths(self) -> list[str]:
        """Path of each sample."""
        return [sample.path for sample in self.samples]

    @cached_property
    def index(self) -> np.ndarray:
        """Row of each sample in the whole data set, int64 (N,)."""
        return np.array([sample.index for sample in self.samples], dtype=np.int64)

    @cached_property
    def labels(self) -> np.ndarray:
        """Class index of each sample, int64 (N,); -1 where there is none."""
        known = (NO_LABEL if sample.label is None else sample.label for sample in self.samples)
        return np.fromiter(known, np.int64, len(self.samples))

    @cached_property
    def targets(self) -> np.ndarray | None:
        """Regression targets, float32 (N, T), NaN where not known; None for classification and for unlabelled data."""
        if not self.samples or self.samples[0].target is None:
            return None
        return np.array([sample.target for sample in self.samples], dtype=np.float32)

    def read(self, row: int, preprocess: Preprocess | None) -> np.ndarray:
        """One model input without batch, in the model's layout.

        Pictures, and uint8 arrays shaped like pictures, go through `preprocess`; all other arrays are taken to be ready
        for the model and pass unchanged, but for float64 and float16, which become float32.

        Raises
        ------
        DataError
            With the reason, when the sample cannot be used. A decoder's own exceptions pass through.
        """
        sample = self.samples[row]
        return self._value(sample.path if self.array is None else self.array[sample.index], preprocess)

    def read_others(self, row: int, preprocess: Preprocess | None) -> dict[str, np.ndarray]:
        """What the further inputs of the model get, by name, each as `read` gives it."""
        return {name: self._value(value, preprocess) for name, value in self.samples[row].others.items()}

    def _value(self, value: str | np.ndarray, preprocess: Preprocess | None) -> np.ndarray:
        if isinstance(value, str) and not value.endswith(".npy"):
            if preprocess is None:
                raise DataError(f"{self.root}: pictures need preprocessing (size, layout, range), and none is given")
            with Image.open(value) as image:
                return preprocess(image)
        # a copy, so that a memory-mapped file is read here
        values = np.load(value, allow_pickle=False) if isinstance(value, str) else np.array(value)
        picture = as_picture(values) if preprocess is not None and values.dtype == np.uint8 else None
        if picture is not None and preprocess is not None:
            return preprocess(picture)
        if values.dtype.kind == "f":
            if not np.isfinite(values).all():
                raise DataError("holds NaN or infinite values")
            return values.astype(np.float32, copy=False)
        return values


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples that were read together.

    `rows` (int64) are positions in the `Dataset`, `index` (int64) those in the whole data set; `inputs` is (n, …),
    `labels` int64 (n,) with -1 for none, `targets` float32 (n, T) or None; `others` has (n, …) for each further input.
    """

    rows: np.ndarray
    index: np.ndarray
    inputs: np.ndarray
    labels: np.ndarray
    paths: list[str]
    targets: np.ndarray | None
    others: Mapping[str, np.ndarray] = field(default_factory=dict)

    def part(self, rows: slice) -> Batch:
        """Some of the samples; arrays are views."""
        targets = None if self.targets is None else self.targets[rows]
        others = {name: values[rows] for name, values in self.others.items()}
        return Batch(
            *(self.rows[rows], self.index[rows], self.inputs[rows], self.labels[rows], self.paths[rows], targets),
            others,
        )


def batches(
    dataset: Dataset, preprocess: Preprocess | None, batch_size: int, *, skip: Iterable[int] = ()
) -> Iterator[Batch]:
    """Read a data set in order, decoding a few batches ahead in background threads.

    A sample that cannot be read is left out of its batch and noted in ``dataset.failures``. Which samples share a batch
    does not depend on `skip`, so that an interrupted run that resumes computes the very same numbers.

    Parameters
    ----------
    dataset : Dataset
    preprocess : Preprocess or None
        None is allowed for arrays only.
    batch_size : int
        Largest number of samples in a batch.
    skip : iterable of int
        Rows of `dataset` to leave out, such as those a store already holds.

    Yields
    ------
    Batch
        Never empty.

    Raises
    ------
    DataError
        At once when pictures come without preprocessing; at the end when not one sample of the data set could be read.
    """
    if batch_size < 1:
        raise DataError(f"batch size is {batch_size}; expected at least 1")
    if dataset.of_pictures and preprocess is None:
        raise DataError(f"{dataset.root}: pictures need preprocessing (size, layout, range), and none is given")
    skipped = set(skip)
    blocks = (range(start, min(start + batch_size, len(dataset))) for start in range(0, len(dataset), batch_size))
    groups = [group for block in blocks if (group := [row for row in block if row not in skipped])]
    return _read_ahead(dataset, preprocess, groups)


_Inputs = tuple[np.ndarray, dict[str, np.ndarray]]


def _read_ahead(dataset: Dataset, preprocess: Preprocess | None, groups: list[list[int]]) -> Iterator[Batch]:
    waiting: deque[tuple[list[int], list[Future[_Inputs]]]] = deque()
    failed = 0

    def read(row: int) -> _Inputs:
        return dataset.read(row, preprocess), dataset.read_others(row, preprocess)

    with ThreadPoolExecutor(max_workers=min(_MOST_READERS, os.cpu_count() or 1), thread_name_prefix="decode") as pool:
        try:
            for position in range(len(groups) + BATCHES_AHEAD):
                if position < len(groups):
                    group = groups[position]
                    waiting.append((group, [pool.submit(read, row) for row in group]))
                if position < BATCHES_AHEAD or not waiting:
                    continue
                batch, failures = _collect(dataset, *waiting.popleft())
                dataset.failures.update(failures)
                failed += len(failures)
                if batch is not None:
                    yield batch
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    if failed and failed == len(dataset):
        path, reason = next(iter(dataset.failures.items()))
        raise DataError(f"{dataset.root}: none of the {failed} samples could be read; the first, {path}: {reason}")


def _collect(dataset: Dataset, group: list[int], reading: list[Future[_Inputs]]) -> tuple[Batch | None, dict[str, str]]:
    """A batch of what could be read, and the reasons of what could not."""
    rows, inputs, failures = [], [], {}
    for row, sample in zip(group, reading, strict=True):
        try:
            inputs.append(sample.result())
            rows.append(row)
        except Exception as error:  # decoders raise anything, from SyntaxError to struct.error, on broken files
            failures[dataset.samples[row].path] = reason_of(error)
    if not rows:
        return None, failures
    targets = None if dataset.targets is None else dataset.targets[rows]
    paths = [dataset.samples[row].path for row in rows]
    others = {name: np.stack([further[name] for _, further in inputs]) for name in inputs[0][1]}
    first = np.stack([main for main, _ in inputs])
    return Batch(np.array(rows), dataset.index[rows], first, dataset.labels[rows], paths, targets, others), failures


def reason_of(error: Exception) -> str:
    """Why a sample could not be read, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture, or of a kind that Pillow cannot read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def as_picture(values: np.ndarray) -> Image.Image | None:
    """A uint8 array as a picture: (H, W), or with 1, 3 or 4 channels last or first; None for any other shape."""
    if values.ndim == 3 and values.shape[-1] not in (1, 3, 4) and values.shape[0] in (1, 3, 4):
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim == 2 or (values.ndim == 3 and values.shape[-1] in (3, 4)):
        return Image.fromarray(np.ascontiguousarray(values))
    return None
