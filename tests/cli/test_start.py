"""The program and the package start at once; nothing heavy is imported before it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lrp_onnx

HEAVY = ("torch", "onnx", "onnxruntime", "h5py", "numpy", "tensorflow", "PIL", "scipy")


def imported_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('modules:', *sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.rsplit("modules:", 1)[1].split())


@pytest.mark.parametrize("arguments", [["--help"], ["heatmaps", "--help"], ["demo", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    modules = imported_after(f"from lrp_onnx.cli.app import run\nassert run({arguments!r}) == 0")
    assert "lrp_onnx.cli.app" in modules
    assert modules.isdisjoint(HEAVY)


def test_the_package_imports_nothing_heavy_until_a_name_is_used() -> None:
    assert imported_after("import lrp_onnx; dir(lrp_onnx)").isdisjoint(HEAVY)
    assert "onnx" in imported_after("import lrp_onnx; lrp_onnx.load")


@pytest.mark.parametrize("name", lrp_onnx.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(lrp_onnx, name) is not None
    assert name in dir(lrp_onnx)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lrp_onnx.nothing


def test_the_module_is_the_program() -> None:
    done = subprocess.run([sys.executable, "-m", "lrp_onnx", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"lrp-onnx {lrp_onnx.__version__}\n"
