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
    whole = Shape (x)
    back = Reshape (h, whole)
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
    assert {"back", "turned"} <= of.plan.sizes
    shapes = of.shapes({"x": (n, t, 6)})
    assert (shapes["rows"], shapes["back"], shapes["turned"]) == ((n * t, 6), (n, t, 6), (t, n, 6))
    x = RNG.normal(size=(n, t, 6)).astype("f")
    relevance = of.explain(x, np.ones((n, t, 6), np.float32), layers="all").relevance
    assert {name: tuple(r.shape) for name, r in relevance.items()} == {name: shapes[name] for name in relevance}
    (forward,) = of._forwards
    assert not {"back", "turned"} & forward


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


def test_memory_is_reckoned_for_tensors_behind_a_flattened_batch() -> None:
    of = explainer(TOKENS, w=(6, 6))
    assert numbers_of_sample(of.shapes, ["rows", "h"], {"x": (50, 6)}) == 2 * 50 * 6
    assert bytes_of_sample(of, {"x": (50, 6)}) >= 4 * 2 * 50 * 6
