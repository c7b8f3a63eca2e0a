"""Every op computes in torch what ONNX Runtime computes, where the backend tests are thin; old opsets included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from lrp_onnx.forward import to_tensor
from lrp_onnx.graph.model import Graph
from lrp_onnx.ops import find, run

ort = pytest.importorskip("onnxruntime")

Random = np.random.Generator
Array = np.ndarray


def compare(
    op: str, inputs: Sequence[Array | None], attributes: dict[str, Any] | None = None, opset: int = 20, outputs: int = 1
) -> None:
    """Run one node both ways; every output must have the same shape and, to float32, the same values."""
    names = ["" if x is None else f"i{k}" for k, x in enumerate(inputs)]
    feeds = {n: x for n, x in zip(names, inputs, strict=True) if x is not None}
    results = [f"o{k}" for k in range(outputs)]
    node = helper.make_node(op, names, results, **(attributes or {}))
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for n, x in feeds.items()
    ]
    untyped = [onnx.ValueInfoProto(name=n) for n in results]
    graph = helper.make_graph([node], "one", infos, untyped)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    expected = session.run(None, feeds)
    ours = Graph.from_proto(model).nodes[0]
    tensors = [None if x is None else to_tensor(x, torch.float64, torch.device("cpu")) for x in inputs]
    actual = run(ours, find(ours), tensors)
    for want, got in zip(expected, actual[:outputs], strict=True):
        assert tuple(got.shape) == want.shape, (op, attributes)
        scale = float(np.abs(want).max(initial=1.0))
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-5 * scale, err_msg=f"{op} {attributes}")


def normal(rng: Random, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def numbers(rng: Random, low: int, high: int, count: int) -> list[int]:
    return [int(v) for v in rng.integers(low, high, count)]


# ---- windows


def random_window(rng: Random, kernel: list[int]) -> dict[str, Any]:
    """Random strides, dilations and padding; where "SAME" is left to what ONNX Runtime can do: no dilation there."""
    n = len(kernel)
    kind = rng.integers(4)
    if kind == 0:
        return {"auto_pad": str(rng.choice(["SAME_UPPER", "SAME_LOWER"])), "strides": [min(2, k) for k in kernel]}
    window: dict[str, Any] = {"strides": numbers(rng, 1, 4, n), "dilations": numbers(rng, 1, 3, n)}
    if kind == 1:
        window["auto_pad"] = "VALID"
    if kind == 2:
        window["pads"] = [int(rng.integers(0, k)) for k in kernel * 2]
    return window


def pool_case(rng: Random, op: str) -> tuple[str, list[Array | None], dict[str, Any], int]:
    n = int(rng.integers(1, 4))
    kernel = numbers(rng, 1, 5, n)
    attributes = {"kernel_shape": kernel, "ceil_mode": int(rng.integers(2)), **random_window(rng, kernel)}
    if op == "AveragePool":
        attributes["count_include_pad"] = int(rng.integers(2))
    if op == "LpPool":
        attributes["p"] = int(rng.integers(1, 4))
    return op, [normal(rng, 2, 2, *numbers(rng, 7, 10, n))], attributes, 18 if op == "LpPool" else 19


def conv_case(rng: Random, op: str) -> tuple[str, list[Array | None], dict[str, Any], int]:
    n, group = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    kernel = numbers(rng, 1, 4, n)
    bias = normal(rng, 2 * group) if rng.random() < 0.5 else None
    x = normal(rng, 2, 2 * group, *numbers(rng, 5, 9, n))
    if op == "Conv":
        return op, [x, normal(rng, 2 * group, 2, *kernel), bias], {"group": group, **random_window(rng, kernel)}, 11
    strides, dilations = numbers(rng, 1, 4, n), numbers(rng, 1, 3, n)
    attributes: dict[str, Any] = {"group": group, "strides": strides, "dilations": dilations}
    attributes["output_padding"] = [int(rng.integers(0, s)) for s in strides]
    kind = rng.integers(4)
    if kind == 0:
        attributes["auto_pad"] = str(rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    if kind == 1:
        attributes["pads"] = numbers(rng, 0, 2, 2 * n)
    if kind == 2:
        del attributes["output_padding"]
        sizes = zip(x.shape[2:], strides, kernel, dilations, strict=True)
        attributes["output_shape"] = [(i - 1) * s + (k - 1) * d + 1 + int(rng.integers(-2, s)) for i, s, k, d in sizes]
    return op, [x, normal(rng, 2 * group, 2, *kernel), bias], attributes, 11


@pytest.mark.parametrize(
    ("make", "op"),
    [(pool_case, op) for op in ("MaxPool", "AveragePool", "LpPool")]
    + [(conv_case, op) for op in ("Conv", "ConvTranspose")],
)
def test_windows_with_random_attributes(make: Callable[..., Any], op: str) -> None:
    for seed in range(100):
        compare(*make(np.random.default_rng(seed), op))


@pytest.mark.parametrize("storage_order", [0, 1])
def test_indices_of_a_max_pool_and_back(storage_order: int) -> None:
    x = normal(np.random.default_rng(0), 2, 3, 6, 8)
    window = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 2, 1], "storage_order": storage_order}
    compare("MaxPool", [x], window, 12, outputs=2)
    compare("MaxPool", [x], {**window, "pads": [1, 1, 1, 1], "ceil_mode": 1}, 12, outputs=2)
    compare("MaxPool", [x[:, :, 0]], {"kernel_shape": [2], "strides": [3], "dilations": [2]}, 12, outputs=2)
    pooled, indices = torch.nn.functional.max_pool2d(torch.from_numpy(x[:1, :1]), 2, return_indices=True)
    compare("MaxUnpool", [pooled.numpy(), indices.numpy()], {"kernel_shape": [2, 2], "strides": [2, 2]}, 11)


# ---- recurrent layers

ACTIVATIONS = ["Tanh", "Sigmoid", "Relu", "Softsign", "LeakyRelu", "HardSigmoid", "Elu", "ScaledTanh", "Affine"]


def recurrent_case(rng: Random, op: str) -> tuple[str, list[Array | None], dict[str, Any], int, int]:
    gates, squashes = {"RNN": (1, 1), "GRU": (3, 2), "LSTM": (4, 3)}[op]
    time, batch, width, size = (int(n) for n in rng.integers(1, 5, 4))
    direction = str(rng.choice(["forward", "reverse", "bidirectional"]))
    d = 2 if direction == "bidirectional" else 1
    given = rng.random(5) < 0.5
    inputs: list[Array | None] = [
        normal(rng, time, batch, width),
        normal(rng, d, gates * size, width),
        normal(rng, d, gates * size, size),
        normal(rng, d, 2 * gates * size) if given[0] else None,
        rng.integers(1, time + 1, batch).astype(np.int32) if given[1] else None,
        normal(rng, d, batch, size) if given[2] else None,
    ]
    if op == "LSTM":
        inputs += [normal(rng, d, batch, size) if given[3] else None, normal(rng, d, 3 * size) if given[4] else None]
    attributes: dict[str, Any] = {"hidden_size": size, "direction": direction}
    if rng.random() < 0.5:
        attributes["activations"] = [str(a) for a in rng.choice(ACTIVATIONS, squashes * d)]
        attributes["activation_alpha"] = [float(a) for a in rng.uniform(0.1, 0.9, squashes * d)]
        attributes["activation_beta"] = [float(a) for a in rng.uniform(0.1, 0.9, squashes * d)]
    if rng.random() < 0.3:
        attributes["clip"] = 0.7
    if op == "GRU":
        attributes["linear_before_reset"] = int(rng.integers(2))
    if op == "LSTM":
        attributes["input_forget"] = int(rng.random() < 0.3)
    return op, inputs, attributes, 14, 3 if op == "LSTM" else 2


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
def test_recurrent_layers_with_random_attributes(op: str) -> None:
    for seed in range(100):
        compare(*recurrent_case(np.random.default_rng(seed), op))


# ---- Resize

COORDINATES = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]
NEAREST = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
TARGETS: list[dict[str, list[float]]] = [  # from (4, 8); a rounding error must not decide on the nearest
    {"sizes": [1, 2, 11, 3]},
    {"sizes": [1, 2, 1, 18]},
    {"scales": [1, 1, 0.61, 2.3]},
    {"scales": [1, 1, 3, 0.59]},
]


def resize_inputs(rng: Random, target: dict[str, list[float]], roi: Array | None = None) -> list[Array | None]:
    scales = np.array(target["scales"], np.float32) if "scales" in target else None
    sizes = np.array(target["sizes"], np.int64) if "sizes" in target else None
    return [normal(rng, 1, 2, 4, 8), roi, scales, sizes]


@pytest.mark.parametrize("coordinates", COORDINATES)
def test_resize_in_every_mode(coordinates: str) -> None:
    rng = np.random.default_rng(0)
    variants: list[dict[str, Any]] = [{"mode": "nearest", "nearest_mode": mode} for mode in NEAREST]
    variants += [{"mode": mode, "antialias": a} for mode, a in product(("linear", "cubic"), (0, 1))]
    variants += [{"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5}]
    for target, variant in product(TARGETS, variants):
        compare("Resize", resize_inputs(rng, target), {"coordinate_transformation_mode": coordinates, **variant}, 19)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize_of_a_crop_fills_what_lies_outside(mode: str) -> None:
    rng = np.random.default_rng(0)
    roi = np.array([0, 0, -0.17, 0.13, 1, 1, 0.83, 1.19], np.float32)
    options = {"coordinate_transformation_mode": "tf_crop_and_resize", "mode": mode, "extrapolation_value": 7.0}
    for target in TARGETS:
        compare("Resize", resize_inputs(rng, target, roi), options, 19)


# ---- one node a line, at the opset that wrote it so

RNG = np.random.default_rng(0)
X = 2 * normal(RNG, 2, 3, 5, 4)


def f(*values: Any) -> Array:
    return np.array(values, np.float32)


def i(*values: Any) -> Array:
    return np.array(values[0] if isinstance(values[0], list) else values, np.int64)


ROIS = f([0.5, 1, 7, 9.5], [2, 3, 11, 4], [-2, 0, 3, 20], [5.1, 5.2, 5.5, 5.3])
BOXES = np.abs(normal(RNG, 2, 6, 4))
DEFORMED = {"group": 2, "offset_group": 2, "strides": [2, 1], "pads": [1, 0, 1, 0], "dilations": [1, 2]}


NODES: list[tuple[Any, ...]] = [
    ("Clip", [X, np.array(-0.5, np.float32)]),
    ("Clip", [X, None, np.array(0.5, np.float32)]),
    ("Clip", [X]),
    ("Clip", [X, np.array(1, np.float32), np.array(-1, np.float32)]),
    ("Clip", [X], {"min": -0.3}, 6),
    ("Clip", [X], {"max": 0.3}, 6),
    ("HardSigmoid", [X]),
    ("HardSigmoid", [X], {"alpha": 0.3, "beta": 0.1}),
    ("Softplus", [40 * X]),
    ("Shrink", [X], {"bias": 0.2, "lambd": 0.4}),
    ("PRelu", [X, normal(RNG, 3, 1, 1)]),
    ("Gelu", [X], {"approximate": "tanh"}),
    *(("LRN", [X], {"size": size, "alpha": 0.2, "beta": 0.6, "bias": 1.3}) for size in (1, 3, 5, 7)),
    ("LpNormalization", [X], {"axis": 1, "p": 1}),
    ("GroupNormalization", [normal(RNG, 2, 6, 5), normal(RNG, 3), normal(RNG, 3)], {"num_groups": 3}, 18),
    ("GroupNormalization", [normal(RNG, 2, 6, 5), normal(RNG, 6), normal(RNG, 6)], {"num_groups": 3}, 21),
    ("Reshape", [X, i(0, -1)]),
    ("Squeeze", [X[:1]], {"axes": [0]}, 11),
    ("Unsqueeze", [X], {"axes": [0, -1]}, 11),
    ("Slice", [X], {"starts": [1, -2], "ends": [9, 100], "axes": [0, 2]}, 9),
    ("Slice", [X, i(4), i(-6), i(2), i(-1)], {}, 13),
    ("Slice", [X, i(4), i(-5), i(2), i(-1)], {}, 13),
    ("Slice", [X, i(100), i(-(2**62)), i(-2), i(-3)], {}, 13),
    ("Pad", [X], {"pads": [0, 0, 1, 2, 0, 0, 0, 1], "value": 3.0}, 10),
    ("Pad", [X], {"pads": [0, 0, -1, 2, 0, 0, 0, -1]}, 10),
    *(("Pad", [X, i(0, 1, 3, 2, 0, 0, 2, 1)], {"mode": mode}, 19) for mode in ("constant", "reflect", "edge", "wrap")),
    ("Pad", [X, i(1, 2, 0, 1), None, i(-1, -2)], {"mode": "edge"}, 18),
    ("Upsample", [X], {"scales": [1.0, 1.0, 2.0, 1.5], "mode": "linear"}, 7),
    ("Upsample", [X, f(1, 1, 2.5, 3)], {}, 9),
    ("Split", [X], {"axis": 2, "split": [2, 3]}, 11, 2),
    ("Split", [X], {"axis": -1}, 13, 2),
    ("Split", [X], {"axis": 2, "num_outputs": 2}, 18, 2),
    ("Dropout", [X], {"ratio": 0.4}, 10),
    ("Dropout", [X], {}, 13, 2),
    ("Flatten", [X], {"axis": -1}, 13),
    ("Gather", [X, np.array(-1)], {"axis": -2}),
    ("TopK", [X, i(2)], {"axis": 2, "largest": 0}, 20, 2),
    ("ScatterND", [normal(RNG, 4, 3), np.array([[0], [2], [0]]), normal(RNG, 3, 3)], {"reduction": "add"}, 18),
    ("Gemm", [X[0, 0], X[0, 1, :2], X[0, 2, 0, :2]], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("QuantizeLinear", [X, np.array(0.1, np.float32), np.array(7, np.uint8)]),
    ("QuantizeLinear", [X, f(0.1, 0.02, 0.3), np.array([1, -2, 0], np.int8)], {"axis": -3}),
    ("DequantizeLinear", [np.ones((1, 3, 2), np.uint8), f(0.1, 0.2, 0.3), np.array([9, 2, 0], np.uint8)]),
    ("Einsum", [normal(RNG, 2, 3, 3)], {"equation": "...ii->...i"}),
    ("MatMul", [normal(RNG, 3), normal(RNG, 2, 3, 4)]),
    ("Pow", [X, i(2)]),
    *(
        (f"Reduce{kind}", [X], {"axes": axes, "keepdims": keep}, 11)
        for kind in ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp")
        for axes in ([1], [1, -1])
        for keep in (0, 1)
    ),
    *(
        ("ScatterND", [normal(RNG, 4, 3), i([[0], [2], [0]]), normal(RNG, 3, 3)], {"reduction": kind}, 18)
        for kind in ("mul", "max", "min")
    ),
    *(
        ("ScatterElements", [normal(RNG, 4, 3), i([[0, 1, 2], [0, -1, 2]]), normal(RNG, 2, 3)], {"reduction": kind}, 18)
        for kind in ("add", "mul", "max", "min")
    ),
    ("ReverseSequence", [X, i(2, 1, 2)], {"batch_axis": 1, "time_axis": 0}, 10),
    ("ReverseSequence", [X[0], i(3, 1, 4)], {"batch_axis": 0, "time_axis": 1}, 10),
    *(("Unique", [np.round(X)], {"sorted": order}, 11, 4) for order in (0, 1)),
    ("Unique", [np.sign(X[0, 0])], {"axis": 1}, 11, 4),
    ("Det", [normal(RNG, 2, 3, 3)], {}, 11),
    ("Col2Im", [normal(RNG, 2, 12, 16), i(5, 6), i(2, 3)], {"pads": [0, 0, 0, 0]}, 18),
    ("Col2Im", [normal(RNG, 1, 8, 12), i(5, 4), i(2, 2)], {"pads": [1, 0, 0, 1], "strides": [2, 1]}, 18),
    *(
        ("DFT", [normal(RNG, 2, 6, parts), np.array(size), np.array(1)], {"inverse": inverse, "onesided": onesided}, 20)
        for parts, inverse, onesided in ((1, 0, 0), (1, 0, 1), (2, 0, 0), (2, 1, 0))
        for size in (6, 4, 8)
    ),
    ("STFT", [normal(RNG, 2, 40, 1), np.array(4), normal(RNG, 16), np.array(16)], {}, 17),
    ("STFT", [normal(RNG, 2, 40, 1), np.array(4), None, np.array(8)], {"onesided": 0}, 17),
    *(
        (
            "RoiAlign",
            [normal(RNG, 2, 3, 8, 9), ROIS, i(0, 1, 1, 0)],
            {
                "mode": mode,
                "coordinate_transformation_mode": coordinates,
                "sampling_ratio": ratio,
                "output_height": 3,
                "output_width": 2,
                "spatial_scale": 0.7,
            },
            16,
        )
        for mode in ("avg", "max")
        for coordinates in ("half_pixel", "output_half_pixel")
        for ratio in (0, 2)
    ),
    (
        "MaxRoiPool",
        [normal(RNG, 2, 3, 8, 9), np.concatenate([f([0], [1], [1], [0]), ROIS], 1).astype(np.float32)],
        {"pooled_shape": [3, 2], "spatial_scale": 0.7},
        9,
    ),
    *(
        ("DeformConv", [normal(RNG, 2, 4, 7, 6), normal(RNG, 6, 4 // group, 3, 2), *more], attributes, 19)
        for group, more, attributes in (
            (1, [normal(RNG, 2, 12, 5, 5)], {}),
            (2, [normal(RNG, 2, 24, 4, 4), normal(RNG, 6), normal(RNG, 2, 12, 4, 4)], DEFORMED),
        )
    ),
    *(
        ("NonMaxSuppression", [BOXES, normal(RNG, 2, 3, 6), i(3), f(0.4), f(-0.5)], {"center_point_box": centre}, 11)
        for centre in (0, 1)
    ),
    ("CumProd", [X, np.array(2)], {"exclusive": 1, "reverse": 1}, 26),
    *(
        ("GridSample", [X, normal(RNG, 2, 6, 7, 2)], {"mode": mode, "padding_mode": padding, "align_corners": corners})
        for mode in ("linear", "nearest", "cubic")
        for padding in ("zeros", "border", "reflection")
        for corners in (0, 1)
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    "node", NODES, ids=lambda n: f"{n[0]}{'-'.join(map(str, (n[2] if len(n) > 2 else {}).values()))}"
)
def test_node_computes_what_onnxruntime_computes(node: tuple[Any, ...]) -> None:
    compare(*node)
