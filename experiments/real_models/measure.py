"""One real model: torch against ONNX Runtime, where its relevance went, float32 against float64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.real_models.subjects import Entry, Subject
from lrp_onnx.errors import LrpOnnxError

CLOSES, SAME_OUTPUT, SAME_HEATMAP, MOST_LOST = 1e-6, 1e-4, 0.99, 0.5
Row = dict[str, Any]


def measure(entry: Entry, folders: Mapping[str, Path]) -> Row:
    """What the table says of one model; a refusal or a crash is a result too."""
    row: Row = {"model": entry.name, "task": entry.task, "input": entry.given}
    try:
        row |= _measured(entry.build(folders))
        row["verdict"] = _verdict(row)
    except LrpOnnxError as error:
        row["verdict"] = f"refused: {error}"
    except Exception as error:
        row["verdict"] = f"failed: {type(error).__name__}: {error}"
    return row


def _measured(subject: Subject) -> Row:
    """Figures of a model.

    Returns
    -------
    dict
        double, single: largest difference of the output in torch, float64 and float32, to ONNX Runtime's, relative to
        the largest output. reached, biases, lost: where relevance went, relative to what it started from, with the
        composite as it is used. closing: what no input and no node of the ledger has (see `experiments.coverage`).
        cosine: of the heatmap in float32 to that in float64.
    """
    import torch

    from lrp_onnx import Explainer, load
    from lrp_onnx.forward import TorchForward

    graph = load(subject.model) if not hasattr(subject.model, "inputs") else subject.model
    inputs = {name or next(iter(graph.inputs)): values for name, values in subject.inputs.items()}
    exact, single = (
        Explainer(graph, subject.composite, dtype=dtype, output=subject.output) for dtype in ("float64", "float32")
    )
    explanation, deployed = (one.explain(inputs, subject.target, layers="all") for one in (exact, single))
    in_torch = TorchForward(graph, [single.output], torch.float32, single.device)
    given = {name: torch.from_numpy(np.asarray(values)) for name, values in inputs.items()}
    output = deployed.output.double()  # of ONNX Runtime
    scale = float(output.abs().max())
    main = next(name for name in exact.plan.tensors if name in graph.inputs)
    heatmaps = [one.relevance[main].double().flatten() for one in (explanation, deployed)]
    seed = float(explanation.conservation[0].arrived)
    reached = sum(float(explanation.relevance[n].sum()) for n in graph.inputs if n in explanation.relevance) / seed
    biases = sum(float(balance.bias) for balance in explanation.conservation) / seed
    gone = sum(float(balance.remainder) for balance in explanation.conservation) / seed
    largest = max(float(values.abs().sum()) for values in explanation.relevance.values()) / abs(seed)
    worst = max(explanation.conservation, key=lambda balance: abs(float(balance.remainder)))
    return {
        "worst": f"{worst.op_type} ({worst.rule})",
        "nodes": len(explanation.conservation),
        "double": float((explanation.output - output).abs().max()) / scale,
        "single": float((in_torch(given)[single.output].double() - output).abs().max()) / scale,
        "composite": subject.composite,
        "reached": reached,
        "biases": biases,
        "lost": gone,
        "closing": abs(1 - reached - biases - gone) / max(1.0, largest),
        "cosine": float(torch.nn.functional.cosine_similarity(*heatmaps, dim=0)),
    }


def _verdict(row: Row) -> str:
    if not row["closing"] < CLOSES:
        return f"the ledger closes to {row['closing']:.0e} only"
    if not max(row["double"], row["single"]) < SAME_OUTPUT:
        return "the forward pass differs"
    if abs(row["lost"]) > MOST_LOST:
        return f"{row['lost']:.0%} of the relevance is lost, most of it in {row['worst']}"
    return "explained" if row["cosine"] > SAME_HEATMAP else "explained in float64; in float32 rounding shows"
