"""Whole networks give the heatmaps that zennit and captum give (golden arrays by make_golden.py), in float64."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from lrp_onnx import rules
from lrp_onnx.engine import Explainer
from lrp_onnx.graph import Graph, load

torchvision = pytest.importorskip("torchvision")
from parity_networks import CAPTUM, CAPTUM_EPS, HIGH, LOW, NETWORKS, build, digest, image  # noqa: E402

GOLDEN = Path(__file__).with_name("golden")
PARAMETERS = {"epsilon-gamma-box": {"low": LOW, "high": HIGH}, CAPTUM: {"eps": CAPTUM_EPS}}
TOLERANCE = 1e-8  # relative to the largest value

_cache: dict[str, Graph] = {}


def exported(network: str) -> Graph:
    """The network as ONNX with float64 weights: fusing BatchNorm in float32 alone would cost 5e-5."""
    if network not in _cache:
        _cache.clear()  # VGG-16 takes a gigabyte
        file = io.BytesIO()
        torch.onnx.export(build(network), (image(),), file, dynamo=False, opset_version=18)
        _cache[network] = load(file.getvalue())
    return _cache[network]


CASES = [
    pytest.param(network, composite, marks=[pytest.mark.slow] if network in ("vgg16", "resnet50") else [])
    for network, composites in NETWORKS.items()
    for composite in composites
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_comparison_sees_another_rule() -> None:
    """epsilon-plus where the golden array is of epsilon-alpha2-beta1 must fail by far."""
    explanation = Explainer(exported("alexnet"), "epsilon-plus", dtype="float64").explain(image())
    (relevance,) = explanation.relevance.values()
    wanted = np.load(GOLDEN / "alexnet.npz")["epsilon-alpha2-beta1"]
    assert np.abs(digest(relevance) - wanted)[1:].max() > 1e-2 * wanted[1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("network", "composite"), CASES)
def test_network_agrees_with_the_reference(network: str, composite: str) -> None:
    golden = np.load(GOLDEN / f"{network}.npz")
    parameters = PARAMETERS.get(composite, {})
    explainer = Explainer(exported(network), rules.composite(composite, **parameters), dtype="float64")
    explanation = explainer.explain(image(), target="predicted")
    (relevance,) = explanation.relevance.values()

    np.testing.assert_allclose(explanation.output[0, :16].numpy(), golden["output"], rtol=0, atol=1e-10)
    found, wanted = digest(relevance), golden[composite]
    largest = wanted[1]
    difference = np.abs(found - wanted)
    assert difference[1:].max() <= TOLERANCE * largest
    assert difference[0] <= TOLERANCE * max(abs(wanted[0]), largest)  # the sum over the whole heatmap
