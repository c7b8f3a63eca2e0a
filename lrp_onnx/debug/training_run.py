"""`TrainingRun`: explains some validation images at every epoch of a training and keeps what it sees in a folder."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray

from lrp_onnx.converters.base import one_line
from lrp_onnx.data import Dataset, open_dataset
from lrp_onnx.data.dataset import Sample
from lrp_onnx.debug.current_weights import CurrentWeights
from lrp_onnx.debug.training_page import write_page
from lrp_onnx.debug.training_record import EpochRecord, ImageRecord, Role, read_records, spread, thirds, write_records
from lrp_onnx.debug.training_strips import Strips
from lrp_onnx.debug.undisturbed import undisturbed
from lrp_onnx.engine import DEFAULT_COMPOSITE
from lrp_onnx.errors import DataError, LrpOnnxError
from lrp_onnx.folders import refuse_folder
from lrp_onnx.graph import Graph, load
from lrp_onnx.heatmaps import compute_heatmaps
from lrp_onnx.inputs import describe
from lrp_onnx.predictions import predict
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.render import reduce_channels
from lrp_onnx.rules import Composite
from lrp_onnx.store import HeatmapStore

if TYPE_CHECKING:
    from lrp_onnx.debug.training_board import Board

logger = logging.getLogger(__name__)

Model = CurrentWeights | onnx.ModelProto | bytes | str | os.PathLike[str]
RECORDS, PAGE = "training.json", "index.html"
_MOST_WATCHED, _MOST_IN_PANEL, _SAMPLED = 10, 8, 8


class TrainingRun:
    """Heatmaps of a model in training, in a folder.

    In `directory` appear ``index.html`` (curves, strips over the epochs, what it cost), ``training.json`` (all
    numbers), ``strips/`` (PNG) and ``stores/`` (a heatmap store per epoch). Training itself is not touched.

    Parameters
    ----------
    directory : path-like
        Made when missing.
    images : array, path or Dataset
        The validation images: (N, C, H, W), (N, H, W, C) or (N, H, W) as the model takes them, or anything that
        `open_dataset` reads. Every one is predicted at every recorded epoch; some hundreds are enough.
    labels : int array (N,), optional
        Their classes; those of the data set by default.
    every : int
        Record epochs that are multiples of it, and the first that is reported.
    classes : sequence of str, optional
        Names by index.
    watch : sequence of int, optional
        The classes whose best and worst image is explained; all of them by default, or ten evenly spread ones.
    panel : sequence of int, optional
        Rows of the images that are explained at every epoch; by default the first of each watched class, at most eight.
    preprocess : Preprocess or mapping, optional
        How pictures become inputs, with their size; needed for image files. For arrays it only says how to show them.
    composite : str or Composite
    target : {"label", "predicted"}
        The output that is explained.
    batch_size : int
    tensorboard : bool
        Also write the heatmaps as TensorBoard images, to ``tensorboard/``.
    strict : bool
        Raise errors instead of logging them once and letting training go on.
    resume, overwrite : bool
        Go on with the run in `directory`, or replace it; otherwise a folder that holds one is an error.

    Raises
    ------
    DataError
        Images, labels, panel or classes do not fit each other, or TensorBoard files cannot be written.
    OutputError
        `directory` is in use.

    Examples
    --------
    >>> run = TrainingRun("run", validation_images, validation_labels, classes=["cat", "dog"])     # doctest: +SKIP
    >>> model.fit(x, y, epochs=20, callbacks=[keras_callback(run)])                                # doctest: +SKIP
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        images: ArrayLike | str | os.PathLike[str] | Dataset,
        labels: ArrayLike | None = None,
        *,
        every: int = 1,
        classes: Sequence[str] | None = None,
        watch: Sequence[int] | None = None,
        panel: Sequence[int] | None = None,
        preprocess: Preprocess | Mapping[str, Any] | None = None,
        composite: str | Composite = DEFAULT_COMPOSITE,
        target: Literal["label", "predicted"] = "label",
        batch_size: int = 32,
        tensorboard: bool = False,
        strict: bool = False,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        if every < 1:
            raise DataError(f"every is {every}; expected a number of epochs, at least 1")
        if target not in ("label", "predicted"):
            raise DataError(f"target is {target!r}; expected 'label' or 'predicted'")
        self.directory, self.every, self.strict = Path(directory), every, strict
        self.dataset = _dataset(images, labels, classes)
        self.composite, self.target, self.batch_size = composite, target, batch_size
        self.preprocess = None if preprocess is None else Preprocess.for_input(preprocess, ())
        self.watch = self._watched(watch)
        self.panel = self._panel(panel)
        refuse_folder(self.directory, RECORDS, overwrite or resume)
        if overwrite and not resume and self.directory.is_dir():
            shutil.rmtree(self.directory)
        before = self.directory / RECORDS
        self.epochs: list[EpochRecord] = read_records(before) if before.is_file() else []
        write_records(before, self._about, self.epochs)  # a folder that cannot be written shows before training
        self._board = _open_board(self.directory) if tensorboard else None
        self._said: set[str] = set()
        self._last: float | None = None  # when the record before was done
        self._strips: Strips | None = None

    @property
    def sample(self) -> NDArray[Any]:
        """Some of the images as the model takes them, (n, …)."""
        read: list[NDArray[Any]] = []
        for row in range(len(self.dataset)):
            with suppress(Exception):  # a broken file is left out, as it is later
                read.append(self.dataset.read(row, self.preprocess))
            if len(read) == _SAMPLED:
                break
        if not read:
            raise DataError(f"{self.dataset.root}: no validation image can be read; picture files need preprocess")
        return np.stack(read)

    def due(self, epoch: int) -> bool:
        """Whether this epoch is one to record."""
        return epoch % self.every == 0 or self._last is None

    def record(self, epoch: int, model: Model, metrics: Mapping[str, Any] | None = None) -> EpochRecord | None:
        """Explain the model as it is after `epoch`; nothing happens and None is returned when the epoch is not due.

        Parameters
        ----------
        epoch : int
            One that is recorded already is replaced, with all after it.
        model : CurrentWeights, onnx.ModelProto, bytes or path
        metrics : mapping, optional
            Those of its values that are numbers, such as the training loss, are kept.

        Raises
        ------
        Exception
            Whatever went wrong, only if the run is strict.
        """
        if not self.due(epoch):
            return None
        started = time.perf_counter()
        seconds = {} if self._last is None else {"training": started - self._last}
        new = EpochRecord(epoch, metrics=_numbers(metrics or {}), seconds=seconds)
        self.epochs = [*(e for e in self.epochs if e.epoch < epoch), new]
        for step in (partial(self._explain, model), self._draw, self._write):
            try:
                with undisturbed():
                    step()
            except Exception as error:  # days of training are worth more than the heatmaps of an epoch
                self._failed(error)
            seconds["total"] = time.perf_counter() - started
        self._last = time.perf_counter()
        return self.epochs[-1]

    def _failed(self, error: Exception) -> None:
        if self.strict:
            raise error
        reason, last = _reason(error), self.epochs[-1]
        self.epochs[-1] = replace(last, error=last.error or reason)
        if reason not in self._said:
            self._said.add(reason)
            logger.warning(
                "%s: heatmaps of epoch %d failed: %s. Training goes on, later epochs are tried, this is said once",
                self.directory,
                last.epoch,
                reason,
            )

    def _explain(self, model: Model) -> None:
        record = self.epochs[-1]
        seconds = record.seconds
        with _timed(seconds, "export"):
            source = model() if isinstance(model, CurrentWeights) else model
        with _timed(seconds, "explain"):
            graph = self._described(load(source))
        with _timed(seconds, "predict"):
            seen = _Seen(graph, self.dataset, self.batch_size)
        chosen = self._chosen(seen)
        rows = sorted({row for _, row in chosen})
        name = f"stores/epoch-{record.epoch:05d}.h5"
        with _timed(seconds, "explain"):
            heatmaps = compute_heatmaps(
                graph,
                self.dataset.subset(rows),
                self.directory / name,
                composite=self.composite,
                target=self.target,
                batch_size=min(self.batch_size, 16),  # the walk holds every activation of a batch
                overwrite=True,
            )
        with HeatmapStore(heatmaps.path) as store:
            mass = [thirds(reduce_channels(store.attribution[row])) for row in range(len(rows))]
        images = tuple(ImageRecord(role, row, (at := rows.index(row)), *seen.of(row), mass[at]) for role, row in chosen)
        export = model.how if isinstance(model, CurrentWeights) else ""
        self.epochs[-1] = replace(
            record, loss=seen.loss, accuracy=seen.accuracy, store=name, export=export, images=images
        )

    def _described(self, graph: Graph) -> Graph:
        graph = describe(graph, self.preprocess, self.dataset.classes)
        if self._strips is None:
            self._strips = Strips(self.directory, graph, self.dataset, self.watch, self.target)
        return graph

    def _chosen(self, seen: _Seen) -> list[tuple[Role, int]]:
        chosen: list[tuple[Role, int]] = [("panel", row) for row in self.panel if row in seen.position]
        for label in self.watch:
            mine = seen.rows[seen.labels == label]
            if len(mine):
                scores = seen.score[seen.labels == label]
                chosen += [("best", int(mine[scores.argmax()])), ("worst", int(mine[scores.argmin()]))]
        return chosen

    def _watched(self, watch: Sequence[int] | None) -> list[int]:
        there = np.unique(self.dataset.labels[self.dataset.labels >= 0]).tolist()
        if watch is None:
            return spread(there, _MOST_WATCHED)
        if missing := [label for label in watch if label not in there]:
            raise DataError(f"watch: no validation image has class {missing[0]}; there are {there[:20]}")
        return list(dict.fromkeys(int(label) for label in watch))

    def _panel(self, panel: Sequence[int] | None) -> list[int]:
        if panel is None:
            firsts = [int(np.flatnonzero(self.dataset.labels == label)[0]) for label in self.watch]
            return spread(firsts, _MOST_IN_PANEL)
        if wrong := [row for row in panel if not 0 <= row < len(self.dataset) or self.dataset.labels[row] < 0]:
            raise DataError(f"panel: no labelled image in row {wrong[0]}; rows go from 0 to {len(self.dataset) - 1}")
        return list(dict.fromkeys(int(row) for row in panel))

    def _draw(self) -> None:
        last = self.epochs[-1]
        if self._strips is None or not last.store:
            return
        with _timed(last.seconds, "draw"):
            self._strips.draw(self.epochs)
            if self._board is not None:
                self._board.write(last.epoch, self._strips.overlays(last))

    @property
    def _about(self) -> dict[str, Any]:
        composite = self.composite if isinstance(self.composite, str) else self.composite.name
        return {
            "classes": None if self.dataset.classes is None else list(self.dataset.classes),
            "validation_images": len(self.dataset),
            "watched": self.watch,
            "composite": composite,
            "target": self.target,
        }

    def _write(self) -> None:
        write_records(self.directory / RECORDS, self._about, self.epochs)
        write_page(self.directory / PAGE, self._about, self.epochs)


class _Seen:
    """What a model says of all validation images; arrays of the n that could be read."""

    def __init__(self, graph: Graph, dataset: Dataset, batch_size: int) -> None:
        results = list(predict(graph, dataset, batch_size=batch_size))
        self.rows = np.concatenate([result.rows for result in results])
        self.labels = np.concatenate([result.labels for result in results])
        self.predicted = np.concatenate([result.verdict.predicted for result in results])
        correct = np.concatenate([result.verdict.correct for result in results])
        loss = np.concatenate([result.verdict.loss for result in results])
        name = next(iter(graph.outputs))
        activation = graph.cuts[name].op_type if name in graph.cuts else ""
        outputs = [result.scores if activation == "Sigmoid" else result.output for result in results]
        scores = _probabilities(np.concatenate(outputs), activation)
        if self.labels.max() >= scores.shape[1]:
            raise DataError(
                f"a validation image has class {self.labels.max()}, but the model tells {scores.shape[1]} classes apart"
            )
        every = np.arange(len(scores))
        self.score, self.confidence = scores[every, self.labels], scores[every, self.predicted]
        labelled = self.labels >= 0
        self.loss = float(loss[labelled].mean())
        self.accuracy = float((correct[labelled] == 1).mean())
        self.position = {int(row): at for at, row in enumerate(self.rows)}

    def of(self, row: int) -> tuple[int, int, float, float]:
        """Label, predicted class, score of the label, score of the prediction."""
        at = self.position[row]
        return int(self.labels[at]), int(self.predicted[at]), float(self.score[at]), float(self.confidence[at])


def _probabilities(output: NDArray[Any], activation: str) -> NDArray[np.float64]:
    """Scores per class, (n, K): sigmoid's own, or the softmax of logits; one output speaks for two classes."""
    if output.ndim != 2:
        raise DataError(f"the model's output has shape {output.shape}; expected a score per class, (n, K)")
    values = output.astype(np.float64)
    if output.shape[1] == 1:
        positive = values if activation == "Sigmoid" else 1 / (1 + np.exp(-values))
        return np.concatenate([1 - positive, positive], axis=1)
    if activation == "Sigmoid":
        return values
    odds = np.exp(values - values.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def _dataset(
    images: ArrayLike | str | os.PathLike[str] | Dataset, labels: ArrayLike | None, classes: Sequence[str] | None
) -> Dataset:
    names = None if classes is None else tuple(str(name) for name in classes)
    given = None if labels is None else np.asarray(labels)
    if given is not None and (given.ndim != 1 or given.dtype.kind not in "iu"):
        raise DataError(f"labels have shape {given.shape} and type {given.dtype}; expected class indexes, (N,)")
    if isinstance(images, Dataset):
        dataset = images
    elif isinstance(images, str | os.PathLike):
        dataset = open_dataset(images, classes=names)
    else:
        array = np.asarray(images)
        if array.ndim not in (3, 4) or not len(array):
            raise DataError(f"images have shape {array.shape}; expected (N, C, H, W), (N, H, W, C) or (N, H, W)")
        samples = [Sample(f"validation[{row}]", None, row) for row in range(len(array))]
        dataset = Dataset(Path("validation"), samples, names, array)
    if given is not None:
        if len(given) != len(dataset):
            raise DataError(f"{len(given)} labels for {len(dataset)} validation images")
        samples = [replace(s, label=int(label)) for s, label in zip(dataset.samples, given, strict=True)]
        dataset = Dataset(dataset.root, samples, names or dataset.classes, dataset.array)
    if not (dataset.labels >= 0).any():
        raise DataError("no validation image has a label; give labels, the class index of each image")
    return dataset


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, LrpOnnxError) else one_line(error)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    numbers = {}
    for name, value in values.items():
        with suppress(TypeError, ValueError, RuntimeError):  # the last is what torch raises for several numbers
            numbers[str(name)] = float(value)
    return numbers


def _open_board(directory: Path) -> Board:
    from lrp_onnx.debug.training_board import open_board

    return open_board(directory / "tensorboard")


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
