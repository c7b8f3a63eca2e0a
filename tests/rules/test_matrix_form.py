"""Every rule on every linear op equals its textbook form on the op's dense matrix (float64, random signs)."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import matrix_rules
import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from lrp_onnx.engine import Explainer
from lrp_onnx.errors import RuleError
from lrp_onnx.rules import Composite, Entry

TOLERANCE = 1e-10


class Case(NamedTuple):
    op: str  # with {x}, {w} and {b} where the tensors go
    x: tuple[int, ...]
    w: tuple[int, ...] = ()
    b: tuple[int, ...] = ()


WEIGHTED = {
    "conv1d": Case("Conv<strides=[2]>({x}, {w}, {b})", (2, 3, 9), (4, 3, 3), (4,)),
    "conv2d": Case("Conv<pads=[1,1,1,1]>({x}, {w}, {b})", (2, 2, 5, 4), (3, 2, 3, 3), (3,)),
    "conv2d without bias": Case("Conv({x}, {w})", (1, 2, 5, 4), (3, 2, 3, 2)),
    "conv3d": Case("Conv<pads=[0,1,0,1,0,1]>({x}, {w}, {b})", (1, 2, 3, 4, 3), (2, 2, 2, 2, 3), (2,)),
    "conv groups": Case("Conv<group=2>({x}, {w}, {b})", (1, 4, 4, 4), (6, 2, 2, 2), (6,)),
    "conv depthwise": Case("Conv<group=3, pads=[1,1,1,1]>({x}, {w}, {b})", (1, 3, 4, 4), (3, 1, 3, 3), (3,)),
    "conv dilation and stride": Case(
        "Conv<dilations=[2,1], strides=[1,2]>({x}, {w}, {b})", (1, 2, 6, 6), (3, 2, 3, 2), (3,)
    ),
    "conv stride leaves a rest": Case("Conv<strides=[3,2]>({x}, {w}, {b})", (1, 2, 6, 6), (3, 2, 2, 3), (3,)),
    "conv asymmetric pads": Case(
        "Conv<pads=[0,1,2,0], strides=[2,1]>({x}, {w}, {b})", (1, 2, 5, 5), (3, 2, 3, 3), (3,)
    ),
    "conv same upper": Case(
        'Conv<auto_pad="SAME_UPPER", strides=[2,2]>({x}, {w}, {b})', (1, 2, 5, 6), (3, 2, 3, 2), (3,)
    ),
    "conv same lower": Case(
        'Conv<auto_pad="SAME_LOWER", strides=[2,2]>({x}, {w}, {b})', (1, 2, 6, 5), (3, 2, 3, 2), (3,)
    ),
    "conv valid": Case('Conv<auto_pad="VALID">({x}, {w}, {b})', (1, 2, 4, 4), (3, 2, 3, 3), (3,)),
    "transposed conv": Case(
        "ConvTranspose<strides=[2,2], pads=[1,0,0,1]>({x}, {w}, {b})", (1, 2, 3, 4), (2, 3, 3, 2), (3,)
    ),
    "transposed conv groups": Case("ConvTranspose<group=2>({x}, {w}, {b})", (1, 4, 3, 3), (4, 2, 2, 2), (4,)),
    "transposed conv dilation": Case(
        "ConvTranspose<dilations=[2,1], strides=[1,2], output_padding=[0,1]>({x}, {w}, {b})",
        (1, 2, 3, 3),
        (2, 2, 2, 2),
        (2,),
    ),
    "transposed conv1d": Case("ConvTranspose<strides=[3]>({x}, {w}, {b})", (1, 2, 4), (2, 3, 2), (3,)),
    "gemm": Case("Gemm({x}, {w}, {b})", (3, 5), (5, 4), (4,)),
    "gemm transB": Case("Gemm<transB=1>({x}, {w}, {b})", (3, 5), (4, 5), (1, 4)),
    "gemm alpha beta": Case("Gemm<transB=1, alpha=0.5, beta=-2.0>({x}, {w}, {b})", (3, 5), (4, 5), (4,)),
    "gemm transA": Case("Gemm<transA=1>({x}, {w}, {b})", (5, 3), (5, 4), (4,)),
    "gemm without bias": Case("Gemm({x}, {w})", (2, 5), (5, 4)),
    "matmul": Case("MatMul({x}, {w})", (3, 5), (5, 4)),
    "matmul of a sequence": Case("MatMul({x}, {w})", (2, 3, 5), (5, 4)),
    "matmul from the left": Case("MatMul({w}, {x})", (2, 5, 3), (4, 5)),
    "matmul broadcast": Case("MatMul({x}, {w})", (1, 3, 5), (2, 5, 4)),
    "einsum": Case('Einsum<equation="nij,jk->nik">({x}, {w})', (2, 3, 5), (5, 4)),
}
MEANS = {
    "average pool": Case("AveragePool<kernel_shape=[2,3], strides=[1,2]>({x})", (1, 2, 4, 7)),
    "average pool pads": Case("AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>({x})", (1, 2, 4, 4)),
    "average pool counts pads": Case(
        "AveragePool<kernel_shape=[3,2], pads=[1,0,0,1], count_include_pad=1>({x})", (1, 2, 4, 4)
    ),
    "average pool ceil": Case("AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>({x})", (1, 2, 5, 5)),
    "average pool 1d": Case("AveragePool<kernel_shape=[3]>({x})", (2, 2, 6)),
    "average pool same": Case(
        'AveragePool<kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER">({x})', (1, 1, 4, 5)
    ),
    "global average pool": Case("GlobalAveragePool({x})", (2, 3, 4, 2)),
    "reduce mean": Case("ReduceMean<keepdims=0>({x}, axes)", (2, 3, 4, 2)),
    "reduce sum": Case("ReduceSum<keepdims=1>({x}, axes)", (2, 3, 4, 2)),
    "resize nearest": Case('Resize<mode="nearest">({x}, , scales)', (1, 2, 3, 3)),
    "resize linear": Case('Resize<mode="linear">({x}, , scales)', (1, 2, 3, 3)),
}
CONSTANTS = {"axes": np.array([2, 3]), "scales": np.array([1, 1, 2, 1.5], np.float32)}


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(sum(map(ord, name)) + len(shape)).normal(size=shape)


def make_model(case: Case, *, groups_spelled_out: bool = False) -> onnx.ModelProto:
    op = case.op.format(x="x", w="w", b="b")
    dims = ", ".join(map(str, case.x))
    text = f'<ir_version: 8, opset_import: ["" : 19]> g (double[{dims}] x) => (double[*] y) {{ y = {op} }}'
    model = onnx.parser.parse_model(text.replace("double[*]", "double"))
    tensors = {"w": draw("w", case.w), "b": draw("b", case.b)} if case.w else {}
    if groups_spelled_out:
        tensors["w"] = block_diagonal(tensors["w"], 2)
        del model.graph.node[0].attribute[:]
    for name, array in {**tensors, **CONSTANTS}.items():
        if name in model.graph.node[0].input:
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return onnx.shape_inference.infer_shapes(model)


def block_diagonal(w: np.ndarray, groups: int) -> np.ndarray:
    """Weights (C_in, C_out / groups, …) of a grouped transposed convolution for one without groups."""
    whole = np.zeros((w.shape[0], w.shape[1] * groups, *w.shape[2:]))
    rows, columns = w.shape[0] // groups, w.shape[1]
    for g in range(groups):
        mine = slice(g * rows, (g + 1) * rows)
        whole[mine, g * columns : (g + 1) * columns] = w[mine]
    return whole


@cache
def matrix(case: Case) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Dense W and b of the op, by ONNX's own reference implementation, and the output's shape."""
    # the reference implementation of a grouped ConvTranspose fails on more than one output channel a group
    run = ReferenceEvaluator(make_model(case, groups_spelled_out="ConvTranspose<group" in case.op)).run
    (offset,) = run(None, {"x": np.zeros(case.x)})
    columns = []
    for element in np.eye(int(np.prod(case.x))):
        (column,) = run(None, {"x": element.reshape(case.x)})
        columns.append((column - offset).ravel())
    return np.stack(columns, 1), offset.ravel(), offset.shape


def by_engine(case: Case, composite: Composite, r: np.ndarray) -> np.ndarray:
    explanation = Explainer(make_model(case), composite, dtype="float64").explain(draw("x", case.x), target=r)
    return explanation.relevance["x"].numpy().ravel()


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(wanted).max() > 1e-3, "nothing to compare"
    assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()


def composite_of(rule: str, parameters: dict[str, Any]) -> Composite:
    return Composite("one rule", (Entry(rule, parameters, ("linear",)),))


@pytest.mark.parametrize("rule", matrix_rules.RULES)
@pytest.mark.parametrize("case", WEIGHTED.values(), ids=WEIGHTED)
def test_rule_equals_its_matrix_form(case: Case, rule: str) -> None:
    w, b, shape = matrix(case)
    r = draw("r", shape)
    found = by_engine(case, composite_of(rule, matrix_rules.PARAMETERS.get(rule, {})), r)
    textbook = matrix_rules.RULES[rule]
    if rule == "montavon-std":  # its eps is of one sample
        assert_close(found, _sample_by_sample(case, shape, r))
    else:
        assert_close(found, textbook(w, b, draw("x", case.x).ravel(), r.ravel()))


def _sample_by_sample(case: Case, shape: tuple[int, ...], r: np.ndarray) -> np.ndarray:
    w, b, _ = matrix(case)
    x = draw("x", case.x).ravel()
    z = (w @ x + b).reshape(shape)
    spread = np.sqrt((z**2).mean(axis=tuple(range(1, z.ndim)), keepdims=True))
    return matrix_rules.epsilon(w, b, x, r.ravel(), np.broadcast_to(1e-9 + 0.25 * spread, shape).ravel())


@pytest.mark.parametrize("rule", matrix_rules.TAKES_BIAS)
@pytest.mark.parametrize("name", ["conv2d", "gemm alpha beta", "transposed conv"])
def test_rule_without_bias_equals_its_matrix_form_without_bias(name: str, rule: str) -> None:
    case = WEIGHTED[name]
    w, b, shape = matrix(case)
    if rule == "montavon-std":
        pytest.skip("its eps is of one sample; covered with the bias")
    r = draw("r", shape)
    x = draw("x", case.x).ravel()
    found = by_engine(case, composite_of(rule, {"bias": "ignore"}), r)
    wanted = matrix_rules.RULES[rule](w, np.zeros_like(b), x, r.ravel())
    assert_close(found, wanted)


@pytest.mark.parametrize("case", WEIGHTED.values(), ids=WEIGHTED)
def test_flat_spreads_evenly_over_the_taps_inside_the_input(case: Case) -> None:
    w, _, shape = matrix(case)
    r = draw("r", shape)
    found = by_engine(case, composite_of("flat", {}), r)
    assert_close(found, matrix_rules.flat((w != 0).astype(float), r.ravel()))


@pytest.mark.parametrize("case", WEIGHTED.values(), ids=WEIGHTED)
def test_hudd_is_the_toolsets_formula(case: Case) -> None:
    w, b, shape = matrix(case)
    r = draw("r", shape)
    textbook = matrix_rules.hudd_convolution if "Conv" in case.op else matrix_rules.hudd_dense
    found = by_engine(case, composite_of("hudd", {}), r)
    assert_close(found, textbook(w, b, draw("x", case.x).ravel(), r.ravel()))


@pytest.mark.parametrize("case", MEANS.values(), ids=MEANS)
def test_norm_is_epsilon_on_an_op_without_weights(case: Case) -> None:
    w, b, shape = matrix(case)
    r = draw("r", shape)
    assert_close(
        by_engine(case, Composite("defaults"), r), matrix_rules.epsilon(w, b, draw("x", case.x).ravel(), r.ravel())
    )


def test_norm_on_a_cubic_resize() -> None:
    """Against torch: the coordinates of ONNX's reference implementation are float32 here."""
    op = 'Resize<mode="cubic", coordinate_transformation_mode="align_corners">({x}, , scales)'
    case = Case(op, (1, 1, 4, 4))
    x = torch.from_numpy(draw("x", case.x)).requires_grad_()
    z = torch.nn.functional.interpolate(x, size=(8, 6), mode="bicubic", align_corners=True)
    r = draw("r", tuple(z.shape))
    z.backward(torch.from_numpy(r / matrix_rules.s(z.detach().numpy())))
    assert_close(by_engine(case, Composite("defaults"), r), (x * x.grad).detach().numpy().ravel())


@pytest.mark.parametrize("parameters", [{"alpha": 2.0, "beta": 2.0}, {"alpha": 0.5, "beta": -0.5}])
def test_alpha_minus_beta_must_be_one(parameters: dict[str, float]) -> None:
    with pytest.raises(RuleError, match="alpha − beta = 1"):
        by_engine(WEIGHTED["gemm"], composite_of("alpha-beta", parameters), np.ones((3, 4)))


def test_alpha_and_beta_can_be_chosen() -> None:
    case = WEIGHTED["conv2d"]
    w, b, shape = matrix(case)
    r = draw("r", shape)
    found = by_engine(case, composite_of("alpha-beta", {"alpha": 3.0, "beta": 2.0}), r)
    assert_close(found, matrix_rules.alpha_beta(w, b, draw("x", case.x).ravel(), r.ravel(), 3, 2))


def test_z_box_takes_bounds_of_each_channel() -> None:
    case = WEIGHTED["conv2d"]
    w, _, shape = matrix(case)
    r, x = draw("r", shape), draw("x", case.x).ravel()
    low, high = [-3.0, -2.5], [3.0, 5.0]
    found = by_engine(case, composite_of("z-box", {"low": low, "high": high}), r)
    l, h = (np.broadcast_to(np.reshape(v, (1, 2, 1, 1)), case.x).ravel() for v in (low, high))  # noqa: E741
    up, down = matrix_rules.pos(w), matrix_rules.neg(w)
    g = r.ravel() / matrix_rules.s(w @ x - up @ l - down @ h)
    assert_close(found, x * (w.T @ g) - l * (up.T @ g) - h * (down.T @ g))


def test_z_box_without_bounds_says_how_to_give_them() -> None:
    with pytest.raises(RuleError, match="--low"):
        by_engine(WEIGHTED["conv2d"], composite_of("z-box", {}), np.ones(1))
