"""`cluster` writes a report, and holds clusters against correct images when it is given some."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_model import Program, save_picture


@pytest.fixture
def errors(program: Program, model: Path, tmp_path: Path) -> Path:
    """Heatmaps of what the small model gets wrong among 36 pictures, and beside it `all.h5` with those of all."""
    for row in range(36):
        save_picture(tmp_path / "TestSet" / ("cat", "dog", "élan")[row % 3] / f"{row}.png", row)
    assert program("test", model, tmp_path / "TestSet", "-o", tmp_path / "r.csv") == 0
    options = ("--errors", tmp_path / "r.csv", "--layers", "all", "-o", tmp_path / "h.h5")
    assert program("heatmaps", model, tmp_path / "TestSet", *options) == 0
    assert program("heatmaps", model, tmp_path / "TestSet", "-o", tmp_path / "all.h5") == 0
    return tmp_path / "h.h5"


def test_cluster_writes_a_report_and_says_where(program: Program, errors: Path, tmp_path: Path) -> None:
    report = tmp_path / "T" / "report.html"
    assert program("cluster", errors, "-o", tmp_path / "T", "--k", 2, "--min-size", 1) == 0
    assert f"{report} shows and explains them" in program.out.splitlines()
    assert "Held against" not in report.read_text(encoding="utf-8")
    options = ("--correct", tmp_path / "all.h5", "--overwrite", "--json")
    assert program("cluster", errors, "-o", tmp_path / "T", "--k", 2, "--min-size", 1, *options) == 0
    assert json.loads(program.out)["report"] == str(report)
    assert "handled correctly" in report.read_text(encoding="utf-8")


def test_what_would_spoil_the_report_is_refused_before_the_work(program: Program, errors: Path, tmp_path: Path) -> None:
    assert program("cluster", errors, "-o", tmp_path / "T", "--correct", tmp_path / "nowhere.h5") == 2
    assert "no such heatmap store" in program.err and program.err.count("\n") == 1
    assert not (tmp_path / "T").exists()
    (tmp_path / "T").mkdir()
    (tmp_path / "T" / "report.html").write_text("mine")
    assert program("cluster", errors, "-o", tmp_path / "T") == 2
    assert "use --overwrite" in program.err
    assert (tmp_path / "T" / "report.html").read_text() == "mine"
    assert not (tmp_path / "T" / "LayerX").exists()
