"""`lrp-onnx heatmaps`: relevance of a data set into an HDF5 store."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from lrp_onnx.cli.options import (
    BatchAxisOption,
    BiasOption,
    ClassesOption,
    CompositeOption,
    Data,
    EpsOption,
    ExtensionsOption,
    GammaOption,
    HighOption,
    JsonOption,
    LossOption,
    LowOption,
    Model,
    OutputNameOption,
    OverwriteOption,
    PreprocessOption,
    RuleOption,
    SchedulerOption,
    TargetOption,
    ThresholdOption,
    UnlabelledOption,
    VocabOption,
    load_model,
    read_composite,
    run_extensions,
)
from lrp_onnx.cli.output import count, progress, show_failures, show_json, show_notes, status

NAME = "heatmaps"


def command(
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Option("-o", "--output", help="HDF5 store to write.")] = Path("heatmaps.h5"),
    composite: CompositeOption = "epsilon-plus-flat",
    rule: RuleOption = None,
    extensions: ExtensionsOption = None,
    target: TargetOption = "predicted",
    output_name: OutputNameOption = None,
    seed: Annotated[
        str,
        typer.Option(
            "--seed",
            metavar="auto|logit|one|all",
            help="Initial relevance: the target's value, 1, or every output's value; auto: logit, for gradients one.",
        ),
    ] = "auto",
    layers: Annotated[
        str,
        typer.Option(
            "--layers",
            metavar="input|all|NAMES",
            help='Tensors to store: the input alone, all inner ones too, or names and patterns ("*conv*"), '
            "separated by commas; `lrp-onnx inspect` lists them.",
        ),
    ] = "input",
    errors: Annotated[
        Path | None,
        typer.Option("--errors", metavar="CSV", help="Explain only what this table calls wrong.", show_default=False),
    ] = None,
    correct: Annotated[
        Path | None,
        typer.Option(
            "--correct", metavar="CSV", help="Explain only what this table calls correct.", show_default=False
        ),
    ] = None,
    per_class: Annotated[
        int | None,
        typer.Option("--per-class", help="With --correct: at most so many of each class.", show_default=False),
    ] = None,
    loss: LossOption = None,
    threshold: ThresholdOption = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Explain the first so many samples.", show_default=False)
    ] = None,
    preprocess: PreprocessOption = None,
    classes: ClassesOption = None,
    batch_axis: BatchAxisOption = None,
    unlabelled: UnlabelledOption = False,
    vocab: VocabOption = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            help="Samples at a time; memory grows with it. Left out: 8, or as many as fit into half the free memory.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="cpu|cuda", help="Where to compute.")] = "cpu",
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            metavar="float32|float64|bfloat16",
            help="Precision. bfloat16 keeps two or three digits, and is fast where the processor has kernels for it.",
        ),
    ] = "float32",
    layer_dtype: Annotated[
        str, typer.Option("--layer-dtype", metavar="float32|float16", help="Precision of inner layers in the store.")
    ] = "float32",
    compress: Annotated[
        str | None,
        typer.Option("--compress", metavar="gzip|lzf|zstd|lz4", help="Compress it in the end.", show_default=False),
    ] = None,
    eps: EpsOption = None,
    gamma: GammaOption = None,
    bias: BiasOption = None,
    low: LowOption = None,
    high: HighOption = None,
    scheduler: SchedulerOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted store.")] = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Explain every sample and write the relevance to an HDF5 store.

    Ctrl-C loses nothing that is done: the same command with --resume goes on.

    Samples that cannot be read are listed at the end; their rows stay empty and are not marked done.
    """
    from lrp_onnx.heatmaps import check_output, compute_heatmaps
    from lrp_onnx.inputs import open_both
    from lrp_onnx.memory import keep_freed_memory

    keep_freed_memory()
    check_output(output, resume=resume, overwrite=overwrite)
    run_extensions(extensions)
    rules = read_composite(composite, rule, eps=eps, gamma=gamma, bias=bias, low=low, high=high)
    with status(f"Loading {model}"):
        described = load_model(model, preprocess, classes, batch_axis)
        graph, dataset = open_both(described, data, unlabelled=unlabelled, output=output_name, vocabulary=vocab)
    with progress("Explaining") as advance:
        options: Any = {
            "seed": seed,
            "dtype": dtype,
            "loss": loss,
            "threshold": threshold,
        }  # their values are checked by the library
        try:
            result = compute_heatmaps(
                graph,
                dataset,
                output,
                composite=rules,
                target=target,
                output=output_name,
                vocabulary=vocab,
                layers=layers,
                errors=errors,
                correct=correct,
                per_class=per_class,
                limit=limit,
                batch_size=batch_size,
                device=device,
                layer_dtype=layer_dtype,
                compress=compress,
                scheduler=scheduler,
                resume=resume,
                overwrite=overwrite,
                progress=advance,
                **options,
            )
        except KeyboardInterrupt:
            if advance.total:
                print(
                    f"{advance.done} of {count(advance.total, 'sample')} are in {output}; the same command with "
                    "--resume (and without --overwrite) goes on",
                    file=sys.stderr,
                )
            raise
    if as_json:
        show_json(asdict(result))
        return
    show_notes(result.notes)
    show_failures(result.failures)
    inner = f" and {count(len(result.layers), 'inner layer')}" if result.layers else ""
    before = f" ({result.computed} computed now)" if resume else ""
    print(f"heatmaps of the input{inner} for {count(result.samples, 'sample')}{before} -> {result.path}")
    if result.shares is not None:
        print(f"of the relevance {result.shares}")
        show_notes([result.shares.advice] if result.shares.advice else [])
