"""Packed weights give what plain ones give, whatever the call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from linear_views import linear
from torch import Tensor

from lrp_onnx.ops import packed as packed_module
from lrp_onnx.ops.packed import PackedConvolution

LAST = torch.channels_last
CASES: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((8, 5, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((8, 5, 1, 1), {}),
    ((4, 6, 3, 5), {"pads": [1, 2, 1, 2]}),
    ((4, 6, 3, 3), {"pads": [2, 1, 2, 1], "dilations": [2, 1]}),
    ((6, 3, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
]


def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call of a packed convolution so far was that of a flipped one."""
    seen: list[bool] = []
    run = PackedConvolution.__call__

    def counted(self: PackedConvolution, x: Tensor, w: Tensor, **more: Any) -> Tensor:
        seen.append(self._flipped)
        return run(self, x, w, **more)

    monkeypatch.setattr(PackedConvolution, "__call__", counted)
    return seen


@pytest.fixture
def picture() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 8, 9, 10).contiguous(memory_format=LAST)


@pytest.mark.skipif(not packed_module.AVAILABLE, reason="this torch has no such kernels")
@pytest.mark.parametrize(("shape", "attributes"), CASES)
def test_packed_is_unpacked(
    shape: tuple[int, ...], attributes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    op = linear("Conv", torch.randn(shape), **attributes)
    other = torch.randn(shape)  # one operator runs with several weights: the model's own, and a rule's
    plain = linear("Conv", torch.randn(shape, dtype=torch.float64), **attributes)
    seen = calls(monkeypatch)
    for n, height, width in ((1, 9, 10), (4, 9, 10), (2, 12, 8), (1, 9, 10)):  # batches and sizes change between calls
        for w in (op.weight, other):
            assert w is not None
            x = torch.randn(n, shape[1], height, width).contiguous(memory_format=LAST)
            z = op.forward(x, w)
            wanted = plain.forward(x.double(), w.double())
            torch.testing.assert_close(z.double(), wanted, rtol=1e-5, atol=1e-5)
            assert z.is_contiguous(memory_format=LAST)
            s = torch.randn_like(z)
            found = op.transpose(s, w, x.shape)
            wanted = plain.transpose(s.double(), w.double(), x.shape)
            torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    assert False in seen
    assert (True in seen) == ("strides" not in attributes), "the adjoint of a strided convolution is none"


@pytest.mark.parametrize(("shape", "attributes"), CASES)
@pytest.mark.parametrize("last", [True, False])
def test_one_pass_gives_what_several_give(shape: tuple[int, ...], attributes: dict[str, Any], last: bool) -> None:
    torch.manual_seed(0)
    op = linear("Conv", torch.randn(shape), **attributes)
    assert op.weight is not None
    x = torch.randn(2, shape[1], 9, 10)
    x = x.contiguous(memory_format=LAST) if last else x
    column = torch.randn(1, shape[0], 1, 1)
    for offset in (column, 1e-6):
        z = op.forward(x, op.weight) + offset
        torch.testing.assert_close(op.affine(x, op.weight, offset), z, rtol=1e-6, atol=1e-6)
        low = op.affine(x, op.weight, offset, low=0.5)
        torch.testing.assert_close(low, z.clamp(min=0.5), rtol=1e-6, atol=1e-6)
        assert float(low.min()) == 0.5
    g, before = torch.randn_like(z), x.clone()
    wanted = x * op.transpose(g, op.weight, x.shape)
    torch.testing.assert_close(op.share(x, g, op.weight), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before)


@pytest.mark.skipif(not packed_module.AVAILABLE, reason="this torch has no such kernels")
def test_a_weight_that_is_written_to_is_packed_again(picture: Tensor) -> None:
    w = torch.randn(4, 8, 3, 3)
    op = linear("Conv", w)
    before = op.forward(picture, w)
    w.mul_(2)
    torch.testing.assert_close(op.forward(picture, w), 2 * before)


@pytest.mark.skipif(not packed_module.AVAILABLE, reason="this torch has no such kernels")
def test_packs_go_with_their_weights(picture: Tensor) -> None:
    packed = PackedConvolution([1, 1], [0, 0], [1, 1])
    kept, passing = torch.randn(4, 8, 3, 3), torch.randn(4, 8, 3, 3)
    packed(picture, kept)
    packed(picture, passing)
    assert len(packed._packs) == 2
    del passing
    assert len(packed._packs) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.double(),
        lambda x: x.contiguous(),
        lambda x: x[:0],
        lambda x: x[:1].expand(2, -1, -1, -1),
        lambda x: x.detach().requires_grad_(),
    ],
)
def test_what_the_kernels_cannot_take_goes_unpacked(
    change: Any, picture: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = change(picture)
    w = torch.randn(4, 8, 3, 3, dtype=x.dtype)
    seen = calls(monkeypatch)
    z = linear("Conv", w, pads=[1, 1, 1, 1]).forward(x, w)
    torch.testing.assert_close(z, torch.nn.functional.conv2d(x, w, padding=1))
    assert seen == []


@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        ((8, 4, 3, 3), {"group": 2}),
        ((8, 8, 3, 3), {"auto_pad": "SAME_UPPER"}),
        ((8, 8, 3, 3), {"pads": [0, 0, 1, 1]}),
    ],
)
def test_other_convolutions_go_unpacked(
    shape: tuple[int, ...], attributes: dict[str, Any], picture: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = torch.randn(shape)
    op, seen = linear("Conv", w, **attributes), calls(monkeypatch)
    op.transpose(op.forward(picture, w).contiguous(memory_format=LAST), w, picture.shape)
    assert seen == []


def test_without_the_kernels_all_goes_unpacked(picture: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_module, "AVAILABLE", False)
    seen, w = calls(monkeypatch), torch.randn(4, 8, 3, 3)
    op = linear("Conv", w)
    assert op.transpose(op.forward(picture, w), w, picture.shape).shape == picture.shape
    assert seen == []
