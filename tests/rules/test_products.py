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


@pytest.mark.parametrize("call", ["Div(two, a)", "Pow(a, two)", "Pow(two, a)", "Reciprocal(a)", "Exp(a)"])
def test_a_function_of_one_activation_hands_on_what_it_gets(call: str) -> None:
    model = onnx.parser.parse_model(HEAD.replace(", float[N, 3, 1, 1] b", "") + f"{{ y = {call} }}")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(2.0, np.float32), "two"))
    relevance = Explainer(model, "epsilon", dtype="float64").explain(np.abs(A) + 1, R).relevance
    torch.testing.assert_close(relevance["a"], torch.from_numpy(R))
