"""Composites as data: which rule each node gets, TOML and dict round trips, and messages that name what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from lrp_onnx.engine import Explainer
from lrp_onnx.errors import RuleError
from lrp_onnx.rules import COMPOSITES, RULES, Composite, Entry, composite

FLAT, BOX, PLUS, EPSILON = "flat", "z-box", "z-plus", "epsilon"
EXPECTED = {  # three convolutions and a dense layer, as RULES of the documentation says
    "epsilon": [EPSILON] * 4,
    "epsilon-plus": [PLUS, PLUS, PLUS, EPSILON],
    "epsilon-plus-flat": [FLAT, PLUS, PLUS, EPSILON],
    "epsilon-alpha2-beta1": ["alpha-beta"] * 3 + [EPSILON],
    "epsilon-alpha2-beta1-flat": [FLAT, "alpha-beta", "alpha-beta", EPSILON],
    "epsilon-gamma-box": [BOX, "gamma", "gamma", EPSILON],
    "montavon2019": [BOX, "gamma", "montavon-std", EPSILON],
    "excitation-backprop": [PLUS] * 4,
    "hudd": ["hudd"] * 4,
    "attnlrp": [EPSILON, "gamma", "gamma", EPSILON],
    "cp-lrp": [EPSILON, "gamma", "gamma", EPSILON],
    "gradient": ["gradient"] * 4,
    "input-x-gradient": ["gradient"] * 4,
    "guided-backprop": ["gradient"] * 4,
    "deconvnet": ["gradient"] * 4,
}


def model(text: str, **constants: tuple[int, ...]) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 19]> g {text}')
    rng = np.random.default_rng(0)
    for name, shape in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape), name))
    for node in proto.graph.node:
        node.name = f"block/{node.output[0]}"
    return proto


def network() -> onnx.ModelProto:
    return model(
        "(double[N,2,8,8] x) => (double[N,3] y) {"
        "c1 = Conv(x, w1) r1 = Relu(c1) c2 = Conv(r1, w2) r2 = Relu(c2) c3 = Conv(r2, w3) p = GlobalAveragePool(c3)"
        " f = Flatten(p) y = Gemm(f, w4) }",
        w1=(4, 2, 3, 3),
        w2=(4, 4, 3, 3),
        w3=(4, 4, 3, 3),
        w4=(4, 3),
    )


def rules_of(by: Composite, proto: onnx.ModelProto | None = None) -> dict[str, str]:
    steps = Explainer(proto or network(), by, dtype="float64").plan.steps
    return {step.node.name.removeprefix("block/"): step.rule for step in steps}


def test_every_built_in_composite_is_covered_here() -> None:
    assert set(EXPECTED) == set(COMPOSITES)


@pytest.mark.parametrize("name", EXPECTED)
def test_composite_gives_each_layer_its_rule(name: str) -> None:
    parameters = {"low": -3.0, "high": 3.0} if BOX in EXPECTED[name] else {}
    rules = rules_of(composite(name, **parameters))
    assert [rules[n] for n in ("c1", "c2", "c3", "y")] == EXPECTED[name]
    wanted = {"guided-backprop": "guided", "deconvnet": "deconvnet"}.get(
        name, "gradient" if "gradient" in name else "pass"
    )
    assert rules["r1"] == wanted
    if wanted == "pass":
        assert (rules["p"], rules["f"]) == ("norm", "route")


def test_first_is_the_first_in_execution_order_not_the_first_registered() -> None:
    proto = model(
        "(double[N,2,8,8] x) => (double[N,2,4,4] y) {"
        "b = Conv(x, w_second_in_name) r = Relu(b) y = Conv(r, w_first_in_name) }",
        w_first_in_name=(2, 3, 3, 3),
        w_second_in_name=(3, 2, 3, 3),
    )
    assert rules_of(composite("epsilon-plus-flat"), proto) == {"b": "flat", "r": "pass", "y": "z-plus"}


def test_a_dense_first_layer_gets_flat_but_never_z_box() -> None:
    proto = model(
        "(double[N,6] x) => (double[N,2] y) { h = Gemm(x, w1) r = Relu(h) y = Gemm(r, w2) }", w1=(6, 4), w2=(4, 2)
    )
    assert rules_of(composite("epsilon-plus-flat"), proto)["h"] == "flat"
    assert rules_of(composite("epsilon-gamma-box"), proto)["h"] == "epsilon"


def test_override_by_op_type_and_by_name_comes_first() -> None:
    by = composite("epsilon-plus").override({"Relu": "gradient", "*/c2": "gamma"})
    rules = rules_of(by)
    assert (rules["r1"], rules["r2"], rules["c2"], rules["c1"]) == ("gradient", "gradient", "gamma", "z-plus")
    assert rules_of(composite("epsilon-plus"))["c2"] == "z-plus", "the original is untouched"


def test_toml_gives_the_composite_that_it_describes(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'base = "epsilon-plus"\n'
        "[parameters]\nbias = 'ignore'\n"
        "[[entries]]\nrule = 'gamma'\nparameters = {gamma = 0.1}\nop = 'convolution'\nplace = 'upper'\n"
        "[[entries]]\nrule = 'z-box'\nparameters = {low = -1.0, high = 2.0}\nplace = 'first'\nop = ['Conv', 'Gemm']\n"
    )
    by = Composite.from_toml(path)
    assert by.name == "mine"
    steps = {s.node.name.removeprefix("block/"): s for s in Explainer(network(), by, dtype="float64").plan.steps}
    assert [steps[n].rule for n in ("c1", "c2", "c3", "y")] == ["z-box", "z-plus", "gamma", "epsilon"]
    assert steps["c3"].parameters == {"gamma": 0.1, "bias": "ignore"}
    assert steps["c2"].parameters == {"bias": "ignore"}


@pytest.mark.parametrize("name", COMPOSITES)
def test_dict_round_trip(name: str) -> None:
    by = composite(name)
    assert Composite.from_dict(by.to_dict()) == by


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[entries]]\nrule = 'zplus'", "no rule is named 'zplus'; known: .*z-plus"),
        ("[[entries]]\nrule = 'gamma'\nparameters = {gama = 1}", "rule 'gamma' takes gamma, eps, bias, not 'gama'"),
        ("[[entries]]\nrule = 'gamma'\nplace = 'second'", "place must be one of first, lower, upper"),
        ("[[entries]]\nrule = 'gamma'\nlayer = 'Conv'", "entry 1: .*layer"),
        ("[[entries]]\nop = 'Conv'", "entry 1: .*rule"),
        ("base = 'epsilon-flat'", "no composite is named 'epsilon-flat'; known: epsilon"),
        ("entry = 3", "unknown key 'entry'"),
        ("entries = [", "cannot be read"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(RuleError, match=message):
        Composite.from_toml(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match=r"nowhere.toml does not exist"):
        Composite.from_toml(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("epsilon-gamma", {}, "no composite is named 'epsilon-gamma'; known: epsilon, epsilon-plus"),
        ("epsilon-plus", {"gamma": 0.1}, "no rule of composite 'epsilon-plus' takes a parameter 'gamma'"),
        ("gradient", {"eps": 0.1}, "no rule of composite 'gradient' takes a parameter 'eps'"),
    ],
)
def test_unknown_names_are_errors(name: str, parameters: dict[str, float], message: str) -> None:
    with pytest.raises(RuleError, match=message):
        composite(name, **parameters)


def test_parameters_reach_every_rule_that_takes_them() -> None:
    steps = Explainer(
        network(), composite("epsilon-gamma-box", low=0.0, high=1.0, eps=1e-3), dtype="float64"
    ).plan.steps
    for step in steps:
        takes = "eps" in RULES[step.rule].parameters
        assert ("eps" in step.parameters) == takes
    gamma = next(s for s in steps if s.rule == "gamma")
    assert gamma.parameters == {"gamma": 0.25, "eps": 1e-3}


def test_a_parameter_replaces_the_entrys_own() -> None:
    by = composite("epsilon-alpha2-beta1", alpha=1.0, beta=0.0)
    step = Explainer(network(), by, dtype="float64").plan.steps[0]
    assert step.parameters == {"alpha": 1.0, "beta": 0.0}


@pytest.mark.parametrize(
    ("rule", "op", "message"),
    [
        ("z-plus", "Relu", "Relu node 'block/r1': rule 'z-plus' is for linear ops"),
        ("held-scale", "Relu", "for ops of family normalisation, this op is of family activation"),
        ("winner-takes-all", "Conv", "for ops of family max"),
        ("norm", "Relu", "for ops of family mean or sum"),
        ("pass", "Crop", "no op or node on the relevance path"),
        ("pass", "blok/*", "a rule for 'blok/\\*'"),
    ],
)
def test_a_rule_that_cannot_run_on_its_node_is_an_error_that_names_it(rule: str, op: str, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        Explainer(network(), composite("epsilon").override({op: rule}), dtype="float64")


def test_bias_is_absorbed_or_ignored_and_nothing_else() -> None:
    by = Composite("typo", (Entry("epsilon", {"bias": "drop"}, ("linear",)),))
    with pytest.raises(RuleError, match="bias must be 'absorb' or 'ignore', not 'drop'"):
        Explainer(network(), by, dtype="float64")


def test_parameters_of_a_file_come_before_the_bases_and_behind_its_entries() -> None:
    by = Composite.from_dict(
        {
            "base": "epsilon-gamma-box",
            "parameters": {"gamma": 0.5, "low": 0.0, "high": 1.0},
            "entries": [{"rule": "gamma", "node": "block/c2", "parameters": {"gamma": 2.0}}],
        }
    )
    steps = {step.node.name: step for step in Explainer(network(), by, dtype="float64").plan.steps}
    assert steps["block/c2"].parameters["gamma"] == 2.0
    others = [s.parameters["gamma"] for s in steps.values() if s.rule == "gamma" and s.node.name != "block/c2"]
    assert others == [0.5]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"entries": "x"}, "entries is 'x'"),
        ({"entries": [{"rul": "gamma"}]}, "entry 1: unknown key 'rul'"),
        ({"entries": [{"rule": "gamma", "node": 3}]}, "entry 1: node is 3; expected a text"),
        ({"entries": [{"rule": "gamma", "op": [3]}]}, "entry 1: op is 3"),
        ({"entries": [{"rule": "gamma", "parameters": {"gamma": "a lot"}}]}, "gamma is 'a lot'; expected a number"),
        ({"entries": [{"rule": "epsilon", "parameters": {"eps": 0}}]}, "eps is 0; expected a number above 0"),
        ({"base": "epsilon", "parameters": {"epss": 1}}, "takes a parameter 'epss'"),
        ({"base": "epsilon", "parameters": 1}, "parameters is 1"),
    ],
)
def test_a_value_of_the_wrong_kind_is_an_error_that_names_it(data: dict, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        Composite.from_dict(data)


def test_an_error_in_a_file_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('base = "epsilonn"')
    with pytest.raises(RuleError, match=r"mine\.toml: no composite is named 'epsilonn'"):
        Composite.from_toml(tmp_path / "mine.toml")


@pytest.mark.parametrize(("low", "high"), [(1.0, -1.0), ("a", "b")])
def test_bounds_that_cannot_be_are_refused(low: object, high: object) -> None:
    with pytest.raises(RuleError, match="expected the lowest and highest input"):
        Explainer(network(), composite("epsilon-gamma-box", low=low, high=high), dtype="float64")


def test_a_negative_gamma_is_refused() -> None:
    with pytest.raises(RuleError, match="gamma is -1"):
        Explainer(network(), composite("epsilon-gamma-box", low=0.0, high=1.0, gamma=-1.0), dtype="float64")
