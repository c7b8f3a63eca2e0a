"""`lrp-onnx stability`: what variations do to a model's answers and heatmaps, as a table."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lrp_onnx.cli.options import JsonOption, OverwriteOption, SmoothOption
from lrp_onnx.cli.output import progress, show_json, show_notes

NAME = "stability"


def command(
    store: Annotated[
        Path,
        typer.Argument(metavar="STORE", help="HDF5 file of `heatmaps MODEL DIR/manifest.csv`.", show_default=False),
    ],
    manifest: Annotated[
        Path, typer.Argument(metavar="MANIFEST", help="DIR/manifest.csv of `vary`.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write.")] = Path("stability"),
    smooth: SmoothOption = 2.0,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show by class and variation how many answers are right, how sure they are, and whether heatmaps stay the same.

    Heatmaps of turned, mirrored or cropped pictures are moved back onto the original's first. The store holds the
    answers too, so results of `test` are not needed.
    """
    from lrp_onnx.debug.stability import write_stability

    with progress("Comparing") as advance:
        found = write_stability(store, manifest, output, smooth=smooth, overwrite=overwrite, progress=advance)
    if as_json:
        show_json(asdict(found))
        return
    show_notes(found.notes)
    for sentence in found.worst:
        print(sentence)
    if not found.worst:
        print("no variation costs a right answer, or changes a decision or a heatmap")
    print(f"-> {found.table}, {found.chart}")
