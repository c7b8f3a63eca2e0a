"""Branches, loops, sequences and functions that constants decide are gone after loading; others are refused by name."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Mapping
from string import Template

import numpy as np
import onnx
import pytest
import torch
from onnx.backend.test.loader import load_model_tests
from onnx.reference import ReferenceEvaluator

from lrp_onnx import Explainer
from lrp_onnx.errors import ModelError, UnsupportedOpError
from lrp_onnx.graph import Graph, load, verify_canonical
from lrp_onnx.rules import composite

RNG = np.random.default_rng(0)
CONTROL = {"If", "Loop", "Scan", "SequenceMap"}


def model(text: str, constants: Mapping[str, np.ndarray] | None = None, opset: int = 20, more: str = "") -> Graph:
    return load(proto(text, constants, opset, more))


def proto(
    text: str, constants: Mapping[str, np.ndarray] | None = None, opset: int = 20, more: str = ""
) -> onnx.ModelProto:
    parsed = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}{more}]>\n g {text}')
    for name, array in (constants or {}).items():
        parsed.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    onnx.checker.check_model(parsed)
    return parsed


def fill(text: str, **parts: object) -> str:
    return Template(text).substitute(parts)


def ops(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.nodes]


BRANCHES = """If (c) <
    then_branch = t () => (float[N, 4] a) { h = Neg (x)  a = Relu (h) },
    else_branch = e () => (float[N, 4] b) { h = Abs (x)  b = Neg (h) }>"""


@pytest.mark.parametrize(
    ("before", "constants"),
    [
        ("", {"c": np.array(True)}),
        ("s = Shape (x)  k = Gather (s, one)  c = Equal (k, four)", {"one": np.array(1), "four": np.array(4)}),
        ("s = Shape (x)  k = Size (s)  c = Equal (k, two)", {"two": np.array(2)}),
        ("s = Shape (x)  k = Size (s)  d = Equal (k, four)  c = Not (d)", {"four": np.array(4)}),
    ],
)
def test_the_branch_that_a_constant_or_a_shape_decides_takes_the_place_of_the_if(
    before: str, constants: dict[str, np.ndarray]
) -> None:
    graph = model(
        fill("(float[N, 4] x) => (float[N, 4] y) { $before  y = $branch }", before=before, branch=BRANCHES), constants
    )
    assert ops(graph) == ["Neg", "Relu"]
    assert verify_canonical(graph) == 0


def test_branches_with_the_same_names_inside_are_told_apart() -> None:
    text = fill("(float[N, 4] x) => (float[N, 4] y) { p = $branch  q = $branch  y = Add (p, q) }", branch=BRANCHES)
    graph = model(text, {"c": np.array(False)}, opset=14)
    assert ops(graph) == ["Abs", "Neg", "Abs", "Neg", "Add"]
    assert verify_canonical(graph) == 0


@pytest.mark.parametrize("known", [True, False])
def test_branches_that_hand_on_what_is_outside_stay_valid(known: bool) -> None:
    """Their Identity must not make the outer tensor an output of two graphs."""
    branches = """If (c) <then_branch = t () => (float[N, 4] a) { a = Identity (h) },
                           else_branch = e () => (float[N, 4] b) { b = Identity (x) }>"""
    text = "(float[N, 4] x$condition) => (float[N, 4] y) { h = Tanh (x)  p = $branch  q = $branch  y = Add (p, q) }"
    condition, constants = ("", {"c": np.array(True)}) if known else (", bool c", {})
    graph = model(fill(text, branch=branches, condition=condition), constants, opset=14)
    assert ops(graph) == ["Tanh", *([] if known else ["If", "If"]), "Add"]
    assert verify_canonical(graph) == 0


def test_an_if_that_the_data_decides_is_refused_by_name() -> None:
    text = """(float[N, 4] x) => (float[N, 4] y) {
        s = ReduceSum <keepdims = 0> (x)  c = Greater (s, z)  h = $branch  y = Add (h, x)
    }"""
    graph = model(fill(text, branch=BRANCHES), {"z": np.array(0, np.float32)})
    assert list(graph.refused) == ["If_h"]
    with pytest.raises(UnsupportedOpError, match=r"If node 'If_h'.* condition 'c' depends on the input"):
        Explainer(graph)


def test_an_if_beside_the_relevance_path_does_no_harm() -> None:
    text = """(float[N, 4] x, bool c) => (float[N, 4] y, float n) {
        y = Relu (x)
        n = If (c) <
            then_branch = t () => (float a) { a = Identity (k) }, else_branch = e () => (float b) { b = Neg (k) }>
    }"""
    graph = model(text, {"k": np.array(2, np.float32)})
    e = Explainer(graph, "epsilon").explain({"x": np.ones((1, 4), np.float32), "c": np.array(True)}, target=0)
    assert e.relevance["x"].tolist() == [[1, 0, 0, 0]]


LOOP = """y, h = Loop (n, c, x) <body = b (int64 i, bool d, float[N, 4] v) => (bool o, float[N, 4] w, float[N, 4] s) {
    o = Identity (d)  m = MatMul (v, W)  s = Tanh (m)  w = Add (s, v) }>"""
STEPS = " ".join(
    f"m{i} = MatMul (v{i}, W)  s{i} = Tanh (m{i})  v{i + 1} = Add (s{i}, v{i})  u{i} = Unsqueeze (s{i}, zero)"
    for i in range(3)
)
BY_HAND = f"{STEPS} h = Concat <axis = 0> (u0, u1, u2)".replace("v0", "x").replace("v3", "y")


def test_a_loop_with_a_constant_trip_count_is_the_graph_written_out() -> None:
    weights = {"W": RNG.normal(size=(4, 4)).astype(np.float32)}
    signature = "(float[N, 4] x) => (float[N, 4] y, float[3, N, 4] h) { $body }"
    loop = model(fill(signature, body=LOOP), weights | {"n": np.array(3), "c": np.array(True)})
    hand = model(fill(signature, body=BY_HAND), weights | {"zero": np.array([0])})
    assert Counter(ops(loop)) == Counter(ops(hand))
    assert verify_canonical(loop) == 0
    assert {"s_step0", "s_step1", "s_step2", "y", "h"} <= set(loop.producer)
    assert loop.history[loop.producer["s_step1"].name] == ("step 2 of Loop 'Loop_y'",)
    x = RNG.normal(size=(2, 4)).astype(np.float32)
    for output in ("y", "h"):
        found, wanted = (
            Explainer(g, "epsilon", dtype="float64", output=output).explain(x, seed="all") for g in (loop, hand)
        )
        np.testing.assert_allclose(found.relevance["x"], wanted.relevance["x"], rtol=1e-12)


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
def test_a_loop_ends_when_its_condition_does(opset: int) -> None:
    """While k < 3, with a counter of the loop's own and no trip count."""
    text = """(float[N, 4] x) => (float[N, 4] y, int64 k) {
        k, y = Loop (, c, zero, x) <
            body = b (int64 i, bool d, int64 j, float[N, 4] v) => (bool o, int64 l, float[N, 4] w) {
                l = Add (j, one)  o = Less (l, three)  w = Add (v, v) }>
    }"""
    numbers = {"zero": np.array(0), "one": np.array(1), "three": np.array(3), "c": np.array(True)}
    graph = model(text, numbers, opset)
    assert ops(graph)[:3] == ["Add"] * 3
    assert "Loop" not in ops(graph)
    assert ReferenceEvaluator(graph.model).run(None, {"x": np.ones((1, 4), np.float32)})[1] == 3
    assert verify_canonical(graph) == 0


def test_loops_within_loops_and_branches_are_unrolled() -> None:
    text = """(float[N, 4] x) => (float[N, 4] y) {
        y = Loop (two, c, x) <body = b (int64 i, bool d, float[N, 4] v) => (bool o, float[N, 4] w) {
            o = Identity (d)
            first = Equal (i, zero)
            h = If (first) <
                then_branch = t () => (float[N, 4] p) { p = Neg (v) },
                else_branch = e () => (float[N, 4] q) {
                    q = Loop (three, c, v) <body = inner (int64 j, bool f, float[N, 4] u) => (bool g, float[N, 4] r) {
                        g = Identity (f)  r = Sin (u) }>
                }>
            w = Add (h, x)
        }>
    }"""
    numbers = {"two": np.array(2), "three": np.array(3), "zero": np.array(0), "c": np.array(True)}
    graph = model(text, numbers)
    assert ops(graph) == ["Neg", "Add", "Sin", "Sin", "Sin", "Add"]
    assert verify_canonical(graph) == 0


@pytest.mark.parametrize("count", ["n = ReduceSum <keepdims = 0> (t)", "q = Shape (x)  n = Gather (q, zero)"])
def test_a_loop_whose_trip_count_depends_on_the_data_is_refused_by_name(count: str) -> None:
    text = "(float[N, 4] x, int64[K] t) => (float[N, 4] y, float[M, N, 4] h) { $count $loop }"
    text = fill(text, count=count, loop=LOOP)
    constants = {"W": np.ones((4, 4), np.float32), "c": np.array(True), "zero": np.array(0)}
    graph = model(text, constants)
    with pytest.raises(UnsupportedOpError, match=r"Loop node 'Loop_y'.* trip count 'n' depends on the input"):
        Explainer(graph)


def test_a_loop_that_would_become_too_large_is_refused_with_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrp_onnx.graph.unroll.MOST_NODES", 400)
    text = fill("(float[N, 4] x) => (float[N, 4] y, float[M, N, 4] h) { $loop }", loop=LOOP)
    graph = model(text, {"W": np.ones((4, 4), np.float32), "c": np.array(True), "n": np.array(2**62)})
    assert len(graph.nodes) == 1
    with pytest.raises(UnsupportedOpError, match="after 100 steps of 4 nodes it has not ended"):
        Explainer(graph)


def test_the_layer_of_the_framework_is_named() -> None:
    loop = proto(
        fill("(float[N, 4] x, int64 n) => (float[N, 4] y, float[M, N, 4] h) { $loop }", loop=LOOP),
        {"W": np.ones((4, 4), np.float32), "c": np.array(True)},
        opset=18,
    )
    loop.graph.node[0].metadata_props.add(
        key="pkg.torch.onnx.name_scopes", value="['', 'encoder', 'encoder.cell', 'while_loop']"
    )
    with pytest.raises(UnsupportedOpError, match=r"\(layer 'encoder\.cell'\)"):
        Explainer(load(loop))


@pytest.mark.parametrize("direction", [0, 1])
def test_a_scan_is_unrolled_in_both_directions(direction: int) -> None:
    text = """(float[N, 5, 4] x) => (float[N, 4] y, float[N, 5, 4] h) {
        y, h = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
            scan_input_directions = [$d], scan_output_directions = [$d],
            body = b (float[N, 4] v, float[N, 4] u) => (float[N, 4] w, float[N, 4] s) {
                m = MatMul (v, W)  w = Add (m, u)  s = Tanh (w) }> (z, x)
    }"""
    graph = model(
        fill(text, d=direction).replace("[N,", "[2,"),
        {"W": RNG.normal(size=(4, 4)).astype(np.float32), "z": np.zeros((2, 4), np.float32)},
    )
    assert not CONTROL & set(ops(graph))
    assert verify_canonical(graph) == 0
    explainer = Explainer(graph, composite("epsilon", eps=1e-12), dtype="float64", output="h")
    e = explainer.explain(RNG.normal(size=(2, 5, 4)), seed="all")
    assert torch.isclose(e.relevance["x"].sum(), e.output.sum(), rtol=1e-9)


SEQUENCES = {
    "split in equal parts": """s = SplitToSequence <axis = 1> (x, two)
        a = SequenceAt (s, zero)  b = SequenceAt (s, last)""",
    "split in given parts": """s = SplitToSequence <axis = 1> (x, sizes)
        a = SequenceAt (s, last)  b = SequenceAt (s, zero)""",
    "built by hand": """e = SequenceEmpty ()  p = Neg (x)  s0 = SequenceInsert (e, x)
        s1 = SequenceInsert (s0, p)  s2 = SequenceInsert (s1, p, zero)  s = SequenceErase (s2)
        a = SequenceAt (s, zero)  b = SequenceAt (s, last)""",
    "read by its length": """s = SequenceConstruct (x, x, x)  n = SequenceLength (s)  i = Sub (n, one)
        a = SequenceAt (s, i)  b = SequenceAt (s, zero)""",
}


@pytest.mark.parametrize("how", SEQUENCES)
@pytest.mark.parametrize("opset", [13, 18])
def test_sequences_are_followed_to_the_tensors_in_them(how: str, opset: int) -> None:
    text = """(float[2, 4, 3] x) => (float[Q, R, S] y) {
        $sequence  t = SequenceConstruct (b, a)  y = ConcatFromSequence <axis = 1> (t)
    }"""
    numbers = {
        "zero": np.array(0),
        "one": np.array(1),
        "two": np.array(2),
        "last": np.array(-1),
        "sizes": np.array([1, 3]),
    }
    graph = model(fill(text, sequence=SEQUENCES[how]), numbers, opset)
    assert set(ops(graph)) <= {"Split", "Concat", "Neg"}
    assert verify_canonical(graph) == 0


def test_a_list_that_a_loop_fills_becomes_a_concat() -> None:
    class Filling(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows: list[torch.Tensor] = []
            h = x[:, 0]
            for i in range(3):
                h = torch.tanh(h + x[:, i])
                rows.append(h)
            return torch.stack(rows, dim=1)

    graph = load(scripted(Filling(), torch.ones(2, 3, 4)))
    assert not CONTROL & set(ops(graph))
    assert not any("Sequence" in op for op in ops(graph))
    assert verify_canonical(graph) < 1e-6


@pytest.mark.filterwarnings("ignore")
def scripted(module: torch.nn.Module, x: torch.Tensor) -> bytes:
    """Exported with its control flow, as torch.jit.script keeps it."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(torch.jit.script(module), (x,), file, dynamo=False, opset_version=17, input_names=["x"])
    return file.getvalue()


FUNCTIONS = """
<domain: "a", opset_import: ["" : 20, "b" : 1]> twice (x) => (y) { t = b.step (x)  y = b.step (t) }
<domain: "b", opset_import: ["" : 20]> step <alpha: float = 0.1> (x) => (y) {
    t = LeakyRelu <alpha: float = @alpha> (x)  y = Neg (t)
}
<domain: "c", opset_import: ["" : 20]> step (x) => (y) { t = Sin (x)  y = Neg (t) }
"""


def test_functions_within_functions_are_inlined_whatever_their_names() -> None:
    text = (
        "(float[N, 4] x) => (float[N, 4] y) { t = a.twice (x)  u = c.step (t)  y = b.step <alpha = 0.5> (u) }"
        + FUNCTIONS
    )
    graph = model(text, more=', "a" : 1, "b" : 1, "c" : 1')
    assert ops(graph) == ["LeakyRelu", "Neg", "LeakyRelu", "Neg", "Sin", "Neg", "LeakyRelu", "Neg"]
    assert graph.nodes[0].attributes["alpha"] == pytest.approx(0.1)
    assert graph.nodes[6].attributes["alpha"] == 0.5
    assert len({name for node in graph.nodes for name in node.outputs}) == 8
    assert {"t", "u", "y"} <= set(graph.producer)
    assert verify_canonical(graph) == 0


def backend_cases() -> list[onnx.backend.test.case.test_case.TestCase]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = load_model_tests(kind="node")
    return [
        case
        for case in cases
        if {node.op_type for node in case.model.graph.node} & CONTROL
        and all(value.type.HasField("tensor_type") for value in (*case.model.graph.input, *case.model.graph.output))
        and not case.name.startswith(("test_range", "test_affine_grid"))  # their counts and sizes are inputs in floats
        and case.name != "test_scan_sum"  # below
    ]


@pytest.mark.parametrize("case", backend_cases(), ids=lambda case: case.name)
def test_onnx_own_cases_compute_the_same_without_control_flow(case: onnx.backend.test.case.test_case.TestCase) -> None:
    """Their integers and booleans become constants."""
    frozen = onnx.ModelProto()
    frozen.CopyFrom(case.model)
    given = dict(zip([value.name for value in case.model.graph.input], case.data_sets[0][0], strict=True))
    feeds = {name: np.asarray(array) for name, array in given.items() if np.asarray(array).dtype.kind not in "biu"}
    del frozen.graph.input[:]
    frozen.graph.input.extend(value for value in case.model.graph.input if value.name in feeds)
    frozen.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in given.items() if name not in feeds
    )
    graph = load(frozen)
    assert not CONTROL & set(ops(graph))
    found = ReferenceEvaluator(graph.model).run(None, feeds)
    for actual, expected in zip(found, case.data_sets[0][1], strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


def test_the_scan_of_opset_8_is_refused_by_name() -> None:
    text = """(float[1, 3, 2] x) => (float[1, 2] y) {
        y = Scan <num_scan_inputs = 1, body = b (float[2] v, float[2] u) => (float[2] w) { w = Add (v, u) }> ("", z, x)
    }""".replace('"", z', ", z")
    with pytest.raises(ModelError, match=r"Scan node 'Scan_y': opset 8"):
        model(text, {"z": np.zeros((1, 2), np.float32)}, opset=8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("branches", "use"),
    [
        ("(float t) { t = Constant <value_float = 2.0> () }|(float e) { e = Constant <value_float = 3.0> () }", "Mul"),
        ("(bool[N, 3] t) { t = Less (x, h) }|(bool[N, 3] e) { e = Greater (x, h) }", "Where"),
        ("(int64[3] t) { t = Constant <value_ints = [2, 1, 0]> () }|(int64[3] e) { e = Identity (order) }", "Gather"),
    ],
)
def test_a_branch_beside_the_relevance_path_is_only_run(branches: str, use: str, dtype: str) -> None:
    """Data decides it, and nothing flows through it: a factor, a mask, indices."""
    then, otherwise = branches.split("|")
    used = {"Mul": "Mul (h, f)", "Where": "Where (f, h, x)", "Gather": "Gather <axis = 1> (h, f)"}[use]
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x, bool c) => (float[N, 3] y) {{
        h = Neg (x)
        order = Constant <value_ints = [1, 1, 0]> ()
        f = If (c) <then_branch = one () => {then}, else_branch = two () => {otherwise}>
        y = {used}
    }}"""
    x = torch.tensor([[1.0, -2.0, 3.0]])
    explainer = Explainer(onnx.parser.parse_model(text), "epsilon", dtype=dtype)
    expected = {
        ("Mul", True): -2 * x, ("Mul", False): -3 * x,
        ("Where", True): torch.tensor([[1.0, 2.0, 3.0]]), ("Where", False): torch.tensor([[-1.0, -2.0, -3.0]]),
        ("Gather", True): -x[:, [2, 1, 0]], ("Gather", False): -x[:, [1, 1, 0]],
    }  # fmt: skip
    for choice in (True, False):
        e = explainer.explain({"x": x, "c": torch.tensor(choice)}, target=0)
        torch.testing.assert_close(e.output.float(), expected[use, choice])
        assert float(e.relevance["x"].sum()) == pytest.approx(float(e.output[0, 0]), rel=1e-5)
