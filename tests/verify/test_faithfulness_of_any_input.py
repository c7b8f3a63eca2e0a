"""`verify` follows tokens and several inputs: what heatmaps mark is replaced, and what points away is found out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

import lrp_onnx
from lrp_onnx.cli.app import run
from lrp_onnx.debug.faithfulness import Classifier
from lrp_onnx.engine import Explainer
from lrp_onnx.graph import load
from lrp_onnx.ops import Linear
from lrp_onnx.rules import RULES, Composite, Entry, composite, linear_rule
from lrp_onnx.verification.places import Tokens, places_of
from lrp_onnx.verification.samples import table_sizes, take_samples

RANDOM = np.random.default_rng(5)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(35))]
LENGTH = 14
TOKENS = """
<ir_version: 9, opset_import: ["" : 20]>
net (int64[B,S] input_ids, int64[B,S] attention_mask, int64[B,S] token_type_ids) => (float[B,3] y) {
    word = Gather(table, input_ids)
    kind = Gather(kinds, token_type_ids)
    both = Add(word, kind)
    first = MatMul(both, w1)
    act = Relu(first)
    m = Cast<to=1>(attention_mask)
    wide = Unsqueeze(m, last)
    kept = Mul(act, wide)
    sum = ReduceSum<keepdims=0>(kept, one)
    y = MatMul(sum, w2)
}
"""


@pytest.fixture(autouse=True)
def whatever_ran_before() -> None:
    RANDOM.bit_generator.state = np.random.default_rng(5).bit_generator.state


def proto(text: str, **arrays: NDArray[np.generic]) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    for node in model.graph.node:
        node.name = node.output[0]
    for name, array in arrays.items():
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def reader(text: str = TOKENS) -> onnx.ModelProto:
    """Few words say much, most say little, as words do; tokens that are no words say nothing."""
    table = RANDOM.normal(size=(len(WORDS), 8)) * RANDOM.choice([0.1, 3.0], (len(WORDS), 1), p=[0.7, 0.3])
    table[:5] = 0
    return proto(
        text,
        table=table,
        kinds=np.zeros((2, 8)) + 0.01,
        w1=RANDOM.normal(size=(8, 16)),
        w2=RANDOM.normal(size=(16, 3)),
        last=np.array([2]),
        one=np.array([1]),
    )


def sentences(count: int = 12) -> dict[str, NDArray[np.int64]]:
    """[CLS] words [SEP] padding."""
    ids, mask = np.zeros((count, LENGTH), np.int64), np.zeros((count, LENGTH), np.int64)
    for row in range(count):
        words = int(RANDOM.integers(7, LENGTH - 1))
        ids[row, 0], ids[row, 1 : words + 1], ids[row, words + 1 : words + 2] = 2, RANDOM.integers(5, 40, words), 3
        mask[row, : words + 2] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(WORDS), encoding="utf-8")
    return path


@pytest.fixture
def away() -> Iterator[str]:
    """A rule for linear ops whose relevance has the wrong sign."""

    @linear_rule("away")
    def away(op: Linear):  # type: ignore[no-untyped-def]
        return lambda x, z, r: (-x * op.transpose(r / (z + 1e-9), op.weight, x.shape), None)

    yield "away"
    del RULES["away"]


def at(node: str, rule: str) -> Composite:
    return Composite(rule, (Entry(rule, node=node), *composite("epsilon").entries))


@pytest.mark.parametrize("known", [True, False], ids=["vocabulary", "ids alone"])
def test_heatmaps_of_tokens_that_mark_what_matters_pass(known: bool, vocab: Path) -> None:
    found = lrp_onnx.verify(reader(), sentences(), composite="epsilon", samples=12, vocabulary=vocab if known else None)
    check = found["faithfulness"]
    assert check.judgement == "pass" and "of the tokens by random ones" in check.reason
    assert check.numbers["loss_most"] > check.numbers["loss_random"]


@pytest.mark.parametrize("known", [True, False], ids=["vocabulary", "ids alone"])
def test_heatmaps_of_tokens_that_point_away_fail(known: bool, vocab: Path, away: str) -> None:
    found = lrp_onnx.verify(
        reader(), sentences(), composite=at("first", away), samples=12, vocabulary=vocab if known else None
    )
    check = found["faithfulness"]
    assert check.judgement == "fail" and "no better than chance" in check.reason
    assert f"of the tokens by {'[MASK]' if known else 'those of other samples'}" in check.reason


def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, NDArray[np.generic]]]:
    """All that the model is given while heatmaps are followed, the unchanged samples first."""
    given: list[dict[str, NDArray[np.generic]]] = []
    true = Classifier.outputs

    def outputs(self: Classifier, images: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float64]:
        given.append({name: np.array(values) for name, values in images.items()})
        return true(self, images)

    monkeypatch.setattr(Classifier, "outputs", outputs)
    return given


def test_special_tokens_padding_masks_and_types_stay(vocab: Path, away: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, given = sentences(3), asked(monkeypatch)
    data["input_ids"][0, 2] = WORDS.index("[UNK]")  # a word, if an unknown one
    found = lrp_onnx.verify(reader(), data, composite=at("first", away), samples=3, vocabulary=vocab)
    assert "neutral_loss_most" in found["faithfulness"].numbers
    unchanged, curves = given[0], given[1:]
    assert len(curves) == 3 * 4  # two orders of noise, and two of the neutral token
    changed = np.zeros((3, LENGTH), bool)
    for curve in curves:
        row = next(r for r in range(3) if (curve["input_ids"][0] == unchanged["input_ids"][r]).all())
        for name in ("attention_mask", "token_type_ids"):
            assert (curve[name] == unchanged[name][row]).all()
        changed[row] |= (curve["input_ids"] != unchanged["input_ids"][row]).any(axis=0)
        new = curve["input_ids"][-1][changed[row]]
        assert set(new) <= set(range(5, 40)) | {1, WORDS.index("[MASK]")}
    words = np.array([[WORDS[i] == "[UNK]" or i >= 5 for i in row] for row in unchanged["input_ids"]])
    assert (changed == words).all()


def test_a_mask_that_marks_padding_is_understood() -> None:
    text = TOKENS.replace("m = Cast<to=1>(attention_mask)", "n = Equal(attention_mask, zero)  m = Cast<to=1>(n)")
    found = []
    for turned in (False, True):
        RANDOM.bit_generator.state = np.random.default_rng(5).bit_generator.state
        model, data = reader(text if turned else TOKENS), sentences()
        model.graph.initializer.append(numpy_helper.from_array(np.array(0), "zero"))
        if turned:
            data["attention_mask"] = 1 - data["attention_mask"]
        found.append(lrp_onnx.verify(model, data, composite="epsilon", samples=12)["faithfulness"])
    assert found[0].judgement == "pass" and found[1].numbers == pytest.approx(found[0].numbers)


def test_texts_are_followed_by_the_command(vocab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = sentences()
    lines = [" ".join(WORDS[i] for i in row if i >= 5) for row in data["input_ids"]]
    (tmp_path / "texts.txt").write_text("\n".join(lines), encoding="utf-8")
    onnx.save(reader(), tmp_path / "m.onnx")
    np.savez(tmp_path / "ids.npz", **data)
    command = ["verify", str(tmp_path / "m.onnx"), "--composite", "epsilon", "--samples", "12", "--vocab", str(vocab)]
    for source in ("texts.txt", "ids.npz"):
        assert run([*command, str(tmp_path / source)]) == 0
        assert "of the tokens by random ones" in " ".join(capsys.readouterr().out.split())


def test_ids_of_samples_without_a_word_are_said_to_leave_nothing(vocab: Path) -> None:
    data = {name: 0 * values + (name == "attention_mask") for name, values in sentences(2).items()}
    check = lrp_onnx.verify(reader(), data, composite="epsilon", vocabulary=vocab)["faithfulness"]
    assert check.judgement == "skip" and "no word" in check.reason


def test_random_ids_are_of_the_table_that_they_pick_from() -> None:
    text = """
    <ir_version: 9, opset_import: ["" : 20]> net (float[B,4] codes, int64[B] user) => (float[B,3] y) {
        ids = Cast<to=7>(codes)
        rows = OneHot(ids, depth, values)
        flat = Flatten(rows)
        who = Gather(table, user)
        all = Concat<axis=1>(flat, who)
        y = MatMul(all, w)
    }
    """
    arrays = {"table": RANDOM.normal(size=(7, 5)), "w": RANDOM.normal(size=(4 * 6 + 5, 3))}
    model = proto(text, depth=np.array(6), values=np.array([0.0, 1.0]), **arrays)
    graph = load(model)
    assert table_sizes(graph) == {"codes": 6, "user": 7}
    assert lrp_onnx.verify(graph, composite="epsilon", samples=4).verdict in ("pass", "warn")
    data = {"codes": RANDOM.integers(0, 6, (12, 4)), "user": RANDOM.integers(0, 7, 12)}
    samples = take_samples(graph, data, 12, 0)
    explainer = Explainer(graph, "epsilon")
    relevance = explainer.explain(samples.arrays).relevance
    codes, user = places_of(explainer, samples, {n: r.double().numpy() for n, r in relevance.items()})
    assert isinstance(codes, Tokens) and codes.relevance(0, "noise").shape == (4,)
    new = codes.replace(0, "noise", np.random.default_rng(0))(np.ones(4, bool))
    assert new.dtype == np.float32 and set(new) <= set(range(6))
    assert user.replace(3, "neutral", np.random.default_rng(0))(np.ones(1, bool)).shape == ()
    found = lrp_onnx.verify(graph, data, composite="epsilon", samples=12)
    assert found["faithfulness"].judgement == "pass" and "of all inputs" in found["faithfulness"].reason


MIXED = """
<ir_version: 9, opset_import: ["" : 20]>
net (float[B,6] numbers, float[B,2,8,8] picture, int64[B,5] ids, float[B,6] weights_mask) => (float[B,3] y) {
    c = Conv<pads=[1,1,1,1]>(picture, k)
    r = Relu(c)
    p = Flatten(r)
    seen = MatMul(p, w1)
    masked = Mul(numbers, weights_mask)
    told = MatMul(masked, w2)
    rows = Gather(table, ids)
    flat = Flatten(rows)
    read = MatMul(flat, w3)
    two = Add(seen, told)
    y = Add(two, read)
}
"""


def mixed() -> onnx.ModelProto:
    shapes = {"k": (3, 2, 3, 3), "w1": (3 * 64, 3), "w2": (6, 3), "w3": (5 * 4, 3), "table": (9, 4)}
    arrays = {name: RANDOM.normal(size=shape) for name, shape in shapes.items()}
    arrays["w1"] /= 12
    return proto(MIXED, **arrays)


def everything(count: int = 12) -> dict[str, NDArray[np.generic]]:
    return {
        "numbers": RANDOM.normal(size=(count, 6)).astype(np.float32),
        "picture": RANDOM.normal(size=(count, 2, 8, 8)).astype(np.float32),
        "ids": RANDOM.integers(0, 9, (count, 5)),
        "weights_mask": np.ones((count, 6), np.float32),
    }


def test_all_inputs_are_followed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    given = asked(monkeypatch)
    check = lrp_onnx.verify(mixed(), everything(), composite="epsilon", samples=12)["faithfulness"]
    assert check.judgement == "pass" and "of all inputs to noise" in check.reason
    last = given[1]
    for name in ("numbers", "picture", "ids"):
        assert (last[name][-1] != last[name][0]).any(), name
    assert (last["weights_mask"] == 1).all()


@pytest.mark.parametrize("node", ["told", "c", "read"])
def test_heatmaps_of_several_inputs_that_point_away_fail(node: str, away: str) -> None:
    """One input at a time, the others left without weight, so that its heatmap alone decides."""
    model = mixed()
    for tensor in model.graph.initializer:
        if tensor.name in {"told": ("w1", "w3"), "c": ("w2", "w3"), "read": ("w1", "w2")}[node]:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / 1000, tensor.name))
    assert lrp_onnx.verify(model, everything(), composite="epsilon", samples=12)["faithfulness"].judgement == "pass"
    found = lrp_onnx.verify(model, everything(), composite=at(node, away), samples=12)
    assert found["faithfulness"].judgement == "fail" and "no better than chance" in found["faithfulness"].reason


def test_relevance_at_the_wrong_input_fails() -> None:
    """What is right within each input, and wrong between them, is seen: they are ranked together."""

    @linear_rule("loud")
    def loud(op: Linear):  # type: ignore[no-untyped-def]
        return lambda x, z, r: (1e6 * abs(x * op.transpose(r / (z + 1e-9), op.weight, x.shape)), None)

    text = """
    <ir_version: 9, opset_import: ["" : 20]> net (float[B,20] a, float[B,60] b) => (float[B,3] y) {
        decides = MatMul(a, w1)
        decoy = MatMul(b, w2)
        y = Add(decides, decoy)
    }
    """
    model = proto(text, w1=RANDOM.normal(size=(20, 3)), w2=RANDOM.normal(size=(60, 3)) / 1000)
    data = {"a": RANDOM.normal(size=(12, 20)), "b": RANDOM.normal(size=(12, 60))}
    try:
        found = {
            name: lrp_onnx.verify(model, data, composite=by, samples=12)["faithfulness"].judgement
            for name, by in {"right": composite("epsilon"), "wrong": at("decoy", "loud")}.items()
        }
    finally:
        del RULES["loud"]
    assert found == {"right": "pass", "wrong": "fail"}
