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
PLAIN = HEAD + "{ g = Relu (b)  y = Mul (a, g) }"
RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 3, 2, 2)), RNG.normal(size=(2, 3, 1, 1))
R = RNG.normal(size=A.shape)


@pytest.mark.parametrize(
    ("text", "parameters", "share"),
    [(PLAIN, {}, 0.5), (GATED, {}, 1.0), (GATED, {"gate": "half"}, 0.5), (PLAIN, {"gate": "signal"}, 0.5)],
)
def test_share_of_each_factor(text: str, parameters: dict[str, str], share: float) -> None:
    explainer = Explainer(onnx.parser.parse_model(text), rules.composite("epsilon", **parameters), dtype="float64")
    relevance = explainer.explain({"a": A, "b": B}, R).relevance
    torch.testing.assert_close(relevance["a"], torch.from_numpy(share * R))
    torch.testing.assert_close(relevance["b"], torch.from_numpy((1 - share) * R.sum((2, 3), keepdims=True)))


@pytest.mark.parametrize("call", ["Div(two, a)", "Pow(a, two)", "Pow(two, a)", "Reciprocal(a)", "Exp(a)"])
def test_a_function_of_one_activation_hands_on_what_it_gets(call: str) -> None:
    model = onnx.parser.parse_model(HEAD.replace(", float[N, 3, 1, 1] b", "") + f"{{ y = {call} }}")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(2.0, np.float32), "two"))
    relevance = Explainer(model, "epsilon", dtype="float64").explain(np.abs(A) + 1, R).relevance
    torch.testing.assert_close(relevance["a"], torch.from_numpy(R))
