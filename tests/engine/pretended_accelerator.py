"""An accelerator for tests, played on the CPU: device "meta", whose tensors hold values after all.

What waits for the device raises `Waits`, where waiting is not allowed: a number or a shape read off a tensor that lies
there, a copy from there, and a copy to there that the host does not leave to itself. So does an op on tensors of both
sides, which no accelerator has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

DEVICE = torch.device("meta")

# ops whose result, or the size of it, the host has to know
_READS = {
    "_local_scalar_dense",
    "is_nonzero",
    "item",
    "equal",
    "allclose",
    "nonzero",
    "masked_select",
    "bincount",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "unique_dim_consecutive",
    "repeat_interleave",
    "histc",
    "_linalg_det",
    "_linalg_check_errors",
}


class Waits(AssertionError):
    """The host would wait for the accelerator."""


class There(Tensor):
    """A tensor on the pretended accelerator."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        made = Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} outside of the pretended accelerator")


class PretendedAccelerator(TorchDispatchMode):
    """Inside, device "meta" computes. `waits` names what waited, in order; `forbidding` makes that an error."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.launched = 0
        self._forbidden = False
        self._patches = [
            patch.object(torch, name, _sent_over(getattr(torch, name))) for name in ("tensor", "as_tensor")
        ]

    def __enter__(self) -> PretendedAccelerator:
        super().__enter__()
        for each in self._patches:
            each.start()
        return self

    def __exit__(self, *error: Any) -> None:
        for each in self._patches:
            each.stop()
        super().__exit__(*error)

    @contextmanager
    def forbidding(self) -> Iterator[None]:
        self._forbidden = True
        try:
            yield
        finally:
            self._forbidden = False

    def _wait(self, what: str) -> None:
        self.waits.append(what)
        if self._forbidden:
            raise Waits(what)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function._schema.name.removeprefix("aten::")
        tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        there = [t for t in tensors if isinstance(t, There)]
        target = kwargs.get("device")
        if name == "_to_copy" and target is not None:
            self._copied(args[0], _is_there(target), kwargs.get("non_blocking", False))
        elif name == "copy_":
            self._copied(args[1], isinstance(args[0], There), args[2] if len(args) > 2 else False)
        elif there:
            self._checked(name, function, args, tensors)
        result_there = _is_there(target) if target is not None else bool(there)
        if name == "copy_":
            result_there = isinstance(args[0], There)
        by_held = {id(t.held): t for t in there}
        kwargs = {k: torch.device("cpu") if k == "device" and v is not None else v for k, v in kwargs.items()}
        result = function(*tree_map(_held, args), **tree_map(_held, kwargs))
        self.launched += bool(there)
        if not result_there:
            return result

        def placed(value: Any) -> Any:  # what was written to is the tensor that it was
            return (
                (by_held[id(value)] if id(value) in by_held else There(value)) if isinstance(value, Tensor) else value
            )

        return tree_map(placed, result)

    def _copied(self, source: Tensor, to_there: bool, non_blocking: bool) -> None:
        from_there = isinstance(source, There)
        if from_there and not to_there:
            self._wait(f"a copy of {tuple(source.shape)} from the accelerator")
        elif to_there and not from_there and not non_blocking:
            self._wait(f"a copy of {tuple(source.shape)} to the accelerator")

    def _checked(self, name: str, function: Any, args: Any, tensors: list[Tensor]) -> None:
        if name in _READS:
            self._wait(f"{function} of {[tuple(t.shape) for t in tensors]}")
        masks = [t for t in tree_iter(args[1:]) if isinstance(t, Tensor) and t.dtype == torch.bool]
        if name in ("index", "index_put", "index_put_", "_index_put_impl_") and masks:
            self._wait(f"{function} with a mask")
        if mixed := [tuple(t.shape) for t in tensors if not isinstance(t, There) and t.ndim]:
            raise AssertionError(f"{function} on tensors of both sides; of the CPU: {mixed}")


def _sent_over(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor` and kin: on a real accelerator they copy what they made on the host, and wait for that."""

    def made(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        tensor = make(*args, **kwargs)
        return tensor if device is None else tensor.to(device)

    return made


def _held(value: Any) -> Any:
    return value.held if isinstance(value, There) else value


def _is_there(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def values(there: Tensor) -> Tensor:
    """What a tensor of the accelerator holds."""
    assert isinstance(there, There), "the result lies on the accelerator"
    return there.held
