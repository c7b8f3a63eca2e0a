"""`lrp-onnx hudd`: a case directory, all HUDD steps on it, and how far they are."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrp_onnx.cli.options import JsonOption
from lrp_onnx.cli.output import show_json, steps

if TYPE_CHECKING:
    from lrp_onnx.hudd.case import StepStatus

NAME = "hudd"
_WIDTH = 28

Case = Annotated[Path, typer.Argument(metavar="CASE", help="Case directory.", show_default=False)]
app = typer.Typer(
    no_args_is_help=True,
    help="From the errors of a test set to root causes to a better model, in a case directory.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _data(what: str) -> typer.models.OptionInfo:
    return typer.Option(
        f"--{what}", metavar="DATA", help=f"The {what} set, if it stays where it is.", show_default=False
    )


@app.command("init")
def init(
    case: Case,
    model: Annotated[
        Path | None, typer.Option("--model", metavar="FILE", help="The ONNX model, if it stays where it is.")
    ] = None,
    training: Annotated[Path | None, _data("training")] = None,
    test: Annotated[Path | None, _data("test")] = None,
    improvement: Annotated[Path | None, _data("improvement")] = None,
    validation: Annotated[Path | None, _data("validation")] = None,
) -> None:
    """Make a case directory: folders for model and data, and case.toml with every setting explained."""
    from lrp_onnx.hudd.case.settings import DATA, MODELS, SETTINGS, init_case

    data = {"training": training, "test": test, "improvement": improvement, "validation": validation}
    named = {"model": {"file": model}, "data": data}
    said = {section: {name: path for name, path in one.items() if path is not None} for section, one in named.items()}
    made = init_case(case, said)
    print(f"{made.root / SETTINGS}: the settings, all optional")
    if model is None:
        print(f"{made.root / MODELS}: put the ONNX model here (`lrp-onnx convert`)")
    for folder in sorted(path for path in made.root.glob(f"{DATA}/*") if path.is_dir()):
        print(f"{folder}: put the images here, in a folder per class or with a manifest.csv")
    print(f"then: lrp-onnx hudd run {case}")


@app.command("run")
def run(
    case: Case,
    oracle: Annotated[
        Path | None,
        typer.Option(
            "--oracle",
            metavar="DATA",
            help="Known labels of the improvement set (folder per class, CSV manifest, .npz), in place of a person.",
            show_default=False,
        ),
    ] = None,
    require_improvement: Annotated[
        bool, typer.Option("--require-improvement", help="Exit with 1 unless the retrained model is better.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Do every step that is not up to date; stops where a person must label, and goes on when run again.

    A step is done again when its model, data, settings or an earlier result changed; a killed one goes on.
    """
    from lrp_onnx.hudd.case import run_case

    with steps() as advance:
        found = run_case(case, oracle=oracle, progress=advance, say=None if as_json else _say)
    if as_json:
        show_json({**asdict(found), "better": found.better})
    else:
        if found.stopped:
            print(found.stopped)
        if found.report is not None:
            print(f"report: {found.report}")
        if found.retrained is not None:
            print(f"retrained model: {found.retrained}")
    if require_improvement and not found.better:
        raise typer.Exit(1)


@app.command("status")
def status(case: Case, as_json: JsonOption = False) -> None:
    """Show which steps are done, and why others must run."""
    from lrp_onnx.hudd.case import case_status

    with steps() as advance:
        found = case_status(case, progress=advance)
    if as_json:
        show_json({"steps": [asdict(one) for one in found]})
        return
    for one in found:
        print(f"{one.title:<{_WIDTH}}  {one.condition:<11}  {one.detail}".rstrip())


def _say(step: StepStatus, ran: bool) -> None:
    print(f"{step.title:<{_WIDTH}}  {step.detail}{'' if ran else '  (up to date)'}", flush=True)
