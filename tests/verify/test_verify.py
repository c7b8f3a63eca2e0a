"""`verify` passes a sound model, and every check fails on what it is there for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from torch import Tensor

import lrp_onnx
from lrp_onnx.cli.app import run
from lrp_onnx.debug.faithfulness import Classifier, pixel_flipping, random_ranks, relevance_ranks
from lrp_onnx.debug.randomisation import shuffled
from lrp_onnx.errors import DataError, ModelError
from lrp_onnx.graph import Graph, load
from lrp_onnx.inputs import describe
from lrp_onnx.ops import OPS, Linear, op
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.rules import RULES, Composite, Entry, composite, linear_rule
from lrp_onnx.verification.places import Filler, Numbers, Picture, Places, Replace

RANDOM = np.random.default_rng(0)
SIZE = 10
WEIGHTS = {
    "w1": RANDOM.normal(size=(6, 3, 3, 3)) / 5,
    "b1": RANDOM.normal(size=6) / 20,
    "w2": RANDOM.normal(size=(8, 6, 3, 3)) / 7,
    "b2": RANDOM.normal(size=8) / 20,
    "w3": RANDOM.normal(size=(5, 8 * 25)) / 6,
    "b3": RANDOM.normal(size=5) / 20,
}
NETWORK = """
<ir_version: 9, opset_import: ["" : 20]> net (float[N,3,10,10] x) => (float[N,5] y) {
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r1 = Relu(c1)
    c2 = Conv<pads=[1,1,1,1], strides=[2,2]>(r1, w2, b2)
    r2 = Relu(c2)
    f = Flatten(r2)
    y = Gemm<transB=1>(f, w3, b3)
}
"""
IMAGES = RANDOM.normal(size=(12, 3, SIZE, SIZE)).astype(np.float32)


def model(text: str = NETWORK, **weights: NDArray[np.floating]) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(text)
    for node in proto.graph.node:
        node.name = node.output[0]
    for name, array in (weights or WEIGHTS).items():
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    return proto


@pytest.fixture
def graph() -> Graph:
    return load(model())


@pytest.fixture
def no_new_rules() -> Iterator[None]:
    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)


def judgements(found: lrp_onnx.Verification) -> dict[str, str]:
    return {check.name: check.judgement for check in found.checks}


def test_a_sound_model_passes_every_check(graph: Graph) -> None:
    found = lrp_onnx.verify(graph, IMAGES, composite="epsilon", samples=12)
    assert judgements(found) == dict.fromkeys(
        ("canonical", "forward", "conservation", "precision", "randomisation", "faithfulness"), "pass"
    )
    assert found.verdict == "pass" and found.samples == 12
    assert found["conservation"].numbers["leak"] < 1e-9
    assert found["precision"].numbers["cosine"] > 0.999999
    shares = found["conservation"].numbers
    assert shares["input"] + shares["biases"] == pytest.approx(1, abs=1e-4)


def test_without_data_random_inputs_are_used_and_faithfulness_is_skipped(graph: Graph) -> None:
    found = lrp_onnx.verify(graph, composite="epsilon")
    assert found.random and found["faithfulness"].judgement == "skip" and "DATA" in found["faithfulness"].reason
    assert found.verdict == "pass"


def test_equal_seeds_give_equal_numbers(graph: Graph) -> None:
    one, two, other = (lrp_onnx.verify(graph, composite="epsilon", samples=2, seed=seed) for seed in (0, 0, 1))
    assert one["randomisation"].numbers == two["randomisation"].numbers != other["randomisation"].numbers


def test_a_changed_weight_in_the_canonical_graph_fails(graph: Graph) -> None:
    found = lrp_onnx.verify(shuffled(graph, {"w2"}), IMAGES, composite="epsilon")
    assert found["canonical"].judgement == "fail" and found.verdict == "fail"
    assert {"c2", "r2"} & set(found["canonical"].worst)
    assert found["forward"].judgement == "pass"  # which is about the canonical graph


def test_an_op_that_means_something_else_in_torch_fails_by_name(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    true = OPS["", "Conv"]

    def shifted(*inputs: Tensor, **attributes: object) -> Tensor:
        return true.forward(*inputs, **attributes) + 0.1  # type: ignore[operator]

    monkeypatch.setitem(OPS, ("", "Conv"), replace(true, forward=shifted))
    found = lrp_onnx.verify(graph, IMAGES, composite="epsilon")
    assert found["forward"].judgement == "fail"
    assert next(iter(found["forward"].worst)) in ("c1", "c2")
    assert found["canonical"].judgement == "pass"


def test_an_op_that_stops_in_torch_fails(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(*_: Tensor, **__: object) -> Tensor:
        raise RuntimeError("no")

    monkeypatch.setitem(OPS, ("", "Relu"), replace(OPS["", "Relu"], forward=stops))  # whose rule does not run it
    found = lrp_onnx.verify(graph, IMAGES, composite="epsilon", samples=2)
    assert {found[name].judgement for name in ("forward", "conservation", "precision")} == {"fail"}
    assert "r1" in found["forward"].worst


def test_a_rule_that_loses_a_tenth_fails_by_node_and_rule(graph: Graph, no_new_rules: None) -> None:
    @linear_rule("leaking")
    def leaking(op: Linear):  # type: ignore[no-untyped-def]
        return lambda x, z, r: (0.9 * x * op.transpose(r / z, op.weight, x.shape), None)

    by = Composite("mine", (Entry("leaking", node="c2"), *composite("epsilon", bias="ignore").entries))
    check = lrp_onnx.verify(graph, IMAGES, composite=by, samples=2)["conservation"]
    assert check.judgement == "fail" and next(iter(check.worst)) == "c2" and "leaking" in check.reason
    assert lrp_onnx.verify(graph, IMAGES, composite="epsilon", samples=2)["conservation"].judgement == "pass"


def test_relevance_that_is_not_a_number_fails(graph: Graph, no_new_rules: None) -> None:
    @linear_rule("broken")
    def broken(op: Linear):  # type: ignore[no-untyped-def]
        return lambda x, z, r: (x * op.transpose(r * np.nan, op.weight, x.shape), None)

    by = composite("epsilon").override({"Gemm": "broken"})
    found = lrp_onnx.verify(graph, IMAGES, composite=by, samples=2)
    assert found["conservation"].judgement == found["precision"].judgement == "fail"


def test_outputs_of_zero_are_said_to_share_nothing_out() -> None:
    check = lrp_onnx.verify(model(**{**WEIGHTS, "w3": 0 * WEIGHTS["w3"], "b3": 0 * WEIGHTS["b3"]}))["conservation"]
    assert check.judgement == "fail" and "outputs are 0" in check.reason


def test_gradients_are_said_not_to_conserve(graph: Graph) -> None:
    assert lrp_onnx.verify(graph, composite="gradient", samples=2)["conservation"].judgement == "skip"
    partly = composite("epsilon").override({"Relu": "gradient"})
    assert lrp_onnx.verify(graph, composite=partly, samples=2)["conservation"].judgement == "warn"


def test_small_differences_of_large_numbers_fail_for_float32() -> None:
    w = RANDOM.normal(size=(24, 6))
    text = """
    <ir_version: 9, opset_import: ["" : 20]> net (float[N,24] x) => (float[N,6] y) {
        large = MatMul(x, w1)
        r = Tanh(large)
        far = MatMul(r, w2)
        y = MatMul(far, w3)
    }
    """
    large = RANDOM.normal(size=(24, 1)) * 3e7 * np.ones((24, 6))
    near = np.concatenate([large + w, large], axis=1)  # what they share cancels out in y, the small part is left
    network = model(text, w1=np.eye(24) / 2, w2=near, w3=np.concatenate([np.eye(6), -np.eye(6)]))
    found = lrp_onnx.verify(network, composite="epsilon", samples=4)
    assert found["precision"].judgement == "fail" and "float64" in found["precision"].reason


def test_heatmaps_that_no_weight_changes_fail_and_better_composites_are_named(graph: Graph) -> None:
    blind = Composite("blind", (Entry("flat", op=("linear",)),))
    check = lrp_onnx.verify(graph, IMAGES, composite=blind)["randomisation"]
    assert check.judgement == "fail" and check.numbers["rank_all"] > 0.9
    assert "by blind they show the input more than the model; use --composite attnlrp instead" in check.reason
    assert check.numbers["rank_attnlrp"] < 0.3


def test_heatmaps_that_point_away_from_what_matters_fail(graph: Graph, no_new_rules: None) -> None:
    @linear_rule("reversed")
    def reversed_(op: Linear):  # type: ignore[no-untyped-def]
        return lambda x, z, r: (-x * op.transpose(r / (z + 1e-9), op.weight, x.shape), None)

    by = Composite("away", (Entry("reversed", op=("linear",), place="first"), *composite("epsilon").entries))
    found = lrp_onnx.verify(graph, IMAGES, composite=by, samples=12)
    assert found["faithfulness"].judgement == "fail" and "no better than chance" in found["faithfulness"].reason
    assert found["randomisation"].judgement == "pass"  # which a sign does not trouble


def test_channels_last_gives_what_channels_first_gives(graph: Graph) -> None:
    text = NETWORK.replace("float[N,3,10,10] x", "float[N,10,10,3] p").replace(
        "c1 = Conv", "x = Transpose<perm=[0,3,1,2]>(p)  c1 = Conv"
    )
    of = {layout: Preprocess(size=(SIZE, SIZE), layout=layout, range=(-4, 4)) for layout in ("NCHW", "NHWC")}
    first = lrp_onnx.verify(describe(graph, of["NCHW"]), IMAGES, composite="epsilon", samples=3)
    last = lrp_onnx.verify(
        describe(load(model(text)), of["NHWC"]), np.moveaxis(IMAGES, 1, -1), composite="epsilon", samples=3
    )
    assert last["faithfulness"].numbers == pytest.approx(first["faithfulness"].numbers, abs=1e-5)
    assert first["faithfulness"].numbers["loss_most"] > 0


def test_a_picture_is_flipped_as_evaluate_does(graph: Graph) -> None:
    found = lrp_onnx.verify(graph, IMAGES, composite="epsilon", samples=12)["faithfulness"]
    e = lrp_onnx.Explainer(graph, "epsilon").explain(IMAGES)
    classifier, bounds = Classifier(graph), np.stack([IMAGES.min(axis=(0, 2, 3)), IMAGES.max(axis=(0, 2, 3))])
    areas: dict[str, list[float]] = {"most": [], "random": []}
    for row, (image, heatmap) in enumerate(zip(IMAGES, e.relevance["x"].sum(dim=1).numpy(), strict=True)):
        ties, score = np.random.default_rng((0, row)), classifier.score(int(e.target[row]))
        for order, ranks in (
            ("most", relevance_ranks(heatmap, region=1, random=ties)),
            ("random", random_ranks((SIZE, SIZE), ties)),
        ):
            noise = np.random.default_rng((0, row, 1))
            areas[order].append(pixel_flipping(score, image, ranks, noise, bounds=bounds, steps=10).area)
    for order, values in areas.items():
        assert found.numbers[f"area_{order}"] == pytest.approx(np.mean(values), abs=1e-6)


@pytest.mark.parametrize("rows", [False, True], ids=["pictures", "rows"])
def test_where_noise_decides_nothing_a_neutral_value_does(rows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Numbers if rows else Picture
    true = kind.replace

    def deaf(places: Places, row: int, filler: Filler, random: np.random.Generator) -> Replace:
        return (lambda gone: places.values[row]) if filler == "noise" else true(places, row, filler, random)  # type: ignore[arg-type]

    proto, data = model(), IMAGES
    if rows:
        text = (
            NETWORK[: NETWORK.index("net")] + "net (float[N,30] x) => (float[N,4] y) { h = MatMul(x, a)  r = Relu(h)  "
        )
        proto = model(text + "y = MatMul(r, b) }", a=RANDOM.normal(size=(30, 20)), b=RANDOM.normal(size=(20, 4)))
        data = RANDOM.normal(size=(12, 30)).astype(np.float32)
    monkeypatch.setattr(kind, "replace", deaf)
    check = lrp_onnx.verify(proto, data, composite="epsilon", samples=12)["faithfulness"]
    assert check.judgement == "pass" and check.numbers["loss_most"] == 0
    assert check.reason.startswith("deleting" if rows else "replacing") and "flipping" in check.reason


def test_every_kind_of_input_is_taken() -> None:
    text = """
    <ir_version: 9, opset_import: ["" : 20]>
    net (int64[B,S] ids, float[B,4] extra, int64[B,S] attention_mask) => (float[B,3] y) {
        rows = Gather(table, ids)
        m = Cast<to=1>(attention_mask)
        wide = Unsqueeze(m, last)
        kept = Mul(rows, wide)
        mean = ReduceMean<keepdims=0>(kept, one)
        both = Concat<axis=1>(mean, extra)
        hidden = MatMul(both, w1)
        act = Tanh(hidden)
        y = MatMul(act, w2)
    }
    """
    proto = model(
        text,
        table=RANDOM.normal(size=(11, 8)),
        w1=RANDOM.normal(size=(12, 16)),
        w2=RANDOM.normal(size=(16, 3)),
    )
    for name, value in (("last", [2]), ("one", [1])):
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    found = lrp_onnx.verify(proto, composite="epsilon", samples=3)
    assert found.verdict == "pass", found.checks
    data = {
        "ids": RANDOM.integers(0, 11, (5, 7)),
        "extra": RANDOM.normal(size=(5, 4)),
        "attention_mask": np.ones((5, 7), int),
    }
    found = lrp_onnx.verify(proto, data, composite="epsilon")
    assert found.samples == 5 and "of all inputs" in found["faithfulness"].reason
    with pytest.raises(DataError, match="extra"):
        lrp_onnx.verify(proto, {"ids": data["ids"]})


def test_an_op_that_only_torch_knows_is_said_to_be_unchecked() -> None:
    text = NETWORK.replace('"" : 20', '"" : 20, "example.verify" : 1').replace(
        "= Relu(c1)", "= example.verify.Squash(c1)"
    )
    with pytest.raises(ModelError, match="--extensions"):
        lrp_onnx.verify(model(text), IMAGES, composite=composite("epsilon").override({"example.verify.Squash": "pass"}))
    op("Squash", domain="example.verify", family="activation")(lambda x: x.clamp(-1, 1))
    try:
        found = lrp_onnx.verify(model(text), IMAGES, composite="epsilon")
    finally:
        del OPS["example.verify", "Squash"]
    assert {found[name].judgement for name in ("canonical", "forward")} == {"skip"}
    assert "example.verify.Squash" in found["forward"].reason
    assert {found[name].judgement for name in ("conservation", "precision", "randomisation")} == {"pass"}


def test_pictures_are_spread_over_the_folder_and_broken_ones_are_named(tmp_path: Path) -> None:
    for number in range(9):
        path = tmp_path / f"{number}.png"
        Image.fromarray(RANDOM.integers(0, 256, (12, 12, 3), np.uint8)).save(path)
    (tmp_path / "4.png").write_bytes(b"no picture")
    found = lrp_onnx.verify(model(), tmp_path, composite="epsilon", samples=3)  # the first, the fifth, the last
    assert found.samples == 2 and any("4.png" in note for note in found.notes)
    assert any("does not say how pictures become" in note for note in found.notes)


def test_a_model_in_float16_is_judged_by_its_own_precision() -> None:
    proto = model(NETWORK.replace("float[", "float16["))
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(WEIGHTS[tensor.name].astype(np.float16), tensor.name))
    found = lrp_onnx.verify(proto, IMAGES, composite="epsilon")
    assert found["forward"].numbers["relative"] > 1e-4  # what float32 would not pass with
    assert found.verdict == "pass", found.checks


def test_a_fixed_batch_is_filled_up() -> None:
    fixed = NETWORK.replace("N,", "4,")
    found = lrp_onnx.verify(model(fixed), IMAGES[:5], composite="epsilon")
    assert found.samples == 5 and found["faithfulness"].judgement in ("pass", "warn")
    assert found["conservation"].judgement == "pass"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(model(), path)
    np.save(tmp_path / "images.npy", IMAGES)
    return path


def test_command_prints_a_table_and_a_verdict(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["verify", str(saved), str(saved.with_name("images.npy")), "--composite", "epsilon", "--samples", "12"])
    printed = capsys.readouterr().out
    assert code == 0 and printed.count("pass") >= 7 and "randomisation" in printed


def test_command_exits_with_1_where_a_check_fails(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = saved.with_name("blind.toml")
    toml.write_text('[[entries]]\nrule = "flat"\nop = "linear"\n')
    assert run(["verify", str(saved), "--composite", str(toml), "--samples", "2", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "fail" and found["random"] and found["composite"] == "blind"
    (row,) = [check for check in found["checks"] if check["judgement"] == "fail"]
    assert row["name"] == "randomisation" and row["numbers"]["rank_all"] > 0.9


def test_command_says_what_cannot_be_used(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(saved), str(saved.with_name("none.npy"))]) == 2
    assert run(["verify", str(saved), "--samples", "0"]) == 2
    assert run(["verify", str(saved), "--output-name", "z"]) == 2
    assert capsys.readouterr().err.count("error:") == 3
