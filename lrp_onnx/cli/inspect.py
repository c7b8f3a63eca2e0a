"""`lrp-onnx inspect`: what is in a model, and the rule that each node gets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

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
    LowOption,
    Model,
    OverwriteOption,
    PreprocessOption,
    RuleOption,
    load_model,
    read_composite,
    run_extensions,
)
from lrp_onnx.cli.output import count, show_json, status
from lrp_onnx.errors import DataError

NAME = "inspect"


def command(
    model: Model,
    composite: CompositeOption = "epsilon-plus-flat",
    rule: RuleOption = None,
    extensions: ExtensionsOption = None,
    preprocess: PreprocessOption = None,
    classes: ClassesOption = None,
    batch_axis: BatchAxisOption = None,
    eps: EpsOption = None,
    gamma: GammaOption = None,
    bias: BiasOption = None,
    low: LowOption = None,
    high: HighOption = None,
    graph: Annotated[
        Path | None,
        typer.Option("--graph", metavar="FILE", help="Write the canonical model, as ONNX.", show_default=False),
    ] = None,
    svg: Annotated[
        Path | None,
        typer.Option("--svg", metavar="FILE", help="Draw the relevance path.", show_default=False),
    ] = None,
    on: Annotated[
        Path | None,
        typer.Option(
            "--on",
            metavar="DATA",
            help="For --svg: a picture or data; lines are as wide as the relevance of its first sample.",
            show_default=False,
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show a model's ops and tensors, its preprocessing and classes, the rule of every node and why it has it.

    The output names of the nodes are what `heatmaps --layers` takes.
    """
    from lrp_onnx.files import refuse_existing, save_model, written_whole
    from lrp_onnx.inspection import canonical_model, describe, flow_of, inspect_model
    from lrp_onnx.render.path_svg import path_svg

    if on is not None and svg is None:
        raise DataError("--on is for the drawing; name its file with --svg")
    for path in filter(None, (graph, svg)):
        refuse_existing(path, overwrite)
    run_extensions(extensions)
    rules = read_composite(composite, rule, eps=eps, gamma=gamma, bias=bias, low=low, high=high)
    with status(f"Loading {model}"):
        inspection = inspect_model(load_model(model, preprocess, classes, batch_axis), rules)
    found = describe(inspection)
    if graph is not None:
        save_model(canonical_model(inspection.graph), graph, overwrite=overwrite)
    if svg is not None:
        drawing = path_svg(inspection, None if on is None else flow_of(inspection, on))
        with written_whole(svg, overwrite=overwrite) as place:
            place.write_text(drawing, encoding="utf-8")
    if as_json:
        show_json(found)
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    out = console.out
    cut = f", starting in front of the final {found['cut']}" if found["cut"] else ""
    out(f"{found['model']}  opset {found['opset']}, {found['parameters']:,} parameters")
    for kind in ("inputs", "outputs"):
        for name, shape in found[kind].items():
            out(f"{kind[:-1]:<10} {name} {_shape(shape)}{cut if kind == 'outputs' else ''}")
    pictures = found["preprocess"]
    out(f"preprocess {json.dumps(pictures) if pictures else 'not said by the model; give --preprocess'}")
    out(f"classes    {_classes(found['classes'])}")
    for note in found["notes"]:
        out(f"note       {note}")
    out(f"ops        {', '.join(f'{number} {op}' for op, number in found['ops'].items())}")
    out("")
    table = Table("op", "output tensor", "shape", "rule", "why", box=None, header_style="bold", pad_edge=False)
    table.columns[1].overflow = "fold"
    table.columns[1].ratio = table.columns[4].ratio = 1
    for node in found["nodes"]:
        values = ", ".join(f"{key} {_value(value)}" for key, value in node["parameters"].items())
        rule = (
            "[bold red]none[/]" if node["rule"] is None else f"{node['rule']}{f'  [dim]{values}[/]' if values else ''}"
        )
        table.add_row(
            node["op_type"], _escape(node["output"]), _shape(node["shape"]), rule, f"[dim]{_escape(node['why'])}[/]"
        )
    Console(highlight=False, width=None if console.is_terminal else 140).print(table)
    out("")
    out(
        f"{count(len(found['nodes']), 'node')} on the relevance path by composite {found['composite']}, "
        f"{len(found['off_path'])} off it (of {found['nodes_before']} in the file)"
    )
    for name, reason in found["refused"].items():
        out(f"no relevance can go through {name}: {reason}")
    bare = [node for node in found["nodes"] if node["rule"] is None]
    for op_type in dict.fromkeys(node["op_type"] for node in bare):
        names = [node["node"] for node in bare if node["op_type"] == op_type]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        out(f"no rule for {op_type} ({', '.join(names[:3])}{more}): choose --rule {op_type}=pass or {op_type}=gradient")


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def _shape(shape: Sequence[int | str | None] | None) -> str:
    """Sizes, with N for a free batch and ? for other free ones."""
    if shape is None:
        return "?"
    return "x".join(
        str(size) if isinstance(size, int) else "N" if axis == 0 else "?" for axis, size in enumerate(shape)
    )


def _classes(classes: Sequence[str] | None) -> str:
    if classes is None:
        return "not said by the model; give --classes"
    return ", ".join(classes[:5]) + (f" … ({len(classes)} in all)" if len(classes) > 5 else "")


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(f"{number:.3g}" for number in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
