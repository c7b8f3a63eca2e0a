"""`lrp-onnx test`: predictions of a model as a CSV table."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrp_onnx.cli.options import (
    BatchAxisOption,
    ClassesOption,
    Data,
    ExtensionsOption,
    JsonOption,
    LossOption,
    Model,
    OutputNameOption,
    OverwriteOption,
    PreprocessOption,
    SchedulerOption,
    ThresholdOption,
    UnlabelledOption,
    VocabOption,
    load_model,
    run_extensions,
)
from lrp_onnx.cli.output import count, progress, show_failures, show_json, show_notes, status

if TYPE_CHECKING:
    from lrp_onnx.predictions import Regression

NAME = "test"
_MOST_PARTS = 20  # outputs, or landmarks, shown


def command(
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Option("-o", "--output", help="CSV file to write.")] = Path("results.csv"),
    preprocess: PreprocessOption = None,
    classes: ClassesOption = None,
    batch_axis: BatchAxisOption = None,
    unlabelled: UnlabelledOption = False,
    output_name: OutputNameOption = None,
    vocab: VocabOption = None,
    extensions: ExtensionsOption = None,
    loss: LossOption = None,
    threshold: ThresholdOption = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Samples at a time.")] = 32,
    scheduler: SchedulerOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Predict every sample: image, label, predicted, correct, loss and a score per class.

    For regression also what the loss is, the worst output or landmark, and the error of each landmark.

    The table is what `heatmaps --errors` reads to explain only what went wrong.
    """
    from lrp_onnx.files import refuse_existing

    refuse_existing(output, overwrite)
    run_extensions(extensions)
    with status(f"Loading {model}"):
        graph = load_model(model, preprocess, classes, batch_axis)
    from lrp_onnx.inputs import open_both
    from lrp_onnx.predictions import write_predictions

    graph, dataset = open_both(graph, data, unlabelled=unlabelled, output=output_name, vocabulary=vocab)
    with progress("Predicting") as advance:
        options: Any = {"loss": loss, "threshold": threshold}  # their values are checked by the library
        result = write_predictions(
            graph,
            dataset,
            output,
            output=output_name,
            batch_size=batch_size,
            overwrite=overwrite,
            scheduler=scheduler,
            progress=advance,
            **options,
        )
    if as_json:
        show_json(asdict(result))
        return
    show_notes(result.notes)
    show_failures(result.failures)
    print(f"{count(result.samples, 'prediction')} -> {result.path}")
    if result.regression is not None:
        _print(result.regression)
        return
    if result.accuracy is not None:
        print(f"accuracy {result.accuracy:.2%} ({result.correct} of {result.labelled})")
    if result.mean_loss is not None:
        print(f"mean loss {result.mean_loss:.4g}")


def _print(found: Regression) -> None:
    landmarks = found.loss == "landmarks"
    if landmarks:
        print(f"mean pixel error {found.mean_error:.4g}")
    else:
        print(f"mean squared error {found.mean_squared_error:.4g}, mean absolute error {found.mean_absolute_error:.4g}")
    if found.above is not None:
        share = f"{found.above / found.measured:.2%} ({found.above} of {count(found.measured, 'sample')})"
        print(f"{found.loss} above {found.threshold:g}: {share}")
    if len(found.parts) > 1:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(
            "landmark" if landmarks else "output", "mean error", "samples", "worst in", box=None, pad_edge=False
        )
        for part in found.parts[:_MOST_PARTS]:
            table.add_row(Text(part.name), f"{part.error:.4g}", str(part.samples), str(part.worst))
        Console(highlight=False).print(table)
    if len(found.parts) > _MOST_PARTS:
        print(f"and {len(found.parts) - _MOST_PARTS} more with smaller errors (--json shows all)")
