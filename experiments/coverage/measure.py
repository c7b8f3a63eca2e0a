"""One model: converted, explained, and its relevance accounted for."""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from experiments.coverage.catalogue import FAMILIES
from lrp_onnx.errors import LrpOnnxError

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
        del subject  # the largest networks take gigabytes
        row |= explain(conversion.model, inputs)
        row["explain_s"] = time.perf_counter() - start
    except Exception as error:  # a crash is a result too; an error of our own is a refusal
        row["refused" if isinstance(error, LrpOnnxError) else "crashed"] = f"{type(error).__name__}: {error}"
        row["step"] = steps[step]
    row["memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return row


def send(sender: Connection, family: str, name: str) -> None:
    """Measure in another process than the one that waits."""
    sender.send(measure(family, name))


def explain(model: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Explain the highest logit and say where its relevance went.

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

    explainer = Explainer(model, composite("epsilon").with_parameters(PARAMETERS), dtype="float64")
    first = next(iter(explainer.graph.inputs))
    explanation = explainer.explain({name or first: value for name, value in inputs.items()}, layers="all")
    if not all(bool(torch.isfinite(values).all()) for values in explanation.relevance.values()):
        raise ArithmeticError("relevance is not finite")
    outputs = {node.name: node.outputs for node in explainer.graph.nodes}
    mass = {name: float(values.abs().sum()) for name, values in explanation.relevance.items()}
    seed = float(explanation.conservation[0].arrived)
    reached = [explanation.relevance[name] for name in explainer.graph.inputs if name in explanation.relevance]
    share = sum(float(values.sum()) for values in reached) / seed
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
