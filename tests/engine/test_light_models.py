"""The nine topologies that onnx ships (constant fills: good for structure only) load, run and conserve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from lrp_onnx.engine import Explainer
from lrp_onnx.rules import composite

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
QUICK = ("squeezenet",)
NAMES = [
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
]


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NAMES])
def test_light_model_conserves(name: str) -> None:
    # a third of this model's first filters have no positive weight, where z-plus has nothing to share relevance out to
    kind = "epsilon" if name == "densenet121" else "epsilon-plus"
    by = composite(kind, bias="ignore", eps=1e-30)  # well below the outputs, which are tiny in some of the models
    explainer = Explainer(LIGHT / f"light_{name}.onnx", by, dtype="float64")
    ((tensor, info),) = explainer.graph.inputs.items()
    shape = [d if isinstance(d, int) else 1 for d in info.shape or ()]
    explanation = explainer.explain(np.random.default_rng(0).uniform(0, 1, shape), seed="all")
    assert explanation.relevance[tensor].shape == tuple(shape)
    assert sum(node.op_type == "Conv" for node in explanation.conservation) >= 5
    for node in explanation.conservation:
        assert abs(float(node.remainder)) <= 1e-10 * abs(float(node.arrived)), f"{node.node} ({node.rule})"
    total, started = float(explanation.relevance[tensor].sum()), float(explanation.output.sum())
    assert started != 0
    assert total == pytest.approx(started, rel=1e-9)
