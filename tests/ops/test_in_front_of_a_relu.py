"""What rules make of max(z, 0) in front of a ReLU is what they make of z, on every kind of op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from linear_views import linear

from lrp_onnx.rules.linear import alpha_beta, gamma, z_plus

OPS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    # op, x, w, b, attributes
    "groups": ("Conv", (2, 4, 7, 7), (6, 2, 3, 3), (1, 6, 1, 1), {"group": 2, "pads": [1, 1, 1, 1]}),
    "depthwise": ("Conv", (2, 4, 7, 7), (4, 1, 3, 3), (1, 4, 1, 1), {"group": 4, "strides": [2, 2]}),
    "transposed": ("ConvTranspose", (2, 4, 5, 5), (4, 3, 2, 2), (1, 3, 1, 1), {"strides": [2, 2]}),
    "dense": ("Gemm", (3, 8), (8, 5), (5,), {}),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("owned", [True, False])
@pytest.mark.parametrize("rule", [z_plus, alpha_beta, gamma])
def test_max_z_0_is_as_good_as_z(
    op: str, biased: bool, nonnegative: bool, owned: bool, rule: Callable[..., Any]
) -> None:
    torch.manual_seed(0)
    op_type, of_x, of_w, of_b, attributes = OPS[op]
    x = torch.randn(of_x, dtype=torch.float64)
    x[0, :2] = 0  # a place without any input
    x = x.abs() if nonnegative else x
    bias = torch.randn(of_b, dtype=torch.float64) if biased else None
    plain = replace(linear(op_type, torch.randn(of_w, dtype=torch.float64), **attributes), bias=bias)
    z = plain.affine(x, plain.weight, 0.0 if bias is None else bias)
    r = torch.randn_like(z) * (z > 0)
    wanted, absorbed = rule(plain)(x, z.clone(), r.clone())

    known = {"nonnegative": nonnegative, "positive_support": True, "rectified": True, "owned": owned}
    rectified, given = z.clamp(min=0), (x.clone(), r.clone())
    before = rectified.clone()
    found, took = rule(replace(plain, **known))(given[0], rectified, given[1])
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    if biased:
        torch.testing.assert_close(took, absorbed, rtol=1e-9, atol=1e-12)
    else:
        assert took is absorbed is None
    assert owned or torch.equal(rectified, before)
    assert torch.equal(given[0], x)
    assert torch.equal(given[1], r)
