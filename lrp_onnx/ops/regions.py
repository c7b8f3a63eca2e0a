"""Reading regions of feature maps, and choosing them: RoiAlign, DeformConv, Col2Im, NonMaxSuppression."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from lrp_onnx.errors import UnsupportedOpError
from lrp_onnx.graph import Node
from lrp_onnx.ops.pooling import first_maximum
from lrp_onnx.ops.registry import Family, moved, op


def _roi_family(node: Node) -> Family:
    return "max" if node.attributes.get("mode", "avg") == "max" else "mean"


@op("RoiAlign", family="mean", family_of=_roi_family, inputs=(0,))
def roi_align(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
    coordinate_transformation_mode: str = "half_pixel",
) -> Tensor:
    """(N, C, H, W), (regions, 4) -> (regions, C, rows, columns): the mean of bilinear samples, or the largest.

    Separable: of each axis a small matrix of weights, whose product reads a sample.
    """
    half = coordinate_transformation_mode == "half_pixel"
    corners = rois.to(x) * spatial_scale - (0.5 if half else 0.0)
    results = []
    for (x1, y1, x2, y2), picture in zip(corners.tolist(), batch_indices.tolist(), strict=True):
        weights = []
        for size, cells, low, high in ((x.shape[2], output_height, y1, y2), (x.shape[3], output_width, x1, x2)):
            extent = high - low if half else max(high - low, 1.0)
            samples = sampling_ratio or math.ceil(extent / cells)
            weights.append(_samples(x, size, cells, samples, low, extent))  # (cells, samples, size)
        if mode == "avg":
            down, across = (w.mean(1) for w in weights)
            results.append(torch.einsum("ih,chw,jw->cij", down, x[int(picture)], across))
            continue
        # ONNX takes the largest of the four terms of a bilinear sample, not the largest sample
        down, across = (w.reshape(-1, w.shape[-1]) for w in weights)
        terms = down[:, None, :, None] * across[None, :, None, :]  # (cells · samples, cells · samples, H, W)
        read = terms.flatten(2) != 0
        values = torch.where(read, terms.flatten(2) * x[int(picture)].flatten(1)[:, None, None], -math.inf)
        rest = torch.where(read.sum(-1) < 4, 0.0, -math.inf).to(x)  # a term without weight is 0
        values = torch.cat([values, rest.expand(len(values), -1, -1)[..., None]], -1)
        values = values.unflatten(1, (output_height, -1)).unflatten(3, (output_width, -1))
        results.append(first_maximum(values, (2, 4, 5), keepdim=False))
    empty = x.new_zeros((0, x.shape[1], output_height, output_width))
    return torch.stack(results) if results else empty


def _samples(x: Tensor, size: int, cells: int, samples: int, low: float, extent: float) -> Tensor:
    """(cells, samples, size): what each sample of each cell reads, linearly in between; nothing beyond the edge."""
    step = extent / cells
    within = (torch.arange(samples, dtype=x.dtype) + 0.5) * (step / samples)
    at = low + step * torch.arange(cells, dtype=x.dtype)[:, None] + within
    inside = (at >= -1) & (at <= size)
    at = at.clamp(0, size - 1)[..., None]
    columns = torch.arange(size, dtype=x.dtype)
    return moved((1 - (at - columns).abs()).clamp(min=0) * inside[..., None].to(x.dtype), x.device)


@op("MaxRoiPool", family="max", inputs=(0,))
def max_roi_pool(x: Tensor, rois: Tensor, *, pooled_shape: Sequence[int], spatial_scale: float = 1.0) -> Tensor:
    results = []
    for picture, *corners in rois.tolist():
        x1, y1, x2, y2 = (math.floor(c * spatial_scale + 0.5) for c in corners)
        axes = []
        for size, cells, low, high in ((x.shape[2], pooled_shape[0], y1, y2), (x.shape[3], pooled_shape[1], x1, x2)):
            step = max(high - low + 1, 1) / cells
            ends = [(math.floor(k * step) + low, math.ceil((k + 1) * step) + low) for k in range(cells)]
            axes.append([(min(max(a, 0), size), min(max(b, 0), size)) for a, b in ends])
        rows = []
        for top, bottom in axes[0]:
            cuts = [x[int(picture), :, top:bottom, left:right] for left, right in axes[1]]
            cells_ = [first_maximum(c, (1, 2), keepdim=False) if c.numel() else x.new_zeros(len(c)) for c in cuts]
            rows.append(torch.stack(cells_, -1))
        results.append(torch.stack(rows, -2))
    return torch.stack(results) if results else x.new_zeros((0, x.shape[1], *pooled_shape))


@op("DeformConv", family="linear", inputs=(0,))
def deform_conv(
    x: Tensor,
    w: Tensor,
    offset: Tensor,
    b: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """A 2-D convolution whose taps are moved by `offset` and weighted by `mask`: each tap is one bilinear reading."""
    if x.ndim != 4:
        raise UnsupportedOpError(f"a deformable convolution over {x.ndim - 2} spatial axes (2 are supported)")
    (down, across), (gap_y, gap_x) = strides or (1, 1), dilations or (1, 1)
    top, left = (pads or (0, 0))[:2]
    (n, c, height, width), (rows, columns) = x.shape, offset.shape[2:]
    taps = list(product(range(w.shape[2]), range(w.shape[3])))
    moves = offset.reshape(n, offset_group, len(taps), 2, rows, columns)
    weights = None if mask is None else mask.reshape(n, offset_group, len(taps), 1, rows, columns)
    parts = x.reshape(n * offset_group, c // offset_group, height, width)
    y0 = torch.arange(rows, dtype=x.dtype, device=x.device)[:, None] * down - top
    x0 = torch.arange(columns, dtype=x.dtype, device=x.device) * across - left
    total = x.new_zeros((n, w.shape[0], rows, columns))
    for t, (i, j) in enumerate(taps):
        at_y, at_x = y0 + i * gap_y + moves[:, :, t, 0], x0 + j * gap_x + moves[:, :, t, 1]
        grid = torch.stack([_centred(at_x, width), _centred(at_y, height)], -1).flatten(0, 1)
        read = F.grid_sample(parts, grid, "bilinear", "zeros", align_corners=False)
        read = read.reshape(n, offset_group, -1, rows, columns)
        read = (read if weights is None else read * weights[:, :, t]).reshape(n, c, rows, columns)
        total = total + F.conv2d(read, w[:, :, i, j, None, None], groups=group)
    return total if b is None else total + b.reshape(1, -1, 1, 1)


def _centred(at: Tensor, size: int) -> Tensor:
    """Pixel positions as `grid_sample` counts them, from -1 to 1 between the outer edges."""
    return (2 * at + 1) / size - 1


@op("Col2Im", family="sum", inputs=(0,), numbers=(1, 2))
def col2im(
    x: Tensor,
    image_shape: Tensor,
    block_shape: Tensor,
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """(N, C · block, blocks) -> (N, C, *image): blocks put back where they were cut from, and added up."""
    sizes, block = image_shape.tolist(), block_shape.tolist()
    n = len(sizes)
    gaps, steps, edges = dilations or [1] * n, strides or [1] * n, pads or [0] * 2 * n
    padded = [s + edges[a] + edges[a + n] for a, s in enumerate(sizes)]
    index = torch.zeros((), dtype=torch.long)  # of the element of the padded image: (block …, blocks …)
    for a in range(n):
        first = torch.arange(0, padded[a] - (block[a] - 1) * gaps[a], steps[a])
        at = torch.arange(block[a])[:, None] * gaps[a] + first  # (block, blocks) of this axis
        shape = [-1 if d in (a, a + n) else 1 for d in range(2 * n)]
        shape[a], shape[a + n] = at.shape
        index = index * padded[a] + at.reshape(shape)
    flat = x.reshape(len(x), x.shape[1] // math.prod(block), -1)
    image = flat.new_zeros((*flat.shape[:2], math.prod(padded))).index_add(2, moved(index.flatten(), x.device), flat)
    image = image.reshape(*flat.shape[:2], *padded)
    inner = tuple(slice(edges[a], edges[a] + s) for a, s in enumerate(sizes))
    return image[(slice(None), slice(None), *inner)]


@op("NonMaxSuppression", inputs=(), numbers=(2, 3, 4))
def non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    max_output_boxes_per_class: Tensor | None = None,
    iou_threshold: Tensor | None = None,
    score_threshold: Tensor | None = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    """Rows (picture, class, box) of the boxes that no better one of their class overlaps."""
    most = 0 if max_output_boxes_per_class is None else int(max_output_boxes_per_class)
    limit = 0.0 if iou_threshold is None else float(iou_threshold)
    if center_point_box:
        centre, half = boxes[..., :2], boxes[..., 2:] / 2
        low, high = centre - half, centre + half
    else:
        low, high = torch.minimum(boxes[..., :2], boxes[..., 2:]), torch.maximum(boxes[..., :2], boxes[..., 2:])
    area = (high - low).prod(-1)
    chosen = []
    for picture, kind in product(range(scores.shape[0]), range(scores.shape[1])):
        rank = scores[picture, kind].argsort(descending=True, stable=True)
        if score_threshold is not None:
            rank = rank[scores[picture, kind][rank] > float(score_threshold)]
        kept = 0
        while len(rank) and kept < most:
            best, rank, kept = rank[0], rank[1:], kept + 1
            chosen.append([picture, kind, int(best)])
            top = torch.minimum(high[picture, best], high[picture, rank])
            bottom = torch.maximum(low[picture, best], low[picture, rank])
            shared = (top - bottom).clamp(min=0).prod(-1)
            rank = rank[shared / (area[picture, best] + area[picture, rank] - shared) <= limit]
    return torch.tensor(chosen, dtype=torch.long).reshape(-1, 3)
