"""Matrix products that leave out what is zero: most of the time of a large layer goes into reading its weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_LARGE = 1 << 18  # elements of a weight matrix above which it pays
_MOST = 0.7  # share of its rows up to which it pays to read these alone; a matrix product reads faster
_BAGS = 8  # sums of some rows each, side by side; one alone would be the work of one thread


def product(s: Tensor, w: Tensor) -> Tensor:
    """s @ w, s (…, K), w (K, M), without the rows and columns of s that are zero, where these are many.

    Of a single row the rows of w are left out that zeros are for: behind a ReLU many units are off. Of many rows, those
    that are zero: below a head that reads one token, the last block's relevance is at that token alone. And the columns
    at the ends: one layer makes queries, keys and values; where relevance goes through the values alone, two thirds are
    zero.
    """
    plain = s.device.type == "cpu" and w.ndim == 2 and s.ndim > 1 and s.dtype == w.dtype and s.numel() > 0
    if not plain or w.numel() < _LARGE or s.requires_grad or w.requires_grad:
        return torch.matmul(s, w)
    rows = s.reshape(-1, s.shape[-1])
    result = _of_row(rows, w) if len(rows) == 1 and w.is_contiguous() else _of_rows(rows, w)
    return result.view(*s.shape[:-1], w.shape[1])


def _of_rows(s: Tensor, w: Tensor) -> Tensor:
    if not (s[0].any() and s[-1].any()):  # as a rule they tell
        on = _active(s, dim=1)
        if 2 * len(on) < len(s):
            result = s.new_zeros(len(s), w.shape[1])
            if len(on):
                result[on] = product(s[on], w)
            return result
    if 2 * int(s[0].count_nonzero()) <= len(w):
        on = _active(s, dim=0)
        first, last = (int(on[0]), int(on[-1]) + 1) if len(on) else (0, 0)
        if 2 * (last - first) < len(w):
            s, w = s[:, first:last], w[first:last]
    return s @ w


def _active(s: Tensor, dim: int) -> Tensor:
    """Indices of the rows (dim=1) or columns (dim=0) that are not zero."""
    return ((s.amax(dim) != 0) | (s.amin(dim) != 0)).nonzero().flatten()  # `any` takes ten times as long


def _of_row(s: Tensor, w: Tensor) -> Tensor:
    (on,) = s[0].nonzero(as_tuple=True)
    if not len(on) or len(on) > _MOST * len(w):
        return s @ w
    begins = torch.arange(_BAGS) * len(on) // _BAGS
    return F.embedding_bag(on, w, begins, mode="sum", per_sample_weights=s[0, on]).sum(0, keepdim=True)
