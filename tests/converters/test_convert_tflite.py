"""TensorFlow Lite files convert, float and quantised, and agree with TensorFlow Lite's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from typer.testing import CliRunner

from lrp_onnx.cli.app import app
from lrp_onnx.converters import convert
from lrp_onnx.converters.coexist import order_imports
from lrp_onnx.converters.quiet import quiet
from lrp_onnx.errors import ConversionError

order_imports()
tf = pytest.importorskip("tensorflow")
pytest.importorskip("tf2onnx")
keras = pytest.importorskip("keras")
if keras.backend.backend() != "tensorflow":
    pytest.skip("Keras runs on another backend", allow_module_level=True)

SHAPE = (12, 12, 3)


@pytest.fixture(scope="module")
def converter() -> Any:
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Conv2D(4, 3, activation="relu6"),
        keras.layers.DepthwiseConv2D(3),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(5, activation="softmax", name="predictions"),
    ]
    model = keras.Sequential([keras.Input(SHAPE, name="image"), *layers])
    return lambda: tf.lite.TFLiteConverter.from_keras_model(model)


def pictures() -> Iterator[list[np.ndarray]]:
    random = np.random.default_rng(0)
    for _ in range(10):
        yield [random.normal(size=(1, *SHAPE)).astype(np.float32)]


def written(path: Path, lite: Any) -> Path:
    with quiet():
        path.write_bytes(lite.convert())
    return path


def interpreted(path: Path, x: np.ndarray) -> np.ndarray:
    interpreter = tf.lite.Interpreter(str(path))
    interpreter.allocate_tensors()
    outputs = []
    for sample in x:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], sample[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    return np.concatenate(outputs)


def ran(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def test_float_file_keeps_names_and_layout_and_frees_the_batch(tmp_path: Path, converter: Any) -> None:
    path = written(tmp_path / "float.tflite", converter())
    conversion = convert(path)
    assert conversion.framework == "tflite" and conversion.relative < 1e-5 and conversion.notes == []
    (value,) = conversion.model.graph.input
    assert value.name == "image"
    assert [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] == ["batch", *SHAPE]
    x = np.random.default_rng(1).normal(size=(3, *SHAPE)).astype(np.float32)
    np.testing.assert_allclose(ran(conversion.model, x), interpreted(path, x), atol=1e-5)


@pytest.mark.parametrize("kind", ["weights", "activations", "input and output"])
def test_quantised_file_agrees_within_its_rounding_and_says_that_it_is_quantised(
    tmp_path: Path, converter: Any, kind: str
) -> None:
    lite = converter()
    lite.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind != "weights":
        lite.representative_dataset = pictures
        lite.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    if kind == "input and output":
        lite.inference_input_type = lite.inference_output_type = tf.int8
    path = written(tmp_path / "quantised.tflite", lite)
    conversion = convert(path)
    operations = {node.op_type for node in conversion.model.graph.node}
    assert conversion.relative < 0.02
    if kind != "weights":  # of so small a model the weights alone are not worth quantising
        assert {"QuantizeLinear", "DequantizeLinear"} <= operations
        assert any("quantised" in note for note in conversion.notes)
    if kind == "input and output":
        assert conversion.model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT8


def test_command_line_converts_and_reports_the_difference(tmp_path: Path, converter: Any) -> None:
    path = written(tmp_path / "float.tflite", converter())
    result = CliRunner().invoke(app, ["convert", str(path), "-o", str(tmp_path / "m.onnx")])
    assert result.exit_code == 0, result.output
    assert "largest difference to tflite" in result.output
    assert onnx.load(tmp_path / "m.onnx").graph.input[0].name == "image"


def test_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.tflite").write_bytes(b"TFL3 no model" * 20)
    with pytest.raises(ConversionError, match=r"broken\.tflite cannot be read as a TensorFlow Lite model"):
        convert(tmp_path / "broken.tflite")
    with pytest.raises(ConversionError, match=r"has its weights inside"):
        convert(tmp_path / "broken.tflite", weights="w.h5")


def test_a_model_that_keeps_a_state_is_refused_by_name(tmp_path: Path) -> None:
    class Counter(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seen = tf.Variable(tf.zeros((1, 4)))

        @tf.function(input_signature=[tf.TensorSpec((1, 4), tf.float32)])
        def __call__(self, x: Any) -> Any:
            return self.seen.assign_add(x)

    counter = Counter()
    lite = tf.lite.TFLiteConverter.from_concrete_functions([counter.__call__.get_concrete_function()], counter)
    lite.experimental_enable_resource_variables = True
    path = written(tmp_path / "counter.tflite", lite)
    with pytest.raises(ConversionError, match=r"counter.tflite keeps a state from call to call \(.*VAR_HANDLE"):
        convert(path)
