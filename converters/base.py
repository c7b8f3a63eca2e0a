"""The nouns that every converter shares: what was asked, what was loaded, the routes to ONNX, the registry record."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx

from lrp_onnx.errors import ConversionError

Run = Callable[[Sequence[np.ndarray]], list[np.ndarray]]  # a model on a batch of each of its inputs


@dataclass(frozen=True)
class Request:
    """What the caller asked for, with paths, shapes and examples in one form."""

    source: Any
    weights: Path | None = None
    shapes: tuple[tuple[int, ...], ...] | None = None
    examples: tuple[np.ndarray, ...] | None = None
    names: tuple[str, ...] | None = None  # the arguments that the examples are for, where they came by name
    picture: tuple[int, ...] | None = None  # shape of what the preprocessing gives
    trust_pickle: bool = False
    seed: int = 0
    owned: bool = False  # the source was made here, not handed over by the caller
    signature: str | None = None  # of a SavedModel
    inputs: tuple[str, ...] | None = None  # tensors of a frozen graph
    outputs: tuple[str, ...] | None = None
    custom_objects: Mapping[str, Any] = field(default_factory=dict)  # Keras' own name for what it does not know

    @property
    def path(self) -> Path | None:
        """The source as a path, or None when it is an object or a `module:factory`."""
        return self.source if isinstance(self.source, Path) else None

    def sample_shapes(self, wanted: str) -> tuple[tuple[int, ...], ...]:
        """Shapes of one sample of every input; ConversionError when the caller gave none and `wanted` needs them."""
        if self.examples is not None:
            return tuple(example.shape[1:] for example in self.examples)
        if self.shapes is not None:
            return self.shapes
        if self.picture is None:
            raise ConversionError(
                f"{wanted} does not say what its input looks like; give input_shape (one sample, without the batch "
                f"dimension, such as 3,224,224) or an example input"
            )
        return (self.picture,)

    def dtypes(self, default: Any, count: int) -> list[np.dtype[Any]]:
        """Dtypes of the inputs: the examples' or `default`."""
        if self.examples is not None:
            return [example.dtype for example in self.examples]
        return [np.dtype(default)] * count


@dataclass(frozen=True)
class InputSpec:
    """One input of the source model: shape of one sample, None where the model leaves a dimension free."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]
    highest: int | None = None  # of whole numbers that pick rows of a table


@dataclass(frozen=True)
class Route:
    """One way to ONNX; `batch` is set when the result only takes that batch size.

    `export_exactly` gives the same model with every float in float64, where the exporter computes constants of its own:
    in float32 these are rounded, which a network that makes rounding errors large turns into another result.
    """

    how: str
    export: Callable[[], onnx.ModelProto]
    batch: int | None = None
    export_exactly: Callable[[], onnx.ModelProto] | None = None


@dataclass(frozen=True)
class Loaded:
    """A source model ready to run and to export.

    `batch` is set when the source itself only takes that batch size, `rounding` is the relative difference that the
    source's own quantised arithmetic leaves open. `run_exactly` runs the source in float64, where its framework can.
    """

    framework: str
    version: str
    inputs: tuple[InputSpec, ...]
    routes: tuple[Route, ...]
    run: Run | None
    batch: int | None = None
    notes: tuple[str, ...] = ()
    rounding: float = 0.0
    run_exactly: Run | None = None


@dataclass(frozen=True)
class Converter:
    """A source form: how to recognise it and how to load it. Neither imports a framework before it has to.

    `takes` names the fields of a request that mean something for this form alone.
    """

    name: str
    matches: Callable[[Request], bool]
    load: Callable[[Request], Loaded]
    takes: tuple[str, ...] = ()


def made_once(make: Callable[[], Run]) -> Run:
    """A way to run a model that is made when it is first needed."""
    made = functools.cache(make)
    return lambda arrays: made()(arrays)


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency, or say what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConversionError(
            f"{purpose} needs {module.split('.')[0]}, which does not import here ({one_line(error)}): "
            f'pip install "lrp-onnx[{extra}]"'
        ) from error


def one_line(error: BaseException, limit: int = 300) -> str:
    """The first telling line of an exception, for a message that must stay on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def defined_in(value: object, package: str) -> bool:
    """Whether the class of `value`, or a class it inherits from, belongs to `package`; imports nothing."""
    return any(cls.__module__.split(".")[0] == package for cls in type(value).__mro__)


def some(names: Sequence[str], count: int = 3) -> str:
    """The first few names and how many more there are."""
    shown = ", ".join(names[:count])
    return f"{shown} and {len(names) - count} more" if len(names) > count else shown


def fits(own: Sequence[int | None], given: Sequence[int | None]) -> bool:
    """Whether a shape agrees with one in which None is free."""
    return len(own) == len(given) and all(a in (None, b) for a, b in zip(own, given, strict=True))


def given_or(request: Request, own: Sequence[Sequence[int | None]], where: str) -> list[tuple[int | None, ...]]:
    """The caller's sample shapes where given and compatible with the model's own."""
    if request.shapes is None and request.examples is None:
        return [tuple(shape) for shape in own]
    given = request.sample_shapes(where)
    if len(given) != len(own) or not all(map(fits, own, given)):
        raise ConversionError(
            f"{where} takes input of shape {some([str(tuple(shape)) for shape in own])} "
            f"(one sample, as the framework has it), not {some([str(shape) for shape in given])}"
        )
    return list(given)
