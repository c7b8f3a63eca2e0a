"""The small model on disk, pictures for it, and the program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from small_model import CLASSES, Program, build_model, save_picture


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Write the model, with changes, under a name."""

    def make(name: str = "small.onnx", **changes: object) -> Path:
        path = tmp_path / name
        onnx.save_model(build_model(**changes), path)  # type: ignore[arg-type]
        return path

    return make


@pytest.fixture
def model(make_model: Callable[..., Path]) -> Path:
    return make_model()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Nine pictures in three class folders."""
    folder = tmp_path / "pictures"
    for row in range(9):
        save_picture(folder / CLASSES[row // 3] / f"{row}.png", row)
    return folder


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(capsys)
