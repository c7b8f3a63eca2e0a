"""`hudd` takes a case from its data to a retrained model, stops for labels, and does again only what changed."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import onnx
import pytest
from filelock import FileLock
from onnx import numpy_helper
from small_model import CLASSES, Program, build_model, save_picture

from lrp_onnx.hudd.case.settings import TEMPLATE, Settings, init_case

STEPS = ["test", "training", "heatmaps", "correct", "cluster", "improvement", "assign", "label", "retrain"]


@pytest.fixture
def case(program: Program, tmp_path: Path) -> Path:
    """A case that is ready to run; the labels of its improvement set are in labels.csv."""
    folder = tmp_path / "case"
    assert program("hudd", "init", folder) == 0
    onnx.save_model(build_model(), folder / "DNNModels" / "small.onnx")
    for row in range(36):
        save_picture(folder / "DataSets" / "TestSet" / CLASSES[row % 3] / f"{row}.png", row)
        save_picture(folder / "DataSets" / "TrainingSet" / CLASSES[row % 3] / f"{row}.png", 100 + row)
    lines = ["image,label"]
    for row in range(24):
        path = save_picture(folder / "DataSets" / "ImprovementSet" / f"{row}.png", 200 + row)
        lines.append(f"{path.relative_to(folder).as_posix()},{CLASSES[row % 3]}")
    (folder / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    change(folder, "retrain", "epochs", "3")
    return folder


def change(case: Path, section: str, name: str, value: str) -> None:
    """Set a setting, commented out or not."""
    before, header, rest = (case / "case.toml").read_text(encoding="utf-8").partition(f"[{section}]")
    rest, times = re.subn(rf"(?m)^(# )?{name} = .*$", f"{name} = {value}", rest, count=1)
    assert times == 1
    (case / "case.toml").write_text(before + header + rest, encoding="utf-8")


def run(program: Program, case: Path, *options: object) -> dict:
    assert program("hudd", "run", case, "--json", *options) == 0, program.err
    return json.loads(program.out)


def conditions(program: Program, case: Path) -> dict[str, tuple[str, str]]:
    assert program("hudd", "status", case, "--json") == 0
    return {step["name"]: (step["condition"], step["detail"]) for step in json.loads(program.out)["steps"]}


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def results(case: Path) -> dict[str, object]:
    """What a run comes down to."""
    model = onnx.load(case / "DNNModels" / "small-retrained.onnx")
    return {
        "clusters": (case / "T" / "LayerX" / "clusters.csv").read_text(encoding="utf-8"),
        "unsafe": (case / "T" / "UnsafeSet" / "unsafe.csv").read_text(encoding="utf-8"),
        "weights": {one.name: numpy_helper.to_array(one).tobytes() for one in model.graph.initializer},
        "verdict": json.loads((case / "T" / "retraining.json").read_text(encoding="utf-8"))["verdict"],
    }


def test_the_commented_settings_are_the_defaults() -> None:
    without_examples = re.sub(r"(?m)^# .*# example.*$", "", TEMPLATE)
    written = tomllib.loads(re.sub(r"(?m)^# (\w+ =)", r"\1", without_examples))
    settings = Settings()
    for section, values in written.items():
        for name, value in values.items():
            default = getattr(getattr(settings, section), name)
            if section not in ("data",) and default is not None:
                assert value == default, f"[{section}] {name}"
    every = {(section, name) for section, one in vars(settings).items() for name in vars(one)}
    named = re.findall(r"(?m)^\[(\w+)\]|^# (\w+) =", TEMPLATE)
    here, found = "", set()
    for section, name in named:
        here = section or here
        if name:
            found.add((here, name))
    assert found == every


def test_a_case_stops_for_labels_and_goes_on_with_them(program: Program, case: Path) -> None:
    found = run(program, case)
    assert found["ran"] == STEPS[:-1]
    assert "need a label" in found["stopped"] and "unsafe.csv" in found["stopped"]
    assert found["retrained"] is None
    report = (case / "T" / "report.html").read_text(encoding="utf-8")
    assert "testResult.csv" in report and "Retraining on the labelled" not in report
    assert conditions(program, case)["label"][0] == "stops here"
    table = case / "T" / "UnsafeSet" / "unsafe.csv"
    known = {Path(row["image"]).name: row["label"] for row in read(case / "labels.csv")}
    rows = read(table)
    assert len(rows) > 3
    with table.open("w", encoding="utf-8-sig", newline="") as file:  # as a spreadsheet saves it
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows({**row, "label": known[Path(row["image"]).name]} for row in rows)
    found = run(program, case)
    assert found["ran"] == ["label", "retrain"]
    assert found["stopped"] == ""
    assert Path(found["retrained"]).is_file()
    assert set(conditions(program, case).values()) >= {("done", f"{len(rows)} of {len(rows)} images labelled")}
    assert all(condition == "done" for condition, _ in conditions(program, case).values())
    verdict = results(case)["verdict"]
    errors = [row for row in read(case / "testResult.csv") if row["correct"] == "0"]
    assert verdict["before"] == pytest.approx(1 - len(errors) / 36)
    clustered = sum(1 for row in read(case / "T" / "LayerX" / "clusters.csv") if row["cluster"] != "-1")
    assert sum(cluster["size"] for cluster in verdict["clusters"]) == clustered
    before = results(case)
    assert run(program, case)["ran"] == ["label"]
    assert results(case) == before


def test_only_what_a_change_touches_is_done_again(program: Program, case: Path) -> None:
    assert run(program, case, "--oracle", case / "labels.csv")["ran"] == STEPS
    change(case, "retrain", "epochs", "2")
    assert conditions(program, case)["retrain"] == ("out of date", "changed: [retrain] epochs")
    assert run(program, case)["ran"] == ["label", "retrain"]
    labels = {row["image"]: row["label"] for row in read(case / "T" / "UnsafeSet" / "unsafe.csv")}
    change(case, "cluster", "k", "2")
    assert conditions(program, case)["cluster"] == ("out of date", "changed: [cluster] k")
    assert run(program, case)["ran"][:3] == ["cluster", "improvement", "assign"]
    again = {row["image"]: row["label"] for row in read(case / "T" / "UnsafeSet" / "unsafe.csv")}
    assert any(again.values())
    assert all(again[image] == label for image, label in labels.items() if image in again)  # nobody labels twice
    save_picture(case / "DataSets" / "TestSet" / "cat" / "0.png", 999)
    assert conditions(program, case)["test"] == ("out of date", "changed: test set")
    found = conditions(program, case)
    assert found["training"][0] == "done"
    assert found["heatmaps"] == ("not done", "after: Predict the test set")
    assert found["retrain"][0] == "not done"
    assert run(program, case, "--oracle", case / "labels.csv")["ran"] == [STEPS[0], *STEPS[2:]]


def test_a_result_that_is_gone_is_made_again(program: Program, case: Path) -> None:
    run(program, case)
    (case / "T" / "heatmaps.h5").unlink()
    assert conditions(program, case)["heatmaps"] == ("out of date", "T/heatmaps.h5 is gone")
    assert "heatmaps" in run(program, case)["ran"]
    assert (case / "T" / "heatmaps.h5").is_file()


def test_status_sees_what_a_person_typed_since(program: Program, case: Path) -> None:
    run(program, case)
    assert conditions(program, case)["label"][0] == "stops here"
    table = case / "T" / "UnsafeSet" / "unsafe.csv"
    empty = table.read_text(encoding="utf-8")
    table.write_text(empty.replace(",,", ",cat,"), encoding="utf-8")
    assert conditions(program, case)["label"] == ("out of date", "changed: labels in unsafe.csv")
    assert run(program, case)["ran"] == ["label", "retrain"]
    assert {condition for condition, _ in conditions(program, case).values()} == {"done"}
    table.write_text(empty.replace(",,", ",dog,"), encoding="utf-8")
    found = conditions(program, case)
    assert found["label"][0] == "out of date" and found["retrain"] == ("not done", "after: Label the unsafe set")


def test_a_row_that_a_person_deleted_is_named(program: Program, case: Path) -> None:
    run(program, case)
    table = case / "T" / "UnsafeSet" / "unsafe.csv"
    first, gone, *rest = table.read_text(encoding="utf-8").replace(",,", ",cat,").splitlines()
    table.write_text("\n".join([first, *rest]), encoding="utf-8")
    stopped = run(program, case)["stopped"]
    assert stopped.startswith(f"1 image needs a label ({Path(gone.split(',')[0]).name} (no row))")


def test_a_table_of_labels_that_is_gone_is_asked_for_and_a_lost_account_of_it_is_made_again(
    program: Program, case: Path
) -> None:
    run(program, case)
    unsafe = case / "T" / "UnsafeSet"
    text = (unsafe / "unsafe.csv").read_text(encoding="utf-8").replace(",,", ",cat,")
    (unsafe / "unsafe.csv").rename(case / "elsewhere.csv")
    assert program("hudd", "run", case) == 2
    assert "unsafe.csv is gone; if labels are in it, put it back" in program.err
    (unsafe / "unsafe.csv").write_text(text, encoding="utf-8")
    (unsafe / "assignment.json").unlink()
    assert run(program, case)["ran"] == ["assign", "label", "retrain"]
    assert (unsafe / "unsafe.csv").read_text(encoding="utf-8") == text


def test_a_case_that_was_moved_keeps_its_labels(program: Program, case: Path) -> None:
    run(program, case, "--oracle", case / "labels.csv")
    moved = case.with_name("moved")
    case.rename(moved)
    assert run(program, moved)["ran"] == ["label"]
    change(moved, "cluster", "k", "2")
    detail = {step["name"]: step["detail"] for step in run(program, moved)["steps"]}
    assert f"if the case moved, remove {moved / 'T' / 'state.json'}" in detail["cluster"]
    (moved / "T" / "state.json").unlink()
    found = run(program, moved, "--oracle", moved / "labels.csv")
    assert found["ran"] == STEPS and found["stopped"] == ""
    assert "not where they were" not in str(found["steps"])
    rows = read(moved / "T" / "UnsafeSet" / "unsafe.csv")
    assert all(row["label"] and Path(row["image"]).is_file() for row in rows)


def test_a_case_without_errors_or_with_one_ends_with_a_plain_sentence(program: Program, case: Path) -> None:
    model, folder = case / "DNNModels" / "small.onnx", case / "DataSets" / "TestSet"
    assert program("test", model, folder, "-o", case / "r.csv") == 0
    right = [row for row in read(case / "r.csv") if row["correct"] == "1"]
    wrong = [row for row in read(case / "r.csv") if row["correct"] == "0"]
    for row in wrong[1:]:
        (folder / row["image"]).unlink()
    found = run(program, case)
    assert found["stopped"] == f"one error only, so there is nothing to cluster; look at {wrong[0]['image']}"
    (folder / wrong[0]["image"]).unlink()
    found = run(program, case)
    assert found["stopped"] == "no errors on the test set, so there is nothing to debug"
    assert f"0 of {len(right)} images are errors" in found["steps"][0]["detail"]
    assert found["report"] is None
    assert program("hudd", "run", case, "--require-improvement") == 1


def test_two_runs_on_a_case_do_not_meet(program: Program, case: Path) -> None:
    (case / "T").mkdir()
    with FileLock(case / "T" / ".lock"):
        assert program("hudd", "run", case) == 2
    assert "another `hudd run` is at work on this case" in program.err
    assert run(program, case)["ran"] == STEPS[:-1]


def test_bad_cases_are_refused_in_one_line(program: Program, case: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        assert program(*arguments) == 2
        assert program.err.count("\n") == 1
        return program.err

    assert "lrp-onnx hudd init" in refused("hudd", "run", tmp_path)
    assert "exists already" in refused("hudd", "init", case)
    assert "no such file" in refused("hudd", "init", tmp_path / "new", "--model", tmp_path / "none.onnx")
    text = (case / "case.toml").read_text(encoding="utf-8")
    for wrong, said in {
        "[cluster]\nkay = 3": "'kay' is not known here; expected one of profile, k",
        '[cluster]\nk = "3"': "k = '3': expected a whole number",
        "[retrain]\npatience = true": "patience = True: expected a whole number",
        '[cluster]\nprofile = "features"': 'profile = \'features\': expected "default" or "hudd"',
        "[retrain]\nepochs = 0": "epochs = 0: expected more than 0",
        '[cluster]\nlinkage = "wart"': 'linkage = \'wart\': expected "ward" or "average"',
        "[clusters]": "'clusters' is not known here",
        "cluster = 3": "'cluster' is a section; write [cluster]",
        "[cluster": "cannot be read",
    }.items():
        (case / "case.toml").write_text(wrong, encoding="utf-8")
        assert said in refused("hudd", "run", case)
    (case / "case.toml").write_text(text, encoding="utf-8")
    shutil.copy(case / "DNNModels" / "small.onnx", case / "DNNModels" / "other.onnx")
    assert "holds other.onnx, small.onnx; name one in case.toml" in refused("hudd", "run", case)
    (case / "DNNModels" / "other.onnx").unlink()
    (case / "DNNModels" / "small.onnx").rename(case / "DNNModels" / "small-retrained.onnx")
    assert "small-retrained.onnx is taken for a result by its name" in refused("hudd", "run", case)
    (case / "DNNModels" / "small-retrained.onnx").rename(case / "DNNModels" / "small.onnx")
    shutil.rmtree(case / "DataSets" / "TrainingSet")
    assert "TrainingSet does not exist" in refused("hudd", "run", case)
    (case / "DataSets" / "TrainingSet").mkdir()
    assert "TrainingSet is empty; it holds the training set" in refused("hudd", "run", case)
    (case / "T" / "state.json").write_text("{}", encoding="utf-8")
    assert "every step is done again" in refused("hudd", "status", case)


def test_data_and_model_may_stay_where_they_are(program: Program, case: Path, tmp_path: Path) -> None:
    data = {name: case / "DataSets" / f"{name.title()}Set" for name in ("training", "test", "improvement")}
    options = [part for name, path in data.items() for part in (f"--{name}", path)]
    other = tmp_path / "other"
    assert program("hudd", "init", other, "--model", case / "DNNModels" / "small.onnx", *options) == 0
    assert not (other / "DataSets").exists()
    assert run(program, other)["ran"] == STEPS[:-1]
    assert init_case(tmp_path / "third", {"retrain": {"learning_rate": 0.5}}).settings.retrain.learning_rate == 0.5


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_results(program: Program, case: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole" / "case"
    shutil.copytree(case, whole)
    change(case, "label", "oracle", '"labels.csv"')
    change(whole, "label", "oracle", '"labels.csv"')
    run(program, whole)
    state = case / "T" / "state.json"
    for step in STEPS:
        process = subprocess.Popen([sys.executable, "-m", "lrp_onnx", "hudd", "run", str(case)])
        while process.poll() is None:
            if state.exists() and step in json.loads(state.read_text(encoding="utf-8"))["steps"]:
                time.sleep(0.02)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
        process.wait()
    run(program, case)
    there, expected = results(case), results(whole)
    for name in ("clusters", "unsafe"):
        assert str(there[name]) == str(expected[name]).replace(str(whole), str(case))
    assert there["weights"] == expected["weights"]
