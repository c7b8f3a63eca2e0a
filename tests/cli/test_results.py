"""Tables of results name the samples to explain, also after a person had them in a spreadsheet."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from small_model import CLASSES, Program, save_picture

import lrp_onnx
from lrp_onnx.data import Dataset
from lrp_onnx.errors import DataError
from lrp_onnx.heatmaps import compute_heatmaps
from lrp_onnx.results import correct_rows, read_results, wrong_rows
from lrp_onnx.store import HeatmapStore


@pytest.fixture
def many(tmp_path: Path) -> Dataset:
    """Twenty pictures of the first class, ten of the second, none of the third."""
    for row in range(30):
        save_picture(tmp_path / "many" / CLASSES[row // 20] / f"{row:02}.png", row)
    (tmp_path / "many" / CLASSES[2]).mkdir()
    return lrp_onnx.open_dataset(tmp_path / "many", classes=CLASSES)


def write_table(path: Path, data: Dataset, correct: list[str]) -> Path:
    lines = (f"{CLASSES[row // 20]}/{row:02}.png,{CLASSES[row // 20]},x,{flag},0.5" for row, flag in enumerate(correct))
    path.write_text("\n".join(["image,label,predicted,correct,loss", *lines]), encoding="utf-8")
    return path


def test_correct_samples_are_spread_over_each_class(many: Dataset, tmp_path: Path) -> None:
    correct = ["0", "1"] * 10 + ["1"] * 3 + [""] * 7
    table = write_table(tmp_path / "r.csv", many, correct)
    assert wrong_rows(table, many) == list(range(0, 20, 2))
    assert correct_rows(table, many) == [*range(1, 20, 2), 20, 21, 22]
    assert correct_rows(table, many, per_class=2) == [5, 15, 20, 22]
    assert correct_rows(table, many, per_class=5) == [3, 7, 11, 15, 19, 20, 21, 22]
    assert correct_rows(table, many, per_class=1) == [11, 21]
    assert read_results(table, many).correct[23] == -1


def test_heatmaps_of_correct_samples(program: Program, model: Path, many: Dataset, tmp_path: Path) -> None:
    table, store = write_table(tmp_path / "r.csv", many, ["1"] * 30), tmp_path / "h.h5"
    command = ("heatmaps", model, tmp_path / "many", "-o", store, "--correct", table, "--per-class", 3)
    assert program(*command) == 0, program.err
    with HeatmapStore(store) as heatmaps:
        assert heatmaps.samples["index"].tolist() == [3, 10, 16, 21, 25, 28]


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_a_spreadsheet_may_have_saved_the_table(
    program: Program, model: Path, pictures: Path, tmp_path: Path, separator: str
) -> None:
    assert program("test", model, pictures, "-o", tmp_path / "r.csv") == 0
    dataset = lrp_onnx.open_dataset(pictures, classes=CLASSES)
    wanted = wrong_rows(tmp_path / "r.csv", dataset)
    with (tmp_path / "r.csv").open(encoding="utf-8", newline="") as file:
        rows = [row[::-1] for row in csv.reader(file)]  # columns in another order
    with (tmp_path / "edited.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=separator, lineterminator="\r\n").writerows([*rows, [""] * len(rows[0])])
    assert wrong_rows(tmp_path / "edited.csv", dataset) == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,label,correct\ncat/00.png,cat,no\n", "line 2: column 'correct' holds 'no'; expected 1, 0 or nothing"),
        ("image,label,correct,measure\ncat/00.png,cat,0,rmse\n", "'measure' holds 'rmse'"),
        ("image,label,correct\ncat/00.png,cat,0\n", "no prediction is correct"),
        ("image,label,correct\ncat/00.png,dog,1\n", "line 2: 'cat/00.png' has label 'dog' there and 'cat'"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(many: Dataset, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        correct_rows(tmp_path / "r.csv", many)


def test_errors_correct_and_a_number_per_class_go_together_or_not(model: Path, many: Dataset, tmp_path: Path) -> None:
    table = write_table(tmp_path / "r.csv", many, ["0", "1"] * 15)
    with pytest.raises(DataError, match="choose one of --errors and --correct"):
        compute_heatmaps(model, many, tmp_path / "h.h5", errors=table, correct=table)
    with pytest.raises(DataError, match="name a table of results"):
        compute_heatmaps(model, many, tmp_path / "h.h5", per_class=3)
    with pytest.raises(DataError, match="expected at least 1"):
        compute_heatmaps(model, many, tmp_path / "h.h5", correct=table, per_class=0)
    assert not (tmp_path / "h.h5").exists()
