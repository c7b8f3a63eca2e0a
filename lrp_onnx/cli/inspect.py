"""`lrp-onnx inspect`: what is in a model, and the rule that each node gets."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lrp_onnx.cli.options import (
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
    PreprocessOption,
    RuleOption,
    load_model,
    read_composite,
    run_extensions,
)
from lrp_onnx.cli.output import count, show_json, status

if TYPE_CHECKING:
    from lrp_onnx.graph import Graph
    from lrp_onnx.rules import Composite

NAME = "inspect"


def command(
    model: Model,
    composite: CompositeOption = "epsilon-plus-flat",
    rule: RuleOption = None,
    extensions: ExtensionsOption = None,
    preprocess: PreprocessOption = None,
    classes: ClassesOption = None,
    eps: EpsOption = None,
    gamma: GammaOption = None,
    bias: BiasOption = None,
    low: LowOption = None,
    high: HighOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a model's ops and tensors, its preprocessing and classes, and the rule of every node.

    The output names of the nodes are what `heatmaps --layers` takes.
    """
    run_extensions(extensions)
    rules = read_composite(composite, rule, eps=eps, gamma=gamma, bias=bias, low=low, high=high)
    with status(f"Loading {model}"):
        found = describe_model(load_model(model, preprocess, classes), rules)
    if as_json:
        show_json(found)
    else:
        _print(found)


def describe_model(graph: Graph, composite: Composite) -> dict[str, Any]:
    """Everything that `inspect` shows, as plain data; a node without a rule has the rule null."""
    from lrp_onnx.engine import Explainer
    from lrp_onnx.errors import UnsupportedOpError
    from lrp_onnx.inputs import classes_of
    from lrp_onnx.ops.registry import label
    from lrp_onnx.preprocess import Preprocess

    missing: dict[str, str] = {}
    while True:
        try:
            plan = Explainer(graph, composite.override(missing) if missing else composite).plan
            break
        except UnsupportedOpError as error:
            if error.op_type is None or error.op_type in missing:
                raise
            missing[error.op_type] = "pass"
    on_path = {step.node.name for step in plan.steps}
    pictures = Preprocess.from_metadata(graph.metadata)
    return {
        "model": graph.name,
        "sha256": graph.sha256,
        "opset": graph.opset,
        "inputs": {name: info.shape for name, info in graph.inputs.items()},
        "outputs": {name: info.shape for name, info in graph.outputs.items()},
        "cut": graph.cut,
        "preprocess": None if pictures is None else asdict(pictures),
        "classes": classes_of(graph),
        "parameters": sum(array.size for array in graph.initializers.values() if array.dtype.kind == "f"),
        "ops": dict(Counter(node.op_type for node in graph.nodes).most_common()),
        "off_path": [node.name for node in graph.nodes if node.name not in on_path],
        "composite": plan.composite.name,
        "nodes": [
            {
                "node": step.node.name,
                "op_type": label(step.node),
                "output": step.node.outputs[0],
                "shape": graph.shapes.get(step.node.outputs[0]),
                "rule": None if label(step.node) in missing and step.rule == "pass" else step.rule,
                "parameters": dict(step.parameters),
            }
            for step in plan.steps
        ],
    }


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
    out(f"ops        {', '.join(f'{number} {op}' for op, number in found['ops'].items())}")
    out("")
    table = Table("op", "output tensor", "shape", "rule", box=None, header_style="bold", pad_edge=False)
    table.columns[1].overflow = "fold"
    table.columns[1].ratio = 1
    for node in found["nodes"]:
        values = ", ".join(f"{key} {_value(value)}" for key, value in node["parameters"].items())
        rule = (
            "[bold red]none[/]" if node["rule"] is None else f"{node['rule']}{f'  [dim]{values}[/]' if values else ''}"
        )
        table.add_row(node["op_type"], _escape(node["output"]), _shape(node["shape"]), rule)
    Console(highlight=False, width=None if console.is_terminal else 100).print(table)
    out("")
    out(
        f"{count(len(found['nodes']), 'node')} on the relevance path by composite {found['composite']}, "
        f"{len(found['off_path'])} off it"
    )
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
