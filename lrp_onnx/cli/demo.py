"""`lrp-onnx demo`: HUDD's loop on handwritten digits, or heatmaps of real models on photographs."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lrp_onnx.cli.options import JsonOption
from lrp_onnx.cli.output import show_json

NAME = "demo"


class Show(StrEnum):
    digits = "digits"
    photos = "photos"


def command(
    show: Annotated[Show, typer.Argument(metavar="digits|photos", help="What to demonstrate.")] = Show.digits,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Folder to write; demo/NAME by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """See it work on real data.

    digits: train a network on handwritten digits, find the root causes of its errors, label only the images that
    resemble them, and retrain: the whole of HUDD. Needs the packages of the extra "demo".

    photos: convert a PyTorch and a Keras model, explain them on photographs, and draw what they looked at. Needs the
    packages of the extra "photos".
    """
    folder = output or Path("demo") / show.value
    say: Any = (lambda line: None) if as_json else lambda line: print(line, flush=True)
    if show is Show.digits:
        from lrp_onnx.demo.digits import run_digits

        found = asdict(run_digits(folder, say))
    else:
        from lrp_onnx.demo.photos import run_photos

        found = {"demos": run_photos(folder, say)}
    if as_json:
        show_json(found)
