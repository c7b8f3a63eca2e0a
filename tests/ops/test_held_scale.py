"""The transposes of normalisations with 1/std held constant, as they are written and by differentiation."""

from __future__ import annotations

import pytest
import torch

from lrp_onnx.ops import OPS, pullback
from lrp_onnx.ops.linear import _from_left


@pytest.mark.parametrize("axis", [-1, 1, -2])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("op_type", ["LayerNormalization", "RMSNormalization"])
def test_the_written_transpose_is_the_derivative(op_type: str, affine: bool, axis: int) -> None:
    op, generator = OPS["", op_type], torch.Generator().manual_seed(0)
    x, g = torch.randn(2, 4, 3, 5, dtype=torch.float64, generator=generator).unbind()
    x = x * 3 + 1
    rest = [torch.randn(x.shape[axis:], dtype=torch.float64, generator=generator) for _ in range(2)] if affine else []
    rest = rest[:1] if op_type == "RMSNormalization" else rest
    options = {"axis": axis, "epsilon": 1e-3}
    (wanted,) = pullback(lambda x: op.forward(x, *rest, **options, hold_scale=True), x)(g)
    assert op.held is not None
    before = g.clone()
    torch.testing.assert_close(op.held(g, x, *rest, **options), wanted, rtol=1e-12, atol=1e-13)
    assert torch.equal(g, before)


@pytest.mark.parametrize("on", [slice(400, 500), slice(0, 1), slice(10, 600), slice(0, 0)])
def test_columns_without_relevance_are_left_out_of_a_product(on: slice) -> None:
    generator = torch.Generator().manual_seed(0)
    s, w = torch.zeros(2, 7, 600), torch.randn(600, 500, generator=generator)
    s[..., on] = torch.randn(s[..., on].shape, generator=generator)
    found = _from_left(s, w.mT.contiguous(), (2, 7, 500))
    torch.testing.assert_close(found, s @ w, rtol=1e-5, atol=1e-4)
