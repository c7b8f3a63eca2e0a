"""`vary`, `test`, `heatmaps` and `stability` follow each other without anything in between."""

from __future__ import annotations

import json
from pathlib import Path

from small_model import Program

from lrp_onnx.debug.variations import VARIATIONS


def test_from_pictures_to_the_table(program: Program, model: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "cat" / "bad.png").write_bytes(b"no picture")
    options = ("--variation", "dark", "--variation", "rotation=45", "--variation", "mirror")
    assert program("vary", pictures, "-o", tmp_path / "varied", *options) == 0
    manifest = tmp_path / "varied" / "manifest.csv"
    assert program.out.splitlines() == [
        f"9 images, 45 pictures -> {manifest}",
        f"all variations at a glance: {tmp_path / 'varied-sheet.png'}",
    ]
    assert "bad.png: not a picture" in program.err
    assert program("test", model, manifest, "-o", tmp_path / "results.csv") == 0
    assert program.out.startswith("45 predictions")
    assert program("heatmaps", model, manifest, "-o", tmp_path / "h.h5") == 0
    assert program("stability", tmp_path / "h.h5", manifest, "-o", tmp_path / "table") == 0
    assert program.out.splitlines()[-1] == f"-> {tmp_path / 'table/stability.csv'}, {tmp_path / 'table/stability.png'}"
    assert program("stability", tmp_path / "h.h5", manifest, "-o", tmp_path / "table") == 2
    assert "exists already; use --overwrite" in program.err
    assert program("stability", tmp_path / "h.h5", manifest, "-o", tmp_path / "table", "--overwrite", "--json") == 0
    found = json.loads(program.out)
    assert len(found["summaries"]) == 4 * 5  # three classes and all of them, the original and four variations
    assert found["summaries"][0]["images"] == 9


def test_the_same_command_again_says_that_all_is_there(program: Program, pictures: Path, tmp_path: Path) -> None:
    arguments = ("vary", pictures, "-o", tmp_path / "varied", "--variation", "mirror")
    assert program(*arguments, "--json") == 0
    made = json.loads(program.out)
    assert (made["images"], made["pictures"], made["written"]) == (9, 18, 18)
    assert program(*arguments) == 0
    assert "18 pictures, 18 of them there already" in program.out


def test_the_help_names_every_variation(program: Program) -> None:
    assert program("vary", "--help") == 0
    text = "".join(program.out.replace("│", " ").split())
    assert ",".join(VARIATIONS) in text
