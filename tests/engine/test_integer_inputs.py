"""Integer inputs: token ids get the relevance of their embeddings, 8-bit pictures and counts that of their values."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from lrp_onnx.engine import Explainer
from lrp_onnx.rules import Composite, composite

RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 7, (3, 5))
TABLE, PLACES, W = RNG.normal(size=(7, 4)), RNG.normal(size=(9, 4)), RNG.normal(size=(4, 2))
CONSERVING = composite("epsilon", bias="ignore", eps=1e-12)

# word and position embeddings; positions depend on the shape of the ids alone, as in models of any length
BODY = """
    word = Gather(table, ROWS) shape = Shape(ids) one = Constant<value_int=1>() length = Gather(shape, one)
    zero = Constant<value_int=0>() places = Range(zero, length, one) place = Gather(positions, places)
    sum = Add(word, place) mask = Cast<to=11>(attention_mask) axis = Constant<value_ints=[2]>()
    wide = Unsqueeze(mask, axis) kept = Mul(sum, wide) act = Relu(kept) mean = ReduceMean<axes=[1], keepdims=0>(act)
    y = MatMul(mean, w)"""


def model(text: str, **constants: np.ndarray) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in constants.items())
    return proto


def encoder(kind: str = "int64", before: str = "", rows: str = "ids") -> onnx.ModelProto:
    text = (
        f"({kind}[N,T] ids, int64[N,T] attention_mask) => (double[N,2] y) {{ {before} {BODY.replace('ROWS', rows)} }}"
    )
    return model(text, table=TABLE, positions=PLACES, w=W)


def given(ids: np.ndarray = IDS) -> dict[str, np.ndarray]:
    mask = np.ones(ids.shape, np.int64)
    mask[1, 3:] = 0
    return {"ids": ids, "attention_mask": mask}


def test_a_token_gets_the_relevance_of_its_embedding() -> None:
    e = Explainer(encoder(), "epsilon", dtype="float64").explain(given(), 1, layers=["word"])
    assert list(e.relevance) == ["ids", "word"]
    assert e.relevance["ids"].shape == (3, 5)
    torch.testing.assert_close(e.relevance["ids"], e.relevance["word"].sum(dim=2))
    assert not e.relevance["ids"][1, 3:].any()
    assert e.relevance["ids"][1, :3].all()


def test_what_position_embeddings_take_is_in_the_ledger_or_ignored() -> None:
    absorbed = Explainer(encoder(), composite("epsilon", eps=1e-12), dtype="float64").explain(given(), 1)
    seed, reached = absorbed.output[:, 1].sum(), absorbed.relevance["ids"].sum()
    biases = sum(balance.bias for balance in absorbed.conservation)
    torch.testing.assert_close(reached + biases, seed)
    assert abs(biases) > 0.01 * abs(seed)
    ignored = Explainer(encoder(), CONSERVING, dtype="float64").explain(given(), 1)
    torch.testing.assert_close(ignored.relevance["ids"].sum(), seed)


@pytest.mark.parametrize("name", ["gradient", "input-x-gradient"])
def test_gradients_are_multiplied_by_the_embedding(name: str) -> None:
    found = Explainer(encoder(), name, dtype="float64").explain(given(), 1).relevance["ids"]
    word = torch.tensor(TABLE)[IDS].requires_grad_()
    mask = torch.tensor(given()["attention_mask"])[:, :, None]
    y = (((word + torch.tensor(PLACES[:5])) * mask).relu().mean(dim=1) @ torch.tensor(W))[:, 1].sum()
    (gradient,) = torch.autograd.grad(y, word)
    torch.testing.assert_close(found, (gradient * word).sum(dim=2).detach())


@pytest.mark.parametrize(
    ("kind", "before", "rows"),
    [
        ("int32", "", "ids"),
        ("float", "whole = Cast<to=6>(ids)", "whole"),  # Keras
        ("int64", "narrow = Cast<to=6>(ids) again = Identity(narrow)", "again"),
    ],
)
@pytest.mark.parametrize("name", ["epsilon", "input-x-gradient"])
def test_ids_of_another_type_are_explained_alike(kind: str, before: str, rows: str, name: str) -> None:
    wanted = Explainer(encoder(), name, dtype="float64").explain(given(), 1).relevance["ids"]
    ids = IDS.astype(onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.DataType.Value(kind.upper())))
    found = Explainer(encoder(kind, before, rows), name, dtype="float64").explain(given(ids), 1)
    torch.testing.assert_close(found.relevance["ids"], wanted)


def test_ids_behind_a_constant_prefix_get_relevance_and_the_prefix_takes_its_own() -> None:
    text = """(int64[N,5] ids) => (double[N,4] y) {
        shape = Shape(ids) a = Constant<value_ints=[0]>() b = Constant<value_ints=[1]>() n = Slice(shape, a, b)
        rows = Concat<axis=0>(n, b) start = Expand(first, rows) whole = Concat<axis=1>(start, ids)
        word = Gather(table, whole) axis = Constant<value_ints=[1]>() y = ReduceSum<keepdims=0>(word, axis) }"""
    proto = model(text, table=TABLE, first=np.array([[6]]))
    found = Explainer(proto, CONSERVING, dtype="float64").explain(IDS, 2)
    torch.testing.assert_close(found.relevance["ids"], torch.tensor(TABLE[IDS, 2]))
    taken = sum(float(balance.remainder) + float(balance.bias) for balance in found.conservation)
    assert taken == pytest.approx(3 * TABLE[6, 2])


def test_ids_that_are_cut_and_turned_get_relevance_where_they_were() -> None:
    text = """(int64[N,5] ids) => (double[N,4] y) {
        a = Constant<value_ints=[1]>() b = Constant<value_ints=[3]>() part = Slice(ids, a, b, a)
        turned = Transpose<perm=[1,0]>(part) word = Gather(table, turned) y = ReduceSum<keepdims=0>(word, zero) }"""
    proto = model(text, table=TABLE, zero=np.array([0]))
    found = Explainer(proto, CONSERVING, dtype="float64").explain(IDS, 2).relevance["ids"]
    torch.testing.assert_close(found[:, 1:3], torch.tensor(TABLE[IDS[:, 1:3], 2]))
    assert not found[:, [0, 3, 4]].any()


@pytest.mark.parametrize(
    "hot",
    [
        "hot = OneHot(ids, depth, ends)",
        "axis = Constant<value_ints=[2]>() wide = Unsqueeze(ids, axis) same = Equal(wide, all) hot = Cast<to=11>(same)",
    ],
)
@pytest.mark.parametrize("by", [CONSERVING, composite("input-x-gradient")])
def test_one_hot_ids_are_looked_up_too(hot: str, by: Composite) -> None:
    text = """(int64[N,5] ids) => (double[N,2] y) {
        HOT word = MatMul(hot, table) mean = ReduceMean<axes=[1], keepdims=0>(word) y = MatMul(mean, w) }"""
    proto = model(
        text.replace("HOT", hot), all=np.arange(7), depth=np.array(7), ends=np.array([0.0, 1.0]), table=TABLE, w=W
    )
    e = Explainer(proto, by, dtype="float64").explain(IDS, 0)
    torch.testing.assert_close(e.relevance["ids"], torch.tensor((TABLE @ W)[IDS, 0] / 5))


def test_the_table_of_embeddings_is_the_first_layer() -> None:
    plan = Explainer(encoder(), "epsilon-plus-flat", dtype="float64").plan
    assert [step.rule for step in plan.steps if step.node.op_type in ("Gather", "MatMul")] == ["look-up", "epsilon"]


@pytest.mark.parametrize("kind", ["uint8", "int64"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["epsilon", "input-x-gradient"])
def test_numbers_are_explained_as_the_same_floats_are(kind: str, dtype: str, name: str) -> None:
    """Pictures of 8 bits; and integers that are no ids, in a model that has no other input."""
    body = """=> (float[N,2] y) { f = Cast<to=1>(x) c = Conv(f, k) r = Relu(c) m = GlobalAveragePool(r)
        y = Flatten(m) }"""
    kernel = RNG.normal(size=(2, 3, 3, 3)).astype(np.float32)
    x = RNG.integers(0, 255, (2, 3, 6, 6))
    integers = Explainer(model(f"({kind}[N,3,6,6] x) {body}", k=kernel), name, dtype=dtype)  # type: ignore[arg-type]
    floats = Explainer(model(f"(float[N,3,6,6] x) {body}", k=kernel), name, dtype=dtype)  # type: ignore[arg-type]
    found = integers.explain(x.astype(kind), 0).relevance["x"]
    assert found.is_floating_point()
    torch.testing.assert_close(found, floats.explain(x.astype(np.float32), 0).relevance["x"])
