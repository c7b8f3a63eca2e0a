"""Forms that exporters write for a free batch: sizes out of Shape, statistics without their axis; and long chains."""

from __future__ import annotations

import time

import numpy as np
import pytest
from test_canonical_passes import canonical, model, ops, weights

from lrp_onnx.graph import load


@pytest.mark.parametrize("kind", ["Tanh", "Mul", "Relu"])
def test_a_chain_of_hundreds_of_activations_loads_in_seconds(kind: str) -> None:
    """Each node is looked at with a bounded number of nodes before it."""
    arguments = {"Mul": "t{i}, c"}.get(kind, "t{i}")
    chain = " ".join(
        f"a{i} = Tanh (t{i})  t{i + 1} = {kind} ({arguments.format(i=i).replace('t', 'a', 1)})" for i in range(150)
    )
    text = f"(float[N, 4] t0) => (float[N, 4] t150) {{ {chain} }}"
    start = time.process_time()
    graph = load(model(text, {"c": np.float32(0.5)}))
    assert time.process_time() - start < 20  # a machine under load; 150 pairs took minutes when this was quadratic
    assert len(graph.nodes) == 300


def test_sizes_of_resize_behind_a_free_batch_become_constant() -> None:
    """As torch exports interpolate(size=…): the batch and the channels come out of Shape."""
    text = """(float[N, 4, 5, 5] x) => (float[N, 4, 9, 7] y) {
        s = Shape <end = 2> (x)  sizes = Concat <axis = 0> (s, hw)
        y = Resize <mode = "nearest"> (x, , , sizes)
    }"""
    graph = canonical(text, {"hw": np.array([9, 7])})
    assert ops(graph) == ["Resize"]
    assert graph.nodes[0].attributes["axes"] == (2, 3)
    assert graph.initializers[graph.nodes[0].inputs[3]].tolist() == [9, 7]


def test_sizes_of_resize_that_depend_on_the_picture_stay() -> None:
    text = """(float[N, 4, H, 5] x) => (float[N, 4, P, 10] y) {
        s = Shape (x)  sizes = Mul (s, twice)  y = Resize <mode = "nearest"> (x, , , sizes)
    }"""
    graph = load(model(text, {"twice": np.array([1, 1, 2, 2])}))
    assert "axes" not in graph.producer["y"].attributes


def test_norms_whose_statistics_drop_their_axis_are_recognised() -> None:
    """As JAX models come: E[x²] - E[x]², bounded by zero, put back by Reshape and by Expand to the input's shape."""
    text = """(float[N, 6, 5] x) => (float[N, 6, 5] y) {
        shape = Shape (x)
        batch = Slice (shape, zero, one)
        row = Concat <axis = 0> (batch, one, five)
        m = ReduceMean <keepdims = 0> (x, one)
        q = Mul (x, x)  s = ReduceMean <keepdims = 0> (q, one)
        mm = Mul (m, m)  v = Sub (s, mm)  p = Max (v, null)
        pr = Reshape (p, back)  pe = Expand (pr, row)  e = Add (pe, eps)
        root = Sqrt (e)  inverse = Reciprocal (root)  factor = Mul (inverse, scale)
        mr = Reshape (m, back)  me = Expand (mr, row)
        c = Sub (x, me)  n = Mul (c, factor)  y = Add (n, bias)
    }"""
    constants = {
        "zero": np.array([0]),
        "one": np.array([1]),
        "five": np.array([5]),
        "back": np.array([-1, 1, 5]),
        "null": np.float32(0),
        "eps": np.float32(1e-3),
        "scale": weights(6, 1),
        "bias": weights(6, 1),
    }
    graph = canonical(text, constants)
    assert [op for op in ops(graph) if op != "Transpose"] == ["LayerNormalization"]


def test_a_softmax_whose_statistics_drop_their_axis_is_cut() -> None:
    text = """(float[N, 6] x) => (float[N, 6] y) {
        h = Sin (x)  m = ReduceMax <keepdims = 0> (h, one)  b = Max (m, lowest)
        r = Reshape (b, back)  d = Sub (h, r)  e = Exp (d)
        s = ReduceSum <keepdims = 0> (e, one)  t = Reshape (s, back)  y = Div (e, t)
    }"""
    constants = {"one": np.array([1]), "lowest": np.float32(-np.inf), "back": np.array([-1, 1])}
    graph = canonical(text, constants)
    assert (ops(graph), graph.cut) == (["Sin"], "Softmax")


def test_a_bound_in_the_middle_of_a_norm_is_not_overlooked() -> None:
    text = """(float[N, 6] x) => (float[N, 6] y) {
        b = Max (x, low)  m = ReduceMean (b, last)  c = Sub (b, m)  q = Mul (c, c)  v = ReduceMean (q, last)
        e = Add (v, eps)  r = Sqrt (e)  y = Div (c, r)
    }"""
    constants = {"last": np.array([-1]), "low": np.float32(-1e4), "eps": np.float32(1e-3)}
    assert ops(canonical(text, constants)) == ["Clip", "LayerNormalization"]
