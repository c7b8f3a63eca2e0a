"""Captions of regressed samples say what was expected, what came, and how far off it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrp_onnx.render.regressed import Regressed
from lrp_onnx.store import HeatmapStore, StoreSpec


def make_store(path: Path, targets: np.ndarray, values: np.ndarray, **changes: Any) -> HeatmapStore:
    n = len(targets)
    fields: dict[str, Any] = {"paths": [f"{row}.png" for row in range(n)], "index": range(n), "input_shape": (3, 4, 4)}
    fields |= {"model": "m.onnx", "model_sha256": "0", "composite": "{}", "target": "worst", "seed": "logit"}
    spec = StoreSpec(**fields, outputs=values.shape[1], target_values=targets, **changes)
    with HeatmapStore.create(path, spec) as store:
        given: dict[str, Any] = {"predicted_value": values * 1.0, "loss": [6.949, np.nan], "worst": [1, -1]}
        given = given if spec.loss else {}
        store.write(np.arange(n), attribution=np.zeros((n, 3, 4, 4)), prediction=values + 0.5, **given)
        store.finish()
    return HeatmapStore(path)


TARGETS = np.array([[1, 2, 1033.61, 33.891, 5, 6], [np.nan] * 6])


@pytest.mark.parametrize(
    ("count", "fields", "lines"),
    [
        (6, {"loss": "landmarks", "target_names": [f"{n}_{a}" for n in ("eye", "nose", "chin") for a in "xy"]},
         ["worst nose, loss 6.95", "expected 1034 33.9, predicted 1035 34.9"]),
        (6, {"loss": "mse"}, ["worst 1, loss 6.95", "expected 2, predicted 3"]),
        (2, {"loss": "mae", "target_names": ["yaw", "pitch"]},
         ["worst pitch, loss 6.95", "expected 1 2, predicted 2 3"]),
        (1, {"loss": "mse"}, ["loss 6.95", "expected 1, predicted 2"]),
        (6, {}, ["loss not known", "expected 1 2 1034 33.9 …, predicted 2.5 3.5 1035 35.4 …"]),
    ],
)  # fmt: skip
def test_a_caption_shows_the_worst_where_there_are_many(
    tmp_path: Path, count: int, fields: dict[str, Any], lines: list[str]
) -> None:
    targets = TARGETS[:, :count]
    with make_store(tmp_path / "h.h5", targets, np.nan_to_num(targets + 1), **fields) as store:
        regressed = Regressed(store)
        assert regressed.lines(0) == lines
        assert len(regressed.lines(1)) == 2
        assert regressed.lines(1)[0] == "loss not known"
        assert regressed.expected(1) == " ".join(["-"] * count)
