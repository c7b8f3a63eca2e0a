"""Modules seen from outside: their inputs by name, and which of them was running when an export failed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lrp_onnx.converters.base import one_line
from lrp_onnx.errors import ConversionError

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


class Arguments(torch.nn.Module):
    """A module whose inputs go to the arguments of these names."""

    PREFIX = "module"

    def __init__(self, module: torch.nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module, self.names = module, tuple(names)

    def forward(self, *values: Any) -> Any:
        return self.module(**dict(zip(self.names, values, strict=True)))


@contextlib.contextmanager
def located(module: torch.nn.Module) -> Iterator[None]:
    """Say which submodule was running when the block failed.

    Raises
    ------
    ConversionError
        In place of any other exception, with the path and class of the innermost module.
    """
    if isinstance(module, torch.jit.ScriptModule):
        yield
        return
    running: list[str] = []
    handles: list[RemovableHandle] = []
    for name, inner in module.named_modules():
        shown = name.removeprefix(Arguments.PREFIX).removeprefix(".") if isinstance(module, Arguments) else name
        where = f"{shown} ({type(inner).__name__})" if shown else type(inner).__name__
        handles.append(inner.register_forward_pre_hook(lambda *_, where=where: running.append(where)))
        handles.append(inner.register_forward_hook(lambda *_, where=where: _leave(running, where)))
    try:
        yield
    except Exception as error:
        if not running:
            raise
        raise ConversionError(f"in {running[-1]}: {one_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()


def _leave(running: list[str], where: str) -> None:
    """Forget the module and what it caught exceptions of."""
    while running and running.pop() != where:
        pass


def highest_id(module: torch.nn.Module, shapes: Sequence[Sequence[int]]) -> int | None:
    """The highest whole number that the module takes as input; None where it takes none.

    It runs on the last row of each of its tables, the largest first.
    """
    tables = {m.num_embeddings for m in module.modules() if isinstance(m, torch.nn.Embedding | torch.nn.EmbeddingBag)}
    for size in sorted(tables, reverse=True):
        values = [torch.full((2, *shape), size - 1) for shape in shapes]
        with contextlib.suppress(Exception), torch.no_grad():
            module(*values)
            return size - 1
    return None
