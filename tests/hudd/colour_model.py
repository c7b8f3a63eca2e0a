"""A model that tells red, green and blue pictures apart, so that a test decides which of them it gets wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from lrp_onnx.preprocess import Preprocess

COLOURS = ("red", "green", "blue")
SIZE = 8


def save_model(path: Path, *, batch: int | str = "batch") -> Path:
    """Conv, Relu, Flatten, MatMul: the class is the brightest channel; a black picture has logits of 0."""
    random = np.random.default_rng(0)
    convolution = np.abs(random.normal(size=(3, 3, 3, 3))) * np.eye(3)[:, :, None, None]
    dense = np.kron(np.eye(3), np.ones((SIZE * SIZE, 1))) / SIZE**2
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["conv"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["conv"], ["relu"]),
            helper.make_node("Flatten", ["relu"], ["flat"]),
            helper.make_node("MatMul", ["flat", "v"], ["logits"]),
        ],
        "colours",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
        [
            numpy_helper.from_array(convolution.astype(np.float32), "w"),
            numpy_helper.from_array(dense.astype(np.float32), "v"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    preprocess = Preprocess(size=(SIZE, SIZE), range=(0, 1)).to_json()
    helper.set_model_props(model, {"lrp_onnx.preprocess": preprocess, "lrp_onnx.classes": json.dumps(COLOURS)})
    onnx.save_model(model, path)
    return path


def picture(colour: str, seed: int | None = None) -> np.ndarray:
    """A noisy picture of a colour, uint8 (8, 8, 3); without a seed all of one colour. "black" is black."""
    pixels = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    if colour in COLOURS:
        pixels[..., COLOURS.index(colour)] = 200
        if seed is not None:
            pixels += np.random.default_rng(seed).integers(0, 50, pixels.shape, dtype=np.uint8)
    return pixels


def save_picture(path: Path, colour: str, seed: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(colour, seed)).save(path)
    return path
