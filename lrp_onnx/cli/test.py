"""`lrp-onnx test`: predictions of a model as a CSV table."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lrp_onnx.cli.options import (
    ClassesOption,
    Data,
    ExtensionsOption,
    JsonOption,
    Model,
    OverwriteOption,
    PreprocessOption,
    UnlabelledOption,
    load_model,
    run_extensions,
)
from lrp_onnx.cli.output import count, progress, show_failures, show_json, show_notes, status

NAME = "test"


def command(
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Option("-o", "--output", help="CSV file to write.")] = Path("results.csv"),
    preprocess: PreprocessOption = None,
    classes: ClassesOption = None,
    unlabelled: UnlabelledOption = False,
    extensions: ExtensionsOption = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Samples at a time.")] = 32,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Predict every sample: image, label, predicted, correct, loss and a score per class.

    The table is what `heatmaps --errors` reads to explain only what went wrong.
    """
    from lrp_onnx.files import refuse_existing

    refuse_existing(output, overwrite)
    run_extensions(extensions)
    with status(f"Loading {model}"):
        graph = load_model(model, preprocess, classes)
    from lrp_onnx.inputs import open_both
    from lrp_onnx.predictions import write_predictions

    graph, dataset = open_both(graph, data, unlabelled=unlabelled)
    with progress("Predicting") as advance:
        result = write_predictions(graph, dataset, output, batch_size=batch_size, overwrite=overwrite, progress=advance)
    if as_json:
        show_json(asdict(result))
        return
    show_notes(result.notes)
    show_failures(result.failures)
    print(f"{count(result.samples, 'prediction')} -> {result.path}")
    if result.accuracy is not None:
        print(f"accuracy {result.accuracy:.2%} ({result.correct} of {result.labelled})")
    if result.mean_loss is not None:
        print(f"mean loss {result.mean_loss:.4g}")
