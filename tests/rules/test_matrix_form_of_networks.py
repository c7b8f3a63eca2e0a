"""The short cuts that planning takes (no x⁻ behind a ReLU, no z < 0 before one, Add as a bias) change no value."""

from __future__ import annotations

from typing import Any

import matrix_rules
import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from lrp_onnx.engine import Explainer
from lrp_onnx.ops import Linear
from lrp_onnx.rules import Composite, Entry, composite

RNG = np.random.default_rng(3)
WEIGHTS = {
    "w1": RNG.normal(size=(3, 2, 3, 3)),
    "w2": RNG.normal(size=(4, 3, 3, 3)),
    "w3": RNG.normal(size=(2, 4, 2, 2)),
    **{f"b{i + 1}": RNG.normal(size=n) for i, n in enumerate((3, 4, 2))},
}
X = RNG.normal(size=(1, 2, 6, 6))
CONVOLUTIONS = {
    "c1": "Conv<pads=[1,1,1,1]>(x, w1, b1)",
    "c2": "Conv<strides=[2,2]>(x, w2, b2)",
    "c3": "Conv(x, w3, b3)",
}


def chain(between: tuple[str, str] = ("Relu", "Relu")) -> onnx.ModelProto:
    first, second, third = (text.replace("(x,", "({},") for text in CONVOLUTIONS.values())
    return parse(
        "(double[1,2,6,6] x) => (double[1,2,1,1] y) {"
        f"c1 = {first.format('x')} h1 = {between[0]}(c1) c2 = {second.format('h1')} h2 = {between[1]}(c2) "
        f"y = {third.format('h2')} }}",
        WEIGHTS,
    )


def parse(text: str, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 19]> g {text}')
    used = {name for node in model.graph.node for name in node.input}
    for name in sorted(used & constants.keys()):
        model.graph.initializer.append(onnx.numpy_helper.from_array(constants[name], name))
    return onnx.shape_inference.infer_shapes(model)


def dense(op: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and bias of one op, by ONNX's reference implementation."""
    model = parse(f"(double[{','.join(map(str, shape))}] x) => (double y) {{ y = {op} }}", WEIGHTS)
    run = ReferenceEvaluator(model).run
    (offset,) = run(None, {"x": np.zeros(shape)})
    columns = [(run(None, {"x": e.reshape(shape)})[0] - offset).ravel() for e in np.eye(int(np.prod(shape)))]
    return np.stack(columns, 1), offset.ravel()


LAYERS = [
    dense(CONVOLUTIONS["c1"], (1, 2, 6, 6)),
    dense(CONVOLUTIONS["c2"], (1, 3, 6, 6)),
    dense(CONVOLUTIONS["c3"], (1, 4, 2, 2)),
]


def textbook(activation: Any, rules: tuple[Any, Any, Any], r: np.ndarray) -> np.ndarray:
    """Each rule by its name or as a function."""
    inputs, x = [], X.ravel()
    for w, b in LAYERS:
        inputs.append(x)
        x = activation(w @ x + b)
    for (w, b), x, rule in zip(reversed(LAYERS), reversed(inputs), reversed(rules), strict=True):
        r = (rule if callable(rule) else matrix_rules.RULES[rule])(w, b, x, r)
    return r


def relu(z: np.ndarray) -> np.ndarray:
    return np.maximum(z, 0)


def leaky(z: np.ndarray) -> np.ndarray:
    return np.where(z >= 0, z, 0.125 * z)


def layered(*rules: str) -> Composite:
    return Composite("layers", tuple(Entry(r, node=f"c{i + 1}") for i, r in enumerate(rules)))


def explained(model: onnx.ModelProto, by: Composite, r: np.ndarray) -> tuple[np.ndarray, list[Linear]]:
    for node in model.graph.node:
        node.name = {"y": "c3"}.get(node.output[0], node.output[0])
    explainer = Explainer(model, by, dtype="float64")
    found = explainer.explain(X, target=r).relevance["x"].numpy().ravel()
    return found, [s.site.linear for s in explainer.plan.steps if s.site.linear is not None]


R = RNG.normal(size=(1, 2, 1, 1))


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(wanted).max() > 1e-3
    assert np.abs(found - wanted).max() <= 1e-10 * np.abs(wanted).max()


@pytest.mark.parametrize("rule", ["epsilon", "montavon-std", "z-plus", "alpha-beta", "gamma", "w-square"])
def test_short_cuts_behind_a_relu_give_the_textbook_form(rule: str) -> None:
    found, linears = explained(chain(), layered(rule, rule, rule), R)
    assert [op.nonnegative for op in linears] == [False, True, True]
    assert_close(found, textbook(relu, (rule, rule, rule), R.ravel()))


@pytest.mark.parametrize(
    ("rule", "parameters"),
    [
        ("z-plus", {}),
        ("z-plus", {"bias": "ignore"}),
        ("alpha-beta", {}),
        ("alpha-beta", {"bias": "ignore"}),
        ("alpha-beta", {"alpha": 3.0, "beta": 2.0}),
        ("alpha-beta", {"alpha": 1.0, "beta": 0.0}),
    ],
)
@pytest.mark.parametrize("top", ["epsilon", "w-square"])
def test_denominators_from_what_the_relu_lets_through(rule: str, parameters: dict[str, Any], top: str) -> None:
    """w-square puts relevance on a dead ReLU, which passes it on to where z < 0: there nothing is saved at c2."""
    entries = (Entry(rule, parameters, node="c1"), Entry(rule, parameters, node="c2"), Entry(top, node="c3"))
    found, linears = explained(chain(), Composite("layers", entries), R)
    wanted = {"z-plus": [True, False, False], "alpha-beta": [True, top == "epsilon", False]}[rule]
    assert [op.rectified for op in linears] == wanted
    given = {name: value for name, value in parameters.items() if name != "bias"}

    def with_parameters(w: np.ndarray, b: np.ndarray, x: np.ndarray, r: np.ndarray) -> np.ndarray:
        return matrix_rules.RULES[rule](w, 0 * b if "bias" in parameters else b, x, r, **given)

    assert_close(found, textbook(relu, (with_parameters, with_parameters, top), R.ravel()))


@pytest.mark.parametrize("rule", ["z-plus", "alpha-beta", "gamma"])
def test_nothing_is_cut_short_behind_a_leaky_relu(rule: str) -> None:
    found, linears = explained(chain(("LeakyRelu<alpha=0.125>",) * 2), layered(rule, rule, rule), R)
    assert not any(op.nonnegative or op.positive_support for op in linears)
    assert_close(found, textbook(leaky, (rule, rule, rule), R.ravel()))


def test_gamma_before_a_relu_skips_what_no_relevance_reaches() -> None:
    found, linears = explained(chain(), layered("gamma", "gamma", "epsilon"), R)
    assert [op.positive_support for op in linears] == [True, True, False]
    assert_close(found, textbook(relu, ("gamma", "gamma", "epsilon"), R.ravel()))


def test_gamma_skips_nothing_where_the_rule_above_puts_relevance_on_zeros() -> None:
    """w-square gives relevance to a dead ReLU, which passes it on to where z < 0."""
    found, linears = explained(chain(), layered("gamma", "w-square", "epsilon"), R)
    assert not linears[0].positive_support
    assert_close(found, textbook(relu, ("gamma", "w-square", "epsilon"), R.ravel()))


def test_gamma_skips_nothing_where_a_second_reader_takes_the_sum_unrectified() -> None:
    model = parse(
        "(double[1,2,6,6] x) => (double[1,3,6,6] y) {"
        "c1 = Conv<pads=[1,1,1,1]>(x, w1, b1) h = Relu(c1) y = Add(c1, h) }",
        WEIGHTS,
    )
    explainer = Explainer(
        model, composite("epsilon-gamma-box", low=-3.0, high=3.0).override({"Conv": "gamma"}), dtype="float64"
    )
    r = RNG.normal(size=(1, 3, 6, 6))
    found = explainer.explain(X, target=r).relevance["x"].numpy().ravel()
    w, b = LAYERS[0]
    c1 = w @ X.ravel() + b
    g = r.ravel() / matrix_rules.s(c1 + relu(c1))
    assert_close(found, matrix_rules.gamma(w, b, X.ravel(), c1 * g + relu(c1) * g))


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 5)])
@pytest.mark.parametrize("rule", ["epsilon", "z-plus", "alpha-beta", "gamma", "w-square"])
@pytest.mark.parametrize("order", ["Add(h, b)", "Add(b, h)"])
def test_an_add_behind_a_matmul_is_its_bias(shape: tuple[int, ...], rule: str, order: str) -> None:
    w, b, x = RNG.normal(size=(5, 4)), RNG.normal(size=4), RNG.normal(size=shape)
    r = RNG.normal(size=(*shape[:-1], 4))
    dims = ",".join(map(str, shape))
    model = parse(f"(double[{dims}] x) => (double y) {{ h = MatMul(x, w) y = {order} }}", {"w": w, "b": b})
    by = Composite("one rule", (Entry(rule, op=("linear",)),))
    found = Explainer(model, by, dtype="float64").explain(x, target=r).relevance["x"].numpy()
    rows = [matrix_rules.RULES[rule](w.T, b, v, u) for v, u in zip(x.reshape(-1, 5), r.reshape(-1, 4), strict=True)]
    assert_close(found, np.reshape(rows, shape))


def test_add_of_a_constant_behind_nothing_linear_takes_its_share_and_absorbs_the_rest() -> None:
    x, c, r = RNG.normal(size=(2, 4)), RNG.normal(size=4), RNG.normal(size=(2, 4))
    model = parse("(double[2,4] x) => (double[2,4] y) { h = Tanh(x) y = Add(h, c) }", {"c": c})
    explanation = Explainer(model, Composite("defaults"), dtype="float64").explain(x, target=r)
    h = np.tanh(x)
    assert_close(explanation.relevance["x"].numpy(), h * r / matrix_rules.s(h + c))
    add = next(node for node in explanation.conservation if node.op_type == "Add")
    assert_close(np.asarray(float(add.bias)), np.sum(c * r / matrix_rules.s(h + c)))
