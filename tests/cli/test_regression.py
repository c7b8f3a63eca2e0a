"""A regressor that ends in Sigmoid is judged by what it gives, not by the logits that relevance starts from."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import onnx
import onnx.parser

from lrp_onnx.heatmaps import compute_heatmaps
from lrp_onnx.predictions import write_predictions
from lrp_onnx.store import HeatmapStore

TEXT = """<ir_version: 9, opset_import: ["" : 20]>
regressor (float[N, 1, 2, 2] x) => (float[N, 2] y) { f = Flatten (x)  z = Gemm (f, w)  y = Sigmoid (z) }"""


def test_loss_of_a_regressor_is_of_its_own_output(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(4, 2)).astype(np.float32), rng.normal(size=(3, 1, 2, 2)).astype(np.float32)
    targets = rng.uniform(size=(3, 2)).astype(np.float32)
    model = onnx.parser.parse_model(TEXT)
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=x, y=targets)
    wanted = ((1 / (1 + np.exp(-x.reshape(3, 4) @ w)) - targets) ** 2).mean(axis=1)

    write_predictions(tmp_path / "model.onnx", tmp_path / "data.npz", tmp_path / "results.csv")
    with (tmp_path / "results.csv").open() as file:
        np.testing.assert_allclose([float(row["loss"]) for row in csv.DictReader(file)], wanted, rtol=1e-4)

    compute_heatmaps(tmp_path / "model.onnx", tmp_path / "data.npz", tmp_path / "h.h5", target=0)
    with HeatmapStore(tmp_path / "h.h5") as store:
        np.testing.assert_allclose(store.samples["loss"], wanted, rtol=1e-4)
