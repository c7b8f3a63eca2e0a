"""The same network at every opset, by exporters and by ONNX's converter, gives the same output and relevance."""

from __future__ import annotations

import io
import warnings
from functools import cache

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime
import pytest
import torch
from torch import nn

from lrp_onnx import Explainer, load
from lrp_onnx.graph import verify_canonical


class Network(nn.Module):
    """What changed its form from opset to opset: norms, pools, Upsample, Pad, Clip, Slice, reductions, Softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.dense = nn.Conv2d(8, 8, 3), nn.Linear(8, 16)
        self.layer_norm, self.last = nn.LayerNorm(16), nn.Linear(16, 5)
        self.norm.running_mean.normal_(0, 0.1)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = nn.functional.relu6(self.norm(self.first(x)))
        h = nn.functional.max_pool2d(h, 2, ceil_mode=True)
        h = nn.functional.interpolate(h, scale_factor=2.0, mode="nearest")
        h = self.second(nn.functional.pad(h, (1, 1, 0, 0)))[:, :, 1:, :4]
        h = torch.cat([nn.functional.avg_pool2d(h, 2), h[:, :, 1:, :2]], 2)
        h = nn.functional.dropout(h, training=self.training).flatten(2).mean(2)
        h = nn.functional.gelu(self.layer_norm(self.dense(h).unsqueeze(1)).squeeze(1))
        return torch.softmax(self.last(h), 1)


@cache
def exported(opset: int) -> bytes:
    torch.manual_seed(0)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Network().eval(),
            (torch.randn(1, 3, 8, 8),),
            file,
            dynamo=False,
            opset_version=opset,
            input_names=["x"],
            dynamic_axes={"x": {0: "N"}},
        )
    return file.getvalue()


def relevance(model: bytes | onnx.ModelProto) -> tuple[np.ndarray, np.ndarray]:
    graph = load(model)
    assert graph.cut == "Softmax"
    assert verify_canonical(graph) < 1e-5
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8))
    e = Explainer(graph, "epsilon-plus", dtype="float64").explain(x, target=1)
    return e.output.numpy(), e.relevance["x"].numpy()


def assert_same(model: bytes | onnx.ModelProto) -> None:
    for found, expected in zip(relevance(model), relevance(exported(17)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("opset", range(9, 21))
def test_what_torch_exports_at_each_opset_is_the_same_network(opset: int) -> None:
    assert_same(exported(opset))


def newest_of_onnxruntime() -> int:
    """The newest opset that this ONNX Runtime takes."""
    for opset in range(onnx.defs.onnx_opset_version(), 20, -1):
        model = onnx.parser.parse_model(
            f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[1] x) => (float[1] y) {{ y = Relu (x) }}'
        )
        try:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception:
            continue
        return opset
    return 20


@pytest.mark.parametrize("opset", [*range(10, 17), *range(18, newest_of_onnxruntime() + 1)])
def test_what_onnx_converts_to_each_opset_is_the_same_network(opset: int) -> None:
    source = exported(9) if opset < 17 else exported(17)
    assert_same(onnx.version_converter.convert_version(onnx.load_from_string(source), opset))


@pytest.mark.parametrize("opset", [7, 8])
def test_the_oldest_opsets_are_read(opset: int) -> None:
    text = f"""<ir_version: 3, opset_import: ["" : {opset}]> g (float[2, 3, 8, 8] x) => (float[2, 5] y) {{
        c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        n = BatchNormalization (c, s, o, o, s)
        r = Relu (n)
        d, mask = Dropout (r)
        p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (d)
        u = Upsample <scales = [1.0, 1.0, 2.0, 2.0], mode = "nearest"> (p)
        m = ReduceMean <axes = [2, 3], keepdims = 0> (u)
        l = Gemm <transB = 1> (m, v, e)
        y = Softmax <axis = 1> (l)
    }}"""
    model = onnx.parser.parse_model(text)
    noise = np.random.default_rng(0)
    shapes = {"w": (4, 3, 3, 3), "b": (4,), "v": (5, 4), "e": (5,)}
    arrays = {name: noise.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    arrays |= {"s": np.ones(4, np.float32), "o": np.zeros(4, np.float32)}
    for name, array in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape))
    output, found = relevance(model)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 8, 8)))
    weights = {name: torch.from_numpy(array).double() for name, array in arrays.items()}
    h = nn.functional.max_pool2d(
        nn.functional.conv2d(x, weights["w"], weights["b"], padding=1).div(1 + 1e-5).clamp(0), 2
    )
    expected = nn.functional.interpolate(h, scale_factor=2.0).mean((2, 3)) @ weights["v"].T + weights["e"]
    np.testing.assert_allclose(output, expected, atol=1e-4)
    assert found.shape == (2, 3, 8, 8)
