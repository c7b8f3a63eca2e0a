"""Heatmap stores with known clusters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrp_onnx.store import HeatmapStore, LayerInfo, StoreSpec


@dataclass
class Planted:
    """Images with a known cause: the cause of each, and heatmaps by layer."""

    causes: np.ndarray
    layers: dict[str, np.ndarray]


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Path]:
    """Write arrays (N, …) by layer as a heatmap store; only `done` rows are finished. Fields can be changed."""

    def make(layers: Mapping[str, np.ndarray], name: str = "heatmaps.h5", done: Any = None, **changes: Any) -> Path:
        count = len(next(iter(layers.values())))
        fields: dict[str, Any] = {
            "paths": [f"/photos/{row}.png" for row in range(count)],
            "index": np.arange(count),
            "input_shape": (1, 2, 2),
            "outputs": 2,
            "layers": {
                key: LayerInfo(v.shape[1:], key, "Conv", order) for order, (key, v) in enumerate(layers.items())
            },
            "model": "model.onnx",
            "model_sha256": "0f" * 32,
            "composite": "{}",
            "target": "predicted",
            "seed": "logit",
        }
        path = tmp_path / name
        rows = np.arange(count) if done is None else np.asarray(done)
        with HeatmapStore.create(path, StoreSpec(**fields | changes)) as store:
            if rows.size:
                store.write(
                    rows,
                    attribution=np.random.default_rng(0).normal(size=(count, 1, 2, 2))[rows],
                    prediction=np.stack([rows, -rows], axis=1),
                    layers={key: values[rows] for key, values in layers.items()},
                )
            store.finish()
        return path

    return make


@pytest.fixture
def plant() -> Callable[..., Planted]:
    """Causes in a layer of 128 neurons, 32 of them noise, beside a larger layer that is nothing but noise.

    The relevance of each image is scaled by its logit, so the scale says nothing about the cause.
    """

    def plant(causes: int, seed: int, noise_neurons: int = 8192) -> Planted:
        random = np.random.default_rng(seed)
        cause = random.permutation(np.repeat(np.arange(causes), random.integers(12, 30, causes)))
        count = len(cause)
        logit = random.lognormal(0, 1, (count, 1))
        centres = random.normal(size=(causes, 96))
        signal = centres[cause] + 0.5 * random.normal(size=(count, 96))
        true = np.concatenate([signal, 0.5 * random.normal(size=(count, 32))], axis=1) * logit / 10
        noise = random.normal(size=(count, noise_neurons)) * logit / 100
        return Planted(cause, {"noise": noise.astype(np.float32), "true": true.astype(np.float32)})

    return plant
