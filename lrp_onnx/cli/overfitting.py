"""`lrp-onnx overfitting`: does a model look at other things on held-out images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lrp_onnx.cli.options import JsonOption, OverwriteOption
from lrp_onnx.cli.output import progress, show_json

NAME = "overfitting"
_MOST_REASONS = 8


def command(
    training: Annotated[
        Path,
        typer.Argument(metavar="TRAINING", help="HDF5 file of `heatmaps` on training images.", show_default=False),
    ],
    heldout: Annotated[
        Path,
        typer.Argument(metavar="HELDOUT", help="The same on images held out of training.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write.")] = Path(
        "overfitting"
    ),
    regions: Annotated[
        Path | None,
        typer.Option(
            "--regions", metavar="REGIONS", help="Objects on images of both, as `localise` takes.", show_default=False
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the random splits.")] = 0,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare decisions and heatmaps on training and held-out images, class by class.

    Accuracy, confidence, and where and how densely relevance lies, each by a rank test with its effect size; mean
    heatmaps against random splits; with regions, how much relevance is on the object.
    """
    from lrp_onnx.debug.overfitting_report import write_overfitting

    with progress("Comparing") as advance:
        found = write_overfitting(
            training, heldout, output, regions=regions, seed=seed, overwrite=overwrite, progress=advance
        )
    if as_json:
        show_json({"folder": output, **asdict(found.finding), "rows": [asdict(row) for row in found.rows]})
        return
    print(found.finding.verdict)
    for reason in found.finding.reasons[:_MOST_REASONS]:
        print(f"  {reason}")
    if len(found.finding.reasons) > _MOST_REASONS:
        print(f"  and {len(found.finding.reasons) - _MOST_REASONS} more in measures.csv")
    print(f"-> {output}")
