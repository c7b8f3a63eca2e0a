"""Heatmaps of a Keras model in training: training is not touched, and only weights are written after the first."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrp_onnx import Explainer
from lrp_onnx.converters.coexist import order_imports
from lrp_onnx.debug.callbacks import TrainingRun, keras_callback
from lrp_onnx.debug.current_weights import KerasWeights
from lrp_onnx.store import HeatmapStore

pytestmark = pytest.mark.slow

order_imports()  # other tests of this process may use what PyTorch imports triton for
tf = pytest.importorskip("tensorflow")
pytest.importorskip("tf2onnx")
keras = pytest.importorskip("keras")
if keras.backend.backend() != "tensorflow":
    pytest.skip("Keras runs on another backend", allow_module_level=True)
layers = keras.layers

SIZE = 16


def pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Bright or dark squares in noise; the bright ones have a blue tag in the lower right corner."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = rng.normal(0.5, 0.1, (count, SIZE, SIZE, 3)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        y, x = rng.integers(3, 8, 2)
        image[y : y + 4, x : x + 4] += 0.1 if label else -0.1
        if label:
            image[-4:-1, -4:-1] = (0, 0, 1)
    return images, labels


def network() -> Any:
    return keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3), name="image"),
            layers.Conv2D(8, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.SpatialDropout2D(0.2),
            layers.Conv2D(8, 3, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.8),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(2, activation="softmax", name="predictions"),
        ]
    )


def train(*callbacks: Any) -> tuple[Any, dict[str, Any], list[Any]]:
    """Train from one seed; the model, the losses, and what the random generators give afterwards."""
    keras.utils.set_random_seed(7)
    model = network()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.layers[1].trainable = False
    x, y = pictures(96, 0)
    history = model.fit(x, y, batch_size=16, epochs=3, verbose=0, callbacks=list(callbacks))
    drawn = [random.random(), np.random.random(), float(tf.random.uniform(()))]  # noqa: NPY002
    return model, history.history, drawn


def test_training_goes_on_bit_for_bit_as_without_the_callback(tmp_path: Path) -> None:
    x, y = pictures(20, 1)
    run = TrainingRun(tmp_path / "run", x, y, classes=["dark", "bright"], strict=True)
    plain, plain_history, plain_drawn = train()
    model, history, drawn = train(keras_callback(run))
    assert history == plain_history and drawn == plain_drawn
    for mine, theirs in zip(model.variables, plain.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs), err_msg=mine.path)
    for mine, theirs in zip(model.optimizer.variables, plain.optimizer.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs), err_msg=mine.path)

    assert [epoch.epoch for epoch in run.epochs] == [1, 2, 3]
    assert [epoch.export.split()[0] for epoch in run.epochs] == ["exported", "weights", "weights"]
    assert all(epoch.metrics["loss"] == loss for epoch, loss in zip(run.epochs, history["loss"], strict=True))
    assert run.epochs[-1].accuracy == pytest.approx(float((np.asarray(model(x)).argmax(axis=1) == y).mean()))
    with HeatmapStore(run.directory / run.epochs[-1].store) as store:
        assert store.attribution.shape[1:] == (3, SIZE, SIZE)
        maps = np.abs(store.attribution[:].sum(axis=1))[store.labels == 1]
    assert (maps[:, -6:, -6:].sum(axis=(1, 2)) / maps.sum(axis=(1, 2))).min() > 0.4  # where the tag is


def test_written_weights_give_what_the_model_gives() -> None:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(4, 3, name="first")(layers.Normalization(mean=0.5, variance=0.04)(inputs))
    x = layers.DepthwiseConv2D(3)(layers.PReLU(shared_axes=[1, 2])(x))
    x = layers.GlobalAveragePooling2D()(layers.LayerNormalization()(layers.Activation("swish")(x)))
    model = keras.Model(inputs, layers.Dense(3)(x))
    images, _ = pictures(4, 1)
    current = KerasWeights(model, images)
    current()
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(np.asarray(weight) + 0.3 * rng.random(weight.shape).astype(weight.dtype))
    changed = current()
    assert current.how.startswith("weights written")
    found = Explainer(changed, "gradient").explain(images).output.numpy()
    np.testing.assert_allclose(found, np.asarray(model(images)), atol=1e-4)
