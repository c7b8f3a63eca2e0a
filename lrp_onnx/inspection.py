"""What is in a model, which rule each node gets and why, and where the relevance of one sample goes."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import onnx

from lrp_onnx.engine import Explainer, Plan, Step
from lrp_onnx.errors import UnsupportedOpError
from lrp_onnx.graph import Graph
from lrp_onnx.inputs import classes_of, feed_for, first_inputs, open_both
from lrp_onnx.ops import label
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.rules import Composite

CANONICAL_KEY = "lrp_onnx.canonical"  # of the metadata of a canonical model that was written to a file


@dataclass(frozen=True)
class Flow:
    """Where the relevance of one sample went, as shares of what it started from.

    Attributes
    ----------
    target : int or None
        The output that was explained.
    tensors : dict of str to float
        By tensor: its relevance.
    edges : dict of (str, str) to float
        By the name of a node and of one of its inputs: what the node hands to the input.
    """

    target: int | None = None
    tensors: dict[str, float] = field(default_factory=dict)
    edges: dict[tuple[str, str], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Inspection:
    """A plan in which nodes without a rule pass relevance on, so that it can be shown; `missing` are their op types."""

    plan: Plan
    missing: frozenset[str]

    @property
    def graph(self) -> Graph:
        return self.plan.graph

    def rule(self, step: Step) -> str | None:
        """The rule of a node of the plan; None where it has none."""
        return None if label(step.node) in self.missing and step.rule == "pass" else step.rule

    def why(self, step: Step) -> str:
        """What gave the node its rule, and what the rewrites made the node of."""
        reason = [] if self.rule(step) is None else [step.why]
        return "; ".join((*reason, *self.graph.history.get(step.node.name, ())))


def inspect_model(graph: Graph, composite: Composite) -> Inspection:
    """Choose the rule of every node.

    Raises
    ------
    ModelError, RuleError, UnsupportedOpError
        As `Explainer` does, except for ops without a rule.
    """
    missing: dict[str, str] = {}
    while True:
        try:
            plan = Explainer(graph, composite.override(missing) if missing else composite).plan
            return Inspection(plan, frozenset(missing))
        except UnsupportedOpError as error:
            if error.op_type is None or error.op_type in missing:
                raise
            missing[error.op_type] = "pass"


def describe(inspection: Inspection) -> dict[str, Any]:
    """Everything that `inspect` shows, as plain data; a node without a rule has the rule null."""
    plan, graph = inspection.plan, inspection.graph
    on_path = {step.node.name for step in plan.steps}
    pictures = Preprocess.from_metadata(graph.metadata)
    before = graph.original.graph.node if graph.original is not None else ()
    return {
        "model": graph.name,
        "sha256": graph.sha256,
        "opset": graph.opset,
        "notes": list(graph.notes),
        "inputs": {name: info.shape for name, info in graph.inputs.items()},
        "outputs": {name: info.shape for name, info in graph.outputs.items()},
        "cut": graph.cut,
        "preprocess": None if pictures is None else asdict(pictures),
        "classes": classes_of(graph),
        "parameters": sum(array.size for array in graph.initializers.values() if array.dtype.kind == "f"),
        "ops": dict(Counter(node.op_type for node in graph.nodes).most_common()),
        "nodes_before": len(before),
        "off_path": [node.name for node in graph.nodes if node.name not in on_path],
        "refused": dict(graph.refused),
        "composite": plan.composite.name,
        "nodes": [
            {
                "node": step.node.name,
                "op_type": label(step.node),
                "output": step.node.outputs[0],
                "shape": graph.shapes.get(step.node.outputs[0]),
                "layer": step.node.layer,
                "rule": inspection.rule(step),
                "parameters": dict(step.parameters),
                "why": inspection.why(step),
            }
            for step in plan.steps
        ],
    }


def canonical_model(graph: Graph) -> onnx.ModelProto:
    """The canonical model with what was done to it in its metadata."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    record = {
        "notes": list(graph.notes),
        "cut": {name: node.op_type for name, node in graph.cuts.items()},
        "nodes": {name: list(remarks) for name, remarks in graph.history.items()},
    }
    kept = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, kept | {CANONICAL_KEY: json.dumps(record, ensure_ascii=False)})
    return model


def flow_of(inspection: Inspection, data: str | os.PathLike[str]) -> Flow:
    """Explain the first readable sample of `data` for what the model predicts.

    Raises
    ------
    DataError
        `data` cannot be read, or does not fit the model.
    UnsupportedOpError
        A node has no rule.
    """
    graph, plan = inspection.graph, inspection.plan
    if inspection.missing:
        named = ", ".join(sorted(inspection.missing))
        raise UnsupportedOpError(
            f"{graph.name}: no rule for {named}; choose one with --rule OP=RULE to explain a sample"
        )
    graph, dataset = open_both(graph, data, unlabelled=True)
    feed = feed_for(graph, dataset)
    main, others = first_inputs(dataset, feed)
    explainer = Explainer(graph, plan.composite, output=plan.output)
    batch = feed.batch_by_name(main[None], {name: values[None] for name, values in others.items()})
    e = explainer.explain(batch, layers="all")
    start = float(e.conservation[0].arrived) or 1.0
    return Flow(
        None if e.target is None else int(e.target[0]),
        {name: float(value.sum()) / start for name, value in e.relevance.items()},
        {(b.node, name): float(share) / start for b in e.conservation for name, share in b.shares.items()},
    )
