"""`verify` takes what `heatmaps` takes for a target: maps, boxes, embeddings, sequences, tokens, regressed numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

import lrp_onnx
from lrp_onnx.cli.app import run
from lrp_onnx.errors import TargetError
from lrp_onnx.ops import Linear
from lrp_onnx.rules import RULES, Composite, Entry, composite, linear_rule
from lrp_onnx.targets import segmentation

RANDOM = np.random.default_rng(3)
BODY = """
<ir_version: 9, opset_import: ["" : 20]> net (float[N,3,10,10] x) => (OUTPUT y) {
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r1 = Relu(c1)
    c2 = Conv<pads=[1,1,1,1], strides=[2,2]>(r1, w2)
    r2 = Relu(c2)
"""
W1, W2 = RANDOM.normal(size=(6, 3, 3, 3)) / 5, RANDOM.normal(size=(8, 6, 3, 3)) / 7
IMAGES = RANDOM.normal(size=(12, 3, 10, 10)).astype(np.float32)
BEGIN = RANDOM.bit_generator.state


@pytest.fixture(autouse=True)
def _the_same_weights_whichever_tests_ran_before() -> None:
    RANDOM.bit_generator.state = BEGIN


def proto(text: str, **arrays: NDArray[np.generic]) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    for name, array in arrays.items():
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def pictures(output: str, head: str, **arrays: NDArray[np.generic]) -> onnx.ModelProto:
    """Two convolutions and a head that reads r2, (N, 8, 5, 5)."""
    text = BODY.replace("OUTPUT", f"float[{output}]") + head + "}"
    return proto(text, w1=W1, b1=RANDOM.normal(size=6) / 20, w2=W2, **arrays)


def maps() -> onnx.ModelProto:
    return pictures("N,2,5,5", "y = Conv(r2, w)", w=RANDOM.normal(size=(2, 8, 1, 1)))


def boxes() -> onnx.ModelProto:
    head = "b = Conv(r2, w)  f = Reshape(b, to)  y = Transpose<perm=[0,2,1]>(f)"
    return pictures("N,25,7", head, w=RANDOM.normal(size=(7, 8, 1, 1)), to=np.array([0, 7, 25]))


def numbers() -> onnx.ModelProto:
    head = "m = Flatten(r2)  y = MatMul(m, w)"
    return pictures("N,4", head, w=RANDOM.normal(size=(200, 4)))


def judged(found: lrp_onnx.Verification) -> dict[str, str]:
    return {check.name: check.judgement for check in found.checks}


@pytest.mark.parametrize(
    ("model", "target"),
    [
        (maps(), "segmentation:1"),
        (boxes(), "box:best,skip=4"),
        (boxes(), "index:3,5"),
        (numbers(), "similarity:REFERENCE"),
        (numbers(), "2"),
    ],
    ids=["map", "box", "element", "embedding", "class"],
)
def test_heatmaps_of_any_target_pass_every_check(model: onnx.ModelProto, target: str, tmp_path: Path) -> None:
    np.save(tmp_path / "r.npy", np.array([1.0, -2.0, 0.5, 1.0]))
    target = target.replace("REFERENCE", str(tmp_path / "r.npy"))
    found = lrp_onnx.verify(model, IMAGES, composite="epsilon", target=target, samples=12)
    assert set(judged(found).values()) == {"pass"}, [check for check in found.checks if check.judgement != "pass"]
    assert found.target == target and found["conservation"].numbers["leak"] < 1e-9
    shares = found["conservation"].numbers
    assert shares["input"] + shares["biases"] == pytest.approx(1, abs=1e-3)


def test_what_is_explained_is_what_is_followed() -> None:
    mask = np.zeros((5, 5), bool)
    mask[:2] = True
    numbers = {}
    for name, target in (("one", segmentation(0, mask)), ("other", segmentation(0, ~mask)), ("largest", "predicted")):
        found = lrp_onnx.verify(maps(), IMAGES, composite="epsilon", target=target, samples=12)
        numbers[name] = (found["faithfulness"].numbers["loss_most"], found["randomisation"].numbers["rank_all"])
    assert len(set(numbers.values())) == 3


@pytest.mark.parametrize(("model", "target"), [(maps(), "segmentation:0"), (boxes(), "box:best,skip=4")])
def test_heatmaps_that_point_away_from_what_is_explained_fail(model: onnx.ModelProto, target: str) -> None:
    @linear_rule("away")
    def away(op: Linear):  # type: ignore[no-untyped-def]
        return lambda x, z, r: (-x * op.transpose(r / (z + 1e-9), op.weight, x.shape), None)

    try:
        by = Composite("away", (Entry("away", op=("linear",), place="first"), *composite("epsilon").entries))
        found = lrp_onnx.verify(model, IMAGES, composite=by, target=target, samples=12)
    finally:
        del RULES["away"]
    assert found["faithfulness"].judgement == "fail" and "no better than chance" in found["faithfulness"].reason


def test_regressed_numbers_are_followed_whatever_their_sign(tmp_path: Path) -> None:
    model = numbers()
    outputs = lrp_onnx.Explainer(model, "epsilon").explain(IMAGES).output.numpy()
    wanted = outputs + np.array([0.0, 0.0, 3.0, 0.0])  # the third number is the farthest off
    np.savez(tmp_path / "data.npz", x=IMAGES, y=wanted)
    worst = lrp_onnx.verify(model, tmp_path / "data.npz", composite="epsilon", target="worst", samples=12)
    third = lrp_onnx.verify(model, tmp_path / "data.npz", composite="epsilon", target="2", samples=12)
    assert (outputs[:, 2] < 0).any() and (outputs[:, 2] > 0).any()
    assert worst["faithfulness"].numbers == third["faithfulness"].numbers
    assert worst["faithfulness"].judgement == "pass" and worst.verdict == "pass"
    # the same as a class has a probability of its own: data without numbers to predict
    as_class = lrp_onnx.verify(model, IMAGES, composite="epsilon", target="2", samples=12)
    assert as_class["faithfulness"].numbers != third["faithfulness"].numbers


def test_landmarks_are_explained_by_both_coordinates(tmp_path: Path) -> None:
    model = numbers()
    outputs = lrp_onnx.Explainer(model, "epsilon").explain(IMAGES).output.numpy()
    np.savez(tmp_path / "data.npz", x=IMAGES, y=outputs + np.array([0.0, 0.0, 3.0, 4.0]))
    found = lrp_onnx.verify(model, tmp_path / "data.npz", composite="epsilon", target="worst", loss="landmarks")
    assert found["faithfulness"].judgement != "skip" and found["conservation"].judgement == "pass"
    with pytest.raises(TargetError, match="numbers to predict"):
        lrp_onnx.verify(model, IMAGES, target="worst")


def test_sequences_and_tokens_are_verified_at_a_position(tmp_path: Path) -> None:
    text = """
    <ir_version: 9, opset_import: ["" : 20]> net (int64[B,S] input_ids, int64[B,S] attention_mask) => (float[B,S,9] y) {
        rows = Gather(table, input_ids)
        all = ReduceMean<keepdims=1>(rows, one)
        both = Add(rows, all)
        h = MatMul(both, w1)
        a = Tanh(h)
        y = MatMul(a, w2)
    }
    """
    arrays = {"table": RANDOM.normal(size=(9, 8)), "w1": RANDOM.normal(size=(8, 16)), "w2": RANDOM.normal(size=(16, 9))}
    model = proto(text, one=np.array([1]), **arrays)
    found = lrp_onnx.verify(model, composite="epsilon", target="position:-1")
    assert found["faithfulness"].judgement == "skip" and found.verdict == "pass", found.checks
    onnx.save(model, tmp_path / "m.onnx")
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "e"]))
    (tmp_path / "t.txt").write_text("a b c\nb c d e\n")
    arguments = ["verify", str(tmp_path / "m.onnx"), str(tmp_path / "t.txt"), "--composite", "epsilon"]
    assert run([*arguments, "--target", "position:-1,5"]) == 2  # texts need a vocabulary
    assert run([*arguments, "--target", "position:-1,5", "--vocab", str(tmp_path / "vocab.txt")]) == 0


def test_the_command_takes_a_target_and_an_output_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = boxes()
    model.graph.output.append(onnx.helper.make_tensor_value_info("r2", onnx.TensorProto.FLOAT, ["N", 8, 5, 5]))
    onnx.save(model, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", IMAGES)
    command = ["verify", str(tmp_path / "m.onnx"), str(tmp_path / "x.npy"), "--composite", "epsilon", "--json"]
    assert run([*command, "--target", "segmentation:3", "--output-name", "r2", "--samples", "12"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["target"], found["output"], found["samples"]) == ("segmentation:3", "r2", 12)
    for wrong in (["--target", "segmentation:3"], ["--target", "box:99"], ["--target", "label"], ["--target", "no:1"]):
        assert run([*command, *wrong]) == 2
        assert capsys.readouterr().err.count("error:") == 1


def test_an_explained_number_of_zero_is_said_to_be_none() -> None:
    nothing = np.zeros((5, 5))
    found = lrp_onnx.verify(maps(), IMAGES, composite="epsilon", target=segmentation(0, nothing))
    assert found["conservation"].judgement == "fail" and "outputs are 0" in found["conservation"].reason
    assert found["faithfulness"].judgement == "skip"


def test_what_to_do_is_said_where_biases_take_nearly_all() -> None:
    head = "m = Flatten(r2)  y = Gemm(m, w, b)"
    arrays = {"w": RANDOM.normal(size=(200, 4)) / 20, "b": np.full(4, 30.0)}
    found = lrp_onnx.verify(pictures("N,4", head, **arrays), IMAGES, composite="epsilon", samples=2)
    assert found["conservation"].numbers["biases"] > 0.9 and "--bias ignore" in found["conservation"].reason
    small = lrp_onnx.verify(numbers(), IMAGES, composite="epsilon", samples=2)
    assert small["conservation"].numbers["biases"] < 0.9 and "--bias ignore" not in small["conservation"].reason
