"""`lrp-onnx demo`: two real models on real photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrp_onnx.cli.options import JsonOption
from lrp_onnx.cli.output import show_json

NAME = "demo"


def command(
    output: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write.")] = Path("demo"),
    as_json: JsonOption = False,
) -> None:
    """Convert a PyTorch and a Keras model, explain them on photographs, and draw what they looked at.

    Needs the packages of the extra "demo".
    """
    from lrp_onnx.demo import run_demo

    results = run_demo(output, say=(lambda line: None) if as_json else print)
    if as_json:
        show_json({"demos": results})
