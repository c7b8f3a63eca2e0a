"""Weights on few bits: what ONNX Runtime's quantisers make of attention, embeddings, LSTMs and dense layers."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime import quantization
from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from torch import nn

from lrp_onnx import Explainer, load
from lrp_onnx.errors import UnsupportedOpError
from lrp_onnx.graph.packed import bits_of
from lrp_onnx.graph.quantised import NOTE

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.ERROR)  # the quantisers tell every step
    yield
    logging.disable(logging.NOTSET)


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (RANDOM.standard_normal(shape) * scale).astype(np.float32)


def written(text: str, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    return proto


def exported(network: nn.Module, x: np.ndarray) -> onnx.ModelProto:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), (torch.from_numpy(x),), file, dynamo=False, opset_version=17, input_names=["x"]
        )
    return onnx.load_from_string(file.getvalue())


class Dense(nn.Module):
    """80 inputs: the last block of 32 is not full."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(80, 64), nn.Linear(64, 48), nn.Linear(48, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.last = nn.LSTM(16, 12, bidirectional=True, batch_first=True), nn.Linear(24, 5)
        with torch.no_grad():  # gates of very different size: one scale must not be taken for another
            self.lstm.weight_ih_l0 *= torch.logspace(-1, 0.3, 48)[:, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.lstm(x)[0]).mean(1))


def bert() -> onnx.ModelProto:
    """Embeddings and attention as ONNX Runtime's optimiser writes them, the second with causal order and a past."""
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    g (int32[N, 6] ids, int32[N, 6] mask) => (float[N, 3] y) {
        e, count = com.microsoft.EmbedLayerNormalization (ids, , words, places, , scale, shift, mask)
        a = com.microsoft.Attention <num_heads = 4> (e, w1, b1, mask)
        h = Add(e, a)
        b = com.microsoft.Attention <num_heads = 2, unidirectional = 1> (h, w2, b2)
        s = Add(h, b)
        axes = Constant <value_ints = [1]> ()
        m = ReduceMean <axes = [1], keepdims = 0> (s)
        y = MatMul(m, head)
    }"""
    constants = {"words": normal(20, 16), "places": normal(6, 16), "scale": 1 + normal(16, scale=0.1)}
    constants |= {"shift": normal(16, scale=0.1), "w1": normal(16, 48, scale=0.3), "b1": normal(48, scale=0.1)}
    constants |= {"w2": normal(16, 48, scale=0.3), "b2": normal(48, scale=0.1), "head": normal(16, 3)}
    return written(text, constants)


def explained(model: onnx.ModelProto, feeds: dict[str, np.ndarray], deployed: onnx.ModelProto) -> tuple[Any, float]:
    """The explanation of `model`, and how far its outputs are from those of `deployed` in ONNX Runtime."""
    session = onnxruntime.InferenceSession(deployed.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, feeds)
    e = Explainer(model, "epsilon").explain({k: torch.from_numpy(v) for k, v in feeds.items()}, target=0)
    return e, float(np.abs(e.output.numpy() - expected).max() / np.abs(expected).max())


def alike(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The least cosine of the relevance of an input."""
    return min(float(torch.cosine_similarity(a[n].flatten().double(), b[n].flatten().double(), dim=0)) for n in b)


def check(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    feeds: dict[str, np.ndarray],
    ops: set[str],
    off: float,
    like: float,
) -> None:
    assert {node.op_type for node in after.graph.node} >= ops
    graph = load(after)
    assert NOTE in graph.notes
    assert not {node.op_type for node in graph.nodes} & ops
    e, difference = explained(after, feeds, after)
    assert difference < off
    plain, _ = explained(before, feeds, before)
    assert alike(e.relevance, plain.relevance) > like


@pytest.mark.parametrize(("bits", "like"), [(2, 0.5), (4, 0.97), (8, 0.999)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_dense_layers_in_blocks(bits: int, like: float, symmetric: bool) -> None:
    torch.manual_seed(0)
    x = normal(2, 5, 80)
    before = exported(Dense(), x)
    quantiser = MatMulNBitsQuantizer(before, block_size=32, is_symmetric=symmetric, bits=bits)
    quantiser.process()
    check(before, quantiser.model.model, {"x": x}, {"MatMulNBits"}, 1e-5, like)


def test_dense_layers_in_blocks_of_the_standard() -> None:
    torch.manual_seed(0)
    x = normal(2, 5, 80)
    before = onnx.version_converter.convert_version(exported(Dense(), x), 21)
    quantiser = MatMulNBitsQuantizer(before, block_size=32, quant_format=quantization.QuantFormat.QDQ)
    quantiser.process()
    after = quantiser.model.model
    assert any(attribute.name == "block_size" for node in after.graph.node for attribute in node.attribute)
    check(before, after, {"x": x}, {"DequantizeLinear"}, 0.01, 0.97)  # ONNX Runtime rounds activations, too


@pytest.mark.parametrize("book", [MatMulBnb4Quantizer.FP4, MatMulBnb4Quantizer.NF4])
def test_dense_layers_by_a_code_book(book: int) -> None:
    torch.manual_seed(0)
    x = normal(2, 5, 80)
    before = exported(Dense(), x)
    quantiser = MatMulBnb4Quantizer(before, book, 32)
    quantiser.process()
    check(before, quantiser.model.model, {"x": x}, {"MatMulBnb4"}, 1e-5, 0.9)


@pytest.mark.parametrize("by_channel", [False, True])
def test_recurrent_layers(by_channel: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = normal(2, 7, 16)
    before = exported(Recurrent(), x)
    quantization.quantize_dynamic(
        before, tmp_path / "q.onnx", per_channel=by_channel, weight_type=quantization.QuantType.QInt8
    )
    after = onnx.load(tmp_path / "q.onnx")
    check(before, after, {"x": x}, {"DynamicQuantizeLSTM"}, 0.03, 0.97)


def test_attention_and_embeddings(tmp_path: Path) -> None:
    before = bert()
    kinds = ["Attention", "EmbedLayerNormalization", "MatMul"]
    quantization.quantize_dynamic(before, tmp_path / "q.onnx", op_types_to_quantize=kinds)
    feeds = {"ids": RANDOM.integers(0, 20, (2, 6)).astype(np.int32), "mask": np.ones((2, 6), np.int32)}
    feeds["mask"][1, 3:] = 0
    after = onnx.load(tmp_path / "q.onnx")
    check(before, after, feeds, {"QAttention", "QEmbedLayerNormalization"}, 0.03, 0.98)


@pytest.mark.parametrize("zeros", [True, False])
def test_rows_of_a_table_in_blocks(zeros: bool) -> None:
    scales, packed = normal(10, 2, scale=0.1), RANDOM.integers(0, 256, (10, 16), dtype=np.uint8)
    offsets = {"zeros": RANDOM.integers(0, 256, (10, 1), dtype=np.uint8)} if zeros else {}
    text = f"""<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]> g (int64[N] ids) => (float[N, 32] y) {{
        r = com.microsoft.GatherBlockQuantized <block_size = 16, bits = 4, quantize_axis = 1, gather_axis = 0>
            (table, ids, scales{", zeros" if zeros else ""})
        y = Neg(r)
    }}"""
    proto = written(text, {"table": packed, "scales": scales, **offsets})
    _, difference = explained(proto, {"ids": np.array([3, 3, 9])}, proto)
    assert difference < 1e-6
    assert load(proto).notes == (NOTE,)


def test_weights_that_are_computed_are_refused_by_name() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    g (float[N, 32] x, uint8[4, 2, 8] w) => (float[N, 4] y) {
        y = com.microsoft.MatMulNBits <K = 32, N = 4, bits = 4, block_size = 16> (x, w, scales)
    }"""
    with pytest.raises(UnsupportedOpError, match="MatMulNBits"):
        Explainer(written(text, {"scales": normal(4, 2)}), "epsilon")


def test_the_lowest_bits_come_first() -> None:
    assert bits_of(np.array([[0x21, 0xF3]], np.uint8), 4).tolist() == [[1, 2, 3, 15]]
    assert bits_of(np.array([0b11100100], np.uint8), 2).tolist() == [0, 1, 2, 3]
    assert bits_of(np.array([7, 200], np.uint8), 8).tolist() == [7, 200]
