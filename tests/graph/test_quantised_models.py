"""Quantised models are explained on their dequantised weights, say so, and still round where they did."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime import quantization
from torch import nn

from lrp_onnx import Explainer, load
from lrp_onnx.graph.quantised import NOTE
from lrp_onnx.heatmaps import compute_heatmaps

STATIC: dict[str, dict] = {
    "QDQ": {"quant_format": quantization.QuantFormat.QDQ},
    "QDQ by channel": {
        "quant_format": quantization.QuantFormat.QDQ,
        "per_channel": True,
        "weight_type": quantization.QuantType.QInt8,
    },
    "QDQ, 4-bit weights": {
        "quant_format": quantization.QuantFormat.QDQ,
        "weight_type": quantization.QuantType.QInt4,
    },
    "QDQ, 16-bit activations": {
        "quant_format": quantization.QuantFormat.QDQ,
        "activation_type": quantization.QuantType.QUInt16,
    },
    "QOperator": {"quant_format": quantization.QuantFormat.QOperator},
    "QOperator by channel": {
        "quant_format": quantization.QuantFormat.QOperator,
        "per_channel": True,
        "weight_type": quantization.QuantType.QInt8,
    },
}
DYNAMIC: dict[str, dict] = {
    "dynamic": {},
    "dynamic by channel": {"per_channel": True, "weight_type": quantization.QuantType.QInt8},
}


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.third, self.gate = nn.Conv2d(8, 16, 3, stride=2), nn.Conv2d(16, 16, 3, groups=16, padding=1)
        self.dense = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.first(x))
        h = torch.relu(self.second(h) + h)
        h = nn.functional.leaky_relu(self.third(h))
        h = nn.functional.max_pool2d(h * torch.sigmoid(self.gate(h)), 2)
        return self.dense(torch.cat([h.mean((2, 3)), nn.functional.avg_pool2d(h, 2).mean((2, 3))], 1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.norm, self.wide, self.narrow, self.dense = (
            nn.LayerNorm(16),
            nn.Linear(16, 32),
            nn.Linear(32, 16),
            nn.Linear(16, 5),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = torch.softmax(self.query(x) @ self.key(x).transpose(1, 2) / 4, -1)
        h = self.norm(x + scores @ self.value(x))
        return self.dense((h + self.narrow(nn.functional.gelu(self.wide(h)))).mean(1))


NETWORKS = {"convolutions": (Convolutions, (3, 12, 12)), "attention": (Attention, (6, 16))}


def exported(name: str) -> bytes:
    network, shape = NETWORKS[name]
    torch.manual_seed(0)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network().eval(),
            (torch.randn(1, *shape),),
            file,
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "N"}},
        )
    return file.getvalue()


class Samples(quantization.CalibrationDataReader):
    def __init__(self, shape: tuple[int, ...]) -> None:
        self._samples = iter([{"x": batch(shape, seed)[:1]} for seed in range(8)])

    def get_next(self) -> dict | None:
        return next(self._samples, None)


def batch(shape: tuple[int, ...], seed: int = 99) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((4, *shape)).astype(np.float32)


def quantised(name: str, how: str, folder: Path) -> tuple[Path, Path]:
    """The float model and the quantised one."""
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser advises to preprocess
    before, after = folder / "float.onnx", folder / "quantised.onnx"
    before.write_bytes(exported(name))
    if how in STATIC:
        quantization.quantize_static(before, after, Samples(NETWORKS[name][1]), **STATIC[how])
    else:
        quantization.quantize_dynamic(before, after, **DYNAMIC[how])
    return before, after


def run(model: bytes, x: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


@pytest.mark.parametrize("how", [*STATIC, *DYNAMIC])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_quantised_model_is_explained_like_the_model_that_it_was_made_from(
    name: str, how: str, tmp_path: Path
) -> None:
    before, after = quantised(name, how, tmp_path)
    graph, x = load(after), batch(NETWORKS[name][1])
    assert graph.notes == (NOTE,)
    assert not load(before).notes
    kinds = {node.op_type for node in graph.nodes}
    assert not any(kind.startswith("QLinear") or kind.endswith("Integer") or kind == "QGemm" for kind in kinds)
    assert all(graph.initializers[node.inputs[1]].dtype == np.float64 for node in graph.nodes if node.op_type == "Conv")

    deployed = run(after.read_bytes(), x)
    levels = np.abs(run(graph.model.SerializeToString(), x) - deployed).max() / np.abs(deployed).max()
    assert levels < 0.02  # a number next to the border of two levels, here and there

    least = {"epsilon": 0.8 if "4-bit" in how else 0.97, "epsilon-plus-flat": 0.97}
    for composite, threshold in least.items():
        e = Explainer(graph, composite).explain(x, target=0, seed="one")
        float_model = Explainer(load(before), composite).explain(x, target=0, seed="one")
        assert cosine(e.relevance["x"], float_model.relevance["x"]) > threshold
        again = Explainer(graph, composite, dtype="float64").explain(x.astype(np.float64), target=0, seed="one")
        assert cosine(e.relevance["x"], again.relevance["x"]) > 0.98


@pytest.mark.parametrize("how", ["QDQ", "QOperator", "dynamic"])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_onnxruntime_makes_of_a_quantised_model_is_explained_alike(name: str, how: str, tmp_path: Path) -> None:
    """Its optimiser fuses further, and turns convolutions to (N, H, W, C)."""
    _, after = quantised(name, how, tmp_path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session = onnxruntime.InferenceSession(after, options, providers=["CPUExecutionProvider"])
    x = batch(NETWORKS[name][1])
    (deployed,) = session.run(None, {"x": x})
    e, expected = (Explainer(p, "epsilon").explain(x, target=0) for p in (tmp_path / "optimised.onnx", after))
    assert np.abs(e.output.numpy() - deployed).max() < 0.03 * np.abs(deployed).max()
    assert cosine(e.relevance["x"], expected.relevance["x"]) > 0.99


def test_gradients_pass_through_rounding_but_not_through_clipping(tmp_path: Path) -> None:
    """A ReLU is nothing but the lower end of the range of the rounding behind it."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 3] y) {
        q = QuantizeLinear (x, scale, zero)  y = DequantizeLinear (q, scale, zero)
    }"""
    proto = onnx.parser.parse_model(text)
    for name, array in {"scale": np.float32(0.1), "zero": np.uint8(0)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    x = np.array([[-1.0, 0.52, 99.0]], np.float32)
    e = Explainer(proto, "gradient").explain(x, target=np.ones((1, 3), np.float32))
    assert e.output.numpy() == pytest.approx(np.array([[0, 0.5, 25.5]]))
    assert e.relevance["x"].tolist() == [[0, 1, 0]]
    assert Explainer(proto, "epsilon").explain(x, target=1).relevance["x"] == pytest.approx(np.array([[0, 0.5, 0]]))


def test_reshapes_and_maxima_of_levels_are_those_of_the_numbers() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[1, 1, 4, 4] x) => (float[1, 4] y) {
        q = QuantizeLinear (x, scale, zero)
        p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (q)
        r = Reshape (p, shape)
        y = DequantizeLinear (r, scale, zero)
    }"""
    proto = onnx.parser.parse_model(text)
    constants = {"scale": np.float32(0.1), "zero": np.int8(3), "shape": np.array([1, 4])}
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    graph = load(proto)
    assert [node.op_type for node in graph.nodes] == ["QuantizeLinear", "DequantizeLinear", "MaxPool", "Reshape"]
    assert list(graph.outputs) == ["y"]
    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4) / 10
    e = Explainer(graph).explain(x, target=3)
    assert e.relevance["x"][0, 0, 3, 3] == e.output[0, 3] == pytest.approx(1.5)


def test_the_softmax_that_a_quantised_model_rounds_is_cut_as_well() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 3] y) {
        h = Neg (x)  s = Softmax (h)  q = QuantizeLinear (s, scale, zero)  y = DequantizeLinear (q, scale, zero)
    }"""
    proto = onnx.parser.parse_model(text)
    for name, array in {"scale": np.float32(1 / 255), "zero": np.uint8(0)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    assert load(proto).cut == "Softmax"


def test_heatmaps_note_that_the_model_is_quantised(tmp_path: Path) -> None:
    _, after = quantised("convolutions", "QDQ", tmp_path)
    np.save(tmp_path / "x.npy", batch((3, 12, 12)))
    assert NOTE in compute_heatmaps(after, tmp_path / "x.npy", tmp_path / "h.h5").notes


def test_a_bias_in_levels_of_the_older_quantiser_is_a_bias() -> None:
    text = """<ir_version: 8, opset_import: ["" : 13]> g (float[1, 3, 6, 6] x) => (float[1, 4, 4, 4] y) {
        q, scale, zero = DynamicQuantizeLinear (x)
        both = Mul (scale, weight_scale)
        steps = Div (bias, both)  floor = Floor (steps)  whole = Cast <to = 6> (floor)  shaped = Reshape (whole, shape)
        c = ConvInteger (q, w, zero, weight_zero)
        b = Add (c, shaped)  f = Cast <to = 1> (b)  again = Mul (scale, weight_scale)  y = Mul (f, again)
    }"""
    proto, noise = onnx.parser.parse_model(text), np.random.default_rng(0)
    constants = {"w": noise.integers(0, 256, (4, 3, 3, 3), dtype=np.uint8), "weight_zero": np.uint8(120)}
    constants |= {"weight_scale": np.float32(0.01), "bias": noise.standard_normal(4).astype(np.float32)}
    for name, array in (constants | {"shape": np.array([1, 4, 1, 1])}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    graph, x = load(proto), batch((3, 6, 6))[:1]
    (convolution,) = (node for node in graph.nodes if node.op_type == "Conv")
    np.testing.assert_allclose(graph.initializers[convolution.inputs[2]], constants["bias"])
    deployed = run(proto.SerializeToString(), x)
    assert np.abs(run(graph.model.SerializeToString(), x) - deployed).max() < 2e-4 * np.abs(deployed).max()
    Explainer(graph, "epsilon").explain(x, target=np.ones((1, 4, 4, 4), np.float32) / 64)
