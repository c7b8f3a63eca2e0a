"""Relevance flows back by the exact transpose of what the forward pass does: <A x, y> = <x, Aᵀ y>."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lrp_onnx.graph import Node
from lrp_onnx.ops import OPS, Linear, Site

Random = np.random.Generator
INDICES = (1, -1, [1], [0, -1, 0], [[1, 2]])


@dataclass(frozen=True)
class Case:
    """A node: what flows in by position, its constants by position, its attributes."""

    op: str
    flows: dict[int, Sequence[int]]
    constants: dict[int, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1

    def site(self, rng: Random) -> Site:
        last = max(*self.flows, *self.constants, 0)
        names = tuple(f"i{p}" if p in self.flows or p in self.constants else "" for p in range(last + 1))
        node = Node("n", self.op, names, tuple(f"o{k}" for k in range(self.outputs)), self.attributes)
        constants = {p: constant(rng, c) for p, c in self.constants.items()}
        op, active = OPS["", self.op], tuple(self.flows)
        return Site(node, op, active, constants, op.linear(node, constants, active) if op.linear else None)


@dataclass(frozen=True)
class Tensors:
    inputs: Sequence[Tensor | None]
    shapes: Sequence[Sequence[int] | None]


def constant(rng: Random, value: Any) -> Tensor:
    """A tuple is the shape of random weights; anything else is the value itself."""
    return torch.from_numpy(rng.standard_normal(value)) if isinstance(value, tuple) else torch.as_tensor(value)


def draw(rng: Random, shape: Sequence[int]) -> Tensor:
    return torch.from_numpy(rng.standard_normal(tuple(shape)))


def agree(ax: Sequence[Tensor], y: Sequence[Tensor], x: Sequence[Tensor], aty: Sequence[Tensor]) -> None:
    left = sum(float((a * b).sum()) for a, b in zip(ax, y, strict=True))
    right = sum(float((a * b).sum()) for a, b in zip(x, aty, strict=True))
    scale = sum(float(a.norm() * b.norm()) for a, b in zip(ax, y, strict=True))
    assert [a.shape for a in aty] == [a.shape for a in x]
    assert abs(left - right) <= 1e-12 * max(scale, 1.0)


def check_linear(case: Case, rng: Random) -> None:
    """The pair that the rules work on, with the node's own weight and with another one."""
    site = case.site(rng)
    linear = site.linear
    assert isinstance(linear, Linear)
    (position,) = site.active
    x = draw(rng, case.flows[position])
    inputs = [x if p == position else None for p in range(len(site.node.inputs))]
    z = site.forward(inputs)[0]
    again = linear.forward(x, linear.weight) + (0 if linear.bias is None else linear.bias)
    assert torch.allclose(z, again, rtol=1e-12, atol=1e-12)
    weights = [None] if linear.weight is None else [linear.weight, draw(rng, linear.weight.shape)]
    for weight in weights:
        ax, y = linear.forward(x, weight), draw(rng, z.shape)
        agree([ax], [y], [x], [linear.transpose(y, weight, x.shape)])


def check_routing(case: Case, rng: Random) -> None:
    """`Site.adjoint`, which sees shapes and constants only."""
    site = case.site(rng)
    x = {p: draw(rng, shape) for p, shape in case.flows.items()}
    zero = {p: torch.zeros(tuple(shape), dtype=torch.float64) for p, shape in case.flows.items()}
    every = range(len(site.node.inputs))
    ax = site.forward([x.get(p) for p in every])
    offset = site.forward([zero.get(p) for p in every])
    ax = tuple(a - b for a, b in zip(ax, offset, strict=True))
    y = [draw(rng, a.shape) for a in ax]
    shapes = [case.flows.get(p, site.constants[p].shape if p in site.constants else None) for p in every]
    call = Tensors([site.constants.get(p) for p in every], shapes)
    agree(ax, y, [x[p] for p in site.active], site.adjoint(call, y))


# ---- convolutions and pools: random attributes


def numbers(rng: Random, low: int, high: int, count: int) -> list[int]:
    return [int(v) for v in rng.integers(low, high, count)]


def random_padding(rng: Random, n: int, most: int) -> dict[str, Any]:
    kind = rng.integers(3)
    if kind == 0:
        return {"auto_pad": str(rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))}
    return {"pads": numbers(rng, 0, most, 2 * n)} if kind == 1 else {}


def random_conv(rng: Random) -> Case:
    n, group = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    cin, cout = group * int(rng.integers(1, 3)), group * int(rng.integers(1, 3))
    attributes = {"group": group, "strides": numbers(rng, 1, 4, n), "dilations": numbers(rng, 1, 3, n)}
    attributes |= random_padding(rng, n, 3)
    shape = (int(rng.integers(1, 3)), cin, *numbers(rng, 5, 9, n))
    kernel = (cout, cin // group, *numbers(rng, 1, 4, n))
    bias = {2: (cout,)} if rng.random() < 0.5 else {}
    return Case("Conv", {0: shape}, {1: kernel, **bias}, attributes)


def random_conv_transpose(rng: Random) -> Case:
    n, group = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    cin, cout = group * int(rng.integers(1, 3)), int(rng.integers(1, 3))
    strides, dilations = numbers(rng, 1, 4, n), numbers(rng, 1, 3, n)
    size, kernel = numbers(rng, 2, 6, n), numbers(rng, 1, 5, n)
    attributes: dict[str, Any] = {"group": group, "strides": strides, "dilations": dilations}
    attributes |= random_padding(rng, n, 2)
    if rng.random() < 0.5:  # also beyond the stride, where torch itself refuses
        attributes["output_padding"] = numbers(rng, 0, 5, n)
    if rng.random() < 0.3:
        full = [(i - 1) * s + (k - 1) * d + 1 for i, s, k, d in zip(size, strides, kernel, dilations, strict=True)]
        attributes["output_shape"] = [max(1, f + int(rng.integers(-3, 4))) for f in full]
    elif "pads" in attributes:  # something must be left
        kernel = [max(k, 4) for k in kernel]
    bias = {2: (group * cout,)} if rng.random() < 0.5 else {}
    return Case("ConvTranspose", {0: (2, cin, *size)}, {1: (cin, cout, *kernel), **bias}, attributes)


def random_average_pool(rng: Random) -> Case:
    n = int(rng.integers(1, 4))
    kernel = numbers(rng, 1, 4, n)
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": numbers(rng, 1, 4, n)}
    attributes |= {name: int(rng.integers(2)) for name in ("ceil_mode", "count_include_pad")}
    attributes |= random_padding(rng, n, min(kernel))
    if rng.random() < 0.5:
        attributes["dilations"] = numbers(rng, 1, 3, n)
    return Case("AveragePool", {0: (2, 2, *numbers(rng, 6, 10, n))}, {}, attributes)


def random_resize(rng: Random) -> Case:
    modes = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]
    attributes: dict[str, Any] = {
        "mode": str(rng.choice(["nearest", "linear", "cubic"])),
        "coordinate_transformation_mode": str(rng.choice([*modes, "tf_crop_and_resize"])),
        "nearest_mode": str(rng.choice(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])),
        "exclude_outside": int(rng.integers(2)),
        "antialias": int(rng.integers(2)),
    }
    if attributes["coordinate_transformation_mode"] == "tf_crop_and_resize":
        attributes["antialias"] = 0
    roi = [0.0, 0.0, 0.1, -0.1, 1.0, 1.0, 1.1, 0.8]
    if rng.random() < 0.5:
        target = {3: np.array([2, 3, *numbers(rng, 1, 9, 2)])}
    else:
        target = {2: np.array([1.0, 1.0, *rng.choice([0.5, 0.75, 1.0, 1.5, 2.0], 2)])}
    return Case("Resize", {0: (2, 3, 4, 5)}, {1: np.array(roi), **target}, attributes)


@pytest.mark.parametrize("make", [random_conv, random_conv_transpose, random_average_pool, random_resize])
def test_transpose_is_exact_for_random_attributes(make: Callable[[Random], Case]) -> None:
    for seed in range(150):
        rng = np.random.default_rng(seed)
        case = make(rng)
        try:
            check_linear(case, rng)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {case}") from error


# ---- everything else: one line a case

WEIGHTED = [
    *(
        Case("Gemm", {0: (5, 3) if ta else (3, 5)}, {1: (4, 5) if tb else (5, 4)} | c, {"transA": ta, "transB": tb} | a)
        for ta in (0, 1)
        for tb in (0, 1)
        for c in ({}, {2: (4,)}, {2: (3, 1)}, {2: ()})
        for a in ({}, {"alpha": 0.7, "beta": 1.3})
    ),
    Case("MatMul", {0: (3, 5)}, {1: (5, 4)}),
    Case("MatMul", {0: (5,)}, {1: (5, 4)}),
    Case("MatMul", {0: (2, 3, 5)}, {1: (5, 4)}),
    Case("MatMul", {0: (2, 3, 5)}, {1: (2, 5, 4)}),
    Case("MatMul", {0: (3, 5)}, {1: (2, 5, 4)}),
    Case("MatMul", {0: (5,)}, {1: (2, 5, 4)}),
    Case("MatMul", {0: (6, 1, 3, 5)}, {1: (2, 5, 4)}),
    Case("MatMul", {1: (5, 4)}, {0: (3, 5)}),
    Case("MatMul", {1: (5,)}, {0: (3, 5)}),
    Case("MatMul", {1: (2, 5, 4)}, {0: (3, 5)}),
    Case("MatMul", {1: (5, 4)}, {0: (2, 3, 5)}),
    Case("MatMul", {1: (5,)}, {0: (2, 3, 5)}),
    Case("MatMul", {1: (2, 5, 4)}, {0: (6, 1, 3, 5)}),
    Case("Einsum", {0: (2, 3)}, {1: (3, 4)}, {"equation": "ij,jk->ik"}),
    Case("Einsum", {1: (2, 3, 4)}, {0: (5, 3)}, {"equation": "oc,ncw->now"}),
    Case("Einsum", {0: (2, 3, 4)}, {1: (4,)}, {"equation": "...c,c->..."}),
    Case("GlobalAveragePool", {0: (2, 3, 4)}),
    Case("GlobalAveragePool", {0: (2, 3, 4, 5)}),
    Case("GlobalAveragePool", {0: (2, 3, 2, 3, 2)}),
    *(
        Case(op, {0: (2, 3, 4)}, axes, {"keepdims": keep} | a)
        for op in ("ReduceMean", "ReduceSum")
        for keep in (0, 1)
        for axes in ({}, {1: [1]}, {1: [-1, 0]})
        for a in ({}, {"noop_with_empty_axes": 1})
    ),
    Case("ReduceMean", {0: (2, 3, 4)}, {}, {"axes": [2]}),
    Case("Upsample", {0: (1, 2, 3, 4)}, {}, {"scales": [1.0, 1.0, 2.0, 1.5], "mode": "linear"}),
    Case("Upsample", {0: (1, 2, 3, 4)}, {1: np.array([1.0, 1.0, 2.0, 3.0])}),
    Case("Resize", {0: (2, 3, 4, 5)}, {3: [6, 7]}, {"axes": [2, 3], "mode": "linear"}),
    Case("Resize", {0: (4, 5)}, {3: [3, 9]}, {"mode": "cubic", "keep_aspect_ratio_policy": "not_larger"}),
    *(
        Case("DFT", {0: (2, 6, 3, parts)}, {1: size, 2: 1}, {"inverse": inverse, "onesided": onesided})
        for parts, inverse, onesided in ((1, 0, 0), (1, 0, 1), (2, 0, 0), (2, 1, 0), (2, 1, 1))
        for size in (6, 4, 9)
    ),
    Case("DFT", {0: (2, 6, 2)}),
    Case("STFT", {0: (2, 20, 1)}, {1: 3, 2: (8,), 3: 8}),
    Case("STFT", {0: (2, 20, 2)}, {1: 4, 3: 5}, {"onesided": 0}),
]  # fmt: skip

ROUTING = [
    Case("Reshape", {0: (2, 6)}, {1: [3, -1]}),
    Case("Reshape", {0: (2, 6)}, {1: [0, 3, 2]}),
    *(Case("Flatten", {0: (2, 3, 4)}, {}, {"axis": a}) for a in (-3, -1, 0, 1, 2, 3)),
    Case("Squeeze", {0: (1, 3, 1)}),
    Case("Squeeze", {0: (1, 3, 1)}, {1: [-1]}),
    Case("Unsqueeze", {0: (3, 2)}, {1: [0, -1]}),
    Case("Transpose", {0: (2, 3, 4)}),
    Case("Transpose", {0: (2, 3, 4)}, {}, {"perm": [1, 2, 0]}),
    Case("Concat", {0: (2, 3), 1: (2, 1), 2: (2, 4)}, {}, {"axis": 1}),
    Case("Concat", {0: (2, 3), 2: (5, 3)}, {1: (1, 3)}, {"axis": -2}),
    Case("Split", {0: (6, 2)}, {}, {}, outputs=3),
    Case("Split", {0: (2, 7)}, {}, {"axis": -1, "num_outputs": 3}, outputs=3),
    Case("Split", {0: (2, 7)}, {1: [1, 4, 2]}, {"axis": 1}, outputs=3),
    Case("Slice", {0: (4, 5)}, {1: [1], 2: [2**62]}),
    Case("Slice", {0: (4, 5)}, {1: [-1, 4], 2: [-(2**62), 0], 3: [0, 1], 4: [-1, -2]}),
    Case("Slice", {0: (4, 5)}, {1: [-3], 2: [-1], 3: [-1]}),
    Case("Slice", {0: (4, 5)}, {}, {"starts": [1], "ends": [4], "axes": [1]}),
    *(Case("Pad", {0: (4, 5)}, {1: [1, 2, 3, 1]}, {"mode": m}) for m in ("constant", "reflect", "edge", "wrap")),
    Case("Pad", {0: (4, 5)}, {1: [1, -2, 0, -1]}),
    Case("Pad", {0: (4, 5)}, {1: [2, 1], 2: 3.0, 3: [-1]}),
    Case("Expand", {0: (3, 1)}, {1: [2, 1, 4]}),
    Case("Tile", {0: (2, 3)}, {1: [2, 3]}),
    Case("AveragePool", {0: (2, 2, 3, 3)}, {}, {"kernel_shape": [1, 1]}),
    Case("AveragePool", {0: (2, 2, 3, 3)}, {}, {"kernel_shape": [1, 1], "strides": [2, 1]}),
    *(Case("Gather", {0: (3, 4)}, {1: index}, {"axis": a}) for index in INDICES for a in (0, -1)),
    Case("GatherElements", {0: (3, 2)}, {1: [[0, -1], [0, 0]]}, {"axis": 1}),
    Case("GatherND", {0: (2, 3, 4)}, {1: [[0, 1], [1, -1], [0, 1]]}),
    Case("GatherND", {0: (2, 3, 4)}, {1: [[1], [0]]}, {"batch_dims": 1}),
    Case("ScatterND", {0: (4, 3), 2: (2, 3)}, {1: [[0], [2]]}),
    Case("ScatterND", {0: (4, 3), 2: (2, 3)}, {1: [[1], [1]]}, {"reduction": "add"}),
    Case("ScatterElements", {0: (4, 3), 2: (1, 3)}, {1: [[0, 1, -1]]}),
    Case("ScatterElements", {0: (4, 3), 2: (2, 3)}, {1: [[0, 1, 2], [0, 2, 1]]}, {"reduction": "add"}),
    Case("Scatter", {0: (4, 3), 2: (3, 1)}, {1: [[1], [0], [2]]}, {"axis": 1}),
    Case("Compress", {0: (3, 2)}, {1: [True, False, True]}, {"axis": 0}),
    Case("Trilu", {0: (3, 4)}, {1: 1}, {"upper": 0}),
    *(Case("DepthToSpace", {0: (1, 8, 2, 3)}, {}, {"blocksize": 2, "mode": m}) for m in ("DCR", "CRD")),
    *(Case("SpaceToDepth", {0: (1, 2, 4, 6)}, {}, {"blocksize": 2, "mode": m}) for m in ("DCR", "CRD")),
    Case("MaxUnpool", {0: (1, 1, 2, 2)}, {1: [[[[5, 7], [13, 15]]]]}, {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case("Where", {1: (3, 4), 2: (4,)}, {0: np.eye(3, 4, dtype=bool)}),
    Case("Add", {0: (2, 3, 4), 1: (3, 1)}),
    Case("Sum", {0: (4,), 1: (2, 3, 4), 2: ()}),
    Case("Sub", {0: (3, 1), 1: (2, 3, 4)}),
    Case("Mean", {0: (3, 1), 1: (4,), 2: (2, 3, 4)}),
    Case("Neg", {0: (3, 4)}),
    *(Case("CumSum", {0: (3, 4)}, {1: 1}, {"exclusive": e, "reverse": r}) for e in (0, 1) for r in (0, 1)),
    Case("GridSample", {0: (1, 2, 4, 5)}, {1: (1, 3, 3, 2)}, {"mode": "cubic", "padding_mode": "reflection"}),
    Case("Col2Im", {0: (2, 12, 16)}, {1: [5, 6], 2: [2, 3]}, {"pads": [0, 0, 0, 0]}),
    Case("Col2Im", {0: (2, 3, 4)}, {1: [6], 2: [3]}, {"pads": [1, 2], "strides": [2], "dilations": [1]}),
    Case("ReverseSequence", {0: (4, 3, 2)}, {1: [4, 1, 2]}),
    Case("ReverseSequence", {0: (2, 3, 4)}, {1: [3, 2]}, {"batch_axis": 0, "time_axis": 1}),
    Case("TensorScatter", {0: (2, 5, 3), 1: (2, 2, 3)}, {2: [1, 3]}),
    Case("TensorScatter", {0: (2, 3, 5, 2), 1: (2, 3, 4, 2)}, {2: [1, 3]}, {"mode": "circular"}),
    Case("RoiAlign", {0: (2, 3, 6, 7)}, {1: [[0.5, 1, 4, 5.5], [-1, 2, 9, 3]], 2: [0, 1]}, {"output_height": 2}),
    Case("DeformConv", {0: (2, 4, 5, 5)}, {1: (3, 4, 2, 2), 2: (2, 8, 4, 4)}, {"group": 1}),
    Case(
        "DeformConv",
        {0: (1, 4, 6, 5)},
        {1: (2, 4, 3, 2), 2: (1, 24, 3, 3), 3: (2,), 4: (1, 12, 3, 3)},
        {"offset_group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1]},
    ),
]  # fmt: skip


def title(case: Case) -> str:
    extra = ",".join(f"{k}={v}" for k, v in case.attributes.items())
    return f"{case.op} {list(case.flows.values())} {extra}".replace(" ", "")


@pytest.mark.parametrize("case", WEIGHTED, ids=title)
def test_transpose_is_exact(case: Case) -> None:
    check_linear(case, np.random.default_rng(0))


@pytest.mark.parametrize("case", ROUTING, ids=title)
def test_routing_is_the_exact_adjoint(case: Case) -> None:
    check_routing(case, np.random.default_rng(0))


def test_every_op_with_a_transpose_is_covered() -> None:
    made = {make(np.random.default_rng(0)).op for make in (random_conv, random_conv_transpose, random_average_pool)}
    tested = made | {case.op for case in (*WEIGHTED, *ROUTING)}
    wanted = {op.op_type for op in OPS.values() if op.linear or op.adjoint or op.family == "route"}
    assert wanted <= tested
