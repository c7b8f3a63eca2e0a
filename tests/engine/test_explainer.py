"""What `Explainer` promises: targets, seeds, layers, several inputs, errors before any image, precision, memory."""

from __future__ import annotations

import weakref
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from lrp_onnx.engine import Explainer
from lrp_onnx.errors import DataError, ModelError, RuleError, TargetError, UnsupportedOpError
from lrp_onnx.graph import load
from lrp_onnx.ops import OPS, Op
from lrp_onnx.rules import RULES, Composite, Rule, Shares, composite, rule

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 2, 8, 8))


def model(text: str, domains: str = "", **constants: Any) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 19{domains}]> g {text}')
    elem = proto.graph.input[0].type.tensor_type.elem_type
    for name, value in constants.items():
        array = np.random.default_rng(len(name)).normal(size=value) if isinstance(value, tuple) else value
        dtype = onnx.helper.tensor_dtype_to_np_dtype(elem) if array.dtype.kind == "f" else array.dtype
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(dtype), name))
    for node in proto.graph.node:
        node.name = f"node_{node.output[0]}"
    return proto


def classifier(elem: str = "double") -> onnx.ModelProto:
    text = """(ELEM[N,2,8,8] x) => (ELEM[N,5] y) {
        c1 = Conv<pads=[1,1,1,1]>(x, w1, b1) r1 = Relu(c1) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r1)
        c2 = Conv(p, w2, b2) r2 = Relu(c2) g = GlobalAveragePool(r2) f = Flatten(g) y = Gemm(f, w3, b3) }"""
    shapes = {"w1": (4, 2, 3, 3), "b1": (4,), "w2": (6, 4, 3, 3), "b2": (6,), "w3": (6, 5), "b3": (5,)}
    return model(text.replace("ELEM", elem), **shapes)


def explainer(by: str | Composite = "epsilon-plus", **options: Any) -> Explainer:
    return Explainer(classifier(), by, **{"dtype": "float64", **options})


def test_predicted_target_starts_at_its_logit() -> None:
    e = explainer(composite("epsilon", bias="ignore", eps=1e-14)).explain(X)
    assert e.target is not None
    assert e.target.tolist() == e.output.argmax(dim=1).tolist()
    sums = e.relevance["x"].sum(dim=(1, 2, 3))
    torch.testing.assert_close(sums, e.output.max(dim=1).values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("target", [[0, 4, 2, 2], np.array([0, 4, 2, 2]), torch.tensor([0, 4, 2, 2])])
def test_a_target_for_each_sample(target: Any) -> None:
    e = explainer()
    together = e.explain(X, target=target)
    assert together.target is not None
    assert together.target.tolist() == [0, 4, 2, 2]
    for i, t in enumerate([0, 4, 2, 2]):
        alone = e.explain(X[i : i + 1], target=t).relevance["x"][0]
        torch.testing.assert_close(together.relevance["x"][i], alone, rtol=1e-10, atol=1e-12)


def test_label_target_takes_the_labels() -> None:
    e = explainer()
    by_label, by_index = e.explain(X, target="label", labels=[3, 1, 0, 3]), e.explain(X, target=[3, 1, 0, 3])
    assert torch.equal(by_label.relevance["x"], by_index.relevance["x"])


def test_an_array_shaped_as_the_output_is_the_initial_relevance() -> None:
    e = explainer()
    initial = np.zeros((4, 5))
    output = e.explain(X).output.numpy()
    initial[:, 1], initial[:, 3] = output[:, 1], -output[:, 3]
    contrast = e.explain(X, target=initial)
    assert contrast.target is None
    wanted = e.explain(X, target=1).relevance["x"] - e.explain(X, target=3).relevance["x"]
    torch.testing.assert_close(contrast.relevance["x"], wanted, rtol=1e-10, atol=1e-12)


def test_seeds_one_and_all() -> None:
    e = explainer()
    logit, one = e.explain(X, target=2, seed="logit"), e.explain(X, target=2, seed="one")
    scale = logit.output[:, 2].reshape(-1, 1, 1, 1)
    torch.testing.assert_close(one.relevance["x"] * scale, logit.relevance["x"], rtol=1e-10, atol=1e-12)
    every = e.explain(X, seed="all").relevance["x"]
    torch.testing.assert_close(
        every, sum(e.explain(X, target=t).relevance["x"] for t in range(5)), rtol=1e-9, atol=1e-11
    )


def test_gradients_start_at_one() -> None:
    e = explainer("gradient")
    assert torch.equal(e.explain(X, target=1).relevance["x"], e.explain(X, target=1, seed="one").relevance["x"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 5}, r"target 5 is outside of the model's 5 outputs \(0 to 4\)"),
        ({"target": -1}, "target -1 is outside"),
        ({"target": [0, 1]}, r"shape \(2,\).*4 integers"),
        ({"target": 1.5}, "type float64"),
        ({"target": np.zeros((4, 6))}, r"\(4, 6\).*\(4, 5\)"),
        ({"target": "best"}, "target 'best' is not known; expected predicted, label"),
        ({"target": "label"}, "needs labels"),
        ({"seed": "ones"}, "seed must be 'auto', 'logit', 'one' or 'all', not 'ones'"),
        ({"layers": ["c1", "nowhere"]}, "no tensor on the relevance path is named 'nowhere'"),
    ],
)
def test_a_wrong_target_seed_or_layer_says_what_was_expected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        explainer().explain(X, **options)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X[:, :1], r"input 'x' has shape \(4, 1, 8, 8\), the model wants \('?N'?, 2, 8, 8\)"),
        (X[0], r"input 'x' has shape \(2, 8, 8\)"),
        ({"image": X}, "input 'x' is missing"),
        ({"x": X, "mask": X}, "the model has no input 'mask'; it wants x"),
    ],
)
def test_a_wrong_input_names_it_and_what_the_model_wants(x: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        explainer().explain(x)


def test_layers_by_name_predicate_and_all() -> None:
    e = explainer()
    assert list(e.explain(X).relevance) == ["x"]
    assert list(e.explain(X, layers=["p", "c1"]).relevance) == ["x", "c1", "p"]
    assert list(e.explain(X, layers=lambda n: n.startswith("r")).relevance) == ["x", "r1", "r2"]
    everything = e.explain(X, layers="all").relevance
    assert list(everything) == ["x", "c1", "r1", "p", "c2", "r2", "g", "f", "y"]
    assert everything["p"].shape == (4, 4, 4, 4)
    assert torch.equal(everything["c1"], everything["r1"])  # an activation passes relevance on


def test_relevance_is_conserved_through_every_layer() -> None:
    everything = explainer(composite("epsilon", bias="ignore", eps=1e-14)).explain(X, layers="all").relevance
    start = everything["y"].sum()
    for name, relevance in everything.items():
        assert float((relevance.sum() - start).abs()) < 1e-9 * abs(float(start)), name


def test_several_inputs_share_the_relevance() -> None:
    proto = model(
        "(double[N,3] a, double[N,2] b) => (double[N,2] y) { h = Gemm(a, w) s = Add(h, b) y = Relu(s) }", w=(3, 2)
    )
    a, b = RNG.normal(size=(5, 3)), RNG.normal(size=(5, 2))
    e = Explainer(proto, composite("epsilon", eps=1e-14), dtype="float64").explain({"a": a, "b": b}, seed="all")
    assert list(e.relevance) == ["a", "b"]
    total = e.relevance["a"].sum() + e.relevance["b"].sum()
    torch.testing.assert_close(total, e.output.sum(), rtol=1e-9, atol=1e-9)
    with pytest.raises(DataError, match="input 'b' is missing; the model wants a, b"):
        Explainer(proto, "epsilon", dtype="float64").explain(a)


def test_a_tensor_that_is_read_twice_gets_the_sum() -> None:
    proto = model(
        "(double[N,4] x) => (double[N,3] y) { l = Gemm(x, w) r = Gemm(x, v) y = Add(l, r) }", w=(4, 3), v=(4, 3)
    )
    both = Explainer(proto, composite("epsilon", eps=1e-14), dtype="float64").explain(X[:, 0, 0, :4], seed="all")
    w, v = (onnx.numpy_helper.to_array(t) for t in proto.graph.initializer)
    wanted = X[:, 0, 0, :4] * (w + v).sum(axis=1)
    np.testing.assert_allclose(both.relevance["x"].numpy(), wanted, rtol=1e-9)


def test_a_tensor_added_to_itself() -> None:
    proto = model("(double[N,4] x) => (double[N,4] y) { y = Add(x, x) }")
    x = X[:, 0, 0, :4]
    e = Explainer(proto, composite("epsilon", eps=1e-14), dtype="float64").explain(x, seed="all")
    np.testing.assert_allclose(e.relevance["x"].numpy(), 2 * x, rtol=1e-10)


def two_heads() -> onnx.ModelProto:
    text = (
        "(double[N,4] x) => (double[N,2] a, double[N,3] b) { h = Gemm(x, w) r = Relu(h) a = Gemm(r, u) b = Gemm(r, v) }"
    )
    return model(text, w=(4, 4), u=(4, 2), v=(4, 3))


def test_the_output_to_explain_can_be_chosen() -> None:
    x = X[:, 0, 0, :4]
    first, second = (Explainer(two_heads(), "epsilon", dtype="float64", output=o).explain(x) for o in (None, "b"))
    assert (first.output.shape[1], second.output.shape[1]) == (2, 3)
    assert not torch.allclose(first.relevance["x"], second.relevance["x"])
    with pytest.raises(TargetError, match="no output is named 'c'; the model has a, b"):
        Explainer(two_heads(), "epsilon", output="c")


def test_one_output_may_feed_another() -> None:
    proto = model(
        "(double[N,4] x) => (double[N,4] h, double[N,2] y) { h = Gemm(x, w) y = Gemm(h, v) }", w=(4, 4), v=(4, 2)
    )
    x = X[:, 0, 0, :4]
    inner = Explainer(proto, composite("epsilon", eps=1e-14), dtype="float64").explain(x, seed="all")
    assert inner.output.shape == (4, 4)
    torch.testing.assert_close(inner.relevance["x"].sum(), inner.output.sum(), rtol=1e-9, atol=1e-9)


def test_an_op_without_a_rule_fails_at_construction_and_names_node_and_options() -> None:
    proto = model(
        "(double[N,4] x) => (double[N,2] y) { h = Gemm(x, w) p = Mod<fmod=1>(h, e) y = Gemm(p, v) }",
        w=(4, 4),
        v=(4, 2),
        e=np.array(3.0),
    )
    with pytest.raises(
        UnsupportedOpError, match=r"Mod node 'node_p' is on the relevance path.*--rule Mod=pass or --rule Mod=gradient"
    ):
        Explainer(proto, "epsilon", dtype="float64")
    x = X[:, 0, 0, :4]
    for chosen in ("pass", "gradient"):
        e = Explainer(proto, composite("epsilon").override({"Mod": chosen}), dtype="float64")
        assert e.explain(x).relevance["x"].abs().sum() > 0


def test_an_op_of_an_unknown_domain_fails_at_construction() -> None:
    proto = model("(float[N,4] x) => (float[N,4] y) { y = my.domain.Strange(x) }", domains=', "my.domain" : 1')
    with pytest.raises(UnsupportedOpError, match=r"Strange node 'node_y'.*--rule my.domain.Strange=pass"):
        Explainer(load(proto, check=False), "epsilon")


def test_ops_off_the_path_need_no_rule() -> None:
    proto = model(
        "(double[N,4] x) => (double[N,2] y, double[N,4] z) { h = Gemm(x, w) z = Mod<fmod=1>(h, e) y = Gemm(h, v) }",
        w=(4, 4),
        v=(4, 2),
        e=np.array(3.0),
    )
    e = Explainer(proto, "epsilon", dtype="float64")
    assert [s.node.op_type for s in e.plan.steps] == ["Gemm", "Gemm"]
    assert e.explain(X[:, 0, 0, :4]).output.shape == (4, 2)


def test_an_output_that_no_input_reaches_cannot_be_explained() -> None:
    proto = model("(double[N,4] x) => (int64[2] y) { y = Shape(x) }")
    with pytest.raises(ModelError, match="output 'y' does not depend on any input that can have"):
        Explainer(proto, "epsilon", dtype="float64")


def test_wrong_device_and_precision() -> None:
    with pytest.raises(DataError, match="device 'nonsense' cannot be used"):
        explainer(device="nonsense")
    with pytest.raises(RuleError, match="'float32', 'float64' or 'bfloat16', not 'float16'"):
        explainer(dtype="float16")


@pytest.mark.parametrize("name", ["epsilon-plus-flat", "epsilon-alpha2-beta1", "epsilon-gamma-box", "gradient"])
def test_float32_by_onnx_runtime_points_where_float64_does(name: str) -> None:
    by = composite(name, **({"low": -4.0, "high": 4.0} if "box" in name else {}))
    x = X.astype(np.float32)
    single = Explainer(classifier("float"), by).explain(x, target=1)
    double = Explainer(classifier("float"), by, dtype="float64").explain(x.astype(np.float64), target=1)
    assert single.relevance["x"].dtype == torch.float32
    assert double.relevance["x"].dtype == torch.float64
    torch.testing.assert_close(single.output.double(), double.output, rtol=1e-4, atol=1e-4)
    cosine = torch.cosine_similarity(single.relevance["x"].double().flatten(1), double.relevance["x"].flatten(1))
    assert cosine.min() > 0.9999


def test_batch_size_changes_nothing() -> None:
    e = explainer("epsilon-plus-flat")
    together = e.explain(X, target=0).relevance["x"]
    apart = torch.cat([e.explain(X[i : i + 1], target=0).relevance["x"] for i in range(4)])
    torch.testing.assert_close(together, apart, rtol=1e-10, atol=1e-12)


def test_the_model_and_the_input_are_not_modified() -> None:
    proto, x = classifier(), torch.from_numpy(X.copy())
    before = proto.SerializeToString(deterministic=True)
    graph = load(proto)
    weights = {n: a.copy() for n, a in graph.initializers.items()}
    for name in ("epsilon-plus-flat", "epsilon-alpha2-beta1", "guided-backprop", "input-x-gradient"):
        Explainer(graph, name, dtype="float64").explain(x, layers="all")
    assert proto.SerializeToString(deterministic=True) == before
    assert all(np.array_equal(weights[n], a) for n, a in graph.initializers.items())
    assert torch.equal(x, torch.from_numpy(X))


def test_activations_are_freed_as_the_walk_passes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the last layers read is gone when the first layer's rule runs."""
    seen: list[tuple[str, weakref.ref[torch.Tensor]]] = []
    alive_at: dict[str, set[str]] = {}

    @rule("watching", needs=("inputs", "outputs"))
    def watching(site: Any) -> Any:
        plain = RULES["epsilon"].build(site)

        def backward(call: Any) -> Any:
            alive_at[site.node.name] = {name for name, ref in seen if ref() is not None}
            seen.append((site.node.name, weakref.ref(call.outputs[0])))
            return plain(call)

        return backward

    try:
        by = composite("epsilon").override({"Conv": "watching", "Gemm": "watching"})
        Explainer(classifier(), by, dtype="float64").explain(X)
    finally:
        del RULES["watching"]
    assert alive_at["node_c2"] <= {"node_y"}  # the explained output itself is kept
    assert alive_at["node_c1"] <= {"node_y"}


def test_only_what_the_rules_read_is_kept() -> None:
    reads = explainer("epsilon-plus").plan.reads
    assert reads == {"x", "r1", "p", "r2", "g", "f", "y"}, "z-plus and pass read no convolution's output"
    assert not {"c1", "c2"} & explainer("epsilon").plan.reads, "behind a ReLU, epsilon is content with what that gives"
    by = composite("epsilon").override({"Conv": "montavon-std"})
    assert {"c1", "c2"} <= Explainer(classifier(), by).plan.reads, "the mean of z² needs what is below zero too"


def test_the_ledger_names_every_node_from_the_output_back() -> None:
    ledger = explainer().explain(X).conservation
    assert [n.node for n in ledger] == [f"node_{t}" for t in ("y", "f", "g", "r2", "c2", "p", "r1", "c1")]
    assert [n.rule for n in ledger] == [
        "epsilon",
        "route",
        "norm",
        "pass",
        "z-plus",
        "winner-takes-all",
        "pass",
        "z-plus",
    ]
    for above, below in pairwise(ledger):
        torch.testing.assert_close(above.handed, below.arrived)
    for node in ledger:
        torch.testing.assert_close(node.remainder, node.arrived - node.handed - node.bias)


def test_a_rule_that_gives_the_wrong_shape_is_an_error_that_names_rule_and_input(monkeypatch: Any) -> None:
    broken = Rule("broken", lambda site: lambda call: Shares([call.relevance[0]]), frozenset(), "lost", {})
    monkeypatch.setitem(RULES, "broken", broken)
    explainer = Explainer(classifier(), composite("epsilon").override({"MaxPool": "broken"}), dtype="float64")
    with pytest.raises(RuleError, match=r"node_p'?: rule 'broken' gives relevance of shape .* the input 'r1' has"):
        explainer.explain(X)


def test_half_precision_models_are_explained_in_float32() -> None:
    proto = classifier("float16")
    single = classifier("float")
    for target, source in zip(single.graph.initializer, proto.graph.initializer, strict=True):
        array = onnx.numpy_helper.to_array(source).astype(np.float32)
        target.CopyFrom(onnx.numpy_helper.from_array(array, source.name))
    half = Explainer(proto).explain(X.astype(np.float16), target=1).relevance["x"]
    whole = Explainer(single).explain(X.astype(np.float16).astype(np.float32), target=1).relevance["x"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, rtol=0.05, atol=0.02 * float(whole.abs().max()))


def test_an_op_of_the_users_own_runs_in_torch_where_onnx_runtime_does_not_know_it(monkeypatch: Any) -> None:
    monkeypatch.setitem(OPS, ("mine", "Squash"), Op("Squash", "activation", lambda x, *, limit: x.clamp(-limit, limit)))
    text = """(float[N,2,8,8] x) => (float[N,3] y) {
        c = Conv(x, w) s = mine.Squash<limit=0.5>(c) g = GlobalAveragePool(s) y = Flatten(g) }"""
    explanation = Explainer(model(text, domains=', "mine" : 1', w=(3, 2, 3, 3)), "epsilon").explain(X)
    torch.testing.assert_close(
        explanation.relevance["x"].sum(), explanation.conservation[0].arrived, rtol=1e-3, atol=1e-4
    )


def test_an_output_without_a_row_per_sample_is_refused() -> None:
    proto = model("(float[N,2,8,8] x) => (float y) { c = Conv(x, w) y = ReduceSum<keepdims=0>(c) }", w=(3, 2, 3, 3))
    with pytest.raises(TargetError, match="expected one row per sample"):
        Explainer(proto).explain(X.astype(np.float32))
