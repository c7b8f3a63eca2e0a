"""Regression from `test` to heatmaps: losses, thresholds, landmarks, and the worst output as the target."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from small_model import Program

import lrp_onnx
from lrp_onnx.engine import Explainer
from lrp_onnx.errors import DataError, TargetError
from lrp_onnx.heatmaps import compute_heatmaps
from lrp_onnx.predictions import predict, write_predictions
from lrp_onnx.store import HeatmapStore

SIZE, COUNT = 8, 12
HEADER = '<ir_version: 9, opset_import: ["" : 20]>'
COORDINATES = f"""{HEADER} coordinates (float[{{batch}}, 2, {SIZE}, {SIZE}] x) => (float[{{batch}}, 6] y)
{{ f = Flatten (x)  h = Gemm (f, w1)  r = Relu (h)  y = Gemm (r, w2) }}"""
# each landmark is the brightest place of a channel of its own; half as large as the input
MAPS = f"""{HEADER} maps (float[N, 2, {SIZE}, {SIZE}] x) => (float[N, 2, 4, 4] y)
{{ p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)  y = Conv (p, w) }}"""


def save(text: str, path: Path, **weights: np.ndarray) -> Path:
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items())
    onnx.save(model, path)
    return path


@pytest.fixture
def coordinates(tmp_path: Path) -> Path:
    """A model of three landmarks as six numbers."""
    return make_coordinates(tmp_path)


def make_coordinates(tmp_path: Path, batch: str = "N") -> Path:
    rng = np.random.default_rng(0)
    weights = {"w1": rng.normal(size=(2 * SIZE * SIZE, 10)), "w2": rng.normal(size=(10, 6))}
    return save(COORDINATES.replace("{batch}", batch), tmp_path / f"coordinates{batch}.onnx", **weights)


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    return save(MAPS, tmp_path / "maps.onnx", w=np.eye(2).reshape(2, 2, 1, 1))


def save_data(path: Path, targets: np.ndarray, **arrays: np.ndarray) -> Path:
    x = np.random.default_rng(1).normal(size=(len(targets), 2, SIZE, SIZE)).astype(np.float32)
    np.savez(path, **{"x": x, "y": targets.astype(np.float32), **arrays})
    return path


@pytest.fixture
def data(tmp_path: Path, coordinates: Path) -> Path:
    """Targets at known distances from what the model gives; of some, a landmark is not visible."""
    whole = save_data(tmp_path / "data.npz", np.zeros((COUNT, 6)))
    (result,) = predict(coordinates, whole)
    shift = np.zeros((COUNT, 3, 2))
    shift[np.arange(COUNT), np.arange(COUNT) % 3] = [3, 4]  # one landmark is 5 off
    shift[1::2] *= 3  # or 15
    targets = result.output - shift.reshape(COUNT, 6)
    targets[0, 2], targets[4, 2:4] = np.nan, np.nan
    return save_data(whole, targets)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_names_the_worst_landmark_and_all_distances(coordinates: Path, data: Path, tmp_path: Path) -> None:
    found = write_predictions(coordinates, data, tmp_path / "r.csv", loss="landmarks", threshold=3)
    rows = read_csv(tmp_path / "r.csv")
    assert list(rows[0])[:10] == ["image", "label", "predicted", "correct", "loss", "measure", "worst", "error_0",
                                  "error_1", "error_2"]  # fmt: skip
    assert [row["worst"] for row in rows[:4]] == ["0", "1", "2", "0"]
    assert (rows[0]["error_0"], rows[0]["error_1"], rows[1]["error_1"]) == ("5", "", "15")
    assert float(rows[0]["loss"]) == pytest.approx(5 / 2, rel=1e-4)  # the mean of the two that are visible
    assert [row["correct"] for row in rows] == ["1", "0"] * (COUNT // 2)
    assert {row["measure"] for row in rows} == {"landmarks"}

    summary = found.regression
    assert summary is not None
    assert (summary.above, summary.measured, found.accuracy) == (COUNT // 2, COUNT, 0.5)
    # the first is the worst in samples 0, 3, 6, 9; the second in 1, 7, 10, as in 4 it is not visible
    means = {"0": (5 + 15 + 5 + 15) / 12, "1": (15 + 15 + 5) / 10, "2": (5 + 15 + 5 + 15) / 12}
    assert summary.parts[0].name == "1"
    assert (summary.parts[0].samples, summary.parts[0].worst) == (10, 3)
    assert {part.name: pytest.approx(part.error, rel=1e-3) for part in summary.parts} == means
    assert summary.mean_error == pytest.approx((40 + 35 + 40) / 34, rel=1e-3)


def test_names_come_from_the_columns_of_the_manifest(program: Program, tmp_path: Path, maps: Path) -> None:
    from PIL import Image

    columns = "image,nose_x,nose_y,chin_x,chin_y"
    (tmp_path / "m.csv").write_text(f"{columns}\na.png,2.5,4.5,6.5,1.5\nb.png,,,0,0\n")
    model = onnx.load(maps)  # takes pictures, whose red is the nose, and whose green the chin
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3
    del model.graph.initializer[:]
    kernel = np.eye(3)[:2].reshape(2, 3, 1, 1).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(kernel, "w"))
    onnx.save(model, tmp_path / "m.onnx")
    pixels = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    pixels[0, 5, 2, 0] = pixels[0, 1, 6, 1] = pixels[1, 7, 7, 1] = 255
    for name, picture in zip(("a.png", "b.png"), pixels, strict=True):
        Image.fromarray(picture).save(tmp_path / name)
    command = ("test", tmp_path / "m.onnx", tmp_path / "m.csv", "--loss", "landmarks", "--threshold", 1)
    assert program(*command, "-o", tmp_path / "r.csv") == 0, program.err
    rows = read_csv(tmp_path / "r.csv")
    assert [float(rows[0][f"error_{name}"]) for name in ("nose", "chin")] == pytest.approx([0, 1])
    assert (rows[0]["worst"], rows[0]["loss"], rows[0]["correct"]) == ("chin", "0.5", "1")
    assert (rows[1]["error_nose"], rows[1]["worst"], rows[1]["label"]) == ("", "chin", "nan nan 0 0")
    assert float(rows[1]["score_chin_x"]) == pytest.approx(6.5)
    assert "mean pixel error 3.397" in program.out
    assert "landmarks above 1: 50.00% (1 of 2 samples)" in program.out
    assert program.out.index("\nchin") < program.out.index("\nnose")

    assert program(*command, "-o", tmp_path / "r.csv", "--overwrite", "--json") == 0
    said = json.loads(program.out)["regression"]
    assert (said["loss"], said["threshold"], said["above"]) == ("landmarks", 1, 1)
    assert [part["name"] for part in said["parts"]] == ["chin", "nose"]


def test_outputs_of_a_regressor_are_summed_up(program: Program, coordinates: Path, data: Path, tmp_path: Path) -> None:
    assert program("test", coordinates, data, "-o", tmp_path / "r.csv", "--loss", "mae", "--threshold", 2) == 0
    # six targets; of the samples with three landmarks one is off by 3 and 4, or by 9 and 12
    assert "mae above 2: 50.00% (6 of 12 samples)" in program.out
    assert "mean absolute error" in program.out
    rows = read_csv(tmp_path / "r.csv")
    assert [row["worst"] for row in rows[:3]] == ["1", "3", "5"]
    assert "error_0" not in rows[0]


def explained(model: Path, data: Path, store: Path, **options: Any) -> dict[str, Any]:
    compute_heatmaps(model, data, store, **options)
    with HeatmapStore(store) as opened:
        return {
            **opened.samples,
            "attribution": opened.attribution[:],
            "prediction": opened.prediction[:],
            "values": opened.predicted_values,
            "attrs": opened.attrs,
        }


def test_the_worst_landmark_is_explained_by_both_coordinates(coordinates: Path, data: Path, tmp_path: Path) -> None:
    write_predictions(coordinates, data, tmp_path / "r.csv", loss="landmarks", threshold=3)
    found = explained(coordinates, data, tmp_path / "h.h5", errors=tmp_path / "r.csv", target="worst")
    assert found["index"].tolist() == [1, 3, 5, 7, 9, 11]
    assert found["worst"].tolist() == [1, 0, 2, 1, 0, 2]
    assert set(found["correct"].tolist()) == {0}
    assert set(found["target"].tolist()) == {-1}
    np.testing.assert_allclose(found["loss"], 5, rtol=1e-4)  # 15 / 3
    np.testing.assert_allclose(found["values"], found["prediction"])
    assert (found["attrs"]["target"], found["attrs"]["loss"]) == ("worst", "landmarks")

    initial = np.zeros((6, 6), np.float32)
    for row, worst in enumerate(found["worst"].tolist()):
        initial[row, 2 * worst : 2 * worst + 2] = found["prediction"][row, 2 * worst : 2 * worst + 2]
    inputs = np.load(data)["x"][found["index"]]
    wanted = Explainer(coordinates).explain(inputs, initial).relevance["x"].numpy()
    np.testing.assert_allclose(found["attribution"], wanted, rtol=1e-4, atol=1e-5)


def test_errors_of_a_regressor_are_clustered(program: Program, coordinates: Path, data: Path, tmp_path: Path) -> None:
    assert program("test", coordinates, data, "-o", tmp_path / "r.csv", "--loss", "landmarks", "--threshold", 3) == 0
    options = ("--errors", tmp_path / "r.csv", "--target", "worst", "--layers", "all")
    assert program("heatmaps", coordinates, data, "-o", tmp_path / "h.h5", *options) == 0, program.err
    assert program("cluster", tmp_path / "h.h5", "-o", tmp_path / "T") == 0, program.err
    rows = read_csv(tmp_path / "T" / "LayerX" / "clusters.csv")
    expected = {Path(row["image"]).name: row["label"] for row in read_csv(tmp_path / "r.csv")}
    assert [row["image"] for row in rows] == [f"{data}[{row}]" for row in (1, 3, 5, 7, 9, 11)]
    for row in rows:
        wanted = [float(value) for value in expected[Path(row["image"]).name].split()]
        assert [float(value) for value in row["expected"].split()] == pytest.approx(wanted, rel=1e-3)
        assert len(row["predicted"].split()) == 6


def test_the_worst_output_is_explained_alone(coordinates: Path, data: Path, tmp_path: Path) -> None:
    found = explained(coordinates, data, tmp_path / "h.h5", target="worst", threshold=20)
    assert found["target"].tolist() == found["worst"].tolist()
    assert found["worst"][:3].tolist() == [1, 3, 5]
    assert found["correct"].tolist() == (found["loss"] <= 20).astype(int).tolist()
    assert found["attrs"]["threshold"] == "20"
    assert found["attrs"]["loss"] == "mse"
    one = explained(coordinates, data, tmp_path / "one.h5", target=3)
    np.testing.assert_allclose(found["attribution"][1], one["attribution"][1], rtol=1e-4, atol=1e-5)


def test_of_maps_the_peak_is_explained(maps: Path, tmp_path: Path) -> None:
    x = np.zeros((2, 2, SIZE, SIZE), np.float32)
    x[:, 0, 5, 2] = x[:, 1, 1, 6] = 2
    data = save_data(tmp_path / "d.npz", np.array([[2.5, 4.5, 0, 0], [0, 0, 6.5, 0.5]]), x=x)
    found = explained(maps, data, tmp_path / "h.h5", target="worst", loss="landmarks", composite="epsilon")
    assert found["worst"].tolist() == [1, 0]
    assert found["target"].tolist() == [16 + 3, 2 * 4 + 1]
    assert [np.flatnonzero(found["attribution"][row]).tolist() for row in (0, 1)] == [[64 + 8 + 6], [5 * 8 + 2]]
    np.testing.assert_allclose(found["values"], [[2.5, 4.5, 6.5, 0.5]] * 2)


@pytest.mark.parametrize("batch", ["N", "5"])
def test_a_resumed_store_with_missing_targets_equals_a_whole_one(data: Path, tmp_path: Path, batch: str) -> None:
    class Stop(Exception):
        pass

    def progress(done: int, total: int) -> None:
        if done >= 5:
            raise Stop

    model = make_coordinates(tmp_path, batch)
    options: dict[str, Any] = {"target": "worst", "loss": "landmarks", "threshold": 3.0, "batch_size": 5}
    whole = explained(model, data, tmp_path / "whole.h5", **options)
    with pytest.raises(Stop):
        compute_heatmaps(model, data, tmp_path / "parts.h5", progress=progress, **options)
    parts = explained(model, data, tmp_path / "parts.h5", resume=True, **options)
    for name in (*HeatmapStore(tmp_path / "whole.h5").samples, "attribution", "values"):
        np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)
    packed = explained(model, data, tmp_path / "packed.h5", compress="gzip", **options)
    np.testing.assert_array_equal(whole["values"], packed["values"])
    np.testing.assert_array_equal(whole["worst"], packed["worst"])


@pytest.mark.parametrize("seed", ["logit", "all"])
def test_worst_without_targets_needs_one_output_or_all(coordinates: Path, tmp_path: Path, seed: Any) -> None:
    x = np.random.default_rng(0).normal(size=(3, 2, SIZE, SIZE)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    one = save(COORDINATES.replace("{batch}", "N").replace("6] y", "1] y"), tmp_path / "one.onnx",
               w1=np.random.default_rng(1).normal(size=(2 * SIZE * SIZE, 10)), w2=np.ones((10, 1)))  # fmt: skip
    single = explained(one, tmp_path / "x.npy", tmp_path / "one.h5", target="worst")
    assert single["target"].tolist() == [0, 0, 0]
    if seed == "all":
        found = explained(coordinates, tmp_path / "x.npy", tmp_path / "h.h5", target="worst", seed=seed)
        np.testing.assert_array_equal(found["target"], -1)
    else:
        with pytest.raises(TargetError, match="seed 'all'"):
            compute_heatmaps(coordinates, tmp_path / "x.npy", tmp_path / "h.h5", target="worst", seed=seed)
        assert not (tmp_path / "h.h5").exists()


def test_a_sample_without_any_target_is_found_before_the_work(coordinates: Path, tmp_path: Path) -> None:
    targets = np.zeros((COUNT, 6))
    targets[-1] = np.nan
    data = save_data(tmp_path / "d.npz", targets)
    with pytest.raises(TargetError, match="every sample"):
        compute_heatmaps(coordinates, data, tmp_path / "h.h5", target="worst", batch_size=2)
    assert not (tmp_path / "h.h5").exists()


def test_the_table_says_by_which_loss_it_judged(coordinates: Path, data: Path, tmp_path: Path) -> None:
    write_predictions(coordinates, data, tmp_path / "r.csv", loss="mae", threshold=2)
    found = explained(coordinates, data, tmp_path / "h.h5", errors=tmp_path / "r.csv")
    assert found["attrs"]["loss"] == "mae"
    with pytest.raises(DataError, match="by the loss 'mae', not 'landmarks'"):
        compute_heatmaps(coordinates, data, tmp_path / "x.h5", errors=tmp_path / "r.csv", loss="landmarks")


def test_without_a_threshold_nothing_is_wrong_or_correct(coordinates: Path, data: Path, tmp_path: Path) -> None:
    write_predictions(coordinates, data, tmp_path / "r.csv", loss="landmarks")
    with pytest.raises(DataError, match="no --threshold was given"):
        compute_heatmaps(coordinates, data, tmp_path / "h.h5", errors=tmp_path / "r.csv")


@pytest.mark.parametrize("form", ["bytes", "proto"])
def test_a_model_in_memory_is_tested_and_explained(coordinates: Path, data: Path, tmp_path: Path, form: str) -> None:
    model = coordinates.read_bytes() if form == "bytes" else onnx.load(coordinates)
    lrp_onnx.write_predictions(model, data, tmp_path / "a.csv")
    lrp_onnx.write_predictions(coordinates, data, tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    found = lrp_onnx.compute_heatmaps(model, data, tmp_path / "h.h5")
    assert found.samples == COUNT
    assert ["of 6 regressed outputs the largest is explained" in note for note in found.notes] == [True]
    assert not lrp_onnx.compute_heatmaps(model, data, tmp_path / "all.h5", seed="all").notes
    assert sum(len(result.rows) for result in lrp_onnx.predict(model, data, batch_size=5)) == COUNT


@pytest.mark.parametrize("option", [("--threshold", 3), ("--loss", "mse")])
@pytest.mark.parametrize("command", ["test", "heatmaps"])
def test_a_classifier_takes_no_threshold(
    program: Program, model: Path, pictures: Path, tmp_path: Path, command: str, option: tuple[str, object]
) -> None:
    assert program(command, model, pictures, "-o", tmp_path / "out", *option) == 2
    assert program.err.count("\n") == 1
    assert "holds classes" in program.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--loss", "rmse"), "expected one of mse, mae, landmarks"),
        (("--threshold", -1), "at least 0"),
        (("--threshold", "nan"), "at least 0"),
    ],
)
def test_wrong_criteria_are_one_line(
    program: Program, coordinates: Path, data: Path, tmp_path: Path, options: tuple[object, ...], said: str
) -> None:
    assert program("test", coordinates, data, "-o", tmp_path / "r.csv", *options) == 2
    assert program.err.count("\n") == 1
    assert said in program.err
    assert not (tmp_path / "r.csv").exists()
