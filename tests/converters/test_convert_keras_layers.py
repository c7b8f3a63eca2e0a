"""Keras layers at large convert, agree with Keras and, where relevance can pass, are explained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lrp_onnx import Explainer, composite
from lrp_onnx.converters import convert
from lrp_onnx.converters.coexist import order_imports
from lrp_onnx.errors import ConversionError

order_imports()
pytest.importorskip("tensorflow")
pytest.importorskip("tf2onnx")
keras = pytest.importorskip("keras")
if keras.backend.backend() != "tensorflow":
    pytest.skip("Keras runs on another backend", allow_module_level=True)
layers = keras.layers

PICTURE, SERIES = (8, 8, 3), (5, 4)


def attention(kind: str) -> Any:
    series = keras.Input(SERIES)
    layer = getattr(layers, kind)(2, 3) if kind == "MultiHeadAttention" else getattr(layers, kind)()
    return keras.Model(series, layer(series, series) if kind == "MultiHeadAttention" else layer([series, series]))


def grouped() -> Any:
    series = keras.Input(SERIES)
    return keras.Model(series, layers.GroupQueryAttention(2, 4, 2)(series, series))


def stacked(shape: tuple[int, ...], *stack: Any) -> Callable[[], Any]:
    return lambda: keras.Sequential([keras.Input(shape), *(make() for make in stack)])


MODELS: dict[str, Callable[[], Any]] = {
    "LSTM": stacked(SERIES, lambda: layers.LSTM(3)),
    "GRU": stacked(SERIES, lambda: layers.GRU(3, return_sequences=True)),
    "SimpleRNN": stacked(SERIES, lambda: layers.SimpleRNN(3)),
    "Bidirectional": stacked(SERIES, lambda: layers.Bidirectional(layers.LSTM(3, return_sequences=True))),
    "ConvLSTM2D": stacked((3, 6, 6, 2), lambda: layers.ConvLSTM2D(2, 3)),
    "TimeDistributed": stacked(SERIES, lambda: layers.TimeDistributed(layers.Dense(3))),
    "MultiHeadAttention": lambda: attention("MultiHeadAttention"),
    "Attention": lambda: attention("Attention"),
    "AdditiveAttention": lambda: attention("AdditiveAttention"),
    "GroupQueryAttention": grouped,
    "normalisation": stacked(
        SERIES, layers.LayerNormalization, lambda: layers.GroupNormalization(2), layers.UnitNormalization
    ),
    "RMSNormalization": stacked(SERIES, layers.RMSNormalization, lambda: layers.Dense(2)),
    "SpectralNormalization": stacked(PICTURE, lambda: layers.SpectralNormalization(layers.Conv2D(2, 3))),
    "preprocessing": stacked(
        (20, 20, 3),
        lambda: layers.Rescaling(1 / 127.5, offset=-1),
        lambda: layers.Resizing(12, 12),
        lambda: layers.CenterCrop(8, 8),
        layers.RandomFlip,
        lambda: layers.RandomRotation(0.1),
        lambda: layers.RandomContrast(0.1),
        lambda: layers.GaussianNoise(0.1),
        lambda: layers.Conv2D(2, 3),
    ),
    "activations": stacked(
        PICTURE,
        lambda: layers.Conv2D(4, 3),
        lambda: layers.PReLU(alpha_initializer="random_uniform"),
        layers.LeakyReLU,
        layers.ELU,
        lambda: layers.Activation("mish"),
        lambda: layers.Activation("silu"),
        lambda: layers.Activation("hard_sigmoid"),
    ),
    "shapes": stacked(
        PICTURE,
        lambda: layers.SeparableConv2D(4, 3),
        lambda: layers.Conv2DTranspose(3, 3, strides=2, padding="same"),
        lambda: layers.UpSampling2D(2, interpolation="bilinear"),
        lambda: layers.ZeroPadding2D(1),
        lambda: layers.Cropping2D(1),
        lambda: layers.Permute((3, 1, 2)),
        lambda: layers.Reshape((-1,)),
    ),
    "one dimension": stacked(
        (12, 3),
        lambda: layers.Conv1D(4, 3, padding="causal"),
        lambda: layers.MaxPooling1D(2),
        lambda: layers.Conv1DTranspose(2, 3),
        layers.GlobalAveragePooling1D,
    ),
    "three dimensions": stacked(
        (6, 6, 6, 2), lambda: layers.Conv3D(3, 3), lambda: layers.AveragePooling3D(2), layers.Flatten
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_layer_agrees_and_every_op_on_the_way_has_a_rule(name: str) -> None:
    keras.utils.set_random_seed(0)
    model = MODELS[name]()
    conversion = convert(model)
    assert conversion.relative < 1e-4
    explainer = Explainer(conversion.model, composite("epsilon").with_parameters({"bias": "ignore"}), dtype="float64")
    x = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:]))
    (relevance,) = explainer.explain(x, seed="all").relevance.values()
    assert relevance.shape == x.shape and relevance.isfinite().all() and relevance.abs().max() > 0


def test_embedded_ids_convert_with_their_own_type() -> None:
    model = keras.Sequential(
        [keras.Input((6,), dtype="int32"), layers.Embedding(20, 4), layers.GlobalAveragePooling1D(), layers.Dense(2)]
    )
    conversion = convert(model, example=np.random.default_rng(0).integers(0, 20, (3, 6)).astype(np.int32))
    assert conversion.relative < 1e-5
    assert conversion.model.graph.input[0].type.tensor_type.elem_type == 6  # int32


def test_layer_without_onnx_form_is_named() -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Discretization(bin_boundaries=[0.0, 1.0], name="bins")])
    with pytest.raises(ConversionError, match=r"no ONNX form for Bucketize \(.*bins"):
        convert(model)
