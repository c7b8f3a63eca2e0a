"""A small store specification, and rows of numbers that can be told apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from lrp_onnx.store import HeatmapStore, LayerInfo, StoreSpec

LAYERS = {
    "/features/conv:0": LayerInfo((4, 5, 6), "conv", "Conv", 0),
    "logits": LayerInfo((3,), "fc", "Gemm", 1),
}


@pytest.fixture
def make_spec() -> Callable[..., StoreSpec]:
    """A specification of `n` samples; any field can be given."""

    def make(n: int = 10, **changes: Any) -> StoreSpec:
        fields: dict[str, Any] = {
            "paths": [f"/photos/bär {row}.png" for row in range(n)],
            "index": np.arange(n) * 2,
            "labels": np.arange(n) % 4 - 1,
            "input_shape": (3, 8, 9),
            "outputs": 3,
            "layers": LAYERS,
            "conservation": ["image", "/features/conv:0"],
            "model": "model.onnx",
            "model_sha256": "0f" * 32,
            "composite": '{"conv": "epsilon"}',
            "target": "predicted",
            "seed": "logit",
            "preprocess": '{"size": [8, 9]}',
            "classes": ["cat", "dog", "bär"],
        }
        return StoreSpec(**fields | changes)

    return make


@pytest.fixture
def values_of() -> Callable[..., dict[str, Any]]:
    """What `write` takes for some rows: numbers that depend on the row alone."""

    def values(spec: StoreSpec, rows: Sequence[int]) -> dict[str, Any]:
        def normal(seed: int, shape: tuple[int, ...]) -> np.ndarray:
            return np.stack([np.random.default_rng((seed, row)).normal(size=shape) for row in rows]).astype(np.float32)

        return {
            "attribution": normal(1, spec.input_shape),
            "prediction": normal(2, spec.output_shape),
            "predicted": np.array(rows) % 3,
            "correct": np.array(rows) % 2 == 0,
            "loss": np.array(rows) / 7,
            "target": np.array(rows) % 3,
            "layers": {name: normal(10 + info.order, info.shape) for name, info in spec.layers.items()},
            "conservation": normal(3, (len(spec.conservation),)),
        }

    return values


@pytest.fixture
def fill(values_of: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """Write rows into an open store in batches of two."""

    def write(store: HeatmapStore, spec: StoreSpec, rows: Sequence[int]) -> None:
        for start in range(0, len(rows), 2):
            batch = rows[start : start + 2]
            store.write(np.array(batch), **values_of(spec, batch))

    return write
