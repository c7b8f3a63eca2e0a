"""`lrp-onnx convert`: a model of any framework to a checked ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrp_onnx.cli.options import (
    BatchAxisOption,
    ClassesOption,
    JsonOption,
    OverwriteOption,
    PreprocessOption,
    read_shape,
)
from lrp_onnx.cli.output import show_json, show_notes, status

NAME = "convert"


def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Keras file (.keras .h5), SavedModel folder, .tflite, frozen graph (.pb), PyTorch file (.pt2 .pt "
            ".pth), module:factory, or .onnx.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="ONNX file to write.")] = Path("model.onnx"),
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Weights to load first: .safetensors, .pth, .weights.h5.", show_default=False),
    ] = None,
    input_shape: Annotated[
        list[str] | None,
        typer.Option(
            "--input-shape",
            metavar="SIZES",
            help="One sample's shape without the batch, such as 3,224,224; repeat it for several inputs.",
            show_default=False,
        ),
    ] = None,
    preprocess: PreprocessOption = None,
    classes: ClassesOption = None,
    batch_axis: BatchAxisOption = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Allow files whose loading runs code that they contain.")
    ] = False,
    signature: Annotated[
        str | None, typer.Option("--signature", help="Which signature of a SavedModel.", show_default=False)
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--inputs", metavar="TENSOR", help="Input of a frozen graph; repeatable.", show_default=False),
    ] = None,
    outputs: Annotated[
        list[str] | None,
        typer.Option("--outputs", metavar="TENSOR", help="Output of a frozen graph; repeatable.", show_default=False),
    ] = None,
    custom_objects: Annotated[
        list[str] | None,
        typer.Option(
            "--custom-objects",
            metavar="MODULE:NAME",
            help="Class or function that a Keras model uses and Keras does not know; repeatable.",
            show_default=False,
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Convert a model to ONNX and check it against its source.

    Preprocessing, class names and where the batch is travel in the ONNX file, so that later commands need not be told.
    """
    from lrp_onnx.batch_axis import read_batch_axis, write_batch_axis
    from lrp_onnx.files import refuse_existing, save_model
    from lrp_onnx.inputs import read_classes, read_preprocess

    refuse_existing(output, overwrite)
    shapes = [read_shape(text) for text in input_shape] if input_shape else None
    pictures, names, axis = read_preprocess(preprocess), read_classes(classes), read_batch_axis(batch_axis)
    from lrp_onnx.converters import convert

    with status(f"Converting {source}"):
        conversion = convert(
            source,
            weights=weights,
            input_shape=shapes,
            trust_pickle=trust_pickle,
            preprocess=pictures,
            classes=names,
            signature=signature,
            inputs=inputs,
            outputs=outputs,
            custom_objects=custom_objects,
        )
    if axis is not None:
        write_batch_axis(conversion.model, axis)
    files = save_model(conversion.model, output, overwrite=overwrite)
    if as_json:
        show_json(
            {
                "model": output,
                "files": files,
                "framework": conversion.framework,
                "route": conversion.how,
                "difference": conversion.difference,
                "relative_difference": conversion.relative,
                "notes": conversion.notes,
            }
        )
        return
    show_notes(conversion.notes)
    print(f"{source} ({conversion.framework}) -> {output}, by {conversion.how}")
    if conversion.framework == "onnx":
        print("checked: valid ONNX (there is no source framework to compare with)")
    else:
        print(
            f"checked: largest difference to {conversion.framework} {conversion.difference:.2g}, "
            f"relative {conversion.relative:.2g}"
        )
