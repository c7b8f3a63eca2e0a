"""Quantised models are verified against what ONNX Runtime does by default, and by what rounding allows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import lrp_onnx
from lrp_onnx.debug.randomisation import shuffled
from lrp_onnx.graph import load
from lrp_onnx.runtime import open_session
from lrp_onnx.verification.computation import check_canonical, check_forward
from lrp_onnx.verification.samples import take_samples

RANDOM = np.random.default_rng(0)
TEXT = """
<ir_version: 9, opset_import: ["" : 20]> net (float[N,3,10,10] x) => (float[N,5] y) {
    xq = QuantizeLinear(x, s1, z)
    xd = DequantizeLinear(xq, s1, z)
    wd = DequantizeLinear(w1, sw, z)
    c = Conv(xd, wd)
    r = Relu(c)
    rq = QuantizeLinear(r, s2, z)
    rd = DequantizeLinear(rq, s2, z)
    f = Flatten(rd)
    v = DequantizeLinear(w2, sw, z)
    g = MatMul(f, v)
    yq = QuantizeLinear(g, s3, z)
    y = DequantizeLinear(yq, s3, z)
}
"""
IMAGES = RANDOM.normal(size=(12, 3, 10, 10)).astype(np.float32)


def model() -> onnx.ModelProto:
    proto = onnx.parser.parse_model(TEXT)
    arrays = {
        "w1": RANDOM.integers(-90, 90, (6, 3, 3, 3)).astype(np.int8),
        "w2": RANDOM.integers(-90, 90, (384, 5)).astype(np.int8),
        "z": np.array(0, np.int8),
    }
    arrays |= {name: np.array(s, np.float32) for name, s in (("s1", 0.03), ("sw", 0.004), ("s2", 0.03), ("s3", 0.04))}
    for name, array in arrays.items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def test_rounding_fails_no_check_and_default_execution_is_compared() -> None:
    found = lrp_onnx.verify(model(), IMAGES, composite="epsilon", samples=12)
    assert found["canonical"].judgement == found["forward"].judgement == "pass"
    assert "by default, the model in integers" in found["canonical"].reason
    assert 0 <= found["canonical"].numbers["relative_default"] < 2e-2
    assert any("quantised" in note for note in load(model()).notes)


def test_other_weights_fail_all_the_same() -> None:
    graph = load(model())
    weights = {name for node in graph.nodes if node.op_type in ("Conv", "MatMul", "Gemm") for name in node.inputs[1:2]}
    other = shuffled(graph, weights)
    samples = take_samples(other, IMAGES, 4, 0)
    check = check_canonical(other, samples)
    assert check.judgement == "fail" and check.numbers["relative_default"] > 0.2
    assert check_forward(other, samples).judgement == "pass"  # which is about the canonical graph


def test_only_the_canonical_form_runs_without_fused_quantised_operators() -> None:
    entry = "session.disable_quant_qdq"
    plain, own = (open_session(model(), canonical=canonical).get_session_options() for canonical in (False, True))
    assert own.get_session_config_entry(entry) == "1"
    with pytest.raises(RuntimeError):
        plain.get_session_config_entry(entry)
