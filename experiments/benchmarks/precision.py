"""How far heatmaps in float32 and bfloat16 are from those in float64; `python -m experiments.benchmarks --errors`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from experiments.benchmarks.contenders import COMPOSITES, prepared
from lrp_onnx.engine import Dtype, Explainer
from lrp_onnx.graph import load
from lrp_onnx.ops import has_bfloat16

COUNT = 4  # random pictures


def errors(paths: Mapping[str, Path], device: str) -> Iterator[str]:
    """The lines of a table, network by network."""
    dtypes: list[Dtype] = ["float32", "bfloat16"] if has_bfloat16(torch.device(device)) else ["float32"]
    torch.manual_seed(0)
    x = torch.randn(COUNT, 3, 224, 224)
    yield ""
    yield f"The heatmaps of {COUNT} random pictures, held against those in float64: the largest"
    yield "difference over the largest value, and 1 − cosine; the worst picture of each."
    yield ""
    yield f"| network | composite | {' | '.join(f'{d}: largest | {d}: 1 − cosine' for d in dtypes)} |"
    yield "| " + " | ".join(["---"] * (2 + 2 * len(dtypes))) + " |"
    for network, path in paths.items():
        graph = load(path)
        for name in COMPOSITES:

            def heatmaps(dtype: Dtype, name: str = name) -> Tensor:
                explainer = Explainer(graph, prepared(name), device=device, dtype=dtype)  # noqa: B023
                (found,) = explainer.explain(x, target=0).relevance.values()
                return found.double().cpu().flatten(1)

            wanted = heatmaps("float64")
            cells = [cell for dtype in dtypes for cell in _compared(heatmaps(dtype), wanted)]
            line = f"| {network} | {name} | {' | '.join(cells)} |"
            print(line, file=sys.stderr, flush=True)
            yield line


def _compared(found: Tensor, wanted: Tensor) -> tuple[str, str]:
    largest = (found - wanted).abs().amax(dim=1) / wanted.abs().amax(dim=1)
    apart = 1 - torch.nn.functional.cosine_similarity(found, wanted)
    return f"{float(largest.max()):.0e}", f"{float(apart.max().clamp(min=0)):.0e}"
