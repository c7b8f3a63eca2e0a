"""ONNX models become trainable, and what is trained goes back into the very same graph."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lrp_onnx.converters import convert, trainable
from lrp_onnx.converters.coexist import order_imports
from lrp_onnx.converters.trainable import Trainable, to_torch, write_back
from lrp_onnx.errors import ConversionError, ModelError, UnsupportedOpError

order_imports()
pytest.importorskip("onnx2torch")

X = np.random.default_rng(1).normal(size=(2, 3, 12, 12)).astype(np.float32)
Nodes = list[onnx.NodeProto]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Such small layers are faster so, and far faster when other processes use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).normal(0, 0.5, shape).astype(np.float32)


def make(
    nodes: Nodes,
    weights: dict[str, np.ndarray],
    *,
    opset: int = 17,
    shape: tuple[int | str, ...] = ("batch", 3, 12, 12),
    domain: str = "",
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    helper.set_model_props(model, {"lrp_onnx.classes": '["a", "b"]'})
    return model


def network(opset: int = 17) -> onnx.ModelProto:
    """Convolutions, a normalisation, a depthwise and a transposed convolution, a dense layer, Softmax."""
    nodes = [
        helper.make_node("Conv", ["x", "w.1", "b.1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "scale", "shift", "mean", "variance"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "w.2"], ["c2"], group=4, kernel_shape=[3, 3], pads=[0, 0, 1, 1]),
        helper.make_node("LeakyRelu", ["c2"], ["l"], alpha=0.2),
        helper.make_node("ConvTranspose", ["l", "w.3", "b.3"], ["t"], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["t"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w.4", "b.4"], ["z"], alpha=0.7, beta=1.3),
        helper.make_node("Softmax", ["z"], ["y"], axis=1),
    ]
    weights = {
        "w.1": weight(4, 3, 3, 3), "b.1": weight(4), "scale": weight(4, seed=1), "shift": weight(4, seed=2),
        "mean": weight(4, seed=3), "variance": np.abs(weight(4, seed=4)) + 0.5, "w.2": weight(4, 1, 3, 3),
        "w.3": weight(4, 5, 2, 2), "b.3": weight(5), "w.4": weight(5, 2), "b.4": weight(2),
    }  # fmt: skip
    return make(nodes, weights, opset=opset)


def run(model: onnx.ModelProto, x: np.ndarray = X) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def assert_retrains(model: onnx.ModelProto, x: np.ndarray = X) -> Trainable:
    """Every weight gets a gradient; after a step, ONNX Runtime runs the written model as torch does the module."""
    before = model.SerializeToString()
    trained = to_torch(model)
    output = trained.logits(torch.from_numpy(x))
    torch.manual_seed(0)
    (output * torch.randn_like(output)).sum().backward()
    for name, parameter in zip(trained.names, trained.weights, strict=True):
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    with torch.no_grad():
        for parameter in trained.weights:
            parameter.add_(0.1 * torch.randn_like(parameter) * parameter.abs().mean())
        expected = trained(torch.from_numpy(x))[0].numpy()
    written = write_back(model, trained)
    assert written.difference < 1e-4 and model.SerializeToString() == before
    np.testing.assert_allclose(run(written.model, x), expected, rtol=1e-3, atol=1e-5)
    assert np.abs(run(model, x) - expected).max() > 1e-4, "the weights changed nothing"
    return trained


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 18, 20, 21, 22, 24])
def test_every_opset_retrains(opset: int) -> None:
    trained = assert_retrains(network(opset))
    assert trained.names == ("w.1", "b.1", "scale", "shift", "w.2", "w.3", "b.3", "w.4", "b.4")
    assert trained.activation == "Softmax" and trained.route == "onnx2torch"


def test_only_the_trained_weights_differ_in_the_written_model() -> None:
    model = network()
    model.graph.initializer[0].doc_string = "kept"
    floats = helper.make_tensor("b.1", TensorProto.FLOAT, [4], weight(4).tolist())  # not as raw bytes
    model.graph.initializer[1].CopyFrom(floats)
    trained = to_torch(model)
    with torch.no_grad():
        for parameter in trained.weights:
            parameter.mul_(1.1)
    written = write_back(model, trained).model
    changed = {t.name: numpy_helper.to_array(t) for t in written.graph.initializer}
    for tensor in model.graph.initializer:
        factor = np.float32(1.1 if tensor.name in trained.names else 1)
        np.testing.assert_allclose(changed[tensor.name], numpy_helper.to_array(tensor) * factor, rtol=1e-6)
    assert written.graph.initializer[0].doc_string == "kept"
    for proto in (model, written):
        for tensor in proto.graph.initializer:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
    assert written == model


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_dense_layer_keeps_the_layout_of_its_weights(transposed: int) -> None:
    w = weight(3, 4) if transposed else weight(4, 3)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=transposed, alpha=2.0, beta=0.5)
    model = make([node], {"w": w, "b": weight(3)}, shape=("batch", 4))
    trained = assert_retrains(model, X.reshape(-1, 4))
    assert [tuple(parameter.shape) for parameter in trained.weights] == [w.shape, (3,)]


def test_weights_in_constant_nodes_behind_transposes_and_used_twice_are_written_where_they_are() -> None:
    nodes = [
        helper.make_node("Constant", [], ["kernel"], value=numpy_helper.from_array(weight(3, 3, 3, 3))),
        helper.make_node("Conv", ["x", "kernel"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "kernel"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["d"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Identity", ["dense"], ["same"]),
        helper.make_node("Transpose", ["same"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["f", "turned"], ["m"]),
        helper.make_node("MatMul", ["m", "dense"], ["y"]),
    ]
    trained = assert_retrains(make(nodes, {"dense": weight(5, 3)}))
    assert trained.names == ("kernel", "dense")


def test_a_kernel_that_is_computed_from_a_weight_trains_that_weight() -> None:
    shape = np.array([4, 3, 3, 3])
    nodes = [
        helper.make_node("Reshape", ["flat", "shape"], ["kernel"]),
        helper.make_node("Conv", ["x", "kernel"], ["y"]),
    ]
    assert assert_retrains(make(nodes, {"flat": weight(36, 3), "shape": shape})).names == ("flat",)


def test_statistics_scalars_and_what_comes_before_the_first_layer_stay() -> None:
    nodes = [
        helper.make_node("Sub", ["x", "pixel_mean"], ["s"]),
        helper.make_node("Mul", ["s", "pixel_scale"], ["i"]),
        helper.make_node("Conv", ["i", "w"], ["c"]),
        helper.make_node("Mul", ["c", "gamma"], ["m"]),
        helper.make_node("Add", ["m", "beta"], ["a"]),
        helper.make_node("Mul", ["a", "half"], ["h"]),
        helper.make_node("Sub", ["h", "channel_mean"], ["u"]),
        helper.make_node("Clip", ["u", "low", "high"], ["y"]),
    ]
    column = {name: weight(4, 1, 1, seed=seed) for seed, name in enumerate(("gamma", "beta", "channel_mean"))}
    scalars = {name: np.float32(value) for name, value in (("half", 0.5), ("low", -1e3), ("high", 1e3))}
    pixels = {"pixel_mean": weight(3, 1, 1), "pixel_scale": weight(3, 1, 1, seed=1)}
    model = make(nodes, {"w": weight(4, 3, 3, 3), **column, **scalars, **pixels})
    assert assert_retrains(model).names == ("w", "gamma", "beta")


def test_a_constant_that_is_also_a_statistic_stays() -> None:
    ones = np.ones(4, np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "ones", "b", "b", "ones"], ["y"]),
    ]
    assert assert_retrains(make(nodes, {"w": weight(4, 3, 3, 3), "ones": ones, "b": weight(4)})).names == ("w",)


def test_ops_that_onnx2torch_does_not_know_or_cannot_do_come_from_ours() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("GroupNormalization", ["c", "scale", "shift"], ["n"], num_groups=2),
        helper.make_node("Gelu", ["n"], ["e"]),
        helper.make_node("PRelu", ["e", "slope"], ["y"]),
    ]
    weights = {"w": weight(4, 3, 3, 3), "scale": weight(4), "shift": weight(4, seed=1), "slope": weight(4, 1, 1)}
    assert assert_retrains(make(nodes, weights, opset=21)).route == "onnx2torch"
    for options in ({"pads": [1, 0, 0, 1]}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}):
        uneven = helper.make_node("ConvTranspose", ["x", "w"], ["y"], **options)
        trained = assert_retrains(make([uneven], {"w": weight(3, 4, 3, 3)}))
        assert trained.route == "lrp_onnx.ops" and "onnx2torch" in trained.notes[0]


def test_a_wrong_mapping_of_weights_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = trainable.build

    def swapped(*arguments: Any, **options: Any) -> Any:
        net, bindings = real(*arguments, **options)
        names = {"b.1": "shift", "shift": "b.1"}
        return net, tuple(replace(binding, name=names.get(binding.name, binding.name)) for binding in bindings)

    monkeypatch.setattr(trainable, "build", swapped)
    with pytest.raises(ModelError, match="differ from ONNX Runtime"):
        to_torch(network())


def test_a_model_that_cannot_be_trained_is_refused_with_the_reason() -> None:
    relu = helper.make_node("Relu", ["x"], ["y"])
    with pytest.raises(ModelError, match="no float weights"):
        to_torch(make([relu], {}))
    scale = {"s": np.float32(0.1), "z": np.int8(0), "w": np.ones((4, 3, 3, 3), np.int8)}
    quantised = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["f"]),
        helper.make_node("Conv", ["x", "f"], ["y"]),
    ]
    with pytest.raises(ModelError, match=r"quantised .*retrain the float model"):
        to_torch(make(quantised, scale))
    half = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["h", "w"], ["c"]),
        helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT),
    ]
    with pytest.raises(ModelError, match="16-bit"):
        to_torch(make(half, {"w": weight(4, 3, 3, 3).astype(np.float16)}))
    unknown = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Mystery", ["c"], ["y"], domain="some.where"),
    ]
    with pytest.raises(UnsupportedOpError, match="Mystery"):
        to_torch(make(unknown, {"w": weight(4, 3, 3, 3)}, domain="some.where"))


def test_weights_that_are_not_finite_or_of_another_model_are_not_written() -> None:
    trained = to_torch(network())
    with pytest.raises(ModelError, match=r"'w.1' has shape \(4, 3, 3, 3\), in the model to write to: none"):
        write_back(make([helper.make_node("Relu", ["x"], ["y"])], {}), trained)
    with torch.no_grad():
        trained.weights[0][0] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        write_back(network(), trained)


def test_without_onnx2torch_the_user_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    with pytest.raises(ConversionError, match=r'pip install "lrp-onnx\[retrain\]"'):
        to_torch(network())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision_models_retrain(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    net = getattr(models, name)(weights=None)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # all equal when new: the exporter would store them once
            torch.nn.init.normal_(module.bias, std=0.1)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.bias, std=0.1)  # the exporter would leave zeros out
    x = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    trained = assert_retrains(convert(net.eval(), input_shape=(3, 64, 64)).model, x)
    assert trained.route == "onnx2torch" and trained.difference < 1e-4
    # whether the exporter folds normalisations into convolutions or not, every kernel and dense layer is trained
    layers = [module for module in net.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
    assert sum(parameter.ndim > 1 for parameter in trained.weights) == len(layers)
    assert sum(parameter.ndim == 1 for parameter in trained.weights) >= len(layers)


@pytest.mark.slow
def test_keras_models_retrain() -> None:
    pytest.importorskip("tf2onnx")
    keras = pytest.importorskip("keras")
    layers = keras.layers
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same")(image)
    x = layers.BatchNormalization(moving_mean_initializer="random_normal")(x)
    x = layers.MaxPool2D()(layers.Activation("hard_swish")(x))
    x = layers.DepthwiseConv2D(3, padding="same", bias_initializer="random_normal")(x)
    x = layers.SeparableConv2D(12, 3, bias_initializer="random_normal")(layers.Activation("gelu")(x))
    x = layers.Dense(4, activation="softmax", bias_initializer="random_normal")(layers.Flatten()(x))
    model = convert(keras.Model(image, x)).model
    trained = assert_retrains(model, np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32))
    assert trained.route == "onnx2torch" and trained.activation == "Softmax"
    assert sum(parameter.numel() for parameter in trained.weights) >= 8 * 27 + 8 * 9 + 8 * 12 + 4 * 432
