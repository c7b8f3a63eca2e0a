"""All steps of a HUDD case, each only where it is not up to date; and what is known of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from lrp_onnx.errors import LrpOnnxError, OutputError
from lrp_onnx.hudd.case.settings import Case
from lrp_onnx.hudd.case.state import Parts, Record, State, changes
from lrp_onnx.hudd.case.steps import CORRECT, REPORT, RESULTS, RETRAINING, STEPS, UNSAFE, Step
from lrp_onnx.hudd.case.work import Progress, Work, step_part
from lrp_onnx.hudd.report import write_report
from lrp_onnx.hudd.unsafe import TABLE

STATE, LOCK = "state.json", ".lock"
Condition = Literal["done", "stops here", "interrupted", "out of date", "not done"]


@dataclass(frozen=True)
class StepStatus:
    """How far a step is: its `name` and `title`, its `condition`, and `detail`, what it found or why it must run."""

    name: str
    title: str
    condition: Condition
    detail: str


@dataclass(frozen=True)
class CaseRun:
    """What `run_case` did.

    Attributes
    ----------
    root : pathlib.Path
    steps : tuple of StepStatus
        Those that are done, in order.
    ran : tuple of str
        Names of those that this call ran; the others were up to date.
    stopped : str
        Why it ended before the last step, such as labels that a person must give; empty where it did not.
    report : pathlib.Path or None
    retrained : pathlib.Path or None
        The retrained model.
    better : bool or None
        Whether it handles more images of the test set correctly; None without it.
    """

    root: Path
    steps: tuple[StepStatus, ...]
    ran: tuple[str, ...]
    stopped: str
    report: Path | None
    retrained: Path | None
    better: bool | None


def run_case(
    root: str | os.PathLike[str],
    *,
    oracle: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    say: Callable[[StepStatus, bool], None] | None = None,
) -> CaseRun:
    """Do the steps of a case that are not up to date, as far as possible; the report is written wherever it stops.

    A step is up to date when it was finished with the same model, data, settings and results of earlier steps, and its
    files are there. One that was killed goes on where it was.

    Parameters
    ----------
    root : path-like
        The case directory.
    oracle : path-like, optional
        Known labels of the improvement set; without them, or those of the settings, a person labels the unsafe set.
    progress : callable (what, done, total), optional
    say : callable (StepStatus, ran), optional
        Called after each step.

    Raises
    ------
    LrpOnnxError
        What the steps raise; what is done stays.
    """
    case = Case.open(root)
    lock = FileLock(case.results / LOCK)  # the system lets go of it however this process ends
    try:
        case.results.mkdir(exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputError(f"{case.root}: another `hudd run` is at work on this case; wait for it") from error
    except OSError as error:
        raise OutputError(f"{case.results}: cannot be written ({error.strerror or error})") from error
    try:
        return _run(case, None if oracle is None else Path(oracle), progress or (lambda what, done, total: None), say)
    finally:
        lock.release()


def _run(
    case: Case, oracle: Path | None, progress: Progress, say: Callable[[StepStatus, bool], None] | None
) -> CaseRun:
    state = State.read(case.results / STATE)
    work = Work(case, state, oracle, progress)
    done: list[StepStatus] = []
    ran: list[str] = []
    stopped = ""
    for step in STEPS:
        parts = step.parts(work)
        fresh = not step.always and _condition(step, work, parts)[0] in ("done", "stops here")
        record = state.records[step.name] if fresh else _do(step, work, parts)
        if not fresh:
            ran.append(step.name)
        done.append(StepStatus(step.name, step.title, "done", record.summary))
        if say is not None:
            say(done[-1], not fresh)
        if stopped := record.stop:
            break
    names = {one.name for one in done}
    report = _report(work, names) if "cluster" in names else None
    retrained, better = None, None
    if "retrain" in names:
        retrained = case.retrained
        better = bool(json.loads(case.path(RETRAINING).read_text(encoding="utf-8"))["verdict"]["better"])
    return CaseRun(case.root, tuple(done), tuple(ran), stopped, report, retrained, better)


def case_status(root: str | os.PathLike[str], *, progress: Progress | None = None) -> tuple[StepStatus, ...]:
    """How far a case is; nothing is written.

    Raises
    ------
    DataError
        There is no case, or its settings cannot be used.
    """
    case = Case.open(root)
    state = State.read(case.results / STATE)
    work = Work(case, state, progress=progress or (lambda what, done, total: None))
    found: list[StepStatus] = []
    ends_at = ""
    for step in STEPS:
        if ends_at:
            found.append(StepStatus(step.name, step.title, "not done", f"after: {ends_at}"))
            continue
        try:
            parts = step.parts(work)
        except LrpOnnxError as error:
            found.append(StepStatus(step.name, step.title, "not done", str(error)))
            ends_at = step.title
            continue
        waits = next((one for one in found if one.condition != "done" and step_part(one.name) in parts), None)
        if waits is not None:
            found.append(StepStatus(step.name, step.title, "not done", f"after: {waits.title}"))
            continue
        condition, detail = _condition(step, work, parts)
        found.append(StepStatus(step.name, step.title, condition, detail))
        ends_at = step.title if condition == "stops here" else ""
    return tuple(found)


def _do(step: Step, work: Work, parts: Parts) -> Record:
    before = work.state.records.get(step.name)
    resume = before is not None and before.inputs == parts and not before.summary
    work.state.note(step.name, Record(parts))
    outcome = step.run(work, resume)
    # known labels are written into the table that the step is made from
    record = Record(step.parts(work) if step.always else parts, outcome.summary, outcome.stop, outcome.result)
    work.state.note(step.name, record)
    return record


def _condition(step: Step, work: Work, parts: Parts) -> tuple[Condition, str]:
    """How far a step is that would be made from `parts` now, and what it found or why it must run."""
    record = work.state.records.get(step.name)
    if record is None:
        return "not done", ""
    if record.inputs != parts:
        return "out of date", f"changed: {changes(record.inputs, parts)}"
    if not record.summary:
        return "interrupted", "goes on where it was"
    if missing := _missing(step, work):
        return "out of date", f"{missing} is gone"
    return ("stops here", record.stop) if record.stop else ("done", record.summary)


def _missing(step: Step, work: Work) -> str:
    """The first of the step's files that is not there."""
    return next((name for name in step.outputs if not any(work.case.root.glob(name))), "")


def _report(work: Work, done: set[str]) -> Path:
    """Write the report from what is up to date; files of steps that are not may still be there from earlier runs."""
    case, path = work.case, work.case.path(REPORT)
    record = Record(work.step_parts(*sorted(done)), "written")
    if path.is_file() and work.state.records.get("report") == record:
        return path
    made_by = {
        **{case.path(table): step for step, table in RESULTS.items()},
        case.path(CORRECT): "correct",
        case.path(UNSAFE): "assign",
        case.path(UNSAFE, TABLE): "label",
        case.path(RETRAINING): "retrain",
        case.retrained: "retrain",
    }
    there = {path for path, step in made_by.items() if step in done and path.exists()}

    def made(name: str) -> Path | None:
        return case.path(name) if case.path(name) in there else None

    # stores are not hashed again: they can be large, and the report says of which one the clusters are
    hashed = [case.model, *sorted(path for path in there if path.is_file() and path.suffix != ".h5")]
    settings = vars(case.settings).items()
    write_report(
        path,
        case.results,
        correct=made(CORRECT),
        results=made(RESULTS["test"]),
        unsafe=made(UNSAFE),
        retraining=made(RETRAINING),
        title=f"HUDD report: {case.root.resolve().name}",
        parameters={f"{section}: {name}": value for section, one in settings for name, value in vars(one).items()},
        files={os.path.relpath(path, case.root): path for path in hashed},
        overwrite=True,
        progress=work.progress,
    )
    work.state.note("report", record)
    return path
