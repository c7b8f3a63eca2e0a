"""A Keras or TensorFlow network that makes rounding errors large is exported and compared in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lrp_onnx import Explainer
from lrp_onnx.converters import convert
from lrp_onnx.converters.coexist import order_imports
from lrp_onnx.errors import ConversionError

order_imports()
pytest.importorskip("tf2onnx")
tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
if keras.backend.backend() != "tensorflow":
    pytest.skip("Keras runs on another backend", allow_module_level=True)
layers = keras.layers


def chaotic(seed: int = 0) -> Any:
    """Each layer makes a difference several times as large; of norms exporters compute constants, which they round."""
    keras.utils.set_random_seed(seed)
    stack: list[Any] = [keras.Input((64,), name="x")]
    for _ in range(32):
        stack += [
            layers.Dense(64, use_bias=False, kernel_initializer=keras.initializers.RandomNormal(0.0, 0.5)),
            layers.BatchNormalization(
                beta_initializer="random_normal",
                moving_variance_initializer=keras.initializers.RandomUniform(0.8, 1.2),
            ),
            layers.Activation("tanh"),
        ]
    return keras.Sequential(stack)


def saved(model: Any, folder: Path) -> Path:
    tf.saved_model.save(model, str(folder / "saved"))
    return folder / "saved"


def frozen(model: Any, folder: Path) -> Path:
    from tf2onnx import tf_loader

    function = tf.function(lambda x: model(x, training=False), autograph=False).get_concrete_function(
        tf.TensorSpec((None, 64), tf.float32, name="x")
    )
    path = folder / "frozen.pb"
    path.write_bytes(tf_loader.convert_variables_to_constants_large_model(function).SerializeToString())
    return path


SOURCES: dict[str, Callable[[Any, Path], Any]] = {
    "Keras model": lambda model, folder: model,
    "SavedModel": saved,
    "frozen graph": frozen,
}


@pytest.mark.parametrize(
    "source", [name if name == "Keras model" else pytest.param(name, marks=pytest.mark.slow) for name in SOURCES]
)
def test_agreement_is_found_beyond_rounding_and_said(source: str, tmp_path: Path) -> None:
    model = chaotic()
    conversion = convert(SOURCES[source](model, tmp_path))
    assert conversion.relative < 1e-6
    assert any("rounding errors large" in note and "--dtype float64" in note for note in conversion.notes)
    constants = conversion.model.graph.initializer
    assert constants and not any(tensor.data_type == onnx.TensorProto.DOUBLE for tensor in constants)
    assert conversion.model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    x = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)
    (relevance,) = Explainer(conversion.model, "epsilon", dtype="float64").explain(x, target=0).relevance.values()
    assert relevance.isfinite().all()


@pytest.mark.slow
def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from lrp_onnx.converters import tensorflow_graph

    export, wrong = tensorflow_graph.to_onnx, chaotic(1)
    other = tf.function(lambda x: wrong(x, training=False), autograph=False)
    function = other.get_concrete_function(tf.TensorSpec((None, 64), tf.float32, name="x"))
    monkeypatch.setattr(tensorflow_graph, "to_onnx", lambda _, *names, **options: export(function, *names, **options))
    with pytest.raises(ConversionError, match="outputs differ by"):
        convert(chaotic())


def test_a_graph_of_both_precisions_is_not_widened() -> None:
    from lrp_onnx.converters import tensorflow_graph

    function = tf.function(lambda x: tf.cast(tf.cast(x, tf.float64) * 2.0, tf.float32)).get_concrete_function(
        tf.TensorSpec((None, 4), tf.float32, name="x")
    )
    with pytest.raises(ConversionError, match="mixes float32 and float64"):
        tensorflow_graph.in_float64(function)
