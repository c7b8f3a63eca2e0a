"""`retrain` takes a labelled unsafe set to a better model, says what became better, and leaves by an exit code."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from small_model import CLASSES, Program, save_picture

from lrp_onnx.hudd import read_unsafe

pytest.importorskip("onnx2torch")


@pytest.fixture
def unsafe(program: Program, model: Path, tmp_path: Path) -> Path:
    """The unsafe set of 30 unlabelled pictures; the test set has 36, the training set 24."""
    for row in range(36):
        save_picture(tmp_path / "TestSet" / CLASSES[row % 3] / f"{row}.png", row)
    for row in range(24):
        save_picture(tmp_path / "TrainingSet" / CLASSES[row % 3] / f"{row}.png", 200 + row)
    for row in range(30):
        save_picture(tmp_path / "ImprovementSet" / f"{row}.png", 100 + row)
    errors, improvement = tmp_path / "h.h5", tmp_path / "i.h5"
    assert program("test", model, tmp_path / "TestSet", "-o", tmp_path / "r.csv") == 0
    options = ("--errors", tmp_path / "r.csv", "--layers", "mean", "-o", errors)
    assert program("heatmaps", model, tmp_path / "TestSet", *options) == 0
    assert program("heatmaps", model, tmp_path / "ImprovementSet", "--layers", "mean", "-o", improvement) == 0
    assert program("cluster", errors, "-o", tmp_path / "T", "--k", 2) == 0
    assert program("assign", improvement, "--clusters", tmp_path / "T", "-o", tmp_path / "U") == 0
    return tmp_path / "U"


@pytest.fixture
def retrain(program: Program, model: Path, unsafe: Path, tmp_path: Path) -> Callable[..., int]:
    def retrain(*options: object) -> int:
        sets = ("--training", tmp_path / "TrainingSet", "--unsafe", unsafe, "-o", tmp_path / "new.onnx")
        return program("retrain", model, *sets, "--epochs", 2, *options)

    return retrain


def fill(unsafe: Path, labels: dict[str, str]) -> None:
    """As a spreadsheet of a German saves it."""
    with (unsafe / "unsafe.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with (unsafe / "unsafe.csv").open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.DictWriter(file, ["label", "image"], delimiter=";", extrasaction="ignore", lineterminator="\r\n")
        table.writeheader()
        table.writerows({**row, "label": labels.get(Path(row["image"]).name, "Cat")} for row in rows)


def test_labels_that_a_person_filled_in_are_learned_and_the_test_set_judges(
    program: Program, retrain: Callable[..., int], unsafe: Path, tmp_path: Path, model: Path
) -> None:
    assert retrain() == 2
    selected = len(read_unsafe(unsafe).paths)
    assert f"{selected} of {selected} images have no label" in program.err and program.err.count("\n") == 1
    fill(unsafe, {})
    before = model.read_bytes()
    assert retrain("--test", tmp_path / "TestSet", "--clusters", tmp_path / "T", "--learning-rate", 0) == 0
    epochs = [line for line in program.err.splitlines() if line.startswith("epoch ")]
    assert [line.split(":")[0] for line in epochs] == ["epoch 0", "epoch 1", "epoch 2"]
    assert "training loss" in epochs[2] and "validation loss" in epochs[2] and "%" in epochs[2]
    assert "note: no labelled image of classes 'dog', 'élan'" in program.err
    said = program.out.splitlines()
    assert said[0].startswith(f"learned from 24 images of the training set and {selected} labelled images (")
    assert said[1].startswith("none of 2 epochs is better on the validation set; the weights stay -> ")
    assert said[2] == "test set, 36 images: not better"
    shown = program.out
    record = json.loads((tmp_path / "retraining.json").read_text(encoding="utf-8"))
    assert f"accuracy {record['verdict']['before']:.2%} -> {record['verdict']['after']:.2%}" in shown
    for one in record["verdict"]["clusters"]:
        assert f"cluster {one['cluster']}: {one['correct_before']} -> {one['correct_after']} of {one['size']} " in shown
    assert record["model"]["path"] == str(model) and model.read_bytes() == before
    onnx.checker.check_model(str(tmp_path / "new.onnx"))


def test_the_exit_code_says_whether_the_model_is_better_and_results_are_there_all_the_same(
    program: Program, retrain: Callable[..., int], unsafe: Path, tmp_path: Path
) -> None:
    fill(unsafe, {})
    assert retrain("--require-improvement") == 2
    assert "--require-improvement needs a test set" in program.err
    worse = ("--test", tmp_path / "TestSet", "--require-improvement", "--learning-rate", 0)
    assert retrain(*worse) == 1
    assert "not better" in program.out and "error" not in program.err
    assert (tmp_path / "new.onnx").exists() and (tmp_path / "retraining.json").exists()
    # what is learned by heart is better
    better = ("--test", tmp_path / "TrainingSet", "--validation", tmp_path / "TrainingSet", "--require-improvement")
    assert retrain(*better) == 2 and "exists already" in program.err
    learning = ("--optimizer", "adam", "--learning-rate", 0.03, "--epochs", 30, "--patience", 30)
    assert retrain(*better, *learning, "--overwrite", "--json") == 0
    found = json.loads(program.out)
    assert found["verdict"]["better"] and found["record"] == str(tmp_path / "retraining.json")
    assert found["settings"]["optimizer"] == "adam" and found["validation_images"] == 24


def test_known_labels_stand_in_for_a_person(
    program: Program, retrain: Callable[..., int], unsafe: Path, tmp_path: Path
) -> None:
    images = [Path(image).name for image in read_unsafe(unsafe).paths]
    known = tmp_path / "known.csv"
    known.write_text("image,label\n" + "".join(f"{name},dog\n" for name in images[1:]), encoding="utf-8")
    assert retrain("--oracle", known) == 2
    assert f"1 images have no known label: {tmp_path / 'ImprovementSet' / images[0]}" in program.err
    assert retrain("--oracle", known, "--partial", "--json") == 0
    found = json.loads(program.out)
    assert found["labelled_images"] == len(images) - 1 and found["settings"]["partial"]


def test_wrong_options_are_one_line(
    program: Program, retrain: Callable[..., int], unsafe: Path, tmp_path: Path
) -> None:
    fill(unsafe, {})
    for option, value, said in (
        ("--optimizer", "lion", "'lion' is not known here; expected one of sgd, adam"),
        ("--loss", "hinge", "loss is 'hinge'; expected one of cross-entropy, mse, mae"),
        ("--threshold", 1, "a class is right or wrong"),
        ("--validation", "nowhere", "no such file or folder"),
        ("--validation", 0.999, "leaves one side empty"),
        ("--epochs", 0, "epochs is 0"),
        ("--clusters", "nowhere", "judged by the images of a test set"),
    ):
        assert retrain(option, value) == 2
        assert said in program.err and program.err.count("\n") == 1 and program.out == ""
        assert not (tmp_path / "new.onnx").exists()


def test_assigning_again_says_how_many_labels_were_kept(
    program: Program, model: Path, unsafe: Path, tmp_path: Path
) -> None:
    fill(unsafe, {})
    selected = len(read_unsafe(unsafe).paths)
    arguments = ("assign", tmp_path / "i.h5", "--clusters", tmp_path / "T", "-o", unsafe, "--overwrite")
    assert program(*arguments) == 0
    assert f"kept {selected} labels\n" in program.out
    assert program(*arguments, "--json", "--factor", 0.1) == 0
    found = json.loads(program.out)
    assert found["labelled"] == len(found["selected"]) and found["set_aside"] == selected - len(found["selected"]) > 0
