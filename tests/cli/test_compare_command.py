"""`compare` on real stores of real models: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from small_model import Program


@pytest.fixture
def stores(make_model: Callable[..., Path], pictures: Path, program: Program, tmp_path: Path) -> tuple[Path, Path]:
    """Heatmaps of one network twice: as it is, and with its input in another layout."""
    found = []
    for name, layout in (("first", "NCHW"), ("last", "NHWC")):
        model = make_model(f"{name}.onnx", layout=layout)
        assert program("heatmaps", model, pictures, "-o", tmp_path / f"{name}.h5") == 0
        found.append(tmp_path / f"{name}.h5")
    return found[0], found[1]


def test_one_network_in_two_layouts_is_found_to_be_one(
    stores: tuple[Path, Path], program: Program, tmp_path: Path
) -> None:
    assert program("compare", *stores, "-o", tmp_path / "out") == 0
    assert "A: first.onnx, B: last.onnx" in program.out
    assert "9 images ->" in program.out
    assert program.err == ""
    assert program("compare", *stores, "-o", tmp_path / "out", "--overwrite", "--json") == 0
    summary = json.loads(program.out)
    assert summary["all"]["images"] == 9
    assert summary["all"]["same"] == 1
    assert summary["all"]["rank"] == pytest.approx(1, abs=1e-4)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("images.csv", "groups.csv", "disagreements.csv", "summary.json"),
        *("report.html", "sheet.png", "groups.png"),
    }


def test_images_of_one_store_alone_are_named(
    stores: tuple[Path, Path], make_model: Callable[..., Path], pictures: Path, program: Program, tmp_path: Path
) -> None:
    assert program("heatmaps", make_model(), pictures / "cat", "-o", tmp_path / "cats.h5", "--unlabelled") == 0
    assert program("compare", stores[0], tmp_path / "cats.h5", "-o", tmp_path / "out") == 0
    assert "6 images in A alone: " in program.out
    assert "dog/3.png" in program.out


def test_what_cannot_be_compared_is_one_line(stores: tuple[Path, Path], program: Program, tmp_path: Path) -> None:
    assert program("compare", stores[0], tmp_path / "none.h5", "-o", tmp_path / "out") == 2
    assert program.err.count("\n") == 1
    assert program("compare", *stores, "-o", tmp_path / "out", "--smooth", "-1") == 2
    assert "smooth is -1" in program.err
    assert not (tmp_path / "out").exists()
