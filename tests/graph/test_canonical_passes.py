"""Each rewrite of the canonical form happens where it is exact, keeps names and values, and stays away elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
import pytest

from lrp_onnx.graph import Graph, load
from lrp_onnx.graph.check import verify_canonical

RNG = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return RNG.uniform(0.5, 2.0, size=shape).astype(np.float32)


def model(text: str, constants: Mapping[str, np.ndarray] | None = None, opset: int = 20) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n g {text}')
    for name, array in (constants or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return proto


def canonical(text: str, constants: Mapping[str, np.ndarray] | None = None, opset: int = 20) -> Graph:
    graph = load(model(text, constants, opset))
    onnx.checker.check_model(graph.model, full_check=True)
    assert verify_canonical(graph, inner=True) < 1e-5
    return graph


def ops(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.nodes]


BN = {"g": positive(6), "b": weights(6), "m": weights(6), "v": positive(6)}
IMAGE = "(float[N, 4, 9, 9] x) => (float[N, M, P, Q] y)"


@pytest.mark.parametrize(
    ("op", "shape", "bias"),
    [
        ("Conv<pads=[1, 1, 1, 1]>", (6, 4, 3, 3), True),
        ("Conv<group=2>", (6, 2, 3, 3), False),
        ("ConvTranspose<group=2, strides=[2, 2]>", (4, 3, 3, 3), True),
        ("ConvTranspose", (4, 6, 2, 2), False),
    ],
)
def test_batch_norm_behind_a_convolution_is_fused(op: str, shape: tuple[int, ...], bias: bool) -> None:
    constants = BN | {"w": weights(*shape)} | ({"c": weights(6)} if bias else {})
    text = IMAGE + "{ h = OP (ARGS)  y = BatchNormalization (h, g, b, m, v) }"
    text = text.replace("OP", op).replace("ARGS", "x, w, c" if bias else "x, w")
    graph = canonical(text, constants)
    assert ops(graph) == [op.split("<")[0]]
    assert list(graph.outputs) == ["y"]


@pytest.mark.parametrize("attributes", ["", "<transB=1>", "<transB=1, alpha=0.5, beta=2.0>"])
def test_batch_norm_behind_gemm_is_fused(attributes: str) -> None:
    shape = (6, 5) if "transB" in attributes else (5, 6)
    text = "(float[N, 5] x) => (float[N, 6] y) { h = Gemm %s (x, w, c)  y = BatchNormalization (h, g, b, m, v) }"
    graph = canonical(text % attributes, BN | {"w": weights(*shape), "c": weights(6)})
    assert ops(graph) == ["Gemm"]


def test_batch_norm_stays_when_another_node_reads_the_convolution() -> None:
    text = IMAGE + "{ h = Conv (x, w)  n = BatchNormalization (h, g, b, m, v)  y = Add (h, n) }"
    assert ops(canonical(text, BN | {"w": weights(6, 4, 3, 3)})) == ["Conv", "BatchNormalization", "Add"]


def test_weights_that_two_convolutions_share_are_fused_for_one_only() -> None:
    text = IMAGE + "{ h = Conv (x, w)  n = BatchNormalization (h, g, b, m, v)  k = Conv (x, w)  y = Add (n, k) }"
    graph = canonical(text, BN | {"w": weights(6, 4, 3, 3)})
    assert ops(graph) == ["Conv", "Conv", "Add"]
    assert len({node.inputs[1] for node in graph.nodes if node.op_type == "Conv"}) == 2


BEFORE = {"g": positive(4), "b": weights(4), "m": weights(4), "v": positive(4)}


@pytest.mark.parametrize(
    ("attributes", "shift", "expected"),
    [
        ("<group=2>", True, ["Conv"]),
        ("<pads=[1, 1, 1, 1], group=2>", False, ["Conv"]),
        ("<pads=[1, 1, 1, 1], group=2>", True, ["BatchNormalization", "Conv"]),
        ('<auto_pad="SAME_UPPER", group=2>', True, ["BatchNormalization", "Conv"]),
    ],
)
def test_batch_norm_before_a_convolution_is_fused_unless_padding_sees_its_shift(
    attributes: str, shift: bool, expected: list[str]
) -> None:
    constants = BEFORE if shift else BEFORE | {"b": np.zeros(4, np.float32), "m": np.zeros(4, np.float32)}
    text = IMAGE + "{ r = Relu (x)  n = BatchNormalization (r, g, b, m, v)  y = Conv ATTRIBUTES (n, w, c) }"
    text = text.replace("ATTRIBUTES", attributes)
    assert ops(canonical(text, constants | {"w": weights(6, 2, 3, 3), "c": weights(6)})) == ["Relu", *expected]


@pytest.mark.parametrize("op", ["Gemm <transB=1> (n, w)", "MatMul (n, w)"])
def test_batch_norm_before_a_dense_layer_is_fused(op: str) -> None:
    shape = (5, 4) if "transB" in op else (4, 5)
    text = "(float[N, 4] x) => (float[N, 5] y) { n = BatchNormalization (x, g, b, m, v)  y = OP }"
    text = text.replace("OP", op)
    assert ops(canonical(text, BEFORE | {"w": weights(*shape)})) == ["Gemm"]


def test_batch_norm_in_pieces_becomes_part_of_the_convolution() -> None:
    constants = {"w": weights(6, 4, 3, 3), "s": weights(1, 6, 1, 1), "t": weights(6, 1, 1), "u": weights(6, 1, 1)}
    text = IMAGE + "{ h = Conv (x, w)  c = Sub (h, u)  k = Mul (s, c)  y = Add (t, k) }"
    assert ops(canonical(text, constants)) == ["Conv"]


def test_batch_norm_in_pieces_is_fused_through_a_transpose() -> None:
    constants = {"w": weights(6, 4, 3, 3), "s": weights(6), "t": weights(6)}
    text = IMAGE + "{ h = Conv (x, w)  p = Transpose <perm=[0, 2, 3, 1]> (h)  k = Mul (p, s)  y = Add (k, t) }"
    graph = canonical(text, constants)
    assert ops(graph) == ["Conv", "Transpose"]
    assert list(graph.outputs) == ["y"]


def test_a_factor_alone_is_not_fused() -> None:
    text = IMAGE + "{ h = Conv (x, w)  y = Mul (h, s) }"
    assert ops(canonical(text, {"w": weights(6, 4, 3, 3), "s": weights(6, 1, 1)})) == ["Conv", "Mul"]


def test_a_constant_that_is_not_per_channel_is_not_a_bias() -> None:
    text = IMAGE + "{ h = Conv (x, w)  y = Add (h, t) }"
    assert ops(canonical(text, {"w": weights(6, 4, 3, 3), "t": weights(6, 7, 7)})) == ["Conv", "Add"]


def test_matmul_with_bias_becomes_gemm_in_two_dimensions_only() -> None:
    constants = {"w": weights(4, 5), "c": weights(5)}
    assert ops(canonical("(float[N, 4] x) => (float[N, 5] y) { h = MatMul (x, w)  y = Add (c, h) }", constants)) == [
        "Gemm"
    ]
    text = "(float[N, 3, 4] x) => (float[N, 3, 5] y) { h = MatMul (x, w)  y = Add (h, c) }"
    assert ops(canonical(text, constants)) == ["MatMul", "Add"]


def test_bias_behind_a_reshape_that_keeps_the_channels_is_fused() -> None:
    text = """(float[N, 3, 4] x) => (float[N, 3, 5] y) {
        r = Reshape (x, two)  h = MatMul (r, w)  k = Reshape (h, three)  y = Add (k, c) }"""
    shapes = {"two": np.array([-1, 4]), "three": np.array([-1, 3, 5])}
    graph = canonical(text, {"w": weights(4, 5), "c": weights(5)} | shapes)
    assert ops(graph) == ["Reshape", "Gemm", "Reshape"]


def test_scale_and_shift_behind_a_batch_norm_that_stays_are_fused_into_it() -> None:
    text = """(float[N, 4, 5, 5] x) => (float[N, 4, 5, 5] y) {
        r = Relu (x)  n = BatchNormalization (r, g, b, m, v)  k = Mul (n, s)  y = Add (k, t) }"""
    assert ops(canonical(text, BEFORE | {"s": weights(4, 1, 1), "t": weights(4, 1, 1)})) == [
        "Relu",
        "BatchNormalization",
    ]


def test_scale_and_shift_that_follow_nothing_linear_become_a_batch_norm() -> None:
    constants = {"s": weights(4, 1, 1), "t": weights(1, 4, 1, 1), "w": weights(6, 4, 1, 1)}
    body = "{ r = Relu (x)  k = Mul (r, s)  n = Sub (k, t)  y = Neg (n) }"
    assert ops(canonical(IMAGE + body, constants)) == ["Relu", "BatchNormalization", "Neg"]
    body = "{ r = Relu (x)  k = Mul (r, s)  n = Add (k, t)  y = Conv (n, w) }"
    assert ops(canonical(IMAGE + body, constants)) == ["Relu", "Conv"]
    scalar = constants | {"s": np.float32(2)}
    assert ops(canonical(IMAGE + body, scalar)) == ["Relu", "Mul", "Add", "Conv"]


def test_zero_padding_is_fused_into_the_convolution_and_other_padding_is_not() -> None:
    pads = {"w": weights(6, 4, 3, 3), "p": np.array([0, 0, 1, 2, 0, 0, 3, 0]), "value": np.float32(1.0)}
    zero = canonical(IMAGE + "{ h = Pad (x, p)  y = Conv <pads=[1, 0, 0, 1]> (h, w) }", pads)
    assert ops(zero) == ["Conv"]
    assert zero.nodes[0].attributes["pads"] == (2, 2, 3, 1)
    assert ops(canonical(IMAGE + "{ h = Pad (x, p, value)  y = Conv (h, w) }", pads)) == ["Pad", "Conv"]
    text = IMAGE + "{ h = Pad (x, p)  y = AveragePool <kernel_shape=[2, 2]> (h) }"
    assert ops(canonical(text, pads)) == ["Pad", "AveragePool"]


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("attributes", ["strides=[2, 3]", "strides=[1, 1]"])
def test_automatic_padding_becomes_explicit(mode: str, attributes: str) -> None:
    text = IMAGE + '{ h = Conv <auto_pad="%s", %s> (x, w)  y = MaxPool <auto_pad="%s", kernel_shape=[2, 3]> (h) }'
    graph = canonical(text % (mode, attributes, mode), {"w": weights(6, 4, 4, 3)})
    assert all("auto_pad" not in node.attributes and "pads" in node.attributes for node in graph.nodes)


def test_automatic_padding_counts_dilation() -> None:  # which ONNX Runtime itself refuses
    text = IMAGE + '{ y = Conv <auto_pad="SAME_LOWER", dilations=[2, 1], strides=[1, 2]> (x, w) }'
    graph = load(model(text, {"w": weights(6, 4, 4, 2)}))
    assert graph.nodes[0].attributes["pads"] == (3, 1, 3, 0)
    assert graph.shapes["y"] == ("N", 6, 9, 5)


ONE = "(float[N, 64] x) => (float[N, 64] y) { %s }"
HALF, ROOT_HALF = np.float32(0.5), np.float32(2**-0.5)


@pytest.mark.parametrize(
    ("body", "constants", "expected"),
    [
        ("r = Relu (x)  y = Min (r, six)", {"six": np.float32(6)}, ("Clip", {})),
        ("r = Max (x, zero)  y = Min (r, six)", {"six": np.float32([6]), "zero": np.float32(0)}, ("Clip", {})),
        ("r = Min (x, six)  y = Max (zero, r)", {"six": np.float32(6), "zero": np.float32(0)}, ("Clip", {})),
        ("y = Max (x, zero)", {"zero": np.float32(0)}, ("Relu", {})),
        ("r = Mul (x, leak)  y = Max (x, r)", {"leak": np.float32(0.1)}, ("LeakyRelu", {"alpha": 0.1})),
        ("r = Sigmoid (x)  y = Mul (r, x)", {}, ("Swish", {"alpha": 1.0})),
        ("s = Mul (x, a)  r = Sigmoid (s)  y = Mul (x, r)", {"a": np.float32(1.702)}, ("Swish", {"alpha": 1.702})),
        (
            "n = Neg (x)  e = Exp (n)  d = Add (e, one)  y = Div (x, d)",
            {"one": np.float32(1)},
            ("Swish", {"alpha": 1.0}),
        ),
        ("r = HardSigmoid <alpha=0.16666667, beta=0.5> (x)  y = Mul (x, r)", {}, ("HardSwish", {})),
        (
            "a = Add (three, x)  c = Clip (a, zero, six)  d = Div (c, six)  y = Mul (x, d)",
            {"three": np.float32([[3]]), "zero": np.float32(0), "six": np.float32(6)},
            ("HardSwish", {}),
        ),
        (
            "a = Add (x, three)  c = Relu (a)  m = Min (c, six)  p = Mul (x, m)  y = Mul (p, sixth)",
            {"three": np.float32(3), "six": np.float32(6), "sixth": np.float32(1 / 6)},
            ("HardSwish", {}),
        ),
        (
            "a = Add (x, three)  c = Clip (a, zero, six)  y = Div (c, six)",
            {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)},
            ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
        ),
        (
            "d = Div (x, root)  e = Erf (d)  a = Add (e, one)  m = Mul (x, a)  y = Mul (m, half)",
            {"root": np.float32(2**0.5), "one": np.float32(1), "half": HALF},
            ("Gelu", {"approximate": "none"}),
        ),
        (  # erfc(z) = 1 - erf(z), as TensorFlow writes it
            "n = Neg (x)  d = Mul (n, root)  e = Erf (d)  c = Sub (one, e)  h = Mul (x, half)  y = Mul (h, c)",
            {"root": ROOT_HALF, "one": np.float32(1), "half": HALF},
            ("Gelu", {"approximate": "none"}),
        ),
        (
            """c = Pow (x, cube)  k = Mul (c, factor)  s = Add (x, k)  m = Mul (s, root)  t = Tanh (m)
               a = Add (t, one)  h = Mul (x, half)  y = Mul (h, a)""",
            {
                "cube": np.float32(3),
                "factor": np.float32(0.044715),
                "root": np.float32((2 / np.pi) ** 0.5),
                "one": np.float32(1),
                "half": HALF,
            },
            ("Gelu", {"approximate": "tanh"}),
        ),
        ("e = Exp (x)  a = Add (e, one)  y = Log (a)", {"one": np.float32(1)}, ("Softplus", {})),
        ("s = Softplus (x)  t = Tanh (s)  y = Mul (x, t)", {}, ("Mish", {})),
        ("s = Abs (x)  t = Add (s, one)  y = Div (x, t)", {"one": np.float32(1)}, ("Softsign", {})),
        (
            "p = Greater (x, zero)  e = Exp (x)  m = Sub (e, one)  y = Where (p, x, m)",
            {"zero": np.float32(0), "one": np.float32(1)},
            ("Elu", {"alpha": 1.0}),
        ),
    ],
)
def test_activation_in_pieces_becomes_one_node(
    body: str, constants: Mapping[str, np.ndarray], expected: tuple[str, dict[str, object]]
) -> None:
    graph = canonical(ONE % body, constants)
    assert ops(graph) == [expected[0]]
    for name, value in expected[1].items():
        found = graph.nodes[0].attributes[name]
        assert found == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value)


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("r = Sigmoid (x)  a = Add (x, tiny)  y = Mul (r, a)", {"tiny": np.float32(0.01)}),
        ("c = Clip (x, zero, six)  y = Mul (c, x)", {"zero": np.float32(0), "six": np.float32(6)}),
        ("t = Tanh (x)  y = Mul (t, tiny)", {"tiny": np.float32(1e-9)}),
        ("r = Mul (x, s)  q = Sigmoid (r)  y = Mul (x, q)", {"s": positive(64)}),
        ("r = Sigmoid (x)  q = Relu (x)  y = Mul (r, q)", {}),
        ("i = Cast <to=7> (x)  r = Cast <to=1> (i)  s = Sigmoid (r)  y = Mul (x, s)", {}),
    ],
)
def test_what_only_looks_like_an_activation_is_left_alone(body: str, constants: Mapping[str, np.ndarray]) -> None:
    graph = canonical(ONE % body, constants)
    assert not set(ops(graph)) & {"Swish", "Gelu", "HardSwish", "HardSigmoid", "LeakyRelu", "Softplus", "Mish"}
    assert len(graph.nodes) > 1


def test_squeeze_and_excite_gate_is_kept_apart_from_swish() -> None:
    text = """(float[N, 4, 5, 5] x) => (float[N, 4, 5, 5] y) {
        p = GlobalAveragePool (x)  c = Conv (p, w)  s = Sigmoid (c)  y = Mul (x, s) }"""
    graph = canonical(text, {"w": weights(4, 4, 1, 1)})
    assert ops(graph) == ["GlobalAveragePool", "Conv", "Sigmoid", "Mul"]


NORM = {"eps": np.float32(1e-3), "two": np.float32(2), "last": np.array([-1]), "ch": np.array([1])}
LAYER_NORM = """m = ReduceMean (x, {axis})  d = Sub (x, m)  q = Mul (d, d)  v = ReduceMean (q, {axis})  e = Add (v, eps)
    r = Sqrt (e)  n = Div (d, r)  k = Mul (n, s)  y = Add (k, t)"""
KERAS_LAYER_NORM = """m = ReduceMean (x, {axis})  d = Sub (x, m)  q = Pow (d, two)  v = ReduceMean (q, {axis})
    e = Add (v, eps)  z = Sqrt (e)  r = Reciprocal (z)  k = Mul (r, s)  p = Mul (x, k)  u = Mul (m, k)  w = Sub (t, u)
    y = Add (p, w)"""


@pytest.mark.parametrize("body", [LAYER_NORM, KERAS_LAYER_NORM])
def test_layer_norm_in_pieces_becomes_one_node(body: str) -> None:
    text = "(float[N, 7, 5] x) => (float[N, 7, 5] y) {BODY}".replace("BODY", body.format(axis="last"))
    graph = canonical(text, NORM | {"s": weights(5), "t": weights(5)})
    assert ops(graph) == ["LayerNormalization"]
    assert graph.nodes[0].attributes["epsilon"] == pytest.approx(1e-3)
    assert graph.initializers[graph.nodes[0].inputs[2]].shape == (5,)


@pytest.mark.parametrize("body", [LAYER_NORM, KERAS_LAYER_NORM])
def test_layer_norm_over_channels_gets_transposes(body: str) -> None:
    text = "(float[N, 5, 6, 7] x) => (float[N, 5, 6, 7] y) {BODY}".replace("BODY", body.format(axis="ch"))
    graph = canonical(text, NORM | {"s": weights(5, 1, 1), "t": weights(1, 5, 1, 1)})
    assert ops(graph) == ["Transpose", "LayerNormalization", "Transpose"]
    assert list(graph.outputs) == ["y"]


def test_rms_norm_in_pieces_becomes_one_node() -> None:
    text = """(float[N, 7, 5] x) => (float[N, 7, 5] y) {
        q = Mul (x, x)  v = ReduceMean (q, last)  e = Add (v, eps)  r = Sqrt (e)  n = Div (x, r)  y = Mul (n, s) }"""
    graph = canonical(text, NORM | {"s": weights(5)})
    assert ops(graph) == ["RMSNormalization"]


def test_softmax_in_pieces_becomes_one_node() -> None:
    text = """(float[N, 7, 5] x) => (float[N, 7, 5] y) {
        m = ReduceMax (x, last)  d = Sub (x, m)  e = Exp (d)  s = ReduceSum (e, last)  p = Div (e, s)  y = Neg (p) }"""
    assert ops(canonical(text, {"last": np.array([-1])})) == ["Softmax", "Neg"]


def test_shape_arithmetic_is_folded_and_the_batch_stays_dynamic() -> None:
    text = """(float[N, 4, 6] x) => (float[A, B] y) {
        s = Shape (x)  n = Gather (s, zero)  c = Gather (s, one)  d = Gather (s, two)  k = Mul (c, d)
        u = Unsqueeze (n, ax)  v = Unsqueeze (k, ax)  t = Concat <axis=0> (u, v)  y = Reshape (x, t) }"""
    numbers = {"zero": np.int64(0), "one": np.int64(1), "two": np.int64(2), "ax": np.array([0])}
    graph = canonical(text, numbers)
    assert ops(graph) == ["Reshape"]
    assert graph.shapes["y"][1] == 24
    assert verify_canonical(graph, batch=5) == 0


def test_constant_nodes_dropout_and_identities_are_gone_and_their_names_lead_on() -> None:
    text = """(float[N, 4] x) => (float[N, 4] y) {
        w = Constant <value = float[4] {1.0, 2.0, 3.0, 4.0}> ()  h = Add (x, w)  i = Identity (h)
        d = Dropout (i)  y = Relu (d) }"""
    graph = canonical(text)
    assert ops(graph) == ["Add", "Relu"]
    assert graph.initializers["w"].tolist() == [1, 2, 3, 4]
    assert graph.aliases == {"i": "h", "d": "h"}


def test_local_functions_of_the_exporter_are_inlined() -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18, "mine" : 1]>
        g (float[N, 4] x) => (float[N, 4] y) { y = mine.block (x) }
        <domain: "mine", opset_import: ["" : 18]> block (a) => (b) { c = Relu (a)  b = Neg (c) }
    """)
    graph = load(proto)
    assert Counter(ops(graph)) == {"Relu": 1, "Neg": 1}
    assert verify_canonical(graph) == 0


def test_inverse_transposes_cancel() -> None:
    text = """(float[N, 4, 6] x) => (float[N, 4, 6] y) {
        a = Transpose <perm=[0, 2, 1]> (x)  b = Transpose <perm=[0, 2, 1]> (a)  y = Relu (b) }"""
    assert ops(canonical(text)) == ["Relu"]


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Sigmoid"])
def test_trailing_activation_is_cut_through_reshapes(op: str) -> None:
    text = "(float[N, 4, 1, 1] x) => (float[N, 4] y) { z = Relu (x)  p = %s (z)  y = Flatten (p) }"
    graph = load(model(text % (op if op == "Sigmoid" else op + "<axis=1>")))
    assert ops(graph) == ["Relu"]
    assert graph.cut == op
    assert list(graph.outputs) == ["z"]
    assert graph.cuts["z"].outputs == ("y",)
    assert verify_canonical(graph) < 1e-6


def test_softmax_inside_the_graph_is_not_cut() -> None:
    text = "(float[N, 4] x) => (float[N, 4] y) { z = Relu (x)  p = Softmax (z)  y = Mul (p, x) }"
    graph = canonical(text)
    assert graph.cut == ""
    assert ops(graph) == ["Relu", "Softmax", "Mul"]


def test_each_output_is_cut_on_its_own() -> None:
    text = """(float[N, 4] x) => (float[N, 4] y, float[N, 4] s, float[N, 4] z) {
        z = Relu (x)  h = Neg (x)  y = Softmax (h)  s = Sigmoid (z) }"""
    graph = load(model(text))
    assert list(graph.outputs) == ["h", "s", "z"]  # z is an output already
    assert verify_canonical(graph) < 1e-6


def test_cut_softmax_is_applied_when_the_original_lacks_the_logit() -> None:
    text = "(float[N, 4] x) => (float[N, 4] y) { h = MatMul (x, w)  i = Identity (h)  y = Softmax (i) }"
    graph = load(model(text, {"w": weights(4, 4)}))
    assert verify_canonical(graph) < 1e-6


def test_verification_notices_a_wrong_weight() -> None:
    graph = load(model("(float[N, 4] x) => (float[N, 5] y) { y = Gemm (x, w) }", {"w": weights(4, 5)}))
    array = graph.initializers["w"].copy()
    array[0, 0] += 0.1
    graph.model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, "w"))
    assert verify_canonical(graph) > 1e-3


def test_verification_notices_nan_on_one_side() -> None:
    graph = load(model("(float[N, 4] x) => (float[N, 5] y) { y = Gemm (x, w) }", {"w": weights(4, 5)}))
    array = np.full((4, 5), np.nan, np.float32)
    graph.model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, "w"))
    assert verify_canonical(graph) == np.inf


def test_node_names_are_unique_and_never_empty() -> None:
    proto = model("(float[N, 4] x) => (float[N, 4] y) { a = Relu (x)  b = Exp (a)  y = Sqrt (b) }")
    proto.graph.node[1].name = proto.graph.node[2].name = "same"
    names = [node.name for node in load(proto).nodes]
    assert names[0] == "Relu_a"
    assert len(set(names)) == 3


def element_types(graph: Graph) -> set[int]:
    return {tensor.data_type for tensor in graph.model.graph.initializer}


def test_fused_weights_are_not_rounded_for_the_engine() -> None:
    constants = BN | {"w": weights(4, 6)}
    graph = load(
        model(
            "(float[N, 4] x) => (float[N, 6] n) { h = Gemm (x, w)  n = BatchNormalization (h, g, b, m, v) }", constants
        )
    )
    g, b, m, v = (constants[name].astype(np.float64) for name in "gbmv")
    (gemm,) = graph.nodes
    scale = g / np.sqrt(v + 1e-5)
    np.testing.assert_allclose(graph.initializers[gemm.inputs[1]], constants["w"] * scale, rtol=1e-13)
    np.testing.assert_allclose(graph.initializers[gemm.inputs[2]], b - m * scale, rtol=1e-13)
    assert element_types(graph) == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-2), ("double", 1e-12)])
def test_other_precisions_are_fused_and_kept(dtype: str, tolerance: float) -> None:
    numpy_type = np.float16 if dtype == "float16" else np.float64
    constants = {name: array.astype(numpy_type) for name, array in (BN | {"w": weights(4, 6)}).items()}
    text = """(%s[N, 4] x) => (%s[N, 6] y) { h = Gemm (x, w)  n = BatchNormalization (h, g, b, m, v)
        s = Sigmoid (n)  y = Mul (n, s) }"""
    graph = load(model(text % (dtype, dtype), constants))
    assert ops(graph) == ["Gemm", "Swish"]
    assert verify_canonical(graph) < tolerance
    assert element_types(graph) == {onnx.helper.np_dtype_to_tensor_dtype(np.dtype(numpy_type))}


def test_bfloat16_is_fused_and_kept() -> None:  # ONNX Runtime has no kernels for it on a CPU
    bfloat16 = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
    constants = {name: array.astype(bfloat16) for name, array in (BN | {"w": weights(4, 6)}).items()}
    text = "(bfloat16[N, 4] x) => (bfloat16[N, 6] y) { h = Gemm (x, w)  y = BatchNormalization (h, g, b, m, v) }"
    graph = load(model(text, constants))
    assert ops(graph) == ["Gemm"]
    assert element_types(graph) == {onnx.TensorProto.BFLOAT16}


def test_control_flow_is_left_as_it_is() -> None:
    text = """(float[N, 4] x, bool c) => (float[N, 4] y) {
        r = Relu (x)
        h = If (c) <then_branch = t () => (float[N, 4] a) { a = Neg (r) },
                    else_branch = e () => (float[N, 4] b) { b = Abs (r) }>
        y = Identity (h) }"""
    assert ops(canonical(text)) == ["Relu", "If"]


def test_shapes_and_types_are_known_for_every_tensor() -> None:
    graph = canonical(IMAGE + "{ h = Conv (x, w)  y = Relu (h) }", {"w": weights(6, 4, 3, 3)})
    assert graph.shapes["h"] == ("N", 6, 7, 7)
    assert set(graph.dtypes) == {"x", "w", "h", "y"}
    assert set(graph.dtypes.values()) == {onnx.TensorProto.FLOAT}
