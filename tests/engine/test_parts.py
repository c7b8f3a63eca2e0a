"""A large batch goes in parts with the same result; where samples may depend on each other, it goes as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import small_networks
import torch
from torch import Tensor

from lrp_onnx.engine import Explainer
from lrp_onnx.engine.parts import most_at_once, ranges
from lrp_onnx.errors import DataError, TargetError
from lrp_onnx.forward import Forward
from lrp_onnx.graph import Graph, load

X = np.random.default_rng(0).normal(size=(7, 2, 6, 6)).astype("f")


def model(body: str, x: str = "float[N,2,6,6] x", y: str = "float[N,5] y") -> Graph:
    text = f'<ir_version: 8, opset_import: ["" : 19]> g ({x}) => ({y}) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(1)
    shapes = {"w1": (4, 2, 3, 3), "b1": (4,), "w2": (4, 4, 3, 3), "b2": (4,), "w3": (144, 5), "b3": (5,), "w": (72, 5)}
    for name, shape in shapes.items():
        if name in body:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype("f"), name))
    return load(proto)


DENSE = "f = Flatten(x) y = MatMul(f, w)"


@pytest.fixture(scope="module")
def residual() -> Graph:
    return model(
        """c1 = Conv<pads=[1,1,1,1]>(x, w1, b1) r1 = Relu(c1) c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2) s = Add(c2, r1)
           r2 = Relu(s) f = Flatten(r2) y = Gemm(f, w3, b3)"""
    )


def sizes(explainer: Explainer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Samples of each forward pass from now on."""
    seen: list[int] = []
    make = explainer._forward

    def counted(recorded: frozenset[str], shapes: Any) -> Forward:
        forward = make(recorded, shapes)

        def run(inputs: Any) -> dict[str, Tensor]:
            seen.append(len(next(iter(inputs.values()))))
            return forward(inputs)

        return run

    monkeypatch.setattr(explainer, "_forward", counted)
    return seen


def samples(graph: Graph, feeds: dict[str, Tensor]) -> int | None:
    """How many samples are explained one without the others."""
    explainer = Explainer(graph, "gradient")
    independence, recorded = explainer._independence, explainer._recorded("input")
    n = independence.samples(feeds, 0, None)
    return n if n > 1 and independence.holds(feeds, recorded, explainer._tried) else None


@pytest.mark.parametrize("composite", ["epsilon-plus-flat", "epsilon-alpha2-beta1", "input-x-gradient"])
@pytest.mark.parametrize(
    "choice",
    [
        {"target": "predicted"},
        {"target": "label", "labels": [0, 1, 2, 3, 4, 0, 1]},
        {"target": 3},
        {"target": np.arange(7) % 5},
        {"target": torch.arange(7) % 5},
        {"target": np.random.default_rng(2).normal(size=(7, 5))},
        {"target": "predicted", "seed": "all"},
    ],
)
def test_parts_give_what_the_whole_gives(
    composite: str, choice: dict[str, Any], residual: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Explainer(residual, composite, dtype="float64", at_once=3)
    whole = Explainer(residual, composite, dtype="float64", at_once=7).explain(X, layers="all", **choice)
    seen = sizes(few, monkeypatch)
    found = few.explain(X, layers="all", **choice)
    assert seen == [2, 2, 3]
    torch.testing.assert_close(found.output, whole.output, rtol=1e-12, atol=1e-12)
    assert (found.target is None) == (whole.target is None)
    if found.target is not None and whole.target is not None:
        assert np.array_equal(found.target, whole.target)
    assert list(found.relevance) == list(whole.relevance)
    for name, relevance in whole.relevance.items():
        torch.testing.assert_close(found.relevance[name], relevance, rtol=1e-11, atol=1e-12)
    for ours, theirs in zip(found.conservation, whole.conservation, strict=True):
        assert (ours.node, ours.op_type, ours.rule) == (theirs.node, theirs.op_type, theirs.rule)
        for key in ("arrived", "handed", "bias", "remainder"):
            torch.testing.assert_close(getattr(ours, key), getattr(theirs, key), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(dict(ours.shares), dict(theirs.shares), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "target",
    [
        lambda output: output.sum(dim=0).argmax().item(),  # given the output of the whole batch
        "index:2",
    ],
)
def test_a_target_that_may_see_the_whole_batch_gets_it(
    target: Any, residual: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    explainer = Explainer(residual, at_once=2)
    seen = sizes(explainer, monkeypatch)
    explainer.explain(X, target)
    assert seen == [7]


def test_who_records_gets_the_whole_batch(residual: Graph) -> None:
    got: list[int] = []

    def record(name: str, relevance: Tensor) -> Tensor:
        got.append(len(relevance))
        return relevance.clone()

    Explainer(residual, at_once=2).explain(X, record=record)
    assert set(got) == {7}


@pytest.mark.parametrize("target", [np.arange(6), np.zeros((3, 5)), np.zeros(7), [0, 1]])
def test_a_target_for_another_number_of_samples_is_refused_as_before(target: Any, residual: Graph) -> None:
    with pytest.raises(TargetError, match="7"):
        Explainer(residual, at_once=2).explain(X, target)


@pytest.mark.parametrize(
    "graph",
    [
        model(DENSE, x="float[7,2,6,6] x", y="float[7,5] y"),
        model("f = Flatten(x) s = Softmax<axis=0>(f) y = MatMul(s, w)"),
        model("f = Flatten(x) t = Transpose(f) y = MatMul(f, t)", y="float[N,N] y"),
        model("f = Flatten(x) z = MatMul(f, w) one = Constant<value_int=0>() y = CumSum(z, one)"),
        model(DENSE, x="float[N,2,6,6] x, float[M,3] other"),
    ],
    ids=["fixed", "softmax over the batch", "products of samples", "running sum", "another batch"],
)
def test_samples_that_may_depend_on_each_other_stay_together(graph: Graph) -> None:
    feeds = {
        name: torch.zeros(7, *(s if isinstance(s, int) else 7 for s in (info.shape or ())[1:]))
        for name, info in graph.inputs.items()
    }
    feeds["x"] = torch.from_numpy(X)
    assert samples(graph, feeds) is None
    assert samples(model(DENSE), {"x": torch.from_numpy(X)}) == 7, "the same without what binds them"


@pytest.mark.parametrize(("shape", "wanted"), [([-1, 72], 7), ([-1, 36], None)])
def test_a_reshape_that_keeps_rows_keeps_samples_apart(shape: list[int], wanted: int | None) -> None:
    """Two rows a sample are not what the batch's size tells."""
    graph = model(f"s = Constant<value_ints={shape}>() f = Reshape(x, s) y = Tanh(f)", y=f"float[N,{shape[1]}] y")
    assert samples(graph, {"x": torch.from_numpy(X)}) == wanted


def test_the_size_of_parts_follows_the_activations_read(residual: Graph) -> None:
    cpu, explainer = torch.device("cpu"), Explainer(residual, "epsilon")
    plan, shapes = explainer.plan, explainer.shapes
    small = most_at_once(plan, shapes, {"x": torch.from_numpy(X)}, torch.float32, cpu)
    assert small >= 10_000, "small models go as a whole"
    assert most_at_once(plan, shapes, {"x": torch.from_numpy(X)}, torch.float64, cpu) == pytest.approx(small / 2, abs=1)
    assert [(r.start, r.stop) for r in ranges(10, 4)] == [(0, 3), (3, 6), (6, 10)]
    assert [(r.start, r.stop) for r in ranges(4, 4)] == [(0, 4)]


def test_up_to_8_samples_go_together_while_they_have_room() -> None:
    graph = model("c = Conv(x, w1) y = GlobalAveragePool(c)", x="float[N,2,H,W] x", y="float[N,4,1,1] y")
    explainer = Explainer(graph, "epsilon")

    def most(mebibytes: int) -> int:
        """For samples of so many MiB of activations: x has half as many numbers as c."""
        side = round((mebibytes * 2**20 / 4 / 6) ** 0.5)
        x = torch.empty(1, 2, side, side, device="meta")
        return most_at_once(explainer.plan, explainer.shapes, {"x": x}, torch.float32, torch.device("cpu"))

    assert [most(mebibytes) for mebibytes in (30, 100, 250, 500, 3000)] == [17, 8, 8, 4, 1]


def test_results_are_no_views_of_each_other_or_of_the_input(residual: Graph) -> None:
    """Relevance is written in place where the walk owns it: what was given or given out must not be among that."""
    explainer, x = Explainer(residual, "epsilon", at_once=2), torch.from_numpy(X.copy())
    found = explainer.explain(x, layers="all")
    kept = {name: relevance.clone() for name, relevance in found.relevance.items()}
    for name in ("c1", "x", "s"):
        found.relevance[name].zero_()
    again = explainer.explain(x, layers="all")
    assert torch.equal(x, torch.from_numpy(X))
    for name, relevance in kept.items():
        assert torch.equal(again.relevance[name], relevance)


def test_a_batch_of_none_at_a_time_is_refused(residual: Graph) -> None:
    with pytest.raises(DataError, match="at_once is 0"):
        Explainer(residual, at_once=0)


@pytest.mark.parametrize("name", ["vit", "tokens"])
def test_a_try_tells_that_samples_of_transformers_are_independent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, given = small_networks.network(name), small_networks.inputs(name)
    explainer = Explainer(graph, "attnlrp", dtype="float64", at_once=2)
    whole = Explainer(graph, "attnlrp", dtype="float64", at_once=3).explain(given)
    explainer.explain(given)
    seen = sizes(explainer, monkeypatch)
    found = explainer.explain(given)
    assert seen == [1, 2], "one try is enough"
    torch.testing.assert_close(found.output, whole.output, rtol=1e-11, atol=1e-12)
    for tensor, relevance in whole.relevance.items():
        torch.testing.assert_close(found.relevance[tensor], relevance, rtol=1e-9, atol=1e-12)
    inner = "qk0"  # which the batch leads, as it does not the sequence that an LSTM reads
    assert len(explainer.explain(given, layers=[inner]).relevance[inner]) == 3
    explainer.explain(given, layers="all")
    assert seen == [1, 2] + [1, 2] + ([3] if name == "tokens" else [1, 2])


@pytest.mark.parametrize(
    "body",
    [
        "t = Transpose<perm=[1,0,2,3]>(x) s = Softmax<axis=1>(t) u = Transpose<perm=[1,0,2,3]>(s)",
        "t = Transpose<perm=[1,0,2,3]>(x) m = ReduceMean<axes=[1]>(t) d = Sub(t, m) u = Transpose<perm=[1,0,2,3]>(d)",
        "m = ReduceMax(x) u = Div(x, m)",
        "m = ReduceMax<axes=[0]>(x) u = Div(x, m)",  # whose relevance stays apart, as the divisor gets none
        "t = Transpose<perm=[1,2,0,3]>(x) p = MatMul(t, t) u = Transpose<perm=[2,0,1,3]>(p)",
    ],
    ids=["softmax", "mean", "brightest", "divisor", "six and no other number"],
)
def test_a_try_tells_that_samples_depend_on_each_other(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    header = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,2,6,6] x) => (float[N,72] y)'
    proto = onnx.parser.parse_model(f"{header} {{ {body} y = Flatten(u) }}")
    explainer = Explainer(load(proto), "gradient", at_once=2)
    given = np.abs(X[:6])
    given[0] += 4  # what the first sample decides alone does not show in the first
    explainer.explain(given)
    seen = sizes(explainer, monkeypatch)
    explainer.explain(given)
    assert seen == [6]


def test_a_try_tells_that_a_single_sample_comes_out_otherwise() -> None:
    header = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,1,6,6] x) => (float[N,6,6] y)'
    proto = onnx.parser.parse_model(
        f"{header} {{ s = Squeeze(x) t = Softmax<axis=2>(x) u = Squeeze(t) y = Add(s, u) }}"
    )
    explainer = Explainer(load(proto), "gradient", at_once=1)
    assert explainer.explain(X[:6, :1], target="predicted").output.shape == (6, 6, 6)
