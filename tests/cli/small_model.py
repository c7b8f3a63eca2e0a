"""A small model that carries its preprocessing and classes, pictures for it, and the program to run on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from lrp_onnx.cli.app import run
from lrp_onnx.preprocess import Preprocess

SIZE = 12
CLASSES = ("cat", "dog", "élan")
WEIGHTS = {"w1": (6, 3, 3, 3), "b1": (6,), "w2": (5, 6, 3, 3), "b2": (5,), "w3": (5, 3), "b3": (3,)}


def build_model(
    *, layout: str = "NCHW", extra: str = "", batch: int | str = "batch", poison: bool = False
) -> onnx.ModelProto:
    """Conv, Relu, MaxPool, Conv, Relu, mean, Flatten, Gemm, Softmax, with random weights."""
    random = np.random.default_rng(0)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        values = random.normal(size=shape).astype(np.float32)
        if poison and name == "w1":
            values.flat[0] = np.nan
        return numpy_helper.from_array(values, name)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["conv1"], "conv_1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv1"], ["relu1"], "relu_1"),
        helper.make_node("MaxPool", ["relu1"], ["pool"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["pool", "w2", "b2"], ["conv2"], "conv_2"),
        helper.make_node("Relu", ["conv2"], ["relu2"], "relu_2"),
        helper.make_node("GlobalAveragePool", ["relu2"], ["mean"], "mean"),
        helper.make_node("Flatten", ["mean"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["logits"], "dense"),
        helper.make_node("Softmax", ["logits"], ["scores"], "softmax"),
    ]
    if extra:  # an op between the last convolution and the mean
        nodes[4] = helper.make_node("Relu", ["conv2"], ["inner"], "relu_2")
        nodes.insert(5, helper.make_node(extra, ["inner"], ["relu2"], "strange"))
    shape: list[int | str] = [batch, 3, SIZE, SIZE]
    if layout == "NHWC":
        shape = [batch, SIZE, SIZE, 3]
        nodes[0].input[0] = "first"
        nodes.insert(0, helper.make_node("Transpose", ["x"], ["first"], "to_first", perm=[0, 3, 1, 2]))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 3])],
        [weights(name, *shape) for name, shape in WEIGHTS.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    preprocess = Preprocess(size=(SIZE, SIZE), layout=layout, range=(-1, 1))
    entries = {"lrp_onnx.preprocess": preprocess.to_json(), "lrp_onnx.classes": json.dumps(CLASSES)}
    helper.set_model_props(model, entries)
    return model


def save_picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


class Program:
    """Runs a command in this process; keeps what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *arguments: object) -> int:
        self._capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        self.out, self.err = self._capsys.readouterr()
        return code
