"""One model: converted, explained, and its relevance accounted for."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.coverage.catalogue import FAMILIES
from experiments.resident import resident
from lrp_onnx.errors import LrpOnnxError

if TYPE_CHECKING:
    from lrp_onnx import Graph

# What these rules do not hand on belongs to their formula; what any other rule loses is a mistake.
ABSORBING = frozenset({"softmax", "gradient"})
TOLERANCE = 1e-6
PARAMETERS = {"bias": "ignore", "eps": 1e-12}  # float64 leaves room for a stabiliser that absorbs nothing


def measure(family: str, name: str) -> dict[str, Any]:
    """Everything that the table says of one model; a failed step says why and leaves the later ones out."""
    row: dict[str, Any] = {"family": family, "model": name}
    steps = ("build", "convert", "explain")
    step = 0
    try:
        start = time.perf_counter()
        subject = FAMILIES[family][1](name)
        inputs = subject.inputs
        row["size"] = [list(value.shape[1:]) for value in inputs.values()]
        row["build_s"], start, step = time.perf_counter() - start, time.perf_counter(), 1
        from lrp_onnx.converters import convert

        conversion = convert(subject.source, **subject.options)
        row |= {"route": conversion.how, "difference": conversion.relative, "notes": conversion.notes}
        row["convert_s"], start, step = time.perf_counter() - start, time.perf_counter(), 2
        only = [conversion.model]
        del subject, conversion  # the largest networks take gigabytes
        row |= explain(_loaded(only), inputs)
        row["explain_s"] = time.perf_counter() - start
    except Exception as error:  # a crash is a result too; an error of our own is a refusal
        row["refused" if isinstance(error, LrpOnnxError) else "crashed"] = f"{type(error).__name__}: {error}"
        row["step"] = steps[step]
    row["memory_gb"] = resident("VmHWM") / 1e9
    return row


def _loaded(only: list[Any]) -> Graph:
    """The graph of the only model in a list, which is emptied: explaining needs no weights but the graph's own."""
    from lrp_onnx import load

    return replace(load(only.pop()), original=None)


def send(sender: Connection, family: str, name: str) -> None:
    """Measure in another process than the one that waits."""
    sender.send(measure(family, name))


def explain(graph: Graph, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Explain the highest logit and say where its relevance went.

    Of each tensor's relevance only sums are kept: all of it, in float64, would be gigabytes.

    Returns
    -------
    dict
        reached: what the inputs got, relative to the seed. absorbed: what constants got that are parts of a tensor
        (class tokens), and what rules took that do so by their formula, by op, relative to the seed. lost, worst: the
        most that a node of any other rule lost, relative to the absolute relevance that arrived there. closing: what
        neither an input nor the ledger of nodes has, relative to the largest absolute relevance of a layer.
    """
    import torch

    from lrp_onnx import Explainer, composite

    def sums(name: str, relevance: Any) -> Any:
        return torch.stack([relevance.sum(), relevance.abs().sum()])[None]  # (1, 2)

    explainer = Explainer(graph, composite("epsilon").with_parameters(PARAMETERS), dtype="float64")
    first = next(iter(graph.inputs))
    explanation = explainer.explain({name or first: value for name, value in inputs.items()}, layers="all", record=sums)
    total, mass = ({name: float(pair[0, i]) for name, pair in explanation.relevance.items()} for i in range(2))
    if not all(map(isfinite, mass.values())):
        raise ArithmeticError("relevance is not finite")
    outputs = {node.name: node.outputs for node in graph.nodes}
    seed = float(explanation.conservation[0].arrived)
    share = sum(total.get(name, 0.0) for name in graph.inputs) / seed
    absorbed: dict[str, float] = defaultdict(float)
    worst, gone = (0.0, ""), 0.0
    for balance in explanation.conservation:
        lost, constant = float(balance.remainder), float(balance.bias)
        gone += (lost + constant) / seed
        named = constant + lost if balance.rule in ABSORBING else constant
        if named:
            absorbed[f"{balance.op_type} ({balance.rule})"] += named / seed
        arrived = sum(mass.get(name, 0.0) for name in outputs.get(balance.node, ()))
        if arrived and balance.rule not in ABSORBING:
            worst = max(worst, (abs(lost) / arrived, f"{balance.op_type} {balance.node} ({balance.rule})"))
    largest = max(mass.values()) / abs(seed)
    closing = abs(1 - share - gone) / max(1.0, largest)
    return {
        "nodes": len(explanation.conservation),
        "reached": share,
        "absorbed": dict(absorbed),
        "closing": closing,
        "lost": worst[0],
        "worst": worst[1],
        "magnitude": largest,
        "conserving": closing <= TOLERANCE and worst[0] <= TOLERANCE,
    }
