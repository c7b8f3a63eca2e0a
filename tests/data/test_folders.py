"""Folders of results appear whole, and a kill at any moment loses neither the old nor the new."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrp_onnx.errors import OutputError
from lrp_onnx.folders import folder_written_whole

MARK = "mark.json"


def write(folder: Path, text: str, **options: bool) -> None:
    with folder_written_whole(folder, MARK, **options) as new:
        (new / MARK).write_text(text)


def test_a_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    write(tmp_path / "X", "1")
    with pytest.raises(OutputError, match="--overwrite"):
        write(tmp_path / "X", "2")
    write(tmp_path / "X", "3", overwrite=True)
    assert (tmp_path / "X" / MARK).read_text() == "3"
    assert [path.name for path in tmp_path.iterdir()] == ["X"]


def test_what_a_kill_between_the_renames_set_aside_comes_back(tmp_path: Path) -> None:
    write(tmp_path / "X", "1")
    (tmp_path / "X").rename(tmp_path / ".X.old")
    (tmp_path / ".X.new").mkdir()
    with pytest.raises(OutputError, match="--overwrite"):
        write(tmp_path / "X", "2")
    assert (tmp_path / "X" / MARK).read_text() == "1"
    with pytest.raises(ZeroDivisionError), folder_written_whole(tmp_path / "X", MARK, overwrite=True):
        raise ZeroDivisionError
    assert (tmp_path / "X" / MARK).read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["X"]
