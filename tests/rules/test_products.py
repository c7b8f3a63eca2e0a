"""Products of two activations: halves, and gates that let the signal take all."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
import torch

from lrp_onnx import rules
from lrp_onnx.engine import Explainer

HEAD = (
    '<ir_version: 9, opset_import: ["" : 20]> net (float[N, 3, 2, 2] a, float[N, 3, 1, 1] b) => (float[N, 3, 2, 2] y) '
)
GATED = HEAD + "{ g = Sigmoid (b)  y = Mul (a, g) }"
FLAT = "f = Flatten (g)  s = Constant <value_ints = [-1, 3, 1, 1]> ()  h = Reshape (f, s)"
BEHIND = HEAD + "{ g = Sigmoid (b)  " + FLAT + "  y = Mul (a, h) }"
PLAIN = HEAD + "{ g = Relu (b)  y = Mul (a, g) }"
RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 3, 2, 2)), RNG.normal(size=(2, 3, 1, 1))
R = RNG.normal(size=A.shape)


@pytest.mark.parametrize(
    ("text", "parameters", "share"),
    [
        (PLAIN, {}, 0.5),
        (GATED, {}, 1.0),
        (BEHIND, {}, 1.0),
        (GATED, {"gate": "half"}, 0.5),
        (PLAIN, {"gate": "signal"}, 0.5),
    ],
)
def test_share_of_each_factor(text: str, parameters: dict[str, str], share: float) -> None:
    explainer = Explainer(onnx.parser.parse_model(text), rules.composite("epsilon", **parameters), dtype="float64")
    relevance = explainer.explain({"a": A, "b": B}, R).relevance
    torch.testing.assert_close(relevance["a"], torch.from_numpy(share * R))
    torch.testing.assert_close(relevance["b"], torch.from_numpy((1 - share) * R.sum((2, 3), keepdims=True)))


def test_nothing_is_carried_below_a_gate_and_what_is_recorded_there_is_zero() -> None:
    found = Explainer(onnx.parser.parse_model(GATED), "epsilon", dtype="float64").explain(
        {"a": A, "b": B}, R, layers="all"
    )
    assert [balance.op_type for balance in found.conservation] == ["Mul"]
    assert {name: tuple(tensor.shape) for name, tensor in found.relevance.items()} == {
        "a": (2, 3, 2, 2),
        "b": (2, 3, 1, 1),
        "g": (2, 3, 1, 1),
        "y": (2, 3, 2, 2),
    }
    assert not found.relevance["g"].any()


@pytest.mark.parametrize(
    "shapes", [((2, 4, 3), (2, 3, 5)), ((4, 3), (2, 3, 5)), ((6, 1, 4, 3), (2, 3, 5)), ((3,), (2, 3, 5))]
)
def test_a_matrix_product_of_activations_is_shared_as_its_derivative_says(shapes: tuple[tuple[int, ...], ...]) -> None:
    ranks = ", ".join(
        f"double[{', '.join(f'{name}{i}' for i in range(len(s)))}] {name}" for name, s in zip("ab", shapes, strict=True)
    )
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> net ({ranks}) => (double y) {{ y = MatMul (a, b) }}'
    )
    a, b = (torch.from_numpy(RNG.normal(size=shape)).requires_grad_() for shape in shapes)
    z = a @ b
    r = torch.from_numpy(RNG.normal(size=tuple(z.shape)))
    flows = torch.autograd.grad(z, [a, b], r / (z.detach() + 1e-6 * torch.sign(z.detach())) / 2)
    found = Explainer(model, "epsilon", dtype="float64").explain({"a": a, "b": b}, r).relevance
    torch.testing.assert_close(found["a"], (a * flows[0]).detach())
    torch.testing.assert_close(found["b"], (b * flows[1]).detach())


def attention(between: str) -> Explainer:
    """Values weighed by a Softmax, with relevance to the values alone."""
    text = '<ir_version: 9, opset_import: ["" : 20]> net (double[2, 3] q, double[3, 4] v) => (double[2, 4] y) '
    model = onnx.parser.parse_model(text + "{ s = Softmax (q)  " + between + "  y = MatMul (w, v) }")
    return Explainer(model, rules.composite("epsilon", attention="values"), dtype="float64")


@pytest.mark.parametrize(
    "between",
    [
        "w = Identity (s)",
        "n = IsNaN (s)  z = Constant <value = double {0.0}> ()  w = Where (n, z, s)",
        "f = Cast <to = 1> (s)  w = Cast <to = 11> (f)",
        "t = Transpose (s)  w = Transpose (t)",
    ],
)
def test_what_exporters_put_behind_a_softmax_leaves_it_a_gate(between: str) -> None:
    explainer = attention(between)
    r = RNG.normal(size=(2, 4))
    relevance = explainer.explain({"q": RNG.normal(size=(2, 3)), "v": RNG.normal(size=(3, 4))}, r).relevance
    assert not relevance["q"].any()
    torch.testing.assert_close(relevance["v"].sum(), torch.tensor(r.sum()), rtol=1e-4, atol=0)


def test_a_choice_between_two_activations_is_no_gate() -> None:
    explainer = attention("n = IsNaN (s)  r = Relu (q)  w = Where (n, r, s)")
    inputs = {"q": RNG.normal(size=(2, 3)), "v": RNG.normal(size=(3, 4))}
    assert explainer.explain(inputs, RNG.normal(size=(2, 4))).relevance["q"].any()


def test_a_matrix_product_with_one_active_side_goes_to_that_alone() -> None:
    """With a vector of weights, and with a mask of integers, as a mean over tokens has it."""
    head = '<ir_version: 9, opset_import: ["" : 20]> net '
    model = onnx.parser.parse_model(head + "(double[N, 3, 6] x) => (double[N, 3] y) { y = MatMul (x, w) }")
    w = RNG.normal(size=6)
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    x, r = RNG.normal(size=(2, 3, 6)), RNG.normal(size=(2, 3))
    relevance = Explainer(model, "epsilon", dtype="float64").explain(x, r).relevance["x"]
    z = x @ w
    torch.testing.assert_close(relevance, torch.from_numpy(x * w * (r / (z + np.sign(z) * 1e-6))[..., None]))
    text = "(double[N, 3, 6] x, int64[N, 3] mask) => (double[N, 1, 6] y)"
    body = "{ m = Cast <to = 11> (mask)  a = Constant <value_ints = [1]> ()  u = Unsqueeze (m, a)  y = MatMul (u, x) }"
    mask, r = np.array([[1, 1, 0], [1, 0, 0]]), RNG.normal(size=(2, 1, 6))
    given = {"x": x, "mask": mask}
    relevance = (
        Explainer(onnx.parser.parse_model(head + text + body), "epsilon", dtype="float64").explain(given, r).relevance
    )
    z = mask[:, None] @ x
    torch.testing.assert_close(relevance["x"], torch.from_numpy(x * mask[..., None] * r / (z + np.sign(z) * 1e-6)))


@pytest.mark.parametrize("call", ["Div(two, a)", "Pow(a, two)", "Pow(two, a)", "Reciprocal(a)", "Exp(a)"])
def test_a_function_of_one_activation_hands_on_what_it_gets(call: str) -> None:
    model = onnx.parser.parse_model(HEAD.replace(", float[N, 3, 1, 1] b", "") + f"{{ y = {call} }}")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(2.0, np.float32), "two"))
    relevance = Explainer(model, "epsilon", dtype="float64").explain(np.abs(A) + 1, R).relevance
    torch.testing.assert_close(relevance["a"], torch.from_numpy(R))
