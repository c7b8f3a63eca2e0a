"""Targets and seeds: from the model's output to the initial relevance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lrp_onnx.errors import TargetError

Fixed = Literal["predicted", "label"] | int | Sequence[int] | np.ndarray | Tensor
Target = Fixed | Callable[[Tensor], Fixed]
Seed = Literal["auto", "logit", "one", "all"]


def make_seed(
    output: Tensor, target: Target, labels: Sequence[int] | np.ndarray | None, seed: Seed
) -> tuple[Tensor, np.ndarray | None]:
    """Initial relevance, shaped as `output` (N, …), and the target of each sample, (N,) over the flattened output.

    Raises
    ------
    TargetError
        The target does not fit the output, or the seed is not known.
    """
    if seed not in ("logit", "one", "all"):
        raise TargetError(f"seed must be 'auto', 'logit', 'one' or 'all', not '{seed}'")
    if not output.ndim:
        raise TargetError("the model's output is a single number for the whole batch; expected one row per sample")
    n = output.shape[0]
    if callable(target):
        target = target(output)
    array = None if isinstance(target, str) else _array(target)
    if array is not None and array.shape == tuple(output.shape) and array.ndim > 1:
        return torch.as_tensor(array).to(output), None
    if seed == "all":
        return output.clone(), None
    flat = output.reshape(n, -1)
    index = _index(flat, target, array, labels)
    initial = torch.zeros_like(flat)
    rows = torch.arange(n, device=output.device)
    columns = torch.as_tensor(index, device=output.device)
    initial[rows, columns] = flat[rows, columns] if seed == "logit" else 1.0
    return initial.reshape(output.shape), index


def _array(target: Any) -> np.ndarray:
    return target.detach().cpu().numpy() if isinstance(target, Tensor) else np.asarray(target)


def _index(
    flat: Tensor, target: Fixed, array: np.ndarray | None, labels: Sequence[int] | np.ndarray | None
) -> np.ndarray:
    n, k = flat.shape
    if array is None:
        if target == "predicted":
            return flat.argmax(dim=1).cpu().numpy()
        if target != "label":
            raise TargetError(f"target must be 'predicted', 'label', an index or an array, not '{target}'")
        if labels is None:
            raise TargetError("target='label' needs labels; this data has none")
        array = np.asarray(labels)
    if array.dtype.kind not in "iu" or array.shape not in ((), (n,)):
        raise TargetError(
            f"target has shape {array.shape} and type {array.dtype}; expected an integer, {n} integers, "
            f"or initial relevance shaped as the output ({n}, {k})"
        )
    if array.size and (array.min() < 0 or array.max() >= k):
        wrong = array.max() if array.max() >= k else array.min()
        raise TargetError(f"target {wrong} is outside of the model's {k} outputs (0 to {k - 1})")
    return np.broadcast_to(array, (n,)).astype(np.int64)
