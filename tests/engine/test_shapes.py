"""Shapes that no activation has to be kept for: flattening to -1, arithmetic on shapes, and what depends on data."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
import torch

from lrp_onnx.engine import Explainer
from lrp_onnx.engine.shapes import numbers_of_sample
from lrp_onnx.memory import bytes_of_sample

RNG = np.random.default_rng(0)
TOKENS = """<ir_version: 9, opset_import: ["" : 20]>
net (float[N, T, 6] x) => (float[N, T, 6] y) {
    flat = Constant <value_ints = [-1, 6]> ()
    rows = Reshape (x, flat)
    h = MatMul (rows, w)
    in_pairs = Constant <value_ints = [-1, 3, 2]> ()
    pairs = Reshape (h, in_pairs)
    swapped = Transpose <perm = [0, 2, 1]> (pairs)
    whole = Shape (x)
    back = Reshape (swapped, whole)
    turned = Transpose <perm = [1, 0, 2]> (back)
    r = Relu (turned)
    y = Transpose <perm = [1, 0, 2]> (r)
}"""


def explainer(text: str, composite: str = "epsilon", **weights: tuple[int, ...]) -> Explainer:
    proto = onnx.parser.parse_model(text)
    for name, shape in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(RNG.normal(size=shape).astype("f"), name))
    return Explainer(proto, composite)


@pytest.mark.parametrize(("n", "t"), [(1, 1), (2, 5), (3, 4)])
def test_nothing_is_read_for_its_shape_where_the_inputs_tell_it(n: int, t: int) -> None:
    of = explainer(TOKENS, w=(6, 6))
    assert of.plan.reads == {"rows", "h", "y"}, "what the dense layer needs, and the output"
    assert {"pairs", "swapped", "turned"} <= of.plan.sizes
    shapes = of.shapes({"x": (n, t, 6)})
    assert (shapes["rows"], shapes["pairs"], shapes["swapped"]) == ((n * t, 6), (n * t, 3, 2), (n * t, 2, 3))
    x = RNG.normal(size=(n, t, 6)).astype("f")
    relevance = of.explain(x, np.ones((n, t, 6), np.float32), layers="all").relevance
    assert {name: tuple(r.shape) for name, r in relevance.items()} == {name: shapes[name] for name in relevance}
    (forward,) = of._forwards
    assert not {"pairs", "swapped", "turned"} & forward


def test_runs_of_other_sizes_use_the_same_session() -> None:
    of = explainer(TOKENS, w=(6, 6))
    of.open()
    for n, t in ((1, 2), (4, 3), (2, 7)):
        of.explain(RNG.normal(size=(n, t, 6)).astype("f"), np.ones((n, t, 6), np.float32))
    assert len(of._forwards) == 1


def test_what_depends_on_data_is_read_for_its_shape() -> None:
    """How many numbers are above zero is known once there are numbers."""
    text = """<ir_version: 9, opset_import: ["" : 20]>
    net (float[6] x) => (float[M, 1] y) {
        zero = Constant <value_float = 0.0> ()
        on = Greater (x, zero)
        z = Compress (x, on)
        twice = Constant <value_ints = [-1, 1]> ()
        column = Reshape (z, twice)
        y = Relu (column)
    }"""
    of = explainer(text)
    assert not {"z", "column"} & of.shapes({"x": (6,)}).keys()
    x = np.array([1, -1, 2, 3, -4, 5], np.float32)
    relevance = of.explain(x, np.ones((4, 1), np.float32)).relevance["x"]
    torch.testing.assert_close(relevance, torch.from_numpy((x > 0).astype("f")))


def test_what_was_read_for_its_shape_alone_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does anything else change where onnx can infer nothing."""
    of = explainer(TOKENS, w=(6, 6))
    x, seed = RNG.normal(size=(2, 5, 6)).astype("f"), np.ones((2, 5, 6), np.float32)
    wanted = of.explain(x, seed).relevance["x"]

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no inference")

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", fail)
    blind = Explainer(of.graph, "epsilon")
    held: list[set[str]] = []
    walk = blind._walk

    def watched(initial: torch.Tensor, shapes: object, activations: dict[str, torch.Tensor], *rest: object) -> object:
        held.append(set(activations))
        return walk(initial, shapes, activations, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(blind, "_walk", watched)
    assert torch.equal(blind.explain(x, seed).relevance["x"], wanted)
    assert held == [set(blind.plan.reads)]
    assert {"pairs", "swapped"} <= next(iter(blind._forwards)), "they were read"


@pytest.mark.parametrize(
    "pool", ["strides = [2, 2], kernel_shape = [1, 1]", "strides = [2, 2], kernel_shape = [2, 2], pads = [1, 1, 1, 1]"]
)
@pytest.mark.parametrize("size", [4, 5, 7])
def test_windows_that_runtimes_drop_are_not_counted(pool: str, size: int) -> None:
    """onnx counts a last window that lies in the padding alone, of pooling with ceil_mode."""
    text = f"""<ir_version: 9, opset_import: ["" : 20]>
    net (float[N, 2, H, W] x) => (float[N, 2, 1, 1] y) {{
        c = Conv (x, w)
        m = MaxPool <ceil_mode = 1, {pool}> (c)
        r = Relu (m)
        y = GlobalAveragePool (r)
    }}"""
    of = explainer(text, w=(2, 2, 1, 1))
    found = of.explain(RNG.normal(size=(2, 2, size, size)).astype("f"), 0, layers="all")
    assert found.relevance["r"].shape == found.relevance["m"].shape
    assert "m" not in of.shapes({"x": (2, 2, size, size)})


def test_scales_of_a_resize_are_known() -> None:
    text = """<ir_version: 9, opset_import: ["" : 20]>
    net (float[N, 2, H, W] x) => (float[N, 2, P, Q] y) {
        u = Resize <mode = "nearest"> (x, , scales)
        c = Conv (u, w)
        y = Relu (c)
    }"""
    of = explainer(text, w=(2, 2, 1, 1), scales=(4,))
    scales = onnx.numpy_helper.from_array(np.array([1, 1, 2, 3], np.float32), "scales")
    model = onnx.ModelProto()
    model.CopyFrom(of.graph.original)
    next(t for t in model.graph.initializer if t.name == "scales").CopyFrom(scales)
    assert Explainer(model, "epsilon").shapes({"x": (1, 2, 5, 7)})["c"] == (1, 2, 10, 21)


def test_inputs_that_share_a_symbol_may_differ_in_it() -> None:
    text = """<ir_version: 9, opset_import: ["" : 20]>
    net (float[N, 3] a, float[N, 3] b) => (float[N, 3] y) { y = Mul (a, b) }"""
    given = {"a": RNG.normal(size=(2, 3)).astype("f"), "b": RNG.normal(size=(1, 3)).astype("f")}
    relevance = explainer(text).explain(given, np.ones((2, 3), np.float32)).relevance
    assert {name: tuple(r.shape) for name, r in relevance.items()} == {"a": (2, 3), "b": (1, 3)}
    torch.testing.assert_close(relevance["b"], torch.ones(1, 3))


def test_the_ledger_adds_up_where_elements_are_repeated_or_left_out() -> None:
    """Views have the sum of what they are of only where they have its elements, each once."""
    text = """<ir_version: 9, opset_import: ["" : 20]>
    net (double[N, 3] x) => (double[N, 4, 2] y) {
        one = Constant <value_ints = [1]> ()
        four = Constant <value_ints = [1, 4, 1]> ()
        two = Constant <value_ints = [2]> ()
        zero = Constant <value_ints = [0]> ()
        u = Unsqueeze (x, one)
        e = Expand (u, four)
        y = Slice (e, zero, two, two)
    }"""
    of = Explainer(
        onnx.parser.parse_model(
            text.replace("two, two", "two, last").replace("zero = ", "last = Constant <value_ints = [2]> () zero = ")
        ),
        "epsilon",
        dtype="float64",
    )
    seed = RNG.normal(size=(2, 4, 2))
    found = of.explain(RNG.normal(size=(2, 3)), seed, layers="all")
    for balance in found.conservation:
        assert float(balance.handed) == pytest.approx(seed.sum(), rel=1e-12)
    assert float(found.relevance["x"].sum()) == pytest.approx(seed.sum(), rel=1e-12)


def test_memory_is_reckoned_for_tensors_behind_a_flattened_batch() -> None:
    of = explainer(TOKENS, w=(6, 6))
    assert numbers_of_sample(of.shapes, ["rows", "h"], {"x": (50, 6)}) == 2 * 50 * 6
    assert bytes_of_sample(of, {"x": (50, 6)}) >= 4 * 2 * 50 * 6
