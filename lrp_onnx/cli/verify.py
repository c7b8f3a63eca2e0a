"""`lrp-onnx verify`: is my heatmap right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrp_onnx.cli.options import (
    BatchAxisOption,
    BiasOption,
    ClassesOption,
    CompositeOption,
    EpsOption,
    ExtensionsOption,
    GammaOption,
    HighOption,
    JsonOption,
    LossOption,
    LowOption,
    Model,
    OutputNameOption,
    PreprocessOption,
    RuleOption,
    TargetOption,
    VocabOption,
    load_model,
    read_composite,
    run_extensions,
)
from lrp_onnx.cli.output import count, show_json, show_notes, steps

if TYPE_CHECKING:
    from lrp_onnx.verification import Verification

NAME = "verify"
_COLOURS = {"pass": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


def command(
    model: Model,
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA",
            help="What `heatmaps` takes: folder of pictures, CSV manifest, .npy or .npz file, texts; without it random "
            "inputs are used, and faithfulness is skipped.",
            show_default=False,
        ),
    ] = None,
    composite: CompositeOption = "epsilon-plus-flat",
    rule: RuleOption = None,
    extensions: ExtensionsOption = None,
    preprocess: PreprocessOption = None,
    classes: ClassesOption = None,
    batch_axis: BatchAxisOption = None,
    target: TargetOption = "predicted",
    output_name: OutputNameOption = None,
    vocab: VocabOption = None,
    loss: LossOption = None,
    samples: Annotated[int, typer.Option("--samples", help="At most so many, evenly over the data.")] = 8,
    seed: Annotated[int, typer.Option("--seed", help="Of everything random.")] = 0,
    eps: EpsOption = None,
    gamma: GammaOption = None,
    bias: BiasOption = None,
    low: LowOption = None,
    high: HighOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check everything that a heatmap rests on: is it right, and does it follow the model? Exit code 1 where it fails.

    canonical: the graph that is explained computes what the model does. forward: so does every op in torch.
    conservation: no relevance is lost, node by node. precision: float32 is enough. randomisation: heatmaps change when
    weights are shuffled. faithfulness: what they mark matters, against random order.
    """
    from lrp_onnx.verification import verify

    run_extensions(extensions)
    rules = read_composite(composite, rule, eps=eps, gamma=gamma, bias=bias, low=low, high=high)
    graph = load_model(model, preprocess, classes, batch_axis)
    with steps() as advance:
        options: Any = {"loss": loss}  # its value is checked by the library
        found = verify(
            graph,
            data,
            composite=rules,
            target=target,
            samples=samples,
            output=output_name,
            vocabulary=vocab,
            seed=seed,
            progress=advance,
            **options,
        )
    if as_json:
        show_json(found.to_dict())
    else:
        show_notes(found.notes)
        _print(found)
    if found.verdict == "fail":
        raise typer.Exit(1)


def _print(found: Verification) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("check", "", "why", box=None, header_style="bold", pad_edge=False)
    table.columns[2].overflow = "fold"
    for check in found.checks:
        colour = _COLOURS[check.judgement]
        table.add_row(check.name, f"[{colour}]{check.judgement}[/]", escape(check.reason))
    terminal = Console(highlight=False)
    Console(highlight=False, width=None if terminal.is_terminal else 120).print(table)
    on = count(found.samples, "random sample" if found.random else "sample")
    print(f"{found.verdict}: {found.sentence} ({on})")
