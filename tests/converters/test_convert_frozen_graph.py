"""Frozen TensorFlow graphs convert: inputs and outputs by name, or found where they are plain."""

from __future__ import annotations

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
from lrp_onnx.errors import ConversionError

order_imports()
tf = pytest.importorskip("tensorflow")
pytest.importorskip("tf2onnx")

KERNEL = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype(np.float32)


def frozen(path: Path, *, shape: Any = (None, 8, 8, 3), two_ends: bool = False) -> Path:
    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(tf.float32, shape, name="image")
        features = tf.nn.relu(tf.nn.conv2d(image, KERNEL, 1, "SAME"), name="features")
        tf.reduce_mean(features, axis=[1, 2], name="scores")
        if two_ends:
            tf.reduce_max(features, axis=[1, 2], name="highest")
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return path


def reference(x: np.ndarray) -> np.ndarray:
    return tf.nn.relu(tf.nn.conv2d(x, KERNEL, 1, "SAME")).numpy()


def ran(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def test_plain_graph_needs_no_names(tmp_path: Path) -> None:
    conversion = convert(frozen(tmp_path / "g.pb"))
    graph = conversion.model.graph
    assert conversion.framework == "tensorflow" and conversion.relative < 1e-5
    assert ([value.name for value in graph.input], [value.name for value in graph.output]) == (["image"], ["scores"])
    x = np.random.default_rng(1).normal(size=(3, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(ran(conversion.model, x), reference(x).mean((1, 2)), atol=1e-5)


def test_inner_tensors_can_be_inputs_and_outputs(tmp_path: Path) -> None:
    path = frozen(tmp_path / "g.pb")
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(ran(convert(path, outputs=["features"]).model, x), reference(x), atol=1e-5)
    head = convert(path, inputs=["features:0"], input_shape=(8, 8, 4)).model
    features = np.random.default_rng(2).normal(size=(2, 8, 8, 4)).astype(np.float32)
    np.testing.assert_allclose(ran(head, features), features.mean((1, 2)), atol=1e-5)


def test_several_ends_are_listed_until_one_is_named(tmp_path: Path) -> None:
    path = frozen(tmp_path / "g.pb", two_ends=True)
    with pytest.raises(ConversionError, match=r"nothing reads scores, highest; name it \(outputs, --outputs\)"):
        convert(path)
    arguments = ["convert", str(path), "-o", str(tmp_path / "m.onnx"), "--outputs", "highest", "--inputs", "image"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert onnx.load(tmp_path / "m.onnx").graph.output[0].name == "highest"


def test_shape_that_the_graph_does_not_know_is_asked_for(tmp_path: Path) -> None:
    path = frozen(tmp_path / "g.pb", shape=None)
    with pytest.raises(ConversionError, match=r"shape of 'image' is not in the graph; give input_shape"):
        convert(path)
    assert convert(path, input_shape=(8, 8, 3)).relative < 1e-5


def test_what_is_no_frozen_graph_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.pb").write_bytes(b"\xff no graph")
    with pytest.raises(ConversionError, match=r"broken\.pb cannot be read as a frozen TensorFlow graph"):
        convert(tmp_path / "broken.pb")
    with pytest.raises(ConversionError, match=r"'nowhere:0'.*which ends in scores"):
        convert(frozen(tmp_path / "g.pb"), outputs=["nowhere"])
    with tf.Graph().as_default() as graph:
        tf.compat.v1.get_variable("weight", (2, 2), use_resource=True)
    (tmp_path / "v.pb").write_bytes(graph.as_graph_def().SerializeToString())
    with pytest.raises(ConversionError, match=r"not frozen, weight are variables"):
        convert(tmp_path / "v.pb")
