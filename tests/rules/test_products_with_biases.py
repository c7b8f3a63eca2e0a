"""Products of two activations that have a bias, and sums with terms that nothing flows through, conserve relevance."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from lrp_onnx.engine import Explainer, Explanation
from lrp_onnx.rules import composite

RNG = np.random.default_rng(0)


def explain(text: str, feeds: dict[str, np.ndarray], bias: str, **constants: np.ndarray) -> Explanation:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> g {text}')
    for name, array in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return Explainer(model, composite("epsilon", bias=bias, eps=1e-14), dtype="float64").explain(feeds, seed="all")


CASES = {
    "a dense layer whose weights are computed": (
        "(double[3,4] x, double[4,2] w) => (double[3,2] y) { y = Gemm<alpha=0.5, beta=2.0>(x, w, b) }",
        {"x": (3, 4), "w": (4, 2)},
        {"b": (2,)},
    ),
    "a dense layer whose bias is computed, too": (
        "(double[3,4] x, double[4,2] w, double[3,2] b) => (double[3,2] y) { y = Gemm<beta=2.0>(x, w, b) }",
        {"x": (3, 4), "w": (4, 2), "b": (3, 2)},
        {},
    ),
    "a convolution whose kernel is computed": (
        "(double[1,3,5,5] x, double[2,3,3,3] w) => (double[1,2,3,3] y) { y = Conv(x, w, b) }",
        {"x": (1, 3, 5, 5), "w": (2, 3, 3, 3)},
        {"b": (2,)},
    ),
    "a convolution whose kernel and bias are computed": (
        "(double[1,3,5] x, double[2,3,3] w, double[2] b) => (double[1,2,3] y) { y = Conv(x, w, b) }",
        {"x": (1, 3, 5), "w": (2, 3, 3), "b": (2,)},
        {},
    ),
    "a deformable convolution": (
        "(double[1,2,5,5] x) => (double[1,3,4,4] y) { o = Conv(x, v) t = Tanh(o) y = DeformConv(x, w, t, b) }",
        {"x": (1, 2, 5, 5)},
        {"v": (8, 2, 2, 2), "w": (3, 2, 2, 2), "b": (3,)},
    ),
    "three operands of an Einsum": (
        "(double[2,3] x, double[3,4] w, double[2,4] v) => (double[2] y) "
        '{ y = Einsum<equation="ij, jk ,ik->i">(x, w, v) }',
        {"x": (2, 3), "w": (3, 4), "v": (2, 4)},
        {},
    ),
    "the trace of products": (
        '(double[2,3,3] x) => (double[2] y) { y = Einsum<equation="bii,ii">(x, w) }',
        {"x": (2, 3, 3)},
        {"w": (3, 3)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_relevance_is_conserved(name: str) -> None:
    text, inputs, constants = CASES[name]
    feeds = {n: RNG.standard_normal(shape) for n, shape in inputs.items()}
    stored = {n: RNG.standard_normal(shape) for n, shape in constants.items()}
    explanation = explain(text, feeds, "ignore", **stored)
    for node in explanation.conservation:
        assert float(node.remainder) == pytest.approx(0, abs=1e-9 * max(1.0, abs(float(node.arrived)))), node.node
        assert float(node.bias) == 0
    total = sum(float(r.sum()) for r in explanation.relevance.values())
    assert total == pytest.approx(float(explanation.output.sum()), rel=1e-8)


def test_both_factors_of_a_product_with_a_bias_take_half_of_what_the_bias_leaves() -> None:
    feeds = {"x": RNG.standard_normal((3, 4)), "w": RNG.standard_normal((4, 2))}
    b = RNG.standard_normal(2)
    text = "(double[3,4] x, double[4,2] w) => (double[3,2] y) { y = Gemm(x, w, b) }"
    explanation = explain(text, feeds, "absorb", b=b)
    product = feeds["x"] @ feeds["w"]
    for name in "xw":
        assert float(explanation.relevance[name].sum()) == pytest.approx(product.sum() / 2, rel=1e-9)
    assert sum(float(node.bias) for node in explanation.conservation) == pytest.approx(3 * b.sum(), rel=1e-9)


def test_a_mask_that_is_computed_counts_as_a_bias_and_masked_keys_take_nothing() -> None:
    """Scores plus 0 or -inf, as attention has them."""
    text = """(double[1,3,3] x, int64[1,3] mask) => (double[1,3,2] y) {
        keep = Cast<to = 9>(mask)
        bias = Where(keep, zero, minus)
        wide = Unsqueeze(bias, one)
        masked = Add(x, wide)
        weight = Softmax<axis = -1>(masked)
        y = MatMul(weight, v)
    }"""
    feeds = {"x": RNG.standard_normal((1, 3, 3)), "mask": np.array([[1, 0, 1]])}
    constants = {"zero": np.array(0.0), "minus": np.array(-np.inf), "one": np.array([1])}
    for bias in ("absorb", "ignore"):
        explanation = explain(text, feeds, bias, v=RNG.standard_normal((3, 2)), **constants)
        relevance = explanation.relevance["x"]
        assert torch.isfinite(relevance).all()
        assert not relevance[:, :, 1].any()
        assert relevance[:, :, [0, 2]].all()
        assert all(np.isfinite(float(node.bias)) for node in explanation.conservation)


@pytest.mark.parametrize(
    ("op", "attributes", "share"),
    [
        ("ReduceL2", "", lambda x: x**2),
        ("ReduceL1", "", abs),
        ("ReduceSumSquare", "", lambda x: x**2),
        ("ReduceProd", "", np.ones_like),
        ("GlobalLpPool", "<p = 3>", lambda x: abs(x) ** 3),
        ("ReduceLogSum", "", lambda x: x),
        ("ReduceLogSumExp", "", np.exp),
    ],
)
def test_reductions_share_by_each_elements_part(op: str, attributes: str, share: object) -> None:
    x = RNG.uniform(0.5, 2, (2, 1, 4)) * (1 if op == "ReduceLogSum" else RNG.choice([-1, 1], (2, 1, 4)))
    call = f"{op}{attributes}(x)" if op == "GlobalLpPool" else f"{op}(x, last)"
    axes = {} if op == "GlobalLpPool" else {"last": np.array([-1])}
    explanation = explain(f"(double[2,1,4] x) => (double[2,1,1] y) {{ y = {call} }}", {"x": x}, "absorb", **axes)
    part = share(x)  # type: ignore[operator]
    wanted = explanation.output.numpy() * part / part.sum(-1, keepdims=True)
    np.testing.assert_allclose(explanation.relevance["x"].numpy(), wanted, rtol=1e-9)


@pytest.mark.parametrize("op", ["ScatterND", "ScatterElements"])
def test_what_is_added_up_in_one_place_shares_its_relevance(op: str) -> None:
    index = {"ScatterND": np.array([[1], [1]]), "ScatterElements": np.array([[1, 1, 1], [1, 1, 1]])}[op]
    feeds = {"x": RNG.uniform(1, 2, (4, 3)), "u": RNG.uniform(1, 2, (2, 3))}
    text = f'(double[4,3] x, double[2,3] u) => (double[4,3] y) {{ y = {op}<reduction = "add">(x, i, u) }}'
    explanation = explain(text, feeds, "ignore", i=index)
    for name in "xu":
        np.testing.assert_allclose(explanation.relevance[name].numpy(), feeds[name], rtol=1e-9)
