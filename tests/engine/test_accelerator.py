"""What an accelerator asks of an explanation, shown on the CPU: the model's constants are there once."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from lrp_onnx.engine import Explainer
from lrp_onnx.forward import TorchForward
from lrp_onnx.graph import Graph, load

X = np.random.default_rng(0).normal(size=(3, 2, 8, 8))


@pytest.fixture(scope="module")
def classifier() -> Graph:
    text = """(float[N,2,8,8] x) => (float[N,5] y) {
        c1 = Conv<pads=[1,1,1,1]>(x, w1, b1) r1 = Relu(c1) c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2) s = Add(c2, r1)
        r2 = Relu(s) f = Flatten(r2) m = MatMul(f, w3) d = Add(m, b3) r3 = Relu(d) y = Gemm<transB=1>(r3, w4, b4) }"""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 19]> g {text}')
    shapes = {"w1": (4, 2, 3, 3), "b1": (4,), "w2": (4, 4, 3, 3), "b2": (4,), "w3": (256, 6), "b3": (6,)}
    rng = np.random.default_rng(1)
    for name, shape in (shapes | {"w4": (5, 6), "b4": (5,)}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype("f"), name))
    return load(proto)


def test_weights_in_float64_are_there_once(classifier: Graph) -> None:
    """Walk and forward pass share them: in another precision, or on an accelerator, each holds a copy otherwise."""
    explainer = Explainer(classifier, "epsilon", dtype="float64")
    explainer.explain(X)
    (forward,) = explainer._forwards.values()
    assert isinstance(forward, TorchForward)
    walk = {step.node.inputs[p]: tensor for step in explainer.plan.steps for p, tensor in step.site.constants.items()}
    assert set(walk) == set(classifier.initializers)
    for name, tensor in walk.items():
        assert tensor.dtype == torch.float64
        assert tensor.data_ptr() == forward._constants[name].data_ptr(), name


def test_what_nobody_reads_any_more_is_freed(classifier: Graph) -> None:
    explainer = Explainer(classifier, "epsilon", dtype="float64")
    assert len(explainer._constants._made) == len(classifier.initializers)
    del explainer.plan
    assert not len(explainer._constants._made)
