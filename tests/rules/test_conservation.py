"""With bias="ignore", relevance in equals relevance out at every node of a network that has one of everything."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from torch import Tensor

from lrp_onnx.engine import Explainer, Explanation
from lrp_onnx.ops import Linear
from lrp_onnx.rules import RULES, Composite, Entry, composite, linear_rule

BOX = {"low": -3.0, "high": 3.0}
CONSERVING = {
    "epsilon": {},
    "epsilon-plus": {},
    "epsilon-plus-flat": {},
    "epsilon-alpha2-beta1": {},
    "epsilon-alpha2-beta1-flat": {},
    "epsilon-gamma-box": BOX,
    "montavon2019": {**BOX, "factor": 0.0},  # its middle layers absorb by design, as much as the factor says
    "excitation-backprop": {},
    "attnlrp": {},
    "cp-lrp": {},
}
TOLERANCE = 1e-10
NETWORK = """
(double[N,3,13,13] x) => (double[N,5] y) {
    stem = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w_stem, b_stem)
    stem_r = Relu(stem)
    pooled = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(stem_r)
    deep = Conv<group=2, pads=[1,1,1,1]>(pooled, w_group, b_group)
    deep_r = LeakyRelu(deep)
    residual = Add(deep_r, pooled)
    left, right = Split<axis=1, num_outputs=2>(residual)
    right_l = LRN<size=3>(right)
    mixed = Concat<axis=1>(right_l, left, pooled)
    cut = Slice(mixed, start, stop, axes)
    mean = AveragePool<kernel_shape=[2,2], pads=[1,0,0,1]>(cut)
    grown = Resize<mode="linear">(mean, , scales)
    up = ConvTranspose<pads=[1,1,1,1]>(grown, w_up, b_up)
    up_c = Clip(up, minus, six)
    turned = Transpose<perm=[0,2,3,1]>(up_c)
    tokens = Reshape(turned, flat_shape)
    mapped = MatMul(tokens, w_token)
    mapped_b = Add(mapped, b_token)
    query = Tanh(mapped_b)
    key = Transpose<perm=[0,2,1]>(mapped_b)
    product = MatMul(query, key)
    gated = Mul(product, product)
    summary = ReduceMean<keepdims=0>(gated, last)
    hidden = Gemm<transB=1>(summary, w_hidden, b_hidden)
    hidden_r = Relu(hidden)
    y = Gemm(hidden_r, w_out, b_out)
}
"""


def network(seed: int = 0) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> g {NETWORK}')
    for node in model.graph.node:
        node.name = node.output[0]
    tensors = {
        "w_stem": rng.normal(size=(4, 3, 3, 3)),
        "w_group": rng.normal(size=(4, 2, 3, 3)),
        "w_up": 0.2 * rng.normal(size=(6, 16, 3, 3)),
        "w_token": 0.2 * rng.normal(size=(16, 12)),
        "w_hidden": rng.normal(size=(24, 24)),
        "w_out": rng.normal(size=(24, 5)),
        "start": np.array([1, 0]),
        "stop": np.array([7, 4]),
        "axes": np.array([1, 2]),
        "scales": np.array([1, 1, 1, 1.5], np.float32),
        "flat_shape": np.array([0, -1, 16]),
        "minus": np.full((), -1.0),
        "six": np.full((), 6.0),
        "last": np.array([2]),
    }
    biases = {"b_stem": 4, "b_group": 4, "b_up": 16, "b_token": 12, "b_hidden": 24, "b_out": 5}
    for name, array in {**tensors, **{n: 0.3 * rng.normal(size=size) for n, size in biases.items()}}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return model


def explain(by: Composite) -> Explanation:
    x = np.random.default_rng(5).normal(size=(2, 3, 13, 13)).clip(-3, 3)
    return Explainer(network(), by, dtype="float64").explain(x, seed="all")


def without_bias(name: str, **parameters: float) -> Composite:
    return composite(name, bias="ignore", eps=1e-14, **parameters)


def assert_conserves(explanation: Explanation) -> None:
    for node in explanation.conservation:
        assert node.bias == 0, node.node
        scale = max(1.0, abs(float(node.arrived)))
        assert abs(float(node.remainder)) <= TOLERANCE * scale, f"{node.node} ({node.rule})"
    arrived, total = float(explanation.output.sum()), float(explanation.relevance["x"].sum())
    assert abs(total - arrived) <= 1e-9 * max(1.0, abs(arrived))


@pytest.mark.parametrize(("name", "parameters"), CONSERVING.items(), ids=CONSERVING)
def test_composite_conserves_node_by_node(name: str, parameters: dict[str, float]) -> None:
    explanation = explain(without_bias(name, **parameters))
    assert {n.op_type for n in explanation.conservation} >= {
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "MaxPool",
        "Resize",
    }
    assert_conserves(explanation)


@pytest.fixture
def leaking_rule() -> Iterator[str]:
    @linear_rule("leaking")
    def leaking(op: Linear):  # type: ignore[no-untyped-def]
        def backward(x: Tensor, z: Tensor, r: Tensor) -> tuple[Tensor, None]:
            return 0.999999 * x * op.transpose(r / z, op.weight, x.shape), None

        return backward

    yield "leaking"
    del RULES["leaking"]


def test_the_check_sees_a_rule_that_loses_a_millionth(leaking_rule: str) -> None:
    by = without_bias("epsilon")
    with pytest.raises(AssertionError, match="up"):
        assert_conserves(explain(by.override({"ConvTranspose": leaking_rule})))


@pytest.mark.parametrize("name", ["gradient", "guided-backprop", "hudd"])
def test_the_check_sees_a_composite_that_does_not_conserve(name: str) -> None:
    with pytest.raises(AssertionError):
        assert_conserves(explain(composite(name)))


@pytest.mark.parametrize("name", ["epsilon", "epsilon-plus", "epsilon-alpha2-beta1", "excitation-backprop", "attnlrp"])
def test_what_is_missing_is_in_the_bias(name: str) -> None:
    """bias="absorb": the ledger accounts for all of it when the stabiliser takes nothing."""
    explanation = explain(composite(name, eps=1e-14))
    assert any(abs(float(node.bias)) > 1e-3 for node in explanation.conservation)
    for node in explanation.conservation:
        scale = max(1.0, abs(float(node.arrived)), abs(float(node.bias)))
        assert abs(float(node.remainder)) <= TOLERANCE * scale, f"{node.node} ({node.rule})"


def test_the_stabiliser_takes_what_the_ledger_leaves() -> None:
    """One node, by hand: remainder = sum of R eps sign(z) / s(z)."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (double[2,3] x) => (double[2,2] y) { y = MatMul(x, w) }'
    )
    rng = np.random.default_rng(1)
    w, x = rng.normal(size=(3, 2)), rng.normal(size=(2, 3))
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    by = Composite("coarse", (Entry("epsilon", {"eps": 0.25}, ("linear",)),))
    (node,) = Explainer(model, by, dtype="float64").explain(x, seed="all").conservation
    z = x @ w
    wanted = np.sum(z * 0.25 * np.sign(z) / (z + 0.25 * np.sign(z)))
    assert abs(wanted) > 0.1
    assert float(node.remainder) == pytest.approx(wanted, abs=1e-12)
