"""Matrix products give what float64 gives, and do not read weights that zeros are for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from linear_views import linear
from torch import Tensor

from lrp_onnx.ops import products
from lrp_onnx.ops.products import product

K, WIDTH = 512, 1023


def check(s: Tensor, w: Tensor, read: Tensor | None = None) -> None:
    """The product is right; where `read` tells which rows of w are needed, the others are not read."""
    assert w.numel() >= products._LARGE
    wanted = (s.double() @ w.double()).float()
    torch.testing.assert_close(product(s, w), wanted, rtol=1e-4, atol=1e-4)
    if read is not None:
        w[~read] = torch.nan  # which would show if they were read, even times zero
        torch.testing.assert_close(product(s, w), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("active", [0, 1, 3, 200, 350, 512])
@pytest.mark.parametrize("width", [1024, 1023])
def test_rows_of_units_that_are_off_are_not_read(active: int, width: int) -> None:
    torch.manual_seed(0)
    s = torch.zeros(1, 512)
    s[0, torch.randperm(512)[:active]] = torch.randn(active)
    weight = torch.randn(512, width)  # out, in
    assert weight.numel() >= products._LARGE
    op = linear("Gemm", weight, transB=1)
    wanted = (s.double() @ weight.double()).float()
    torch.testing.assert_close(op.transpose(s, op.weight, (1, width)), wanted, rtol=1e-4, atol=1e-4)
    if 0 < active <= 0.7 * 512:
        weight[s[0] == 0] = torch.nan  # which would show if they were read, even times zero
        torch.testing.assert_close(op.transpose(s, op.weight, (1, width)), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(K,), (1, K), (7, K), (2, 5, K), (3, 1, K)])
@pytest.mark.parametrize(("first", "last"), [(0, K), (0, 100), (300, 500), (510, 512), (100, 400), (7, 7)])
def test_columns_at_the_ends(shape: tuple[int, ...], first: int, last: int) -> None:
    torch.manual_seed(0)
    s = torch.zeros(shape)
    s[..., first:last] = torch.randn(*shape[:-1], last - first)
    columns = torch.arange(K)
    few = len(shape) > 1 and 0 < 2 * (last - first) < K
    check(s, torch.randn(WIDTH, K).T, (first <= columns) & (columns < last) if few else None)


@pytest.mark.parametrize("on", [[], [0], [8], [3, 4], [0, 8], [0, 1, 2, 3, 4], list(range(9))])
def test_rows_that_are_zero(on: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    s = torch.zeros(3, 3, K)
    s.view(9, K)[on] = torch.randn(len(on), K)
    check(s, torch.randn(K, WIDTH))
    multiplied: list[int] = []
    run: Callable[[Tensor, Tensor], Tensor] = products._of_rows
    monkeypatch.setattr(products, "_of_rows", lambda rows, w: multiplied.append(len(rows)) or run(rows, w))
    product(s, torch.randn(WIDTH, K).T)
    assert multiplied == ([9, len(on)] if on in ([0], [8], [3, 4]) else [9])


def test_a_row_with_a_nan_is_not_zero() -> None:
    s = torch.zeros(5, K)
    s[2, 7] = torch.nan
    assert bool(product(s, torch.ones(K, WIDTH))[2].isnan().all())
