"""The commands as one program, from which every error leaves as one line and an exit code."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

import typer

from lrp_onnx import __version__
from lrp_onnx.cli import (
    assign,
    cluster,
    compare,
    convert,
    demo,
    evaluate,
    heatmaps,
    hudd,
    inspect,
    localise,
    overfitting,
    render,
    retrain,
    stability,
    test,
    vary,
    verify,
    video,
)
from lrp_onnx.errors import LrpOnnxError

USER_ERROR, INTERNAL_ERROR, INTERRUPTED = 2, 1, 130

app = typer.Typer(
    name="lrp-onnx",
    help="Explain why a neural network decides as it does: layer-wise relevance propagation on any ONNX graph.",
    epilog="First steps: convert a model, compute heatmaps of a folder of pictures, render them. Or: lrp-onnx demo",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"lrp-onnx {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error and what is logged.")] = False,
) -> None:
    """Take the options that stand in front of a command; `run` has read --debug before, wherever it stood."""


for command in (
    convert,
    inspect,
    test,
    heatmaps,
    render,
    cluster,
    assign,
    retrain,
    vary,
    video,
    stability,
    localise,
    compare,
    evaluate,
    verify,
    overfitting,
    demo,
):
    app.command(command.NAME)(command.command)
app.add_typer(hudd.app, name=hudd.NAME)


def main() -> None:
    """Run the program on `sys.argv` and exit."""
    # Read when torch is imported: its threads then sleep while they wait. Spinning ones hold up whoever else is on the
    # machine, and are held up: on two busy cores a training step was four to ten times as fast without.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "--debug" not in sys.argv:
        # `run` catches everything; what comes here is h5py, at length, after a file could not be written.
        sys.unraisablehook = lambda _: None
        sys.excepthook = lambda *_: None
    code = run(sys.argv[1:])
    if code == 0:
        return
    with suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    # When a file could not be written (full disk), HDF5's own clean-up at exit tries again and crashes the process.
    os._exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit code.

    0 all went well, 1 an error of this program, 2 an error that the user can mend, 130 interrupted.
    """
    debug = "--debug" in arguments
    if debug:
        logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
        logging.getLogger("lrp_onnx").setLevel(logging.DEBUG)
    else:
        warnings.simplefilter("ignore")
    try:
        command = typer.main.get_command(app)
        given = [argument for argument in arguments if argument != "--debug"] or ["--help"]
        code = command.main(given, prog_name="lrp-onnx", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        line, code = _describe(error)
        print(f"error: {line}", file=sys.stderr)
        return code
    if code == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _describe(error: Exception) -> tuple[str, int]:
    """What went wrong in one line, and the exit code."""
    if hasattr(error, "format_message"):  # a usage error; its class has changed its home between versions of typer
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "lrp-onnx"
        return f"{_one_line(error.format_message())} (see {path} --help)", USER_ERROR
    if isinstance(error, LrpOnnxError):
        return _one_line(str(error)), USER_ERROR
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or _one_line(str(error))}", USER_ERROR
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory; use a smaller --batch-size or fewer --layers", USER_ERROR
    found = f"{type(error).__name__}: {_one_line(str(error))}"
    return f"internal error, {found} (run with --debug to see where)", INTERNAL_ERROR


def _one_line(text: str) -> str:
    return " ".join(text.split())
