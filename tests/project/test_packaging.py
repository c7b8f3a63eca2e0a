"""What is in the repository is what gets installed and checked."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_in_the_repository_is_installed() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    roots = {"lrp_onnx": "lrp_onnx", **setuptools["package-dir"]}
    there = {
        ".".join([name, *init.parent.relative_to(ROOT / folder).parts])
        for name, folder in roots.items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert sorted(setuptools["packages"]) == sorted(there)


def test_rules_and_converters_lie_where_the_type_checker_looks_for_them() -> None:
    shown = ROOT / ".ci" / "mypy_path" / "lrp_onnx"
    assert {link.name: link.resolve() for link in shown.iterdir()} == {
        "rules": ROOT / "rules",
        "converters": ROOT / "converters",
    }


def test_the_version_is_the_same_everywhere() -> None:
    import lrp_onnx

    version = PROJECT["project"]["version"]
    assert lrp_onnx.__version__ == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
