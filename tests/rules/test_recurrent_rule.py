"""The rule of LSTM, GRU and RNN is what the rules of their parts make of the layer written out step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lrp_onnx.engine import Explainer
from lrp_onnx.rules import composite

STEPS, BATCH, WIDTH, SIZE = 4, 3, 5, 2
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
Weights = dict[str, np.ndarray]


def weights_of(op: str, seed: int = 1, directions: int = 1) -> Weights:
    rng = np.random.default_rng(seed)
    gates = GATES[op]
    found = {
        "W": rng.normal(size=(directions, gates * SIZE, WIDTH)),
        "R": rng.normal(size=(directions, gates * SIZE, SIZE)),
        "B": 0.5 * rng.normal(size=(directions, 2 * gates * SIZE)),
        "h0": rng.normal(size=(directions, BATCH, SIZE)),
    }
    if op == "LSTM":
        found |= {"c0": rng.normal(size=(directions, BATCH, SIZE)), "P": rng.normal(size=(directions, 3 * SIZE))}
    return found


def model(
    nodes: list[onnx.NodeProto], constants: Weights, inputs: list[str], shapes: dict[str, Any], rank: int = 4
) -> bytes:
    """A float64 model with output y; constants that are inputs are fed."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.DOUBLE, shapes[n]) for n in inputs],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, [f"d{k}" for k in range(rank)])],
        [numpy_helper.from_array(a, n) for n, a in constants.items() if n not in inputs],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return proto.SerializeToString()


def fused(op: str, w: Weights, inputs: list[str], **attributes: Any) -> bytes:
    names = ["x", "W", "R", "B", "", "h0"] + (["c0", "P"] if op == "LSTM" else [])
    node = helper.make_node(op, names, ["y"], "layer", hidden_size=SIZE, **attributes)
    return model([node], w, inputs, {"x": [STEPS, BATCH, WIDTH], **{n: a.shape for n, a in w.items()}})


class Text:
    """Nodes of a graph, written one call a node."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: Weights = {}

    def __call__(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name, **attributes))
        return name

    def constant(self, value: Any) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def affine(self, *terms: tuple[str, np.ndarray], bias: np.ndarray) -> str:
        """Sum of tensor @ matrix, and a bias: one linear layer."""
        joined = self("Concat", *(name for name, _ in terms), axis=1)
        matrix = np.concatenate([m for _, m in terms])
        return self("Gemm", joined, self.constant(matrix), self.constant(bias))


def written_out(op: str, w: Weights, inputs: list[str], linear_before_reset: int = 0) -> bytes:
    g = Text()
    gates = GATES[op]
    wx, wr = (np.split(w[k][0].T, gates, axis=1) for k in "WR")
    bx, br = (np.split(b, gates) for b in np.split(w["B"][0], 2))
    first = g.constant([0])
    state = {n: g("Squeeze", n if n in inputs else g.constant(w[n]), first) for n in ("h0", "c0") if n in w}
    h, c, outputs = state["h0"], state.get("c0", ""), []
    for t in range(STEPS):
        x = g("Squeeze", g("Slice", "x", *(g.constant([v]) for v in (t, t + 1, 0))), first)

        def pre(k: int, h: str = h, x: str = x) -> str:
            return g.affine((x, wx[k]), (h, wr[k]), bias=bx[k] + br[k])

        if op == "RNN":
            h = g("Tanh", pre(0))
        elif op == "GRU":
            update, inverse = g("Sigmoid", pre(0)), g("Sigmoid", g("Neg", pre(0)))
            reset = g("Sigmoid", pre(1))
            if linear_before_reset:
                # the candidate's bias of h is under the reset gate: without one here, to have a single sum
                moved = g("Mul", reset, g("MatMul", h, g.constant(wr[2])))
                a = g.affine((x, wx[2]), (moved, np.eye(SIZE)), bias=bx[2])
            else:
                a = g.affine((x, wx[2]), (g("Mul", reset, h), wr[2]), bias=bx[2] + br[2])
            h = g("Add", g("Mul", inverse, g("Tanh", a)), g("Mul", update, h))
        else:
            peep = [g.constant(p) for p in np.split(w["P"][0], 3)]
            i = g("Sigmoid", g("Add", pre(0), g("Mul", c, peep[0])))
            f = g("Sigmoid", g("Add", pre(2), g("Mul", c, peep[2])))
            new = g("Add", g("Mul", f, c), g("Mul", i, g("Tanh", pre(3))))
            o = g("Sigmoid", g("Add", pre(1), g("Mul", new, peep[1])))
            h, c = g("Mul", o, g("Tanh", new)), new
        outputs.append(g("Unsqueeze", g("Unsqueeze", h, first), first))
    g.nodes.append(helper.make_node("Concat", outputs, ["y"], "join", axis=0))
    shapes = {"x": [STEPS, BATCH, WIDTH], **{n: a.shape for n, a in w.items()}}
    return model(g.nodes, g.constants, inputs, shapes)


def feeds(w: Weights, inputs: list[str]) -> dict[str, np.ndarray]:
    x = np.random.default_rng(7).normal(size=(STEPS, BATCH, WIDTH))
    return {n: x if n == "x" else w[n] for n in inputs}


def explain(proto: bytes, given: dict[str, np.ndarray], **parameters: Any) -> Any:
    by = composite("epsilon", eps=1e-13, **parameters)
    return Explainer(proto, by, dtype="float64").explain(given, seed="all")


@pytest.mark.parametrize("bias", ["absorb", "ignore"])
@pytest.mark.parametrize("states", [[], ["h0"]])
@pytest.mark.parametrize(("op", "before"), [("RNN", 0), ("GRU", 0), ("GRU", 1), ("LSTM", 0)])
def test_relevance_is_that_of_the_layer_written_out(op: str, before: int, states: list[str], bias: str) -> None:
    w = weights_of(op)
    if before:
        w["B"][0, 5 * SIZE :] = 0
    inputs = ["x", *states, *(["c0"] if states and op == "LSTM" else [])]
    w |= {n: np.zeros_like(a) for n, a in w.items() if n in ("h0", "c0") and n not in inputs}
    attributes = {"linear_before_reset": before} if op == "GRU" else {}
    one = explain(fused(op, w, inputs, **attributes), feeds(w, inputs), bias=bias)
    many = explain(written_out(op, w, inputs, before), feeds(w, inputs), bias=bias)
    torch.testing.assert_close(one.output, many.output, rtol=1e-12, atol=1e-12)
    for name in inputs:
        found, wanted = one.relevance[name], many.relevance[name]
        assert wanted.abs().max() > 1e-3
        assert (found - wanted).abs().max() <= 1e-9 * wanted.abs().max()


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("states", [True, False])
def test_relevance_is_conserved_without_biases(op: str, direction: str, states: bool) -> None:
    w = weights_of(op, directions=2 if direction == "bidirectional" else 1)
    inputs = ["x", *(n for n in ("h0", "c0") if states and n in w)]
    explanation = explain(fused(op, w, inputs, direction=direction), feeds(w, inputs), bias="ignore")
    (node,) = explanation.conservation
    assert node.rule == "held-gates"
    assert abs(float(node.arrived)) > 0.1
    assert float(node.handed) == pytest.approx(float(node.arrived), rel=1e-8)
    assert float(node.bias) == 0


def test_the_ledger_names_what_biases_and_constant_states_took() -> None:
    w = weights_of("LSTM")
    (node,) = explain(fused("LSTM", w, ["x"]), feeds(w, ["x"])).conservation
    assert abs(float(node.bias)) > 1e-2
    assert float(node.remainder) == pytest.approx(0, abs=1e-10)


def test_relevance_of_the_last_state_and_of_all_outputs_adds_up() -> None:
    """A head that reads Y and Y_h sends relevance through both outputs."""
    w = weights_of("GRU")
    nodes = [
        helper.make_node("GRU", ["x", "W", "R", "B"], ["all", "last"], "layer", hidden_size=SIZE),
        helper.make_node("ReduceSum", ["all", "axes"], ["total"], "total", keepdims=0),
        helper.make_node("Add", ["total", "last"], ["y"], "join"),
    ]
    constants = {**w, "axes": np.array([0])}
    proto = model(nodes, constants, ["x"], {"x": [STEPS, BATCH, WIDTH]}, rank=3)
    explanation = explain(proto, feeds(w, ["x"]), bias="ignore")
    assert float(explanation.relevance["x"].sum()) == pytest.approx(float(explanation.output.sum()), rel=1e-9)


def test_sequences_take_no_relevance_beyond_their_length() -> None:
    w = weights_of("LSTM")
    lengths = np.array([1, 3, 4], np.int32)
    node = helper.make_node("LSTM", ["x", "W", "R", "B", "lengths"], ["y"], "layer", hidden_size=SIZE)
    proto = model([node], {**w, "lengths": lengths}, ["x"], {"x": [STEPS, BATCH, WIDTH]})
    relevance = explain(proto, feeds(w, ["x"])).relevance["x"]
    for sample, length in enumerate(lengths):
        assert not relevance[length:, sample].any()
        assert relevance[:length, sample].abs().min() > 0


def test_batch_first_layout_gives_the_same_relevance() -> None:
    w = weights_of("RNN")
    constants = {n: w[n] for n in "WRB"}
    plain = [helper.make_node("RNN", ["x", "W", "R", "B"], ["y"], "layer", hidden_size=SIZE)]
    turned = [helper.make_node("RNN", ["x", "W", "R", "B"], ["y"], "layer", hidden_size=SIZE, layout=1)]
    x = feeds(w, ["x"])["x"]
    one = explain(model(plain, constants, ["x"], {"x": [STEPS, BATCH, WIDTH]}), {"x": x})
    other = explain(model(turned, constants, ["x"], {"x": [BATCH, STEPS, WIDTH]}), {"x": x.swapaxes(0, 1)})
    torch.testing.assert_close(other.relevance["x"].transpose(0, 1), one.relevance["x"])
