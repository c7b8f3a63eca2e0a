"""Fused operators, written out, compute what ONNX Runtime computes with the fused ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper

from lrp_onnx.engine import Explainer
from lrp_onnx.forward import TorchForward
from lrp_onnx.graph import Graph, load
from lrp_onnx.rules import composite

Array = np.ndarray
RNG = np.random.default_rng(0)
N, S, P, HEADS, SIZE = 2, 5, 3, 2, 4  # samples, tokens, tokens of the past, heads, size of a head
WIDTH = HEADS * SIZE


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def one_node(
    op: str, inputs: Sequence[Array | None], constants: Sequence[int], attributes: dict[str, Any], **options: Any
) -> tuple[onnx.ModelProto, dict[str, Array], list[Array]]:
    """A model of one node, what to feed it, and what ONNX Runtime makes of that."""
    outputs, opset = options.get("outputs", 1), options.get("opset", 17)
    names = ["" if x is None else f"i{k}" for k, x in enumerate(inputs)]
    results = [f"o{k}" for k in range(outputs)]
    results = [name if k in options.get("keep", range(outputs)) else "" for k, name in enumerate(results)]
    node = helper.make_node(op, names, results, "fused", domain=options.get("domain", "com.microsoft"), **attributes)
    given = {name: x for name, x in zip(names, inputs, strict=True) if x is not None}
    stored = {f"i{k}" for k in constants}
    fed = {name: x for name, x in given.items() if name not in stored}
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for n, x in fed.items()
    ]
    results = [name for name in results if name]
    graph = helper.make_graph(
        [node],
        "one",
        infos,
        [onnx.ValueInfoProto(name=name) for name in results],
        [numpy_helper.from_array(given[n], n) for n in given if n in stored],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    expected = session(model).run(None, fed)
    for info, x in zip(model.graph.output, expected, strict=True):
        kind = helper.np_dtype_to_tensor_dtype(x.dtype)
        info.CopyFrom(helper.make_tensor_value_info(info.name, kind, x.shape))
    return model, fed, expected


def check(graph: Graph, feeds: dict[str, Array], expected: Sequence[Array]) -> None:
    names = list(graph.outputs)
    by_ort = session(graph.model).run(names, feeds)
    tensors = {n: torch.from_numpy(x) for n, x in feeds.items()}
    doubles = {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}
    by_torch = TorchForward(graph, names, torch.float64, torch.device("cpu"))(doubles)
    for name, one, want in zip(names, by_ort, expected, strict=True):
        np.testing.assert_allclose(one, want, rtol=2e-4, atol=2e-5, err_msg=name)
        np.testing.assert_allclose(by_torch[name].numpy(), want, rtol=2e-4, atol=2e-5, err_msg=name)


X = normal(N, S, WIDTH)
QKV = (normal(N, S, WIDTH), normal(N, S, WIDTH), normal(N, S, WIDTH))
LENGTHS = np.array([3, 5], np.int32)
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
IMAGE, KERNEL, CHANNELS = normal(2, 4, 7, 7), normal(6, 4, 3, 3), normal(6)
WINDOW = {"pads": [1, 1, 1, 1], "strides": [2, 2], "kernel_shape": [3, 3]}
IDS = RNG.integers(0, 9, (N, S)).astype(np.int32)
ANGLES = RNG.uniform(0, 6, (16, SIZE // 2))
COS, SIN = np.cos(ANGLES).astype(np.float32), np.sin(ANGLES).astype(np.float32)
PAST = (normal(N, HEADS, P, SIZE), normal(N, HEADS, P, SIZE))
# queries of two heads that share keys and values; here ONNX Runtime wants heads of 16 elements
QUERY, SHARED = normal(N, S, 32), (normal(N, S, 16), normal(N, S, 16))
BEFORE = (normal(N, 1, P, 16), normal(N, 1, P, 16))
WIDE = RNG.uniform(0, 6, (16, 8))
TABLES = (np.cos(WIDE).astype(np.float32), np.sin(WIDE).astype(np.float32))
LAST = np.full(N, S - 1, np.int32)
TOTAL = np.array([S], np.int32)
HEAD = {"num_heads": HEADS}
GROUP = {"num_heads": HEADS, "kv_num_heads": 1}
PROJECT = (normal(WIDTH, 3 * WIDTH), normal(3 * WIDTH))

CASES: list[tuple[Any, ...]] = [  # op, inputs, which are constants, attributes, what else
    ("Gelu", [X]),
    ("BiasGelu", [X, normal(WIDTH)], [1]),
    ("FastGelu", [X, normal(WIDTH)], [1]),
    ("FastGelu", [X]),
    ("QuickGelu", [X], [], {"alpha": 1.5}),
    *(
        ("FusedConv", [IMAGE, KERNEL, CHANNELS], [1, 2], {"activation": kind, **parameters, **WINDOW})
        for kind, parameters in (
            ("Relu", {}),
            ("Tanh", {}),
            ("LeakyRelu", {"activation_params": [0.2]}),
            ("Clip", {"activation_params": [-0.5, 1.5]}),
            ("HardSigmoid", {"activation_params": [0.3, 0.4]}),
        )
    ),
    ("FusedConv", [IMAGE, KERNEL, None, normal(2, 6, 4, 4)], [1], {"activation": "Relu", **WINDOW}),
    ("FusedGemm", [X[0], normal(3, WIDTH), normal(3)], [1, 2], {"activation": "Relu", "transB": 1, "alpha": 0.5}),
    ("FusedGemm", [X[0], normal(WIDTH, 3)], [1], {"activation": "LeakyRelu", "activation_alpha": 0.3}),
    ("FusedMatMul", [X, normal(N, 3, WIDTH)], [], {"transB": 1, "alpha": 0.25}),
    ("FusedMatMul", [X, normal(N, S, 3)], [], {"transA": 1}),
    ("FusedMatMul", [normal(3, N, HEADS, 4), normal(N, HEADS, 4, 5)], [], {"transBatchA": 1}),
    ("FusedMatMul", [normal(4, N, HEADS, 3), normal(N, HEADS, 4, 5)], [], {"transBatchA": 1, "transA": 1}),
    ("LayerNormalization", [X, normal(WIDTH), normal(WIDTH)], [1, 2], {}, {"domain": "", "opset": 13}),
    ("SimplifiedLayerNormalization", [X, normal(WIDTH)], [1], {"epsilon": 1e-3}, {"domain": ""}),
    ("SkipLayerNormalization", [X, X[::-1].copy(), *(normal(WIDTH) for _ in range(3))], [2, 3, 4]),
    ("SkipLayerNormalization", [X, X[:1], normal(WIDTH)], [2], {}, {"outputs": 4, "keep": (0, 3)}),
    (
        "SkipSimplifiedLayerNormalization",
        [X, X, normal(WIDTH), normal(WIDTH)],
        [2, 3],
        {},
        {"outputs": 4, "keep": (0, 3)},
    ),
    (
        "EmbedLayerNormalization",
        [IDS, IDS % 2, normal(9, 8), normal(7, 8), normal(2, 8), normal(8), normal(8), MASK],
        range(2, 7),
        {"epsilon": 1e-4},
        {"outputs": 3},
    ),
    (
        "EmbedLayerNormalization",
        [IDS, None, normal(9, 8), normal(9, 8), None, normal(8), normal(8), None, IDS],
        [2, 3, 5, 6],
        {},
        {"outputs": 2, "keep": (0,)},
    ),
    ("Attention", [X, *PROJECT], [1, 2], HEAD),
    ("Attention", [X, *PROJECT, MASK], [1, 2], {**HEAD, "scale": 0.3}),
    ("Attention", [X, *PROJECT, LENGTHS], [1, 2], HEAD),
    ("Attention", [X, *PROJECT, np.stack([MASK] * S, 1)], [1, 2], HEAD),
    ("Attention", [X, *PROJECT, MASK, None, normal(1, HEADS, S, S)], [1, 2], {**HEAD, "unidirectional": 1}),
    ("Attention", [X, *PROJECT, None, np.stack(PAST)], [1, 2], {**HEAD, "unidirectional": 1}, {"outputs": 2}),
    ("Attention", [X, normal(WIDTH, 20), normal(20)], [1, 2], {**HEAD, "qkv_hidden_sizes": [8, 8, 4]}),
    ("MultiHeadAttention", [*QKV], [], HEAD),
    ("MultiHeadAttention", [*QKV, normal(3 * WIDTH), MASK], [3], {**HEAD, "mask_filter_value": -1e6}),
    ("MultiHeadAttention", [*QKV, None, LENGTHS], [], HEAD),
    ("MultiHeadAttention", [*QKV, None, None, normal(N, HEADS, S, S)], [], {**HEAD, "scale": 0.4}),
    ("MultiHeadAttention", [*QKV, None, None, None, *PAST], [], {**HEAD, "unidirectional": 1}, {"outputs": 3}),
    ("MultiHeadAttention", [QKV[0], *PAST], [], HEAD),
    ("RotaryEmbedding", [X, np.array([2]), COS, SIN], [2, 3]),
    ("RotaryEmbedding", [X, IDS.astype(np.int64), COS, SIN], [2, 3], {"interleaved": 1}),
    ("RotaryEmbedding", [normal(N, HEADS, S, SIZE), IDS.astype(np.int64), COS, SIN], [2, 3]),
    (
        "RotaryEmbedding",
        [normal(N, S, 2 * WIDTH), np.array([0]), COS, SIN],
        [2, 3],
        {"rotary_embedding_dim": SIZE, **HEAD},
    ),
    ("GroupQueryAttention", [QUERY, *SHARED, None, None, LAST, TOTAL], [], GROUP, {"outputs": 3}),
    (
        "GroupQueryAttention",
        [QUERY, *SHARED, None, None, LAST, TOTAL, *TABLES],
        [7, 8],
        {**GROUP, "do_rotary": 1},
        {"outputs": 3},
    ),
    (
        "GroupQueryAttention",
        [QUERY[:, :1], *(x[:, :1] for x in SHARED), *BEFORE, LAST - 1, TOTAL - 1, *TABLES],
        [7, 8],
        {**GROUP, "do_rotary": 1, "rotary_interleaved": 1, "softcap": 5.0},
        {"outputs": 3},
    ),
]  # fmt: skip


def title(case: tuple[Any, ...]) -> str:
    shapes = "-".join("" if x is None else "x".join(map(str, x.shape)) for x in case[1])
    return f"{case[0]} {shapes} {case[3] if len(case) > 3 else ''}".replace(" ", "")


@pytest.mark.parametrize("case", CASES, ids=title)
def test_fused_operator_written_out_computes_the_same(case: tuple[Any, ...]) -> None:
    op, inputs, constants, attributes, options = (*case, *([], {}, {})[len(case) - 2 :])
    model, feeds, expected = one_node(op, inputs, constants, attributes, **options)
    graph = load(model)
    assert not [node for node in graph.nodes if node.domain not in ("", "lrp_onnx")]
    assert list(graph.outputs) == [o.name for o in model.graph.output]
    check(graph, feeds, expected)


PARTS = """
    KT = Transpose<perm = [0, 1, 3, 2]>(k4)
    scores = MatMul(q4, KT)
    scaled = Mul(scores, half)
    capped = Mul(scaled, fifth)
    bent = Tanh(capped)
    back = Mul(bent, five)
    masked = Add(back, mask)
    weight = Softmax<axis = -1>(masked)
    mixed = MatMul(weight, v4)
"""
AROUND = """(double[1,5,6] x) => (double[1,4,5,4] mixed) {{
    q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
    q5 = Reshape(q, split4) k5 = Reshape(k, split2) v5 = Reshape(v, split2)
    q4 = Transpose<perm = [0, 2, 1, 3]>(q5)
    k2 = Transpose<perm = [0, 2, 1, 3]>(k5)
    v2 = Transpose<perm = [0, 2, 1, 3]>(v5)
    {0}
}}"""


@pytest.mark.parametrize("name", ["attnlrp", "epsilon"])
def test_relevance_of_fused_attention_is_that_of_its_parts(name: str) -> None:
    """Attention of opset 23, with four heads of queries on two of keys, a soft cap and a causal mask."""
    rng = np.random.default_rng(1)
    fused = """mixed = Attention<is_causal = 1, scale = 0.5, softcap = 5.0>(q4, k2, v2)"""
    shared = """k4 = Gather<axis = 1>(k2, heads) v4 = Gather<axis = 1>(v2, heads)"""
    constants = {
        **{f"w{n}": rng.standard_normal((6, 4 * (4 if n == "q" else 2))) for n in "qkv"},
        **{f"split{n}": np.array([1, 5, n, 4]) for n in (2, 4)},
        **{n: np.array(v) for n, v in (("half", 0.5), ("fifth", 0.2), ("five", 5.0))},
        "heads": np.array([0, 0, 1, 1]),
        "mask": np.triu(np.full((5, 5), -np.inf), 1),
    }
    x, found = rng.standard_normal((1, 5, 6)), []
    for text in (fused, shared + PARTS):
        model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 23]> g {AROUND.format(text)}')
        model.graph.initializer.extend(
            numpy_helper.from_array(a, n) for n, a in constants.items() if n in text + AROUND
        )
        found.append(Explainer(model, composite(name, eps=1e-12), dtype="float64").explain(x, seed="all"))
    one, other = found
    torch.testing.assert_close(one.output, other.output, rtol=1e-6, atol=1e-9)
    wanted = other.relevance["x"]
    assert wanted.abs().max() > 1e-2
    assert (one.relevance["x"] - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    assert not any("Attention" in node.op_type for node in one.conservation)


def test_a_node_says_what_it_is_a_part_of() -> None:
    model, _, _ = one_node("BiasGelu", [X, normal(WIDTH)], [1], {})
    graph = load(model)
    (gelu,) = (node for node in graph.nodes if node.op_type == "Gelu")
    assert graph.history[gelu.name] == ("part of BiasGelu 'fused'",)
    assert gelu.inputs == ("fused/S",)
    assert gelu.outputs == ("o0",)
