"""TensorFlow sources: every form converts, agrees with its source, keeps NHWC and readable names."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from lrp_onnx import Explainer, composite
from lrp_onnx.cli.app import app
from lrp_onnx.converters import convert, factory
from lrp_onnx.converters.coexist import order_imports
from lrp_onnx.errors import ConversionError

order_imports()  # other tests of this process may use what PyTorch imports triton for
pytest.importorskip("tensorflow")
pytest.importorskip("tf2onnx")
keras = pytest.importorskip("keras")
if keras.backend.backend() != "tensorflow":
    pytest.skip("Keras runs on another backend", allow_module_level=True)
layers = keras.layers

SHAPE = (12, 12, 3)


def small() -> Any:
    """Conv, batch norm with used statistics, hard-swish (scalar summands), depthwise conv, GELU, dropout."""
    image = keras.Input(SHAPE, name="image")
    x = layers.BatchNormalization(moving_mean_initializer="random_normal")(layers.Conv2D(4, 3)(image))
    x = layers.Activation("hard_swish")(x)
    x = layers.DepthwiseConv2D(3, padding="same", bias_initializer="random_normal")(x)
    x = layers.Activation("gelu")(layers.Dropout(0.5)(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(5, activation="softmax", name="predictions")(x), name="small")


def dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def assert_same_function(model: onnx.ModelProto, reference: Callable[[np.ndarray], Any], shape: Any = SHAPE) -> None:
    x = np.random.default_rng(1).normal(size=(4, *shape)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    output = session.run(None, {session.get_inputs()[0].name: x})[0]
    np.testing.assert_allclose(output, np.asarray(reference(x)), rtol=1e-4, atol=1e-5)


def test_model_object_keeps_layout_and_gets_readable_names() -> None:
    model = small()
    before = [weight.numpy().copy() for weight in model.weights]
    conversion = convert(model)
    assert conversion.framework == "keras" and conversion.relative < 1e-4
    (value,), (output,) = conversion.model.graph.input, conversion.model.graph.output
    assert (value.name, dims(value)) == ("image", ["batch", *SHAPE])
    assert (output.name, dims(output)) == ("predictions", ["batch", 5])
    names = [name for node in conversion.model.graph.node for name in node.output]
    assert not any(name.endswith(":0") or name.startswith("small") for name in names)
    assert all(np.array_equal(old, new.numpy()) for old, new in zip(before, model.weights, strict=True))
    assert_same_function(conversion.model, lambda x: model(x, training=False))


def test_layout_changes_stay_at_the_edges_of_a_convolutional_network() -> None:
    operations = [node.op_type for node in convert(small()).model.graph.node]
    assert operations.count("Transpose") <= 2
    assert "Erf" in operations


def test_large_weights_come_back_as_initializers_of_the_operators() -> None:
    model = keras.Sequential([keras.Input((8, 8, 64)), layers.Conv2D(128, 3), layers.Flatten(), layers.Dense(100)])
    conversion = convert(model)
    graph = conversion.model.graph
    stored = {initializer.name: list(initializer.dims) for initializer in graph.initializer}
    weights = {node.op_type: stored[node.input[1]] for node in graph.node if node.op_type in ("Conv", "MatMul", "Gemm")}
    assert weights == {"Conv": [128, 64, 3, 3], "MatMul": [4608, 100]}
    assert [value.name for value in graph.input] == [model.inputs[0]._keras_history.operation.name]


@pytest.mark.parametrize("called", [False, True])
def test_sequential_that_was_never_built_takes_the_given_shape(called: bool) -> None:
    model = keras.Sequential([layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(2)])
    if called:
        model(np.zeros((1, *SHAPE), np.float32))
    conversion = convert(model, input_shape=None if called else SHAPE)
    assert_same_function(conversion.model, model)
    assert any("never been called" in note for note in conversion.notes) is not called


def test_model_never_called_without_shape_asks_for_it() -> None:
    with pytest.raises(ConversionError, match=r"never called.*input_shape"):
        convert(keras.Sequential([layers.Conv2D(4, 3)]))


def test_subclassed_model_converts() -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.head = layers.Dense(3)

        def call(self, x: Any, training: bool = False) -> Any:
            return self.head(keras.ops.mean(x, axis=(1, 2)))

    model = Own()
    conversion = convert(model, input_shape=SHAPE)
    assert_same_function(conversion.model, model)


def test_several_inputs_and_outputs_keep_names_and_order() -> None:
    second, first = keras.Input((3,), name="second"), keras.Input((2,), name="first")
    joined = layers.Concatenate()([second, first])
    model = keras.Model([second, first], [layers.Dense(1, name="b")(joined), layers.Dense(2, name="a")(joined)])
    graph = convert(model).model.graph
    assert [value.name for value in graph.input] == ["second", "first"]
    assert [(value.name, dims(value)) for value in graph.output] == [("b", ["batch", 1]), ("a", ["batch", 2])]


def test_free_picture_size_stays_free_until_input_shape_fixes_it() -> None:
    model = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(4, 3), layers.GlobalMaxPooling2D()])
    free, fixed = convert(model), convert(model, input_shape=SHAPE)
    assert dims(free.model.graph.input[0])[0] == "batch"
    assert all(isinstance(dim, str) for dim in dims(free.model.graph.input[0])[:3])
    assert dims(fixed.model.graph.input[0]) == ["batch", *SHAPE]
    assert_same_function(free.model, model, (20, 9, 3))


def test_constants_captured_by_normalization_do_not_become_inputs() -> None:
    model = keras.Sequential(
        [keras.Input(SHAPE), layers.Rescaling(1 / 255), layers.Normalization(mean=[1, 2, 3.0], variance=[4, 5, 6.0])]
    )
    conversion = convert(model)
    assert len(conversion.model.graph.input) == 1
    assert_same_function(conversion.model, model)


def test_input_shape_that_contradicts_the_model_names_both() -> None:
    with pytest.raises(ConversionError, match=r"\(12, 12, 3\).*not \(3, 12, 12\)"):
        convert(small(), input_shape=(3, 12, 12))
    with pytest.raises(ConversionError, match=r"preprocess gives arrays of shape \(3, 12, 12\)"):
        convert(small(), preprocess={"size": [12, 12], "layout": "NCHW"})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".keras", ".h5", ".hdf5"])
def test_keras_file(tmp_path: Path, suffix: str) -> None:
    model = small()
    model.save(tmp_path / f"small{suffix}")
    conversion = convert(tmp_path / f"small{suffix}")
    assert conversion.model.graph.input[0].name == "image"
    assert_same_function(conversion.model, lambda x: model(x, training=False))


def test_saved_model_folder_with_several_inputs(tmp_path: Path) -> None:
    import tensorflow as tf

    class Module(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = tf.Variable(np.random.default_rng(0).normal(size=(300, 90)).astype(np.float32))

        @tf.function
        def __call__(self, zeta: Any, alpha: Any) -> dict[str, Any]:
            return {"y": zeta @ self.weight, "x": alpha - zeta}

    module = Module()
    spec = tf.TensorSpec((None, 300), tf.float32)
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=module.__call__.get_concrete_function(spec, spec))
    conversion = convert(tmp_path / "saved")
    assert conversion.framework == "tensorflow" and conversion.relative < 1e-5
    assert [value.name for value in conversion.model.graph.input] == ["alpha", "zeta"]
    assert [(v.name, dims(v)) for v in conversion.model.graph.output] == [("x", ["batch", 300]), ("y", ["batch", 90])]


def test_saved_model_of_keras(tmp_path: Path) -> None:
    model = small()
    model.export(tmp_path / "saved", verbose=False)
    assert_same_function(convert(tmp_path / "saved").model, lambda x: model(x, training=False))


def test_saved_model_with_several_signatures_takes_the_one_asked_for(tmp_path: Path) -> None:
    import tensorflow as tf

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 3), tf.float32)])
        def double(self, x: Any) -> dict[str, Any]:
            return {"doubled": 2 * x}

        @tf.function(input_signature=[tf.TensorSpec((None, 2), tf.float32)])
        def square(self, x: Any) -> dict[str, Any]:
            return {"squared": x * x}

    module = Module()
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures={"double": module.double, "square": module.square})
    assert convert(tmp_path / "saved", signature="square").model.graph.output[0].name == "squared"
    assert convert(tmp_path / "saved", signature="double").how == "tf2onnx, signature 'double'"
    command = ["convert", str(tmp_path / "saved"), "-o", str(tmp_path / "m.onnx"), "--signature", "square"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert onnx.load(tmp_path / "m.onnx").graph.output[0].name == "squared"
    with pytest.raises(ConversionError, match=r"'serving_default'; found double, square; name one .*--signature"):
        convert(tmp_path / "saved")
    with pytest.raises(ConversionError, match=r"'triple'; found double, square"):
        convert(tmp_path / "saved", signature="triple")
    with pytest.raises(ConversionError, match=r"signature means nothing for a Keras model; it is for a SavedModel"):
        convert(small(), signature="double")


def test_saved_model_without_signatures_says_so(tmp_path: Path) -> None:
    import tensorflow as tf

    tf.saved_model.save(tf.Module(), str(tmp_path / "saved"))
    with pytest.raises(ConversionError, match="'serving_default'; found none; save the model with signatures"):
        convert(tmp_path / "saved")


def test_factory_with_keras_weights(tmp_path: Path) -> None:
    (tmp_path / "arch.py").write_text(
        "import keras\ndef net():\n    return keras.Sequential([keras.Input((12, 12, 3)), keras.layers.Conv2D(4, 3)])\n"
    )
    model = keras.Sequential([keras.Input(SHAPE), layers.Conv2D(4, 3)])
    model.save_weights(tmp_path / "w.weights.h5")
    conversion = convert(f"{tmp_path}/arch.py:net", weights=tmp_path / "w.weights.h5")
    assert_same_function(conversion.model, model)
    with pytest.raises(ConversionError, match="without an architecture"):
        convert(tmp_path / "w.weights.h5")
    with pytest.raises(ConversionError, match="not modified"):
        convert(model, weights=tmp_path / "w.weights.h5")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_lambda_layer_is_refused_unless_trusted(tmp_path: Path, suffix: str) -> None:
    model = keras.Sequential([keras.Input(SHAPE), layers.Lambda(lambda x: x * 2.0 + 1.0), layers.Conv2D(2, 3)])
    model.save(tmp_path / f"lambda{suffix}")
    with pytest.raises(ConversionError, match=r"Lambda.*trust_pickle=True"):
        convert(tmp_path / f"lambda{suffix}")
    assert_same_function(convert(tmp_path / f"lambda{suffix}", trust_pickle=True).model, model)


OWN = """
import keras
class Doubling(keras.layers.Layer):
    def call(self, x):
        return 2 * x
def wiggle(x):
    return x * keras.ops.sigmoid(3 * x)
"""


def test_custom_layers_and_functions_come_as_objects_or_by_name(tmp_path: Path) -> None:
    (tmp_path / "own_layers.py").write_text(OWN)
    own = factory.load_module(str(tmp_path / "own_layers.py"))
    model = keras.Sequential([keras.Input(SHAPE), own.Doubling(), layers.Conv2D(2, 3, activation=own.wiggle)])
    model.save(tmp_path / "own.keras")
    with pytest.raises(ConversionError, match=r"Doubling.*--custom-objects package.module:Doubling") as caught:
        convert(tmp_path / "own.keras")
    assert "\n" not in str(caught.value)
    objects = {"Doubling": own.Doubling, "wiggle": own.wiggle}
    assert_same_function(convert(tmp_path / "own.keras", custom_objects=objects).model, model)
    named = [f"{tmp_path}/own_layers.py:{name}" for name in objects]
    assert_same_function(convert(tmp_path / "own.keras", custom_objects=named).model, model)
    options = [word for name in named for word in ("--custom-objects", name)]
    command = ["convert", f"{tmp_path}/own.keras", "-o", f"{tmp_path}/own.onnx", *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert_same_function(onnx.load(tmp_path / "own.onnx"), model)


@pytest.mark.parametrize("name", ["broken.keras", "broken.h5"])
def test_damaged_file_names_itself(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no model" * 50)
    with pytest.raises(ConversionError, match=name) as caught:
        convert(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_operation_without_onnx_form_is_named() -> None:
    class Special(layers.Layer):
        def call(self, x: Any) -> Any:
            import tensorflow as tf

            return tf.math.igamma(tf.abs(x) + 1.0, x)

    model = keras.Sequential([keras.Input(SHAPE), Special()])
    with pytest.raises(ConversionError, match=r"no ONNX form for Igamma"):
        convert(model)


@pytest.mark.slow
def test_nothing_reaches_the_terminal_even_when_tensorflow_starts(tmp_path: Path) -> None:
    small().save(tmp_path / "small.keras")
    code = "import sys; from lrp_onnx.converters import convert; convert(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "small.keras"], capture_output=True, text=True, check=True, timeout=300
    )
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_other_keras_backends_convert_files_and_objects(tmp_path: Path, backend: str) -> None:
    pytest.importorskip(backend)
    model = small()
    model.save(tmp_path / "small.keras")
    code = f"""
import os, sys; os.environ["KERAS_BACKEND"] = "{backend}"
from lrp_onnx.converters import convert
import keras, onnx
conversion = convert(sys.argv[1])
assert keras.backend.backend() == "{backend}" and conversion.relative < 1e-4, conversion
onnx.save(conversion.model, sys.argv[2])
model = keras.models.load_model(sys.argv[1])
again = convert(model)
graphs = conversion.model.graph, again.model.graph
names = [[value.name for value in (*graph.input, *graph.output)] for graph in graphs]
assert names == [["image", "predictions"]] * 2, names
print(again.how)
"""
    command = [sys.executable, "-c", code, tmp_path / "small.keras", tmp_path / "small.onnx"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    routes = {"torch": "torch.export exporter", "jax": "tf2onnx, in a process on the TensorFlow backend"}
    assert done.stdout == f"{routes[backend]}\n", done.stderr
    assert_same_function(onnx.load(tmp_path / "small.onnx"), lambda x: model(x, training=False))


@pytest.mark.slow
@pytest.mark.parametrize("first", ["", "import tensorflow"])
def test_pytorch_works_after_tensorflow_in_one_process(tmp_path: Path, first: str) -> None:
    small().save(tmp_path / "small.keras")
    code = f"""
import sys
{first}
from lrp_onnx.converters import convert
convert(sys.argv[1])
import torch
net = torch.nn.Conv2d(3, 4, 3)
print(convert(net, input_shape=(3, 8, 8)).how)
net(torch.ones(1, 3, 8, 8)).sum().backward()
torch.optim.SGD(net.parameters()).step()
"""
    command = [sys.executable, "-c", code, tmp_path / "small.keras"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == "torch.export exporter\n"


KERAS_APPLICATIONS = [
    *("VGG16", "ResNet50", "MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0"),
    *("DenseNet121", "InceptionV3", "Xception", "ConvNeXtTiny", "NASNetMobile"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", KERAS_APPLICATIONS)
def test_keras_application_agrees_and_is_explained(name: str) -> None:
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None)
    random = np.random.default_rng(0)
    for weight in model.weights:  # fresh statistics of 0 and 1 would hide most mistakes
        kind = weight.path.split("/")[-1]
        if kind in ("gamma", "moving_variance"):
            weight.assign(random.uniform(0.5, 1.5, weight.shape))
        elif kind in ("beta", "moving_mean", "bias"):
            weight.assign(random.normal(0, 0.1, weight.shape))
    conversion = convert(model)
    assert conversion.relative < 1e-4
    assert dims(conversion.model.graph.input[0])[0] == "batch"
    explainer = Explainer(conversion.model, composite("epsilon", eps=1e-12), dtype="float64")
    size = [length or 224 for length in model.input_shape[1:]]
    explanation = explainer.explain(random.uniform(0, 255, (1, *size)))
    (relevance,) = explanation.relevance.values()
    logit, biases = explanation.output.max(), sum(node.bias for node in explanation.conservation)
    assert torch.isfinite(relevance).all() and relevance.abs().max() > 0
    torch.testing.assert_close(relevance.sum() + biases, logit, rtol=1e-3, atol=0)
