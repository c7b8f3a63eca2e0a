"""What a CUDA device asks for: copies that nobody waits for before they are read, and float32 that is float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; to CUDA from pinned memory, so that the host goes on while it is copied."""
    if device.type != "cuda" or tensor.is_cuda or tensor.is_pinned():  # the owner may write to pinned memory at once
        return tensor.to(device)
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)


class Fetching:
    """Copies of tensors on their way to the host, behind what the device was given to do before.

    Parameters
    ----------
    tensors : sequence of Tensor
        All on one device. Those of the CPU are handed back as they are.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors, self._arrived = list(tensors), None
        device = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
        if device is not None:
            pinned = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
            self._tensors = [host.copy_(t, non_blocking=True) for host, t in zip(pinned, tensors, strict=True)]
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(device))

    def wait(self) -> list[Tensor]:
        """The tensors in the host's memory; waits until they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [tensor.cpu() for tensor in self._tensors]


_lock = Lock()
_inside = 0  # explanations that run now
_undo: list[Callable[[], None]] = []


@contextmanager
def true_float32(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Inside, CUDA computes float32 with its 23 bits: convolutions have TF32, of 10 bits, by torch's default.

    These settings are of the whole process; they are what they were when the last explanation has ended.
    """
    global _inside
    if device.type != "cuda" or dtype != torch.float32:
        yield
        return
    with _lock:
        if not _inside:
            _undo.extend(_without_tf32())
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            while _undo and not _inside:
                _undo.pop()()


def _without_tf32() -> list[Callable[[], None]]:
    """Turns TF32 off; what turns it on again where it was on."""
    undo: list[Callable[[], None]] = []
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    if hasattr(cudnn, "conv"):  # torch 2.9: reading `allow_tf32` is an error where these settings differ
        undo += _set(cudnn.conv, "fp32_precision", "ieee")
        if undo_matmul := _matmul_highest():
            undo += undo_matmul
        else:
            undo += _set(matmul, "fp32_precision", "ieee")
    else:
        undo += [*_set(cudnn, "allow_tf32", False), *_matmul_highest()]
    return undo


def _matmul_highest() -> list[Callable[[], None]]:
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set by the new names alone
        return []
    if before == "highest":
        return []
    torch.set_float32_matmul_precision("highest")
    return [lambda: torch.set_float32_matmul_precision(before)]


def _set(module: object, name: str, value: object) -> list[Callable[[], None]]:
    before = getattr(module, name)
    if before in (value, "none"):  # "none" says nothing, and without a word it is float32
        return []
    setattr(module, name, value)
    return [lambda: setattr(module, name, before)]
