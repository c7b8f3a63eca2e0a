"""Relevance of the tensors that a store holds, taken in while the walk is at them: narrowed, and summed per sample."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from lrp_onnx.errors import StoreError

_HALF_MAX = torch.finfo(torch.float16).max


class Recorder:
    """What `Explainer.explain` takes for `record`; one for each batch.

    Parameters
    ----------
    narrow : collection of str
        Tensors to record as float16; the others stay as they are.
    """

    def __init__(self, narrow: Collection[str]) -> None:
        self._narrow = narrow
        self._sums: dict[str, Tensor] = {}
        self._beyond: dict[str, Tensor] = {}  # of an accelerator, which nobody waits for in the middle of the walk
        self._last: tuple[Tensor, int, Tensor, Tensor] | None = None

    def __call__(self, name: str, relevance: Tensor) -> Tensor:
        """The relevance (n, …) as the store takes it.

        Raises
        ------
        StoreError
            Finite values exceed float16.
        """
        narrow = name in self._narrow
        if self._last is not None:
            last, version, values, sums = self._last
            # an activation hands relevance on as it came: the same tensor, unless it was written on meanwhile
            if last is relevance and version == relevance._version and narrow == (values.dtype == torch.float16):
                self._sums[name] = sums
                return values
        memory = _as_in_memory(relevance)
        self._sums[name] = memory.reshape(len(memory), -1).sum(dim=1)
        if narrow:
            values = self._narrowed(name, relevance, memory)
        else:
            values = relevance.clone(memory_format=torch.contiguous_format)
        self._last = relevance, relevance._version, values, self._sums[name]
        return values

    def sums(self, names: Collection[str]) -> Tensor:
        """Relevance of each sample at each of these tensors, float64 (n, L).

        Raises
        ------
        StoreError
            As above, where an accelerator tells it only now.
        """
        if self._beyond:
            told = torch.stack(list(self._beyond.values())).tolist()
            for name, beyond in zip(self._beyond, told, strict=True):
                _check(name, beyond)
        return torch.stack([self._sums[name].double() for name in names], dim=1)

    def _narrowed(self, name: str, relevance: Tensor, memory: Tensor) -> Tensor:
        # narrowed first, so that the order is changed of half as many bytes
        half = relevance.half()
        if not relevance.is_cpu:
            self._beyond[name] = half.isinf().sum() > relevance.isinf().sum()
        # a norm is a fast bound of the largest value
        elif not bool(torch.linalg.vector_norm(memory) <= _HALF_MAX):
            _check(name, bool(half.isinf().sum() > relevance.isinf().sum()))
        return half.contiguous()


def _as_in_memory(relevance: Tensor) -> Tensor:
    """The same numbers in the order in which they lie: pictures are channels last as a rule."""
    if relevance.ndim == 4 and relevance.is_contiguous(memory_format=torch.channels_last):
        return relevance.permute(0, 2, 3, 1)
    return relevance.contiguous()


def _check(name: str, beyond: bool) -> None:
    if beyond:
        raise StoreError(f"layer '{name}' has values beyond float16; store layers as float32")
