"""Linear ops with weights: convolutions, dense layers, Einsum; each with its transpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrp_onnx.errors import UnsupportedOpError
from lrp_onnx.graph import Node
from lrp_onnx.ops.made import MadeOnce
from lrp_onnx.ops.packed import PackedConvolution
from lrp_onnx.ops.products import product
from lrp_onnx.ops.registry import Linear, op, pullback, resolve_pads, torch_pads, unbroadcast

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _spatial(weight: Tensor, strides: Any, dilations: Any) -> tuple[int, list[int], list[int]]:
    n = weight.ndim - 2
    if n not in _CONV:
        raise UnsupportedOpError(f"a convolution over {n} spatial axes (1 to 3 are supported)")
    return n, list(strides or [1] * n), list(dilations or [1] * n)


def _column(bias: Tensor, ndim: int) -> Tensor:
    return bias.reshape(1, -1, *[1] * (ndim - 2))


# ---- Conv


def _conv_builder(node: Node, constants: Mapping[int, Tensor], active: Sequence[int]) -> Linear | None:
    if tuple(active) != (0,) or 1 not in constants:
        return None
    weight, bias = constants[1], constants.get(2)
    attributes = node.attributes
    ahead, back = _packed(weight, **attributes)
    phases = MadeOnce()

    def forward(x: Tensor, w: Tensor) -> Tensor:
        return ahead(x, w) if ahead and ahead.fits(x, w) else conv(x, w, **attributes)

    def transpose(s: Tensor, w: Tensor, shape: Sequence[int]) -> Tensor:
        return back(s, w) if back and back.fits(s, w) else conv_adjoint(s, w, shape, phases, **attributes)

    column = None if bias is None else _column(bias, weight.ndim)
    kernels = _FusedConvolution(ahead, back) if ahead else None
    return Linear(forward, transpose, weight, column, convolution=True, kernels=kernels)


@dataclass(frozen=True)
class _FusedConvolution:
    """A convolution with packed weights and its adjoint, if that is one, as `Linear` wants fused kernels."""

    ahead: PackedConvolution
    back: PackedConvolution | None

    @property
    def shares(self) -> bool:
        return self.back is not None

    def affine(self, x: Tensor, weight: Tensor, offset: Tensor | float, low: float | None) -> Tensor | None:
        return self.ahead(x, weight, offset=offset, low=low) if self.ahead.fits(x, weight) else None

    def share(self, x: Tensor, g: Tensor, weight: Tensor, tiles: bool) -> Tensor | None:
        if self.back is None or not (self.back.fits(g, weight) and self.back.fits(x, weight)):
            return None
        return self.back.times(g, weight, x, tiles=tiles)


def _packed(
    weight: Tensor,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    **_: Any,
) -> tuple[PackedConvolution | None, PackedConvolution | None]:
    """The convolution and its adjoint with packed weights; None where they are no plain 2-D convolutions."""
    if weight.ndim != 4 or group != 1 or auto_pad not in ("NOTSET", "VALID"):
        return None, None
    n, steps, gaps = _spatial(weight, strides, dilations)
    before, after = resolve_pads((), weight.shape[2:], steps, gaps, pads, auto_pad)
    if before != after:
        return None, None
    reach = [(k - 1) * g - b for k, g, b in zip(weight.shape[2:], gaps, before, strict=True)]
    backward = max(steps) == 1 and min(reach) >= 0
    return (
        PackedConvolution(steps, before, gaps),
        PackedConvolution([1] * n, reach, gaps, flipped=True) if backward else None,
    )


@op("Conv", family="linear", linear=_conv_builder)
def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    n, strides, dilations = _spatial(w, strides, dilations)
    before, after = resolve_pads(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    if before != after:
        x, before = F.pad(x, torch_pads(before, after)), [0] * n
    return _CONV[n](x, w, b, strides, before, dilations, group)


def conv_adjoint(
    s: Tensor,
    w: Tensor,
    shape: Sequence[int],
    phases: MadeOnce | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Adjoint of `conv` in its input: s (N, C_out, …) -> (N, C_in, …) of the given shape.

    `phases` keeps what is made of w from one call to the next.
    """
    n, strides, dilations = _spatial(w, strides, dilations)
    before, after = resolve_pads(shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    if n == 2 and max(strides) > 1 and max(dilations) == group == 1 and w.shape[1] <= _FEW:
        return _adjoint_by_phases(s, w, shape[2:], strides, before, MadeOnce() if phases is None else phases)
    if before == after:
        return _conv_input(s, w, shape, strides, before, dilations, group)
    padded = [*shape[:2], *(i + a + b for i, a, b in zip(shape[2:], before, after, strict=True))]
    full = _conv_input(s, w, padded, strides, [0] * n, dilations, group)
    return F.pad(full, torch_pads([-p for p in before], [-p for p in after]))


def _conv_input(
    s: Tensor,
    w: Tensor,
    shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
) -> Tensor:
    # of x only the size and the memory format are read; the latter decides which kernel runs (`grad.conv2d_input`
    # leaves it open, and takes the slow one where w is 1x1)
    last = s.ndim == 4 and s.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.empty(tuple(shape), dtype=s.dtype, device=s.device, memory_format=layout)
    zero, wanted = [0] * len(strides), [True, False, False]
    back = torch.ops.aten.convolution_backward(s, x, w, None, strides, pads, dilations, False, zero, group, wanted)
    return back[0]


_FEW = 4  # input channels up to which the kernels for the adjoint of a strided convolution are slow


def _adjoint_by_phases(
    s: Tensor, w: Tensor, sizes: Sequence[int], strides: Sequence[int], before: Sequence[int], made: MadeOnce
) -> Tensor:
    """Adjoint of a strided convolution as stride-1 convolutions, one for each phase of the input within a stride.

    Input element i = stride·q + phase meets output o through tap i + before − stride·o, that is stride·d + phase with
    d = q − o + m, once `before` is rounded up to stride·m by zeros in front of the kernel.
    """
    (_, c_in, *kernel), (down, across) = w.shape, strides
    m = [-(-b // t) for b, t in zip(before, strides, strict=True)]
    front = [k * t - b for k, b, t in zip(m, before, strides, strict=True)]
    taps = [-(-(k + f) // t) for k, f, t in zip(kernel, front, strides, strict=True)]
    phases = made(w, lambda: _phases(w, strides, front, taps), tuple(before))
    counts = [-(-i // t) for i, t in zip(sizes, strides, strict=True)]
    left = [n - 1 - k for n, k in zip(taps, m, strict=True)]
    right = [q + k - o for q, k, o in zip(counts, m, s.shape[2:], strict=True)]
    z = F.conv2d(F.pad(s, torch_pads(left, right)), phases).permute(0, 2, 3, 1)
    z = z.unflatten(3, (down, across, c_in)).transpose(2, 3)  # (N, rows, phase, columns, phase, C_in)
    z = z.reshape(len(s), counts[0] * down, counts[1] * across, c_in)
    return z[:, : sizes[0], : sizes[1]].permute(0, 3, 1, 2)


def _phases(w: Tensor, strides: Sequence[int], front: Sequence[int], taps: Sequence[int]) -> Tensor:
    """Every stride-th tap of the kernel, turned around: (phase·phase·C_in, C_out, taps, taps), channels last."""
    (c_out, c_in, *kernel), (down, across) = w.shape, strides
    back = [n * t - k - f for n, t, k, f in zip(taps, strides, kernel, front, strict=True)]
    phases = F.pad(w, torch_pads(front, back)).reshape(c_out, c_in, taps[0], down, taps[1], across)
    phases = phases.flip(2, 4).permute(3, 5, 1, 0, 2, 4)  # (phase, phase, C_in, C_out, taps, taps)
    return phases.reshape(-1, c_out, *taps).contiguous(memory_format=torch.channels_last)


# ---- ConvTranspose


def _conv_transpose_builder(node: Node, constants: Mapping[int, Tensor], active: Sequence[int]) -> Linear | None:
    if tuple(active) != (0,) or 1 not in constants:
        return None
    weight, bias = constants[1], constants.get(2)
    attributes = node.attributes

    def forward(x: Tensor, w: Tensor) -> Tensor:
        return conv_transpose(x, w, **attributes)

    def transpose(s: Tensor, w: Tensor, shape: Sequence[int]) -> Tensor:
        n, strides, dilations = _spatial(w, attributes.get("strides"), attributes.get("dilations"))
        before, after, extra = _transposed_pads(shape[2:], w.shape[2:], strides, dilations, attributes)
        full = F.pad(s, torch_pads(before, [p - e for p, e in zip(after, extra, strict=True)]))
        return _CONV[n](full, w, None, strides, 0, dilations, attributes.get("group", 1))

    return Linear(forward, transpose, weight, None if bias is None else _column(bias, weight.ndim), convolution=True)


def _transposed_pads(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    attributes: Mapping[str, Any],
) -> tuple[list[int], list[int], list[int]]:
    """Cropping before and after each axis, and the output padding; source: ONNX's definition of ConvTranspose."""
    n = len(kernel)
    extra = list(attributes.get("output_padding") or [0] * n)
    pads, wanted = attributes.get("pads"), attributes.get("output_shape")
    auto_pad = attributes.get("auto_pad", "NOTSET")
    full = [(i - 1) * s + (k - 1) * d + 1 for i, s, k, d in zip(sizes, strides, kernel, dilations, strict=True)]
    if wanted is None and auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [i * s for i, s in zip(sizes, strides, strict=True)]
    if wanted is None:
        return (*((list(pads[:n]), list(pads[n:])) if pads else ([0] * n, [0] * n)), extra)
    wanted = list(wanted)[-n:]
    # never negative, as in ONNX Runtime; an output_shape beyond the full size is filled with zeros at the end
    total = [max(f + e - o, 0) for f, e, o in zip(full, extra, wanted, strict=True)]
    if attributes.get("output_shape") is not None:
        extra = [o - f + t for o, f, t in zip(wanted, full, total, strict=True)]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return (large, small, extra) if auto_pad != "SAME_UPPER" else (small, large, extra)


@op("ConvTranspose", family="linear", linear=_conv_transpose_builder)
def conv_transpose(x: Tensor, w: Tensor, b: Tensor | None = None, **attributes: Any) -> Tensor:
    n, strides, dilations = _spatial(w, attributes.get("strides"), attributes.get("dilations"))
    before, after, extra = _transposed_pads(x.shape[2:], w.shape[2:], strides, dilations, attributes)
    # torch wants output_padding < stride; what is beyond that is added as zeros, like the rest of it
    full = _CONV_TRANSPOSE[n](x, w, None, strides, 0, 0, attributes.get("group", 1), dilations)
    z = F.pad(full, torch_pads([-p for p in before], [e - p for e, p in zip(extra, after, strict=True)]))
    return z if b is None else z + _column(b, z.ndim)


# ---- dense layers


def _gemm_builder(node: Node, constants: Mapping[int, Tensor], active: Sequence[int]) -> Linear | None:
    if tuple(active) != (0,) or 1 not in constants or (node.input(2) and 2 not in constants):
        return None
    flip = bool(node.attributes.get("transA", 0))
    weight = constants[1].T if node.attributes.get("transB", 0) else constants[1]  # (in, out)
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    bias = constants.get(2)
    return Linear(
        lambda x, w: (x.T if flip else x) @ w,
        lambda s, w, _: product(s, w.T).T if flip else product(s, w.T),
        weight if alpha == 1.0 else alpha * weight,
        bias if bias is None or beta == 1.0 else beta * bias,
    )


@op("Gemm", family="linear", linear=_gemm_builder)
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    z = (a.T if transA else a) @ (b.T if transB else b)
    z = z if alpha == 1.0 else alpha * z
    return z if c is None else z + (c if beta == 1.0 else beta * c)


def _matmul_builder(node: Node, constants: Mapping[int, Tensor], active: Sequence[int]) -> Linear | None:
    if len(active) != 1 or 1 - active[0] not in constants:
        return None
    weight = constants[1 - active[0]]
    if weight.ndim < 2:
        return None
    if active[0] == 0:
        return Linear(torch.matmul, _from_left, weight)
    return Linear(lambda x, w: torch.matmul(w, x), _from_right, weight)


def _from_left(s: Tensor, w: Tensor, shape: Sequence[int]) -> Tensor:
    """Transpose of x -> x @ w; a vector x counts as one row."""
    if len(shape) == 1:
        return _from_left(s.unsqueeze(-2), w, (1, *shape)).squeeze(0)
    return unbroadcast(product(s, w.mT), shape)


def _from_right(s: Tensor, w: Tensor, shape: Sequence[int]) -> Tensor:
    """Transpose of x -> w @ x; a vector x counts as one column."""
    if len(shape) == 1:
        return _from_right(s.unsqueeze(-1), w, (*shape, 1)).squeeze(-1)
    return unbroadcast(torch.matmul(w.mT, s), shape)


@op("MatMul", family="linear", linear=_matmul_builder)
def matmul(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


def _einsum_builder(node: Node, constants: Mapping[int, Tensor], active: Sequence[int]) -> Linear | None:
    if len(active) != 1 or len(node.inputs) != 2 or 1 - active[0] not in constants:
        return None
    equation = node.attributes["equation"]
    at = active[0]

    def forward(x: Tensor, w: Tensor) -> Tensor:
        return torch.einsum(equation, *((x, w) if at == 0 else (w, x)))

    def transpose(s: Tensor, w: Tensor, shape: Sequence[int]) -> Tensor:
        return pullback(lambda x: forward(x, w), s.new_zeros(tuple(shape)))(s)[0]

    return Linear(forward, transpose, constants[1 - at])


@op("Einsum", family="linear", linear=_einsum_builder)
def einsum(*operands: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *operands)
