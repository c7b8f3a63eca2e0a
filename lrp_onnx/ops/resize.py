"""Reading images between their pixels: Resize in all its modes, as one small matrix an axis, and GridSample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrp_onnx.errors import UnsupportedOpError
from lrp_onnx.graph import Node
from lrp_onnx.ops.registry import Linear, means, moved, op


def _resize_builder(node: Node, constants: Mapping[int, Tensor], active: Sequence[int]) -> Linear:
    extra = [constants.get(p) for p in range(1, len(node.inputs))]
    return means(partial(_resize_with, extra), **node.attributes)


def _resize_with(extra: Sequence[Tensor | None], x: Tensor, **attributes: Any) -> Tensor:
    return resize(x, *extra, **attributes)


def _source_coordinates(
    size_in: int, size_out: int, scale: float, mode: str, roi: tuple[float, float], dtype: type[np.floating]
) -> np.ndarray:
    """Where each output element looks in the input; source: ONNX's coordinate_transformation_mode."""
    at = np.arange(size_out, dtype=dtype)
    step = dtype(scale)
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and size_out > 1):
        return (at + 0.5) / step - 0.5
    if mode == "half_pixel_symmetric":
        adjust = size_out / (step * size_in)
        return size_in / 2 * (1 - adjust) + (at + 0.5) / step - 0.5
    if mode == "asymmetric":
        return at / step
    if mode == "tf_crop_and_resize":
        start, end = roi
        if size_out > 1:
            return start * (size_in - 1) + at * (end - start) * (size_in - 1) / (size_out - 1)
        return 0.5 * (start + end) * (size_in - 1) + at
    if mode in ("align_corners", "pytorch_half_pixel"):
        return at * (size_in - 1) / (size_out - 1) if size_out > 1 else at
    raise UnsupportedOpError(f"Resize: coordinate_transformation_mode '{mode}' is not known")


def _rounded(at: Tensor, mode: str) -> Tensor:
    floor, ceil = torch.floor(at), torch.ceil(at)  # at ± 0.5 would itself be rounded
    if mode == "round_prefer_floor":
        return torch.where(at - floor <= 0.5, floor, ceil)
    if mode == "round_prefer_ceil":
        return torch.where(at - floor < 0.5, floor, ceil)
    return floor if mode == "floor" else ceil


def _kernel(distance: Tensor, mode: str, cubic: float) -> Tensor:
    d = distance.abs()
    if mode == "linear":
        return (1 - d).clamp(min=0)
    near = ((cubic + 2) * d - (cubic + 3)) * d * d + 1
    far = ((cubic * d - 5 * cubic) * d + 8 * cubic) * d - 4 * cubic
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def _resize_matrix(
    size_in: int, size_out: int, scale: float, roi: tuple[float, float], x: Tensor, options: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """(size_out, size_in) weights of one axis, and which outputs lie outside of the input, which the CPU knows."""
    nearest = options["mode"] == "nearest"
    # the nearest element in float32, as in ONNX Runtime: a rounding error decides which one it is
    dtype = np.float32 if nearest else np.float64
    places = _source_coordinates(size_in, size_out, scale, options["coordinates"], roi, dtype)
    at = torch.from_numpy(places)
    outside = (at < 0) | (at > size_in - 1)
    columns = torch.arange(size_in, dtype=at.dtype)
    if nearest:
        index = _rounded(at, options["nearest"]).clamp(0, size_in - 1)
        return moved((index[:, None] == columns).to(x.dtype), x.device), outside
    shrink = min(scale, 1.0) if options["antialias"] else 1.0
    reach = math.ceil((1 if options["mode"] == "linear" else 2) / shrink)
    taps = torch.floor(at)[:, None] + torch.arange(1 - reach, reach + 1, dtype=at.dtype)
    weight = _kernel((taps - at[:, None]) * shrink, options["mode"], options["cubic"])
    inside = (taps >= 0) & (taps <= size_in - 1)
    if options["exclude_outside"]:
        weight = weight * inside
    weight = weight / weight.sum(1, keepdim=True)
    matrix = at.new_zeros((size_out, size_in))
    matrix.scatter_add_(1, taps.clamp(0, size_in - 1).long(), weight)
    return moved(matrix.to(x.dtype), x.device), outside


@op("Resize", family="mean", inputs=(0,), linear=_resize_builder, numbers=(1, 2, 3))
def resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | Sequence[float] | None = None,
    sizes: Tensor | None = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    keep_aspect_ratio_policy: str = "stretch",
) -> Tensor:
    """Separable: one small matrix an axis, so that every mode is linear in x by construction."""
    along = [a % x.ndim for a in axes] if axes is not None else list(range(x.ndim))
    options = {
        "mode": mode,
        "coordinates": coordinate_transformation_mode,
        "nearest": nearest_mode,
        "cubic": cubic_coeff_a,
        "exclude_outside": exclude_outside,
        "antialias": antialias,
    }
    if sizes is not None and sizes.numel():
        targets = [int(s) for s in sizes.tolist()]
        ratios = [t / x.shape[a] for t, a in zip(targets, along, strict=True)]
        if keep_aspect_ratio_policy != "stretch":
            ratio = (min if keep_aspect_ratio_policy == "not_larger" else max)(ratios)
            ratios = [ratio] * len(ratios)
            targets = [math.floor(ratio * x.shape[a] + 0.5) for a in along]
    else:
        given = scales.tolist() if isinstance(scales, Tensor) else list(scales or [])
        ratios = [float(r) for r in given]
        targets = [math.floor(x.shape[a] * r + 1e-6) for a, r in zip(along, ratios, strict=True)]
    region = roi.tolist() if roi is not None and roi.numel() else [0.0] * len(along) + [1.0] * len(along)
    blank = torch.zeros((), dtype=torch.bool)
    for k, (axis, target, ratio) in enumerate(zip(along, targets, ratios, strict=True)):
        if target == x.shape[axis] and ratio == 1:
            continue
        window = (region[k], region[k + len(along)])
        matrix, outside = _resize_matrix(x.shape[axis], target, ratio, window, x, options)
        x = torch.tensordot(x, matrix, dims=([axis], [1])).movedim(-1, axis)
        if coordinate_transformation_mode == "tf_crop_and_resize":
            blank = blank | outside.reshape([-1 if d == axis else 1 for d in range(x.ndim)])
    return torch.where(moved(blank, x.device), torch.full_like(x, extrapolation_value), x) if blank.any() else x


def _upsample_builder(node: Node, constants: Mapping[int, Tensor], active: Sequence[int]) -> Linear:
    return means(partial(_upsample_with, constants.get(1)), **node.attributes)


def _upsample_with(given: Tensor | None, x: Tensor, **attributes: Any) -> Tensor:
    return upsample(x, **({} if given is None else {"scales": given}), **attributes)


@op("Upsample", family="mean", inputs=(0,), linear=_upsample_builder, numbers=(1,))
def upsample(x: Tensor, scales: Tensor | Sequence[float] | None = None, *, mode: str = "nearest") -> Tensor:
    return resize(x, None, scales, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor")


_GRID_MODES = {"linear": "bilinear", "cubic": "bicubic"}


@op("GridSample", family="mean", inputs=(0,))
def grid_sample(
    x: Tensor, grid: Tensor, *, mode: str = "linear", padding_mode: str = "zeros", align_corners: int = 0
) -> Tensor:
    mode = _GRID_MODES.get(mode, mode)
    return torch.nn.functional.grid_sample(x, grid, mode, padding_mode, bool(align_corners))
