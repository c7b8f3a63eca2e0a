"""Resolve `package.module:factory` and `path/to/file.py:factory` to the model that the factory returns."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from lrp_onnx.converters.base import one_line, some
from lrp_onnx.errors import ConversionError

LOADED: list[str] = []  # what `load_module` was asked for, so that other processes can load the same
_FORM = re.compile(r"(?P<module>.+):(?P<name>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)")


def is_factory(text: str) -> bool:
    """Whether `text` has the form `module:factory` and is not itself a file."""
    return _FORM.fullmatch(text) is not None and not Path(text).exists()


def build(text: str, seed: int) -> Any:
    """
    Import the module and call the factory without arguments.

    Parameters
    ----------
    text : str
        `package.module:factory` or `path/to/file.py:factory`. The factory is a function or class; a model object
        that the module already holds is returned as it is.
    seed : int
        Seeds the random weights of a PyTorch factory; the caller's random state stays as it was.

    Raises
    ------
    ConversionError
        When the module does not import, has no such name, or the factory fails or needs arguments.
    """
    with _named(text) as factory:
        if not (inspect.isroutine(factory) or inspect.isclass(factory)):
            return factory
        with _seeded(seed):
            return _call(factory, text)


def find(text: str) -> Any:
    """
    Import the module and return what it calls by that name, as it is.

    Raises
    ------
    ConversionError
        When the module does not import or has no such name.
    """
    with _named(text) as found:
        return found


@contextlib.contextmanager
def _named(text: str) -> Iterator[Any]:
    match = _FORM.fullmatch(text)
    if match is None:
        raise ConversionError(f"{text!r} is not of the form module:NAME")
    module_name, name = match["module"], match["name"]
    with _importable(module_name):
        found: Any = _import(module_name, text)
        module = found
        for part in name.split("."):
            if not hasattr(found, part):
                raise ConversionError(f"{module_name} has no {name!r}; {_offers(module)}")
            found = getattr(found, part)
        yield found


def load_module(name: str) -> ModuleType:
    """
    Import `package.module` or `path/to/file.py`; one beside the working directory is found too.

    Raises
    ------
    ConversionError
        When there is no such module, or it does not import.
    """
    with _importable(name):
        module = _import(name, name)
    if name not in LOADED:
        LOADED.append(name)
    return module


def _import(module_name: str, text: str) -> ModuleType:
    try:
        if not module_name.endswith(".py"):
            return importlib.import_module(module_name)
        path = Path(module_name)
        if not path.is_file():
            raise ConversionError(f"{text}: there is no file {path}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Classes look their module up by name, for instance when a model is copied.
        sys.modules.setdefault(path.stem, module)
        spec.loader.exec_module(module)
        return module
    except ConversionError:
        raise
    except Exception as error:
        raise ConversionError(f"{text}: importing {module_name} failed, {one_line(error)}") from error


def _call(factory: Callable[[], Any], text: str) -> Any:
    try:
        return factory()
    except Exception as error:
        raise ConversionError(
            f"{text}: calling the factory without arguments failed, {one_line(error)}; "
            "name a function that takes none and returns the model"
        ) from error


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    if "torch" not in sys.modules:
        yield
        return
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _offers(module: ModuleType) -> str:
    names = sorted(
        name
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    )
    return f"it defines {some(names, 6)}" if names else "it defines no function or class"


@contextlib.contextmanager
def _importable(module_name: str) -> Iterator[None]:
    """Let a project import its own modules: from the working directory, or from beside the named file."""
    folder = str(Path(module_name).resolve().parent) if module_name.endswith(".py") else str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
