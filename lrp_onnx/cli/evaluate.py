"""`lrp-onnx evaluate`: are heatmaps faithful to the model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lrp_onnx.cli.options import ExtensionsOption, JsonOption, Model, OverwriteOption, run_extensions
from lrp_onnx.cli.output import count, progress, show_failures, show_json

NAME = "evaluate"


def command(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="HDF5 file of `heatmaps`.", show_default=False)],
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write.")] = Path(
        "evaluation"
    ),
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DATA", help="Where the images are now, if they moved.", show_default=False),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            metavar="NAMES",
            help="Separated by commas: flipping, road, deletion, insertion, sparseness, sensitivity, randomisation; "
            "all by default.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Evaluate the first so many images.", show_default=False)
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Of the curves; shuffled models at most.")] = 20,
    seed: Annotated[int, typer.Option("--seed", help="Of everything random.")] = 0,
    extensions: ExtensionsOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure whether heatmaps show what the model uses: each metric in a sentence, against chance.

    flipping, road, deletion, insertion: what the score does when pixels go in the order of their relevance. sparseness:
    how few pixels hold it. sensitivity: what a little noise changes. randomisation: whether heatmaps change when the
    model's weights are shuffled.
    """
    from lrp_onnx.debug.evaluation import METRICS, evaluate_store

    run_extensions(extensions)
    names = METRICS if metrics is None else tuple(name.strip() for name in metrics.split(",") if name.strip())
    with progress("Evaluating") as advance:
        found = evaluate_store(
            store,
            model,
            output,
            data=data,
            metrics=names,
            limit=limit,
            steps=steps,
            seed=seed,
            overwrite=overwrite,
            progress=advance,
        )
    if as_json:
        verdicts = [asdict(one) for one in found.verdicts]
        show_json({"folder": found.folder, "images": len(found.paths), "skipped": found.skipped, "verdicts": verdicts})
        return
    show_failures(found.skipped)
    for verdict in found.verdicts:
        print(f"{verdict.metric}: {verdict.sentence}")
    print(f"{count(len(found.paths), 'image')} -> {found.folder}")
