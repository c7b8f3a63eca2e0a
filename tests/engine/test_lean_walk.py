"""What makes the walk fast changes no result: max(z, 0) in place of z, memory formats, what is written in place."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from lrp_onnx.engine import Dtype, Explainer
from lrp_onnx.engine.analysis import pictures
from lrp_onnx.forward import make_forward
from lrp_onnx.graph import Graph, load
from lrp_onnx.ops import winograd
from lrp_onnx.rules import RULES, Composite, Entry, composite
from lrp_onnx.runtime import open_session

COMPOSITES = [
    "epsilon",
    "epsilon-plus",
    "epsilon-plus-flat",
    "epsilon-alpha2-beta1",
    "epsilon-gamma-box",
    "montavon2019",
    "hudd",
]
X = np.random.default_rng(0).normal(size=(3, 2, 9, 9)).astype("f")


@pytest.fixture(scope="module")
def residual() -> Graph:
    """Convolutions, a residual sum behind a ReLU, a ReLU6, pooling and dense layers."""
    text = """(float[N,2,9,9] x) => (float[N,5] y) {
        c1 = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1, b1) r1 = Relu(c1)
        c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2) s = Add(c2, r1) r2 = Relu(s)
        c3 = Conv(r2, w3, b3) r3 = Clip(c3, zero, six) p = MaxPool<kernel_shape=[2,2]>(r3)
        f = Flatten(p) d = Gemm(f, w4, b4) r4 = Relu(d) y = Gemm(r4, w5, b5) }"""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 19]> g {text}')
    shapes = {"w1": (4, 2, 3, 3), "w2": (4, 4, 3, 3), "w3": (6, 4, 3, 3), "w4": (24, 8), "w5": (8, 5)}
    shapes |= {"b1": (4,), "b2": (4,), "b3": (6,), "b4": (8,), "b5": (5,)}
    rng = np.random.default_rng(1)
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    for name, array in (arrays | {"zero": np.zeros(()), "six": np.full((), 6.0)}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype("f"), name))
    return load(proto)


def made(name: str) -> Composite:
    bounds = {"low": -4.0, "high": 4.0} if name in ("epsilon-gamma-box", "montavon2019") else {}
    return composite(name, **bounds)


@pytest.mark.parametrize("name", COMPOSITES)
def test_the_relu_stands_in_for_z(name: str, residual: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    lean = Explainer(residual, made(name), dtype="float64")
    found = lean.explain(X, layers="all").relevance

    def plain(needs: Collection[str]) -> set[str]:
        return {"outputs" if n == "rectified" else n for n in needs}

    for key, known in list(RULES.items()):
        needs = known.needs
        without = (lambda op, needs=needs: plain(needs(op))) if callable(needs) else plain(needs)
        monkeypatch.setitem(RULES, key, replace(known, needs=without))
    full = Explainer(residual, made(name), dtype="float64")
    assert "s" in full.plan.reads - lean.plan.reads, "the sum itself is read only where its ReLU does not stand in"
    for tensor, wanted in full.explain(X, layers="all").relevance.items():
        torch.testing.assert_close(found[tensor], wanted, rtol=1e-9, atol=1e-12)


def test_a_relu_with_a_ceiling_does_not_stand_in(residual: Graph) -> None:
    """max(z, 0) is not what ReLU6 gives where z > 6: the rule keeps z."""
    outputs = {step.node.outputs[0]: step.outputs[0] for step in Explainer(residual, "epsilon").plan.steps}
    assert outputs["c1"] == "r1"
    assert outputs["s"] == "r2"
    assert outputs["c3"] == "c3"


def test_pictures_come_channels_last_with_the_same_values(residual: Graph) -> None:
    names, cpu = ["c1", "r2", "p", "f"], torch.device("cpu")
    assert set(names) - {"f"} <= pictures(residual)
    feeds = {"x": torch.from_numpy(X)}
    plain = make_forward(residual, names, torch.float32, cpu)(feeds)
    last = make_forward(residual, names, torch.float32, cpu, channels_last=pictures(residual))(feeds)
    for name in names:
        torch.testing.assert_close(last[name], plain[name])
        if name != "f":
            assert last[name].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", COMPOSITES)
def test_an_explanation_leaves_what_it_was_given_and_gave_before(name: str, residual: Graph) -> None:
    """Buffers are written in place: the input and earlier results must not be among them."""
    explainer, x = Explainer(residual, made(name)), torch.from_numpy(X.copy())
    first = explainer.explain(x, layers="all")
    copies = {n: r.clone() for n, r in first.relevance.items()}
    explainer.explain(x * 2, layers="all")
    again = explainer.explain(x, layers="all")
    assert torch.equal(x, torch.from_numpy(X))
    for tensor, wanted in copies.items():
        assert torch.equal(first.relevance[tensor], wanted)
        assert torch.equal(again.relevance[tensor], wanted)
        assert again.relevance[tensor].is_contiguous()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_output_that_is_a_view_of_an_activation_stays_what_the_model_gave(dtype: Dtype) -> None:
    text = "(float[N,2,9,9] x) => (float[N,M] y) { c = Conv(x, w) y = Flatten(c) }"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 19]> g {text}')
    weight = np.random.default_rng(1).normal(size=(4, 2, 3, 3)).astype("f")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    found = Explainer(proto, "hudd", dtype=dtype).explain(X, target=0)
    wanted = torch.conv2d(torch.from_numpy(X), torch.from_numpy(weight)).flatten(1)
    torch.testing.assert_close(found.output.float(), wanted, rtol=1e-5, atol=1e-6)


def test_an_open_session_does_not_keep_what_it_was_opened_from(residual: Graph) -> None:
    """As much memory as the model's weights; onnxruntime keeps it to open the session again elsewhere."""
    session = open_session(residual.model)
    held = [value for value in vars(session).values() if isinstance(value, bytes)]
    assert sum(map(len, held)) == 0
    assert session.run(None, {"x": X})[0].shape == (3, 5)


def test_an_explainer_opens_its_session_before_the_first_explanation(residual: Graph) -> None:
    explainer = Explainer(residual, "epsilon")
    assert not explainer._forwards
    explainer.open()
    (forward,) = explainer._forwards.values()
    explainer.explain(X)
    assert list(explainer._forwards.values()) == [forward]


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        (composite("epsilon"), "c1 c2 c3"),
        (composite("epsilon", bias="ignore"), ""),
        # the sum behind c2 may be negative where z⁺ is zero, and c1 gets what comes of that
        (composite("epsilon-plus"), "c3"),
        (Composite("spread", (Entry("flat", op=("Conv",)), Entry("epsilon", op=("linear",)))), ""),
    ],
    ids=lambda value: value.name if isinstance(value, Composite) else "",
)
def test_tiles_are_for_relevance_that_vanishes_with_what_divides_it(
    by: Composite, expected: str, residual: Graph
) -> None:
    steps = Explainer(residual, by).plan.steps
    assert " ".join(s.node.outputs[0] for s in steps if s.site.linear and s.site.linear.tiles) == expected


@pytest.mark.parametrize(
    ("activation", "name", "expected"),
    [("Relu", "epsilon-plus", "c1 c2"), ("Tanh", "epsilon-plus", ""), ("Tanh", "epsilon", "c1 c2")],
)
def test_no_tiles_below_a_sum_that_stays_negative(activation: str, name: str, expected: str) -> None:
    """In front of no ReLU, z⁺ is zero where z is not: what c2 hands down is as large as it likes."""
    text = f"""(float[N,2,6,6] x) => (float[N,5] y) {{
        c1 = Conv<pads=[1,1,1,1]>(x, w1) r1 = Relu(c1) c2 = Conv(r1, w2) a = {activation}(c2)
        f = Flatten(a) y = MatMul(f, w3) }}"""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 19]> g {text}')
    rng = np.random.default_rng(1)
    for tensor, shape in {"w1": (4, 2, 3, 3), "w2": (4, 4, 1, 1), "w3": (144, 5)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype("f"), tensor))
    steps = Explainer(proto, name).plan.steps
    assert " ".join(s.node.outputs[0] for s in steps if s.site.linear and s.site.linear.tiles) == expected


@pytest.mark.parametrize("bias", ["absorb", "ignore"])
@pytest.mark.parametrize("name", ["epsilon", "epsilon-plus", "epsilon-alpha2-beta1"])
def test_tiles_beside_what_is_dark(name: str, bias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the bias is in the sums over a dark area; what is divided by these is not to reach a bright one."""
    text = """(float[N,128,20,20] x) => (float[N,3] y) {
        c0 = Conv(x, w0) r0 = Relu(c0) c1 = Conv<pads=[1,1,1,1]>(r0, w1, b1) r1 = Relu(c1)
        c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2) r2 = Relu(c2) g = GlobalAveragePool(r2) f = Flatten(g)
        y = Gemm(f, w3, b3) }"""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 19]> g {text}')
    shapes = {
        "w0": (128, 128, 1, 1),
        "w1": (128, 128, 3, 3),
        "w2": (128, 128, 3, 3),
        "w3": (128, 3),
        "b1": (128,),
        "b2": (128,),
        "b3": (3,),
    }
    rng = np.random.default_rng(1)
    for tensor, shape in shapes.items():
        array = rng.normal(size=shape) / (34 if tensor in ("w1", "w2") else 10)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype("f"), tensor))
    x = rng.normal(size=(2, 128, 20, 20)).astype("f")
    x[:, :, :, 9:] = 0
    graph, by = load(proto), composite(name, bias=bias)
    exact = Explainer(graph, by, dtype="float64").explain(x).relevance["x"]
    found = Explainer(graph, by).explain(x).relevance["x"]
    monkeypatch.setattr(winograd, "pays", lambda *_: False)
    direct = Explainer(graph, by).explain(x).relevance["x"]
    assert torch.equal(found, direct) is (bias == "ignore" or name == "epsilon-alpha2-beta1")
    assert (found - exact).norm() < 3 * (direct - exact).norm()
