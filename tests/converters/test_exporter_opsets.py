"""Whatever opset an exporter writes, networks are explained alike and no relevance is lost."""

from __future__ import annotations

import io
import warnings
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from lrp_onnx import Explainer, composite, load
from lrp_onnx.converters import convert
from lrp_onnx.graph import verify_canonical

EXACT = {"bias": "ignore", "eps": 1e-12}
ABSORBING = ("softmax",)  # by its formula


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)
        self.last = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = nn.functional.max_pool2d(torch.relu(self.norm(self.first(x))), 2)
        h = nn.functional.interpolate(nn.functional.silu(self.second(h)), scale_factor=2.0, mode="nearest")
        return self.last(nn.functional.adaptive_avg_pool2d(h, 1).flatten(1))


class Sequences(nn.Module):
    """A layer of each recurrent kind, attention, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(6, 8, bidirectional=True, batch_first=True), nn.GRU(16, 8, batch_first=True)
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm, self.last = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.gru(torch.tanh(self.lstm(x)[0]))[0]
        weight = torch.softmax(self.query(h) @ self.key(h).transpose(1, 2) / 8**0.5, -1)
        return self.last(nn.functional.gelu(self.norm(h + weight @ self.value(h))).mean(1))


Kind = tuple[type[nn.Module], tuple[int, ...]]
TORCH: dict[str, Kind] = {"pictures": (Pictures, (3, 8, 8)), "sequences": (Sequences, (7, 6))}


def by_torch(kind: str, opset: int, current: bool) -> onnx.ModelProto:
    network, shape = TORCH[kind]
    torch.manual_seed(0)
    made, x = network().eval(), torch.randn(1, *shape)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if current:
            exported = torch.onnx.export(made, (x,), dynamo=True, opset_version=opset, input_names=["x"], verbose=False)
            return exported.model_proto
        file = io.BytesIO()
        torch.onnx.export(made, (x,), file, dynamo=False, opset_version=opset, input_names=["x"])
        return onnx.load_from_string(file.getvalue())


@cache
def keras_network(kind: str, einsum: bool) -> Any:
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    if kind == "pictures":
        x = keras.Input((8, 8, 3))
        h = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", strides=2)(x)))
        h = layers.UpSampling2D(2)(layers.MaxPooling2D(2)(layers.DepthwiseConv2D(3, padding="same")(h)))
        h = layers.Dense(5)(layers.GlobalAveragePooling2D()(layers.Activation("swish")(layers.Conv2D(8, 1)(h))))
    else:
        x = keras.Input((7, 6))
        h = layers.GRU(8, return_sequences=True)(layers.Bidirectional(layers.LSTM(8, return_sequences=True))(x))
        attended = layers.MultiHeadAttention(2, 4)(h, h) if einsum else layers.Attention()([h, h])
        h = layers.LayerNormalization()(h + attended)
        h = layers.Dense(5)(layers.GlobalAveragePooling1D()(layers.Dense(8, activation="gelu")(h)))
    return keras.Model(x, h)


def by_tf2onnx(kind: str, opset: int, patch: pytest.MonkeyPatch) -> onnx.ModelProto:
    """As the converter goes about it, where this were the newest opset that tf2onnx writes."""
    from tf2onnx import constants

    older = {number: version for number, version in constants.OPSET_TO_IR_VERSION.items() if number <= opset}
    patch.setattr(constants, "OPSET_TO_IR_VERSION", older)
    return convert(keras_network(kind, einsum=opset >= 12)).model


def check(model: onnx.ModelProto, opset: int) -> None:
    """The canonical graph computes the same, and every node hands on what arrives."""
    assert model.opset_import[0].version == opset
    graph = load(model)
    assert verify_canonical(graph) < 1e-5
    (name, info), random = next(iter(graph.inputs.items())), np.random.default_rng(0)
    x = random.standard_normal([size if isinstance(size, int) else 1 for size in info.shape or ()])
    by = composite("epsilon").with_parameters(EXACT)
    e = Explainer(graph, by, dtype="float64").explain({name: x}, target=1, layers="all")
    outputs = {node.name: node.outputs for node in graph.nodes}
    for balance in e.conservation:
        arrived = sum(float(e.relevance[n].abs().sum()) for n in outputs.get(balance.node, ()) if n in e.relevance)
        if balance.rule not in ABSORBING:
            assert abs(float(balance.remainder)) <= 1e-6 * max(arrived, 1e-12), balance
    assert float(e.relevance[name].abs().sum()) > 1e-3 * abs(float(e.conservation[0].arrived))


@pytest.mark.slow
@pytest.mark.parametrize("opset", range(9, 21))
@pytest.mark.parametrize("kind", TORCH)
def test_older_exporter_of_torch(kind: str, opset: int) -> None:
    check(by_torch(kind, opset, current=False), opset)


@pytest.mark.slow
@pytest.mark.parametrize("opset", range(18, 26))
@pytest.mark.parametrize("kind", TORCH)
def test_current_exporter_of_torch(kind: str, opset: int) -> None:
    check(by_torch(kind, opset, current=True), opset)


@pytest.mark.slow
@pytest.mark.parametrize("opset", range(9, 19))
@pytest.mark.parametrize("kind", TORCH)
def test_tf2onnx(kind: str, opset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check(by_tf2onnx(kind, opset, monkeypatch), opset)


@pytest.mark.parametrize("opset", [9, 20])
def test_the_ends_of_the_older_exporter(opset: int) -> None:
    check(by_torch("sequences", opset, current=False), opset)
