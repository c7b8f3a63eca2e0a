"""What the commands print and write when all goes well."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image
from small_model import CLASSES, Program, build_model, save_picture

from lrp_onnx.cli import app
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.rules import RULES
from lrp_onnx.store import HeatmapStore


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def scores_of(model: Path, pictures: Path, names: list[str]) -> np.ndarray:
    """The model's own output, by ONNX Runtime on the file as it is."""
    preprocess = Preprocess.from_metadata({p.key: p.value for p in onnx.load(model).metadata_props})
    assert preprocess is not None
    inputs = []
    for name in names:
        with Image.open(pictures / name) as image:
            inputs.append(preprocess(image))
    return onnxruntime.InferenceSession(str(model)).run(None, {"x": np.stack(inputs)})[0]


def test_convert_writes_a_checked_model_with_its_metadata(program: Program, tmp_path: Path) -> None:
    factory = tmp_path / "nets.py"
    factory.write_text(
        "import torch\ndef net():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))\n"
    )
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    out = tmp_path / "out" / "net.onnx"
    options = ["--preprocess", '{"preset": "imagenet", "size": 4}', "--classes", tmp_path / "names.txt", "--json"]
    assert program("convert", f"{factory}:net", "-o", out, *options) == 0, program.err
    result = json.loads(program.out)
    assert result["framework"] == "pytorch"
    assert result["relative_difference"] < 1e-3
    metadata = {p.key: p.value for p in onnx.load(out).metadata_props}
    assert json.loads(metadata["lrp_onnx.classes"]) == ["cat", "dog"]
    assert json.loads(metadata["lrp_onnx.preprocess"])["size"] == [4, 4]
    assert [path.name for path in out.parent.iterdir()] == ["net.onnx"]


def test_convert_says_route_and_difference(program: Program, model: Path, tmp_path: Path) -> None:
    assert program("convert", model, "-o", tmp_path / "copy.onnx") == 0
    assert "onnx.checker" in program.out
    assert onnx.load(tmp_path / "copy.onnx").graph == onnx.load(model).graph


def test_inspect_names_every_node_with_its_rule(program: Program, model: Path) -> None:
    assert program("inspect", model, "--composite", "epsilon-gamma-box", "--gamma", "0.5", "--json") == 0
    found = json.loads(program.out)
    rules = {node["node"]: (node["rule"], node["parameters"]) for node in found["nodes"]}
    assert rules["conv_1"][0] == "z-box"
    assert rules["conv_2"] == ("gamma", {"gamma": 0.5})
    assert rules["dense"][0] == "epsilon"
    assert found["classes"] == list(CLASSES)
    assert found["cut"] == "Softmax"
    assert program("inspect", model) == 0
    assert all(name in program.out for name in ("conv1", "z-plus", "cat, dog, élan", "Nx6x12x12"))
    assert max(map(len, program.out.splitlines()[8:])) <= 100


def test_inspect_names_nodes_without_a_rule(program: Program, make_model: Callable[..., Path]) -> None:
    model = make_model(extra="Bernoulli")
    assert program("inspect", model) == 0
    assert "no rule for Bernoulli (strange): choose --rule Bernoulli=pass or Bernoulli=gradient" in program.out
    assert program("inspect", model, "--rule", "Bernoulli=gradient") == 0
    assert "no rule for" not in program.out


def test_test_writes_the_models_own_scores(program: Program, model: Path, pictures: Path, tmp_path: Path) -> None:
    assert program("test", model, pictures, "-o", tmp_path / "results.csv", "--batch-size", 4) == 0, program.err
    table = read_csv(tmp_path / "results.csv")
    assert list(table[0]) == ["image", "label", "predicted", "correct", "loss", *(f"score_{c}" for c in CLASSES)]
    names = [row["image"] for row in table]
    assert names == [f"{CLASSES[row // 3]}/{row}.png" for row in range(9)]
    expected = scores_of(model, pictures, names)
    found = np.array([[float(row[f"score_{c}"]) for c in CLASSES] for row in table])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    for row, scores in zip(table, expected, strict=True):
        assert row["predicted"] == CLASSES[scores.argmax()]
        assert row["correct"] == str(int(row["predicted"] == row["label"]))
        assert float(row["loss"]) == pytest.approx(-np.log(scores[CLASSES.index(row["label"])]), rel=1e-3, abs=1e-5)
    right = sum(row["correct"] == "1" for row in table)
    assert f"accuracy {right / 9:.2%} ({right} of 9)" in program.out


def test_heatmaps_of_what_went_wrong(program: Program, model: Path, pictures: Path, tmp_path: Path) -> None:
    results, store = tmp_path / "results.csv", tmp_path / "h.h5"
    assert program("test", model, pictures, "-o", results) == 0
    wrong = [row for row, line in enumerate(read_csv(results)) if line["correct"] == "0"]
    assert 0 < len(wrong) < 9
    assert program("heatmaps", model, pictures, "-o", store, "--errors", results, "--json") == 0, program.err
    assert json.loads(program.out)["samples"] == len(wrong)
    with HeatmapStore(store) as heatmaps:
        assert heatmaps.samples["index"].tolist() == wrong
        assert not heatmaps.samples["correct"].any()


def test_the_three_commands_end_in_pictures(program: Program, model: Path, pictures: Path, tmp_path: Path) -> None:
    store, out = tmp_path / "h.h5", tmp_path / "drawn"
    assert program("heatmaps", model, pictures, "-o", store, "--layers", "*conv*") == 0, program.err
    assert "9 samples" in program.out
    assert "of the relevance" in program.out
    assert program("render", store, "-o", out, "--layers", "all") == 0, program.err
    assert (out / "index.html").is_file()
    assert len(list((out / "overlays").iterdir())) == 9
    assert len(list((out / "sheets").iterdir())) == 3


def test_unreadable_pictures_are_listed(program: Program, model: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "cat" / "1.png").write_bytes(b"no picture")
    assert program("test", model, pictures, "-o", tmp_path / "r.csv") == 0
    assert "1 could not be read" in program.err
    assert "1.png: not a picture" in program.err
    assert len(read_csv(tmp_path / "r.csv")) == 8
    assert program("heatmaps", model, pictures, "-o", tmp_path / "h.h5") == 0
    assert "1 could not be read" in program.err
    with HeatmapStore(tmp_path / "h.h5") as heatmaps:
        assert heatmaps.pending().tolist() == [1]
        assert heatmaps.complete


def test_options_override_what_the_model_says(program: Program, model: Path, tmp_path: Path) -> None:
    picture = save_picture(tmp_path / "one.png", 1)
    (tmp_path / "names.json").write_text('["a", "b", "c"]')
    size = {"preset": "keras-torch", "size": 12, "layout": "NCHW"}
    options = ["--classes", tmp_path / "names.json", "--preprocess", json.dumps(size)]
    assert program("heatmaps", model, picture, "-o", tmp_path / "h.h5", *options) == 0, program.err
    with h5py.File(tmp_path / "h.h5") as file:
        assert json.loads(file.attrs["classes"]) == ["a", "b", "c"]
        assert json.loads(file.attrs["preprocess"])["std"] == [0.229, 0.224, 0.225]


def test_guessed_preprocessing_is_said(program: Program, tmp_path: Path, pictures: Path) -> None:
    bare = build_model()
    del bare.metadata_props[:]
    onnx.save_model(bare, tmp_path / "bare.onnx")
    assert program("test", tmp_path / "bare.onnx", pictures, "-o", tmp_path / "r.csv") == 0, program.err
    assert "guessing" in program.err


def test_no_progress_bar_without_a_terminal(program: Program, model: Path, pictures: Path, tmp_path: Path) -> None:
    assert program("heatmaps", model, pictures, "-o", tmp_path / "h.h5") == 0
    assert program.err == ""
    assert "\x1b" not in program.out


def test_an_unexpected_error_is_one_line_and_a_traceback_with_debug(
    program: Program, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("something\nodd")

    monkeypatch.setattr("lrp_onnx.inputs.load", broken)
    assert program("inspect", model) == app.INTERNAL_ERROR
    assert program.err == "error: internal error, ValueError: something odd (run with --debug to see where)\n"
    assert program("inspect", model, "--debug") == app.INTERNAL_ERROR
    assert "Traceback" in program.err


@pytest.mark.parametrize("arguments", [["nonsense"], ["heatmaps"], ["render", "x.h5", "--limit", "many"], ["--odd"]])
def test_wrong_usage_is_one_line(program: Program, arguments: list[str]) -> None:
    assert program(*arguments) == app.USER_ERROR
    assert program.err.startswith("error: ")
    assert program.err.count("\n") == 1


def test_no_arguments_show_the_help(program: Program) -> None:
    assert program() == 0
    assert "heatmaps" in program.out


def test_rules_of_ones_own_are_known_to_commands(
    program: Program, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RULES, "of-my-own", None)  # so that it is gone after the test
    del RULES["of-my-own"]
    (tmp_path / "mine.py").write_text(
        "from lrp_onnx.rules import linear_rule\n"
        '@linear_rule("of-my-own")\n'
        "def rule(op, *, eps=1e-3):\n"
        "    return lambda x, z, r: (x * op.transpose(r / (z + eps), op.weight, x.shape), None)\n"
    )
    (tmp_path / "mine.toml").write_text(
        'base = "epsilon"\n[[entries]]\nrule = "of-my-own"\nplace = "first"\nparameters = { eps = 0.01 }\n'
    )
    options = ["--composite", tmp_path / "mine.toml", "--json"]
    assert program("inspect", model, *options) == 2
    assert "no rule is named 'of-my-own'" in program.err
    assert program("inspect", model, *options, "--extensions", tmp_path / "mine.py") == 0, program.err
    assert json.loads(program.out)["nodes"][0]["rule"] == "of-my-own"
    assert program("inspect", model, "--extensions", tmp_path / "nowhere.py") == 2
    assert "nowhere.py" in program.err
