"""From a labelled unsafe set to a retrained model beside the original, and an account of what that changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from lrp_onnx.data import Dataset
from lrp_onnx.errors import DataError, OutputError
from lrp_onnx.files import refuse_existing, save_model, written_whole
from lrp_onnx.graph import Graph, load
from lrp_onnx.hudd.balance import Balanced, bootstrap
from lrp_onnx.hudd.before_after import TestVerdict, clusters_of, judge_models
from lrp_onnx.hudd.label_table import few
from lrp_onnx.hudd.labels import Labels, fill_labels, read_labels
from lrp_onnx.hudd.retrain import Optimizer, Retrained, retrain
from lrp_onnx.hudd.training import Epoch, Loss
from lrp_onnx.hudd.training_data import Data, Examples, examples, split
from lrp_onnx.inputs import classes_of, number_of_outputs, open_both
from lrp_onnx.losses import LOSSES
from lrp_onnx.losses import Loss as Measure

RECORD = "retraining.json"
FORMAT, FORMAT_VERSION = "lrp-onnx-retraining", 1
_HASH_LENGTH = 8
Report = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Improved:
    """What `retrain_unsafe` did.

    Attributes
    ----------
    model, record : pathlib.Path
        The retrained model, and the account of it.
    retrained : Retrained
    labels : Labels
    verdict : TestVerdict or None
        None without a test set.
    failures : dict of str to str
        Path and reason of each sample that could not be read.
    notes : tuple of str
        What the user should know.
    contents : dict
        What the record holds.
    """

    model: Path
    record: Path
    retrained: Retrained
    labels: Labels
    verdict: TestVerdict | None
    failures: dict[str, str]
    notes: tuple[str, ...]
    contents: dict[str, Any]

    @property
    def better(self) -> bool | None:
        """Whether the model is better on the test set; None without one."""
        return None if self.verdict is None else self.verdict.better


def retrain_unsafe(
    model: Graph | str | os.PathLike[str],
    training: Data | list[Data],
    unsafe: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    test: Data | None = None,
    validation: Data | list[Data] | float = 0.2,
    clusters: str | os.PathLike[str] | None = None,
    store: str | os.PathLike[str] | None = None,
    oracle: Dataset | str | os.PathLike[str] | None = None,
    record: str | os.PathLike[str] | None = None,
    model_path: str | os.PathLike[str] | None = None,
    epochs: int = 10,
    optimizer: Optimizer = "sgd",
    learning_rate: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch_size: int = 32,
    patience: int | None = 5,
    loss: Loss | None = None,
    seed: int = 0,
    device: str = "cpu",
    measure: Measure | None = None,
    threshold: float | None = None,
    partial: bool = False,
    overwrite: bool = False,
    progress: Report | None = None,
    epoch: Callable[[Epoch], None] | None = None,
) -> Improved:
    """Retrain a model on its training set and the balanced unsafe set, and say what that changed on a test set.

    A run that was interrupted, even killed, goes on where it was when it is called again with the same data and
    settings, and ends with the same files.

    Parameters
    ----------
    model : Graph or path
        Is not modified.
    training, validation : as in `retrain`
        A fraction for `validation` is set aside of training and unsafe set together.
    unsafe : path-like
        Labelled folder of `assign_store`, or the table in it.
    output : path-like
        ONNX file to write. Where no epoch was better on the validation set, it has the original weights.
    test : Dataset, path or (inputs, answers), optional
    clusters, store : path-like, optional
        As in `read_clusters`; judges the test images of each cluster, too.
    oracle : Dataset or path, optional
        Known labels, which are written into the empty cells of the table first (`fill_labels`).
    record : path-like, optional
        JSON file to write; ``retraining.json`` beside `output` by default.
    model_path : path-like, optional
        File of a model that is given as a Graph.
    epochs, optimizer, learning_rate, momentum, weight_decay, batch_size, patience, seed, device
        As in `retrain`.
    loss : {"cross-entropy", "mse", "mae"}, optional
        By default cross-entropy for classes, mse for numbers to regress.
    measure : {"mse", "mae", "landmarks"}, optional
        Regression: the loss by which test images are judged, by default the one that is trained.
    threshold : float, optional
        Regression: largest loss of a correct image, in units of `measure`; needed with `test`.
    partial : bool
        Go on without the images that have no label.
    overwrite : bool
        Replace what is at `output` and `record`.
    progress : callable (step, done, total), optional
    epoch : callable, optional
        Called with each `Epoch`, 0 included.

    Raises
    ------
    DataError
        Labels, data, clusters and options do not fit each other, or there is nothing to learn from.
    ModelError, UnsupportedOpError, ConversionError
        The model cannot be trained.
    OutputError
        Something is at `output` or `record` and `overwrite` is False, or they cannot be written.
    """
    report = progress or (lambda step, done, total: None)
    where = model_path if isinstance(model, Graph) else model
    files = _Files(Path(output), Path(output).with_name(RECORD) if record is None else Path(record))
    files.refuse(None if where is None else Path(where), overwrite)
    graph = model if isinstance(model, Graph) else load(model)
    sources = training if isinstance(training, list) else [training]
    parts = [part if isinstance(part, tuple) else open_both(graph, part)[1] for part in sources]
    regression = any(map(_numbers, parts))
    loss = loss or ("mse" if regression else "cross-entropy")
    _check_criterion(regression, loss, test is not None, measure, threshold)
    if clusters is not None and test is None:
        raise DataError("clusters are judged by the images of a test set; give it, too")
    classes = classes_of(graph) or next((part.classes for part in parts if isinstance(part, Dataset)), None)

    labels, notes, of_oracle = _labels(unsafe, oracle, classes, number_of_outputs(graph), regression, partial)
    balanced = _balanced(labels, seed)
    images = labels.dataset(classes)
    whole = examples(graph, [*parts, images.subset(balanced.images)], regression=regression, what="training set")
    measure = measure or (loss if loss != "cross-entropy" else None)
    if isinstance(validation, int | float):
        learn, check = split(whole, validation, seed)
    else:
        learn, check = whole, examples(graph, validation, regression=regression, what="validation set")
    judged = None if test is None else examples(graph, test, regression=regression, what="test set").dataset
    groups = None if judged is None or clusters is None else clusters_of(judged, clusters, store)

    options: dict[str, Any] = {
        "epochs": epochs, "optimizer": optimizer, "learning_rate": learning_rate, "momentum": momentum,
        "weight_decay": weight_decay, "batch_size": batch_size, "patience": patience, "loss": loss, "seed": seed,
    }  # fmt: skip
    settings = {
        **options,
        "device": device,
        "measure": measure,
        "threshold": threshold,
        "partial": partial,
        "validation": validation if isinstance(validation, int | float) else _root(check),
        "training": _root(learn),
        "unsafe": str(labels.unsafe.table),
        "oracle": None if oracle is None else str(oracle.root if isinstance(oracle, Dataset) else oracle),
        "test": None if judged is None else str(judged.root),
        "clusters": None if clusters is None else str(clusters),
    }
    work = files.begin([graph.sha256, learn.digest(), check.digest(), settings], overwrite)
    try:
        retrained = retrain(
            graph,
            learn.dataset,
            check.dataset,
            **options,
            device=device,
            checkpoint=work / "checkpoint.pt",
            resume=True,
            progress=epoch,
            step=lambda done, total: report("Training", done, total),
        )
    except BaseException:
        with suppress(OSError):  # a folder that holds a checkpoint stays
            work.rmdir()
        raise
    save_model(retrained.model, files.model, overwrite=True)
    new = replace(load(files.model), metadata=graph.metadata)
    failures = dict(retrained.failures)
    result = None
    if judged is not None:
        result = judge_models(graph, new, judged, report, groups=groups, measure=measure, threshold=threshold)
        failures |= judged.failures
        if judged.failures:
            notes.append(f"{len(judged.failures)} of {len(judged)} test images could not be read and are left out")
    notes += [*_absent(labels, classes), *retrained.notes]
    contents = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": {"path": graph.name if where is None else str(where), "sha256": graph.sha256},
        "retrained": {"path": str(files.model), "sha256": new.sha256},
        "settings": settings,
        "training_images": len(whole) - len(balanced.images),
        "labelled_images": len(labels),
        "balanced_images": len(balanced.images),
        "validation_images": len(check),
        "history": [{name: _finite(value) for name, value in vars(one).items()} for one in retrained.history],
        "best_epoch": retrained.best_epoch,
        "stopped": retrained.stopped,
        "difference": _finite(retrained.difference),
        "route": retrained.route,
        "notes": notes,
        "verdict": None if result is None else _plain(result),
    }
    with written_whole(files.record, overwrite=True) as path:
        path.write_text(json.dumps(contents, ensure_ascii=False, indent=1, allow_nan=False), encoding="utf-8")
    files.end()
    return Improved(files.model, files.record, retrained, labels, result, failures, (*of_oracle, *notes), contents)


@dataclass(frozen=True)
class _Files:
    """What is written, and a hidden folder beside it that shows, while it is there, that a run has not ended.

    Its name follows from the run's data and settings, so that the same run is continued and another one is not.
    """

    model: Path
    record: Path

    def refuse(self, original: Path | None, overwrite: bool) -> None:
        """Raise OutputError for what may not be replaced; where a run has not ended, `begin` knows whether it may."""
        if original is not None and self.model.resolve() == original.resolve():
            raise OutputError(f"{self.model} is the model itself, which is kept; name another file")
        for path in (self.model, self.record):
            refuse_existing(path, overwrite or bool(_leftovers(self.model)))

    def begin(self, run: Sequence[Any], overwrite: bool) -> Path:
        """The hidden folder, which is there already if this very run did not end."""
        name = hashlib.sha256(json.dumps(run).encode()).hexdigest()[:_HASH_LENGTH]
        work = self.model.with_name(f".{self.model.name}.{name}")
        if not work.is_dir():
            for path in (self.model, self.record):
                refuse_existing(path, overwrite)
            self.end()
            try:
                work.mkdir(parents=True)
            except OSError as error:
                raise OutputError(f"{self.model}: cannot be written ({error.strerror})") from error
        return work

    def end(self) -> None:
        """Clear away what this and earlier runs left behind."""
        for folder in (*_leftovers(self.model), *_leftovers(self.record)):
            shutil.rmtree(folder, ignore_errors=True)


def _leftovers(path: Path) -> list[Path]:
    """Hidden folders beside a file: ours, and those from which it is moved into place once it is written."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{{_HASH_LENGTH}}}")
    return [one for one in path.parent.glob(".*") if name.fullmatch(one.name) and one.is_dir()]


def _check_criterion(regression: bool, loss: str, tested: bool, measure: str | None, threshold: float | None) -> None:
    """What is wrong here should show before training, not after it."""
    if loss not in get_args(Loss):
        raise DataError(f"loss is '{loss}'; expected one of {', '.join(get_args(Loss))}")
    if (loss != "cross-entropy") != regression:
        kind = "numbers to regress: mse or mae" if regression else "classes: cross-entropy"
        raise DataError(f"loss '{loss}' does not fit the training set, which has {kind}")
    if not regression and (measure is not None or threshold is not None):
        raise DataError("a class is right or wrong, by its label; measure and threshold are for numbers to regress")
    if measure is not None and measure not in LOSSES:
        raise DataError(f"measure is '{measure}'; expected one of {', '.join(LOSSES)}")
    if threshold is not None and not 0 <= threshold < np.inf:
        raise DataError(f"threshold is {threshold}; expected a number of at least 0, in units of the measure")
    if regression and tested and threshold is None:
        raise DataError("regression: give the threshold above which the loss of a test image is an error (--threshold)")


def _numbers(part: Dataset | tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether these are samples with numbers to regress."""
    return np.asarray(part[1]).dtype.kind == "f" if isinstance(part, tuple) else part.targets is not None


def _labels(
    unsafe: str | os.PathLike[str],
    oracle: Dataset | str | os.PathLike[str] | None,
    classes: Sequence[str] | None,
    outputs: int | None,
    regression: bool,
    partial: bool,
) -> tuple[Labels, list[str], tuple[str, ...]]:
    """The labels, what the record notes of them, and what is said only by the run that fills in those of the oracle."""
    kind: Any = {"outputs": outputs, "regression": regression}
    notes: list[str] = []
    of_oracle: tuple[str, ...] = ()
    if oracle is not None:
        filled = fill_labels(unsafe, oracle, classes, **kind)
        of_oracle = filled.notes
        if filled.unknown:
            unknown = f"{len(filled.unknown)} images have no known label: {few(filled.unknown)}"
            if not partial:
                raise DataError(f"{filled.table}: {unknown}; fill them in, or go on without them with --partial")
            notes.append(unknown)
    labels = read_labels(unsafe, classes, **kind, partial=partial)
    saved = labels.unsafe
    if not saved.selected:
        raise DataError(f"{saved.folder}: there is nothing to learn from: {saved.explanation}")
    if not len(labels):
        raise DataError(f"{saved.table}: not one of {len(saved.selected)} images has a label; fill them in")
    return labels, [*notes, *labels.notes], of_oracle


def _balanced(labels: Labels, seed: int) -> Balanced:
    profile = labels.unsafe.profile
    size = max(labels.unsafe.quotas.values()) if profile == "hudd" else None
    return bootstrap(labels.selected, profile=profile, size=size, seed=seed)


def _absent(labels: Labels, classes: Sequence[str] | None) -> list[str]:
    """Clusters and classes that the unsafe set has no image of: retraining has nothing for them."""
    notes = []
    of_cluster = {one.cluster for one in labels.selected}
    if clusters := [cluster for cluster in labels.unsafe.quotas if cluster not in of_cluster]:
        notes.append(f"no labelled image for {'cluster' if len(clusters) == 1 else 'clusters'} {few(clusters)}")
    if classes and labels.answers.dtype.kind == "i":
        there = set(labels.answers.tolist())
        if missing := [repr(name) for index, name in enumerate(classes) if index not in there]:
            notes.append(f"no labelled image of {'class' if len(missing) == 1 else 'classes'} {few(missing)}")
    return notes


def _root(part: Examples) -> str:
    return str(part.dataset.root)


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _plain(found: TestVerdict) -> dict[str, Any]:
    return {**vars(found), "better": found.better, "clusters": [vars(one) for one in found.clusters]}
