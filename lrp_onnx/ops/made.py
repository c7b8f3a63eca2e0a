"""What is made of a weight once: rounded, packed or transformed."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class MadeOnce:
    """Tensors made of weights, each kept as long as its weight is there and not written to; the latest key's alone.

    Of a weight that was made in inference mode nothing is kept.
    """

    def __init__(self) -> None:
        self._made = WeakTensorKeyDictionary()  # weight -> ((version of the weight, key), what was made)

    def __len__(self) -> int:
        """For how many weights something is kept."""
        return len(self._made)

    def __call__(self, w: Tensor, make: Callable[[], Tensor], key: Hashable = None) -> Tensor:
        """What `make` gave for this weight and key, or gives now."""
        if w.is_inference():  # it has no version to tell by whether it was written to
            return make()
        wanted = w._version, key
        found = self._made.get(w)
        if found is None or found[0] != wanted:
            with torch.inference_mode(False):  # what is made in that mode can be used in no other
                found = self._made[w] = wanted, make()
        made: Tensor = found[1]
        return made
