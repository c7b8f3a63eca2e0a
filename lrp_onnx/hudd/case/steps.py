"""The steps of a HUDD case: what each is made from, how it is done, and the files it leaves."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lrp_onnx.errors import DataError
from lrp_onnx.heatmaps import compute_heatmaps
from lrp_onnx.hudd.case.settings import MODELS, RETRAINED
from lrp_onnx.hudd.case.state import Parts, digest, file_digest
from lrp_onnx.hudd.case.work import Work
from lrp_onnx.hudd.clusters import INPUT
from lrp_onnx.hudd.improve import retrain_unsafe
from lrp_onnx.hudd.labels import fill_labels, read_labels
from lrp_onnx.hudd.outputs import cluster_store
from lrp_onnx.hudd.records import CHOSEN, CLUSTERING, DISTANCES, read_clusters
from lrp_onnx.hudd.unsafe import ASSIGNMENT, TABLE, assign_store
from lrp_onnx.inputs import classes_of, number_of_outputs
from lrp_onnx.predictions import Predictions, write_predictions

RESULTS = {"test": "testResult.csv", "training": "trainResult.csv", "improvement": "improveResult.csv"}
ERRORS, CORRECT, CANDIDATES = "T/heatmaps.h5", "T/correct.h5", "T/improvement.h5"
UNSAFE, RETRAINING, REPORT = "T/UnsafeSet", "T/retraining.json", "T/report.html"
_VALIDATION = 0.2  # of training and unsafe images, where the case has no validation set


@dataclass(frozen=True)
class Outcome:
    """What a step found, in one line.

    Attributes
    ----------
    summary : str
    stop : str
        Why the steps behind it make no sense now; empty where they do.
    result : str
        Hash of all that later steps take from it, where that does not follow from what it was made from.
    """

    summary: str
    stop: str = ""
    result: str = ""


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes
    ----------
    name, title : str
    run : callable (Work, resume)
        Does it; `resume` says that an interrupted run was made from the same.
    parts : callable (Work)
        What it is made from.
    outputs : tuple of str
        Patterns of the files in the case that must be there when it is done.
    always : bool
        Run it each time: what it reads is edited by people.
    """

    name: str
    title: str
    run: Callable[[Work, bool], Outcome]
    parts: Callable[[Work], Parts]
    outputs: tuple[str, ...]
    always: bool = False


STEPS: list[Step] = []


def _step(title: str, parts: Callable[[Work], Parts], *outputs: str, always: bool = False) -> Callable[..., Any]:
    """Make a function a step; they run in the order in which they are written here."""

    def register(run: Callable[[Work, bool], Outcome]) -> Callable[[Work, bool], Outcome]:
        STEPS.append(Step(run.__name__, title, run, parts, outputs, always))
        return run

    return register


def _tested(work: Work) -> Parts:
    return work.model_parts() | work.setting_parts("test")


def _explained(work: Work) -> Parts:
    return work.composite_parts() | work.setting_parts("heatmaps", "batch_size")


@_step("Predict the test set", lambda work: _tested(work) | work.data_parts("test"), RESULTS["test"])
def test(work: Work, resume: bool) -> Outcome:
    found = _predict(work, "test")
    if not found.labelled:
        raise DataError(
            f"{work.case.data('test')}: nothing says what is correct, so that errors cannot be told; label it"
        )
    wrong = found.labelled - found.correct
    summary = f"{wrong} of {found.labelled} images are errors ({found.correct / found.labelled:.2%} correct)"
    if not wrong:
        return Outcome(summary, "no errors on the test set, so there is nothing to debug")
    if wrong == 1:
        image = next(row["image"] for row in _rows(found.path) if row["correct"] == "0")
        return Outcome(summary, f"one error only, so there is nothing to cluster; look at {image}")
    return Outcome(summary)


@_step("Predict the training set", lambda work: _tested(work) | work.data_parts("training"), RESULTS["training"])
def training(work: Work, resume: bool) -> Outcome:
    found = _predict(work, "training")
    known = found.labelled
    return Outcome(f"{found.correct / known:.2%} of {known} images correct" if known else f"{found.samples} images")


@_step(
    "Explain the errors",
    lambda work: work.step_parts("test") | _explained(work) | work.setting_parts("heatmaps", "layers"),
    ERRORS,
)
def heatmaps(work: Work, resume: bool) -> Outcome:
    layers = work.case.settings.heatmaps.layers
    found = _explain(work, "test", ERRORS, resume, errors=work.case.path(RESULTS["test"]), layers=layers)
    went = f"; of the relevance {found.shares}" if found.shares is not None else ""
    return Outcome(f"{found.samples} errors, {len(found.layers)} inner layers{went}")


@_step(
    "Explain correct images",
    lambda work: work.step_parts("test") | _explained(work) | work.setting_parts("heatmaps", "correct_per_class"),
    CORRECT,
)
def correct(work: Work, resume: bool) -> Outcome:
    results, most = work.case.path(RESULTS["test"]), work.case.settings.heatmaps.correct_per_class
    if not any(row["correct"] == "1" for row in _rows(results)):
        work.case.path(CORRECT).unlink(missing_ok=True)
        return Outcome("no image is handled correctly")
    found = _explain(work, "test", CORRECT, resume, correct=results, per_class=most, layers=INPUT)
    return Outcome(f"{found.samples} correctly handled images to compare with")


@_step(
    "Find root causes",
    lambda work: work.step_parts("heatmaps") | work.setting_parts("cluster"),
    f"T/{DISTANCES}",
    f"T/{CHOSEN}/{CLUSTERING}",
)
def cluster(work: Work, resume: bool) -> Outcome:
    settings = asdict(work.case.settings.cluster)
    found = cluster_store(work.case.path(ERRORS), work.case.results, overwrite=True, progress=work.progress, **settings)
    clusters = sum(one.medoid is not None for one in found.clusters)
    noise = int((found.clustering.labels < 0).sum())
    summary = f"{clusters} clusters of {found.images} errors, layer {found.clustering.layer}"
    summary += f", {noise} errors are noise" if noise else ""
    if not clusters:
        return Outcome(summary, "no two errors have enough in common to be a cluster")
    summary += f"; {found.inspected} images to inspect, {found.inspected / found.images:.1%}"
    return Outcome(summary + _gone(work, found.without_image))


@_step(
    "Explain the improvement set",
    lambda work: work.step_parts("cluster") | _tested(work) | _explained(work) | work.data_parts("improvement"),
    RESULTS["improvement"],
    CANDIDATES,
)
def improvement(work: Work, resume: bool) -> Outcome:
    _predict(work, "improvement")
    layer = read_clusters(work.case.results).clustering.layer
    found = _explain(work, "improvement", CANDIDATES, resume, layers=INPUT if layer == INPUT else [layer])
    return Outcome(f"{found.samples} images, layer {layer}")


@_step(
    "Select the unsafe set",
    lambda work: work.step_parts("cluster", "improvement") | work.setting_parts("assign"),
    f"{UNSAFE}/{TABLE}",
    f"{UNSAFE}/{ASSIGNMENT}",
)
def assign(work: Work, resume: bool) -> Outcome:
    settings = asdict(work.case.settings.assign)
    candidates, unsafe = work.case.path(CANDIDATES), work.case.path(UNSAFE)
    found = assign_store(candidates, work.case.results, unsafe, overwrite=True, progress=work.progress, **settings)
    selected = len(found.assignment.selected)
    summary = f"{selected} of {found.images} images to label{_gone(work, found.without_image)}"
    return Outcome(summary, "" if selected else found.assignment.explanation)


def _labels(work: Work) -> Parts:
    """The table as it is now, so that `status` knows what a person has filled in since."""
    return work.step_parts("assign") | {f"labels in {TABLE}": file_digest(work.case.path(UNSAFE, TABLE))}


@_step("Label the unsafe set", _labels, always=True)
def label(work: Work, resume: bool) -> Outcome:
    unsafe, classes = work.case.path(UNSAFE), classes_of(work.graph) or work.data("training").classes
    kind: dict[str, Any] = {"outputs": number_of_outputs(work.graph), "regression": work.regression}
    if work.known_labels is not None:
        fill_labels(unsafe, work.known_labels, classes, **kind)
    labels = read_labels(unsafe, classes, **kind, partial=True)
    known, missing = len(labels), len(labels.unlabelled)
    summary = f"{known} of {known + missing} images labelled"
    if missing and not (work.case.settings.label.partial and known):
        which = f" ({labels.missing})" if known else ""
        need = f"{missing} image{'s need' if missing > 1 else ' needs'} a label{which}"
        return Outcome(summary, f"{need}: fill in the column label of {unsafe / TABLE}, run again")
    return Outcome(summary, result=digest([work.step_parts("assign"), labels.paths, labels.answers.tolist()]))


@_step(
    "Retrain",
    lambda work: (
        work.step_parts("label", "test")
        | work.data_parts("training")
        | work.data_parts("validation")
        | work.setting_parts("retrain")
    ),
    RETRAINING,
    f"{MODELS}/*{RETRAINED}.onnx",
)
def retrain(work: Work, resume: bool) -> Outcome:
    case = work.case
    settings = asdict(case.settings.retrain)
    settings["patience"] = settings["patience"] or None
    found = retrain_unsafe(
        work.graph,
        work.data("training"),
        case.path(UNSAFE),
        case.retrained,
        test=work.data("test"),
        validation=_VALIDATION if case.data("validation") is None else work.data("validation"),
        clusters=case.results,
        record=case.path(RETRAINING),
        model_path=case.model,
        measure=case.settings.test.loss,
        threshold=case.settings.test.threshold,
        partial=case.settings.label.partial,
        overwrite=True,
        progress=work.progress,
        **settings,
    )
    verdict = found.verdict
    if verdict is None:
        return Outcome(f"trained on {len(found.labels)} labelled images")
    changed = f"{len(verdict.improved)} images improved, {len(verdict.worsened)} worsened"
    measured = f"{verdict.measure} {verdict.before:.2%} -> {verdict.after:.2%}"
    if not found.retrained.improved:
        changed = "no epoch was better on the validation images, so the weights stay"
    return Outcome(f"{'better' if verdict.better else 'not better'}: {measured}, {changed}")


def _predict(work: Work, name: str) -> Predictions:
    return write_predictions(
        work.graph,
        work.data(name),
        work.case.path(RESULTS[name]),
        overwrite=True,
        progress=work.over(f"Predicting the {name} set"),
        **asdict(work.case.settings.test),
    )


def _explain(work: Work, name: str, store: str, resume: bool, **options: Any) -> Any:
    return compute_heatmaps(
        work.graph,
        work.data(name),
        work.case.path(store),
        composite=work.composite,
        batch_size=work.case.settings.heatmaps.batch_size,
        **_explained_output(work),
        resume=resume,
        overwrite=not resume,
        progress=work.over(f"Explaining the {name} set"),
        **options,
    )


def _explained_output(work: Work) -> dict[str, Any]:
    """The same for errors and improvement set, whose heatmaps are compared: without answers, no output is the worst."""
    if not work.regression:
        return {}
    if work.data("improvement").targets is not None or number_of_outputs(work.graph) == 1:
        return {"target": "worst"}
    return {"seed": "all"}


def _gone(work: Work, images: int) -> str:
    """What to do about images that cannot be shown: heatmaps of a case that was moved name files where they were."""
    return f"; {images} images are not where they were: if the case moved, remove {work.state.path}" if images else ""


def _rows(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
