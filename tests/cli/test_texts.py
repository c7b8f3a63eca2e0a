"""Texts from a file to coloured tokens: vocabulary, padding, predictions, heatmaps, references, pages."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_model import Program

from lrp_onnx import HeatmapStore, compute_heatmaps, predict
from lrp_onnx.data.texts import open_texts
from lrp_onnx.errors import DataError, TargetError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "##s", "the", "were", "not"]
TEXTS = ["The films were good", "bad", "not the good film"]
RNG = np.random.default_rng(3)


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(WORDS), encoding="utf-8")
    return path


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n\n", encoding="utf-8")
    return path


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """Token embeddings (N, T, 4), and what a dense layer makes of their mean, (N, 2)."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (int64[N,T] attention_mask, int64[N,T] input_ids, int64[N,T] token_type_ids)
        => (float[N,2] scores, float[N,T,4] tokens) {
        word = Gather(table, input_ids) kind = Gather(kinds, token_type_ids) both = Add(word, kind)
        tokens = Relu(both) f = Cast<to=1>(attention_mask) axis = Constant<value_ints=[2]>() wide = Unsqueeze(f, axis)
        kept = Mul(tokens, wide) sum = ReduceSum<keepdims=0>(kept, one) scores = MatMul(sum, w)
    }"""
    proto = onnx.parser.parse_model(text)
    shapes = {"table": (len(WORDS), 4), "kinds": (2, 4), "w": (4, 2)}
    arrays = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["one"] = np.array([1])
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items())
    path = tmp_path / "encoder.onnx"
    onnx.save_model(proto, path)
    return path


def test_texts_become_ids_masks_and_types_of_equal_length(texts: Path, vocab: Path) -> None:
    shape = ("N", "T")
    dataset = open_texts(texts, vocab, {"input_ids": shape, "attention_mask": shape, "token_type_ids": shape})
    assert dataset.array is not None
    assert dataset.array.tolist()[1] == [2, 6, 3, 0, 0, 0, 0]
    assert dataset.samples[0].tokens == ("[CLS]", "the", "film", "##s", "were", "good", "[SEP]")
    assert dataset.samples[1].tokens[2:] == ("[SEP]", "", "", "", "")
    others = dataset.read_others(1, None)
    assert others["attention_mask"].tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert not others["token_type_ids"].any()


def test_a_model_of_fixed_length_cuts_and_pads(texts: Path, vocab: Path) -> None:
    dataset = open_texts(texts, vocab, {"ids": (1, 5)})
    assert dataset.array is not None
    assert dataset.array.shape == (3, 5)
    assert dataset.samples[0].tokens == ("[CLS]", "the", "film", "##s", "[SEP]")


def test_pairs_labels_and_numbers_come_from_a_table(tmp_path: Path, vocab: Path) -> None:
    table, shape = tmp_path / "pairs.csv", ("N", "T")
    table.write_text("text,text2,label\nthe film,good,yes\nbad,not bad,no\n", encoding="utf-8")
    dataset = open_texts(table, vocab, {"ids": shape, "segment_ids": shape}, classes=["no", "yes"])
    assert dataset.labels.tolist() == [1, 0]
    assert dataset.read_others(0, None)["segment_ids"].tolist() == [0, 0, 0, 0, 1, 1]
    table.write_text("text,stars\ngood,4.5\nbad,\n", encoding="utf-8")
    targets = open_texts(table, vocab, {"ids": shape}).targets
    assert targets is not None
    np.testing.assert_equal(targets, [[4.5], [np.nan]])


def test_from_texts_to_a_page(program: Program, encoder: Path, texts: Path, vocab: Path, tmp_path: Path) -> None:
    store, page = tmp_path / "h.h5", tmp_path / "page"
    assert program("heatmaps", encoder, texts, "--vocab", vocab, "-o", store, "--composite", "epsilon") == 0
    with HeatmapStore(store) as heatmaps:
        assert heatmaps.attribution.shape == (3, 7)
        assert heatmaps.layer_names == ["token_type_ids"]  # the further input that has relevance
        assert heatmaps.tokens is not None
        assert heatmaps.tokens[1].tolist() == ["[CLS]", "bad", "[SEP]", "", "", "", ""]
        total = heatmaps.attribution[:].sum(axis=1) + heatmaps.layer("token_type_ids")[:].sum(axis=1)
        np.testing.assert_allclose(total, heatmaps.prediction[:].max(axis=1), rtol=1e-4)
        assert not heatmaps.attribution[1, 3:].any()
        relevance = heatmaps.attribution[:]
    assert "100.0% reached the input" in program.out
    assert program("render", store, "-o", page) == 0
    assert "3 texts with coloured tokens" in program.out
    rows = list(csv.DictReader((page / "tokens.csv").open(encoding="utf-8")))
    assert [row["token"] for row in rows[:4]] == ["[CLS]", "the", "film", "##s"]
    np.testing.assert_allclose([float(row["relevance"]) for row in rows[:7]], relevance[0], rtol=1e-6)
    shown = re.findall(r'background:(#\w{6}).*?title="(\S+): (\S+)">(\S+?)</span>', (page / "index.html").read_text())
    assert [word for *_, word in shown[:4]] == ["[CLS]", "the", "film", "s"]
    strongest = int(np.abs(relevance[0]).argmax())
    assert shown[strongest][0] == ("#800000" if relevance[0, strongest] > 0 else "#00004c")
    for paper, _, value, _ in shown:
        red, blue = int(paper[1:3], 16), int(paper[5:7], 16)
        assert (red >= blue) == (float(value) >= 0) or red == blue


def test_predictions_of_texts(program: Program, encoder: Path, texts: Path, vocab: Path, tmp_path: Path) -> None:
    assert program("test", encoder, texts, "--vocab", vocab, "-o", tmp_path / "r.csv") == 0
    rows = list(csv.DictReader((tmp_path / "r.csv").open(encoding="utf-8")))
    assert [row["image"] for row in rows] == ["texts.txt[0]", "texts.txt[1]", "texts.txt[2]"]
    (batch,) = predict(encoder, texts, vocabulary=vocab)
    assert [int(row["predicted"]) for row in rows] == batch.scores.argmax(axis=1).tolist()


def test_a_text_is_compared_with_another(encoder: Path, texts: Path, vocab: Path, tmp_path: Path) -> None:
    """The similarity of a text to itself is 1, and what it starts from leaves padding out."""
    reference = tmp_path / "reference.txt"
    reference.write_text(TEXTS[1], encoding="utf-8")
    compute_heatmaps(
        encoder, texts, tmp_path / "h.h5", target=f"similarity:{reference}", output="tokens", vocabulary=vocab,
        composite="epsilon", layers="tokens",
    )  # fmt: skip
    with HeatmapStore(tmp_path / "h.h5") as store:
        found = store.conservation
        assert found is not None
        assert found[1][1, -1] == pytest.approx(1, abs=1e-6)
        assert (found[1][:, -1] < 1 + 1e-6).all()
        assert not store.attribution[1, 3:].any()


def test_ids_without_a_vocabulary_are_shown_as_numbers(encoder: Path, tmp_path: Path) -> None:
    ids = np.array([[2, 6, 3], [2, 5, 3]])
    np.savez(tmp_path / "ids.npz", input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=0 * ids, y=[0, 1])
    compute_heatmaps(encoder, tmp_path / "ids.npz", tmp_path / "h.h5", target="label")
    with HeatmapStore(tmp_path / "h.h5") as store:
        assert store.tokens is not None
        assert store.tokens.tolist() == [["2", "6", "3"], ["2", "5", "3"]]
        assert store.labels.tolist() == [0, 1]


def test_what_is_missing_is_said(encoder: Path, texts: Path, vocab: Path, tmp_path: Path) -> None:
    out = tmp_path / "h.h5"
    with pytest.raises(DataError, match="texts need a vocabulary"):
        compute_heatmaps(encoder, texts, out)
    with pytest.raises(DataError, match=r"nowhere\.txt: no such file; expected a tokenizer\.json"):
        compute_heatmaps(encoder, texts, out, vocabulary="nowhere.txt")
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(DataError, match=r"broken\.json: cannot be read"):
        compute_heatmaps(encoder, texts, out, vocabulary=tmp_path / "broken.json")
    np.save(tmp_path / "x.npy", np.zeros((2, 3), np.int64))
    with pytest.raises(DataError, match="a vocabulary is for texts"):
        compute_heatmaps(encoder, tmp_path / "x.npy", out, vocabulary=vocab)
    with pytest.raises(DataError, match=r"has 3 inputs .* nothing for 'token_type_ids'"):
        compute_heatmaps(encoder, tmp_path / "x.npy", out)
    with pytest.raises(TargetError, match="no output is named 'logits'; the model has scores, tokens"):
        compute_heatmaps(encoder, texts, out, vocabulary=vocab, output="logits")
    with pytest.raises(DataError, match="input 'extra' is not known from texts"):
        open_texts(texts, vocab, {"ids": ("N", "T"), "extra": ("N", "T")})
    assert not out.exists()
