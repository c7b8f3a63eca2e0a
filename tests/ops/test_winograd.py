"""Convolutions in tiles give what float64 gives, in whatever pieces, and no rule divides by what they round to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from linear_views import linear
from torch import Tensor

from lrp_onnx.ops import Linear, winograd
from lrp_onnx.ops import packed as packed_module
from lrp_onnx.ops.packed import PackedConvolution
from lrp_onnx.rules.linear import epsilon, gamma, z_plus

LAST = torch.channels_last
needs_kernels = pytest.mark.skipif(not packed_module.AVAILABLE, reason="this torch has no packed convolutions")


def of(*shape: int) -> Tensor:
    made = torch.randn(shape)
    return made.contiguous(memory_format=LAST) if len(shape) == 4 else made


def off(z: Tensor, exact: Tensor) -> float:
    """Largest difference, over the largest exact number."""
    return float((z - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("elements", [1, 3000, 1 << 21])
@pytest.mark.parametrize(
    ("n", "size", "pads"), [(1, (8, 8), (1, 1)), (3, (7, 10), (0, 0)), (2, (13, 6), (2, 1)), (1, (3, 3), (0, 2))]
)
def test_every_piece_of_every_size(
    n: int, size: tuple[int, int], pads: tuple[int, int], elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "_ELEMENTS", elements)
    torch.manual_seed(0)
    x, w = of(n, 5, *size), of(7, 5, 3, 3)
    exact = F.conv2d(x.double(), w.double(), padding=pads)
    factor = of(*exact.shape)
    matrices = winograd.transformed(w)
    z = winograd.convolve(x, matrices, pads, factor)
    assert z.shape == exact.shape
    assert z.is_contiguous(memory_format=LAST)
    assert off(z, exact * factor) < 5e-6


def test_the_error_is_at_most_thrice_that_of_the_direct_kernels() -> None:
    torch.manual_seed(0)
    x, w = of(1, 256, 28, 28), of(128, 256, 3, 3)
    exact, ones = F.conv2d(x.double(), w.double(), padding=1), torch.ones(1, 128, 28, 28)
    tiled, direct = winograd.convolve(x, winograd.transformed(w), (1, 1), ones), F.conv2d(x, w, padding=1)
    assert (tiled - exact).norm() < 3 * max((direct - exact).norm(), 5e-7 * exact.norm())


@pytest.mark.parametrize(
    ("x", "w", "pads", "expected"),
    [
        ((1, 128, 16, 16), (128, 128, 3, 3), (1, 1), True),
        ((2, 128, 28, 28), (256, 128, 3, 3), (1, 1), True),
        ((8, 128, 14, 14), (128, 128, 3, 3), (1, 1), False),  # few outputs
        ((1, 128, 1, 300), (128, 128, 3, 3), (1, 1), False),  # most of a tile is outside
        ((1, 128, 16, 16), (64, 128, 3, 3), (1, 1), False),  # few channels
        ((1, 128, 16, 16), (128, 128, 5, 5), (2, 2), False),
        ((1, 128, 16, 16), (128, 128, 3, 3), (3, 3), False),
        ((8, 128, 2, 20), (128, 128, 3, 3), (0, 0), False),  # no output at all
    ],
)
def test_where_it_pays(x: tuple[int, ...], w: tuple[int, ...], pads: tuple[int, int], expected: bool) -> None:
    assert winograd.pays(of(*x), of(*w), pads) is expected
    assert not winograd.pays(of(*x).double(), of(*w).double(), pads)


def convolution(weight: Tensor) -> Linear:
    known = {"nonnegative": True, "rectified": True, "positive_support": True, "tiles": True}
    return replace(linear("Conv", weight, pads=[1, 1, 1, 1]), **known)


@needs_kernels
def test_packed_convolutions_use_it_with_the_weight_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    seen: list[int] = []
    run = winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *given, **more: seen.append(1) or run(*given, **more))
    x, w = of(2, 128, 16, 16), of(160, 128, 3, 3)
    ahead = PackedConvolution([1, 1], [1, 1], [1, 1])
    for _ in range(2):
        factor = of(2, 160, 16, 16)
        exact = factor * F.conv2d(x.double(), w.double(), padding=1)
        assert off(ahead.times(x, w, factor, tiles=True), exact) < 5e-6
        back = PackedConvolution([1, 1], [1, 1], [1, 1], flipped=True)
        g = of(2, 160, 16, 16)
        exact = x * F.conv_transpose2d(g.double(), w.double(), padding=1)
        assert off(back.times(g, w, x, tiles=True), exact) < 5e-6
        w.mul_(2).add_(0.1)
    assert len(seen) == 4
    PackedConvolution([2, 2], [1, 1], [1, 1]).times(x, w, of(2, 160, 8, 8), tiles=True)
    PackedConvolution([1, 1], [1, 1], [2, 2]).times(x, w, of(2, 160, 14, 14), tiles=True)
    ahead.times(x, w, of(2, 160, 16, 16))
    assert len(seen) == 4


@needs_kernels
@pytest.mark.parametrize("rule", ["epsilon", "z-plus", "gamma"])
def test_dim_places_beside_bright_ones(rule: str) -> None:
    """What tiles round is 1e-6 of their brightest place: a denominator that is smaller would explode or turn over."""
    torch.manual_seed(0)
    x = torch.rand(1, 128, 16, 16).contiguous(memory_format=LAST)
    x *= 10.0 ** torch.randint(-9, 7, (1, 1, 16, 16))
    w = of(128, 128, 3, 3) / 34
    z = F.conv2d(x.double(), w.double(), padding=1).relu()
    r = (z * torch.rand(z.shape)).contiguous(memory_format=LAST)
    make = {"epsilon": epsilon, "z-plus": z_plus, "gamma": gamma}[rule]
    # the op in float64 goes through the direct kernels
    exact, _ = make(convolution(w.double()))(x.double(), z.clone(), r.clone())
    found, _ = make(convolution(w))(x, z.float(), r.float())
    assert bool(found.isfinite().all())
    assert off(found.sum(), exact.sum()) < 1e-5
    assert float((found - exact).norm() / exact.norm()) < 1e-5
