"""The adjoint of a strided convolution of few channels, done phase by phase, is the gradient that autograd finds."""

from __future__ import annotations

import pytest
import torch

from lrp_onnx.ops.linear import conv, conv_adjoint
from lrp_onnx.ops.made import MadeOnce
from lrp_onnx.ops.registry import pullback

CASES = [
    # size, kernel, strides, pads (before, after)
    ((224, 224), (7, 7), [2, 2], [3, 3, 3, 3]),  # ResNet
    ((224, 224), (11, 11), [4, 4], [2, 2, 2, 2]),  # AlexNet
    ((17, 23), (3, 5), [3, 2], [0, 2, 1, 1]),
    ((16, 15), (2, 2), [4, 4], [0, 0, 0, 0]),  # pixels between the windows
    ((9, 9), (3, 3), [1, 2], [2, 4, 2, 0]),  # more padding than the stride
    ((13, 14), (5, 1), [2, 1], [0, 0, 0, 0]),
]


@pytest.mark.parametrize(("size", "kernel", "strides", "pads"), CASES)
@pytest.mark.parametrize("channels", [1, 3])
def test_phases_give_the_gradient(
    size: tuple[int, int], kernel: tuple[int, int], strides: list[int], pads: list[int], channels: int
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    w = torch.randn(5, channels, *kernel, dtype=torch.float64)
    z = conv(x, w, strides=strides, pads=pads)
    s = torch.randn_like(z)
    (wanted,) = pullback(lambda x: conv(x, w, strides=strides, pads=pads), x)(s)
    torch.testing.assert_close(conv_adjoint(s, w, x.shape, strides=strides, pads=pads), wanted, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("inference", [False, True])
def test_the_kernels_of_phases_are_those_of_the_weight_as_it_is(inference: bool) -> None:
    s, made, wanted = torch.randn(1, 5, 8, 8), MadeOnce(), []
    with torch.inference_mode(inference):
        w = torch.randn(5, 3, 2, 2)
        for _ in range(2):
            for _ in range(2):
                wanted.append(conv_adjoint(s, w, (1, 3, 16, 16), strides=[2, 2]))
                torch.testing.assert_close(
                    conv_adjoint(s, w, (1, 3, 16, 16), made, strides=[2, 2]), wanted[-1], rtol=0, atol=0
                )
            w.mul_(-2)
    assert len(made) == (0 if inference else 1)
    torch.testing.assert_close(wanted[2], -2 * wanted[1])
