"""`evaluate` and `overfitting` go from stores to a folder of verdicts, and say in one line what does not fit."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from small_model import Program, save_picture

from lrp_onnx.debug.evaluation import METRICS, composite_of, evaluate_store
from lrp_onnx.errors import DataError
from lrp_onnx.rules import composite
from lrp_onnx.store import HeatmapStore
from lrp_onnx.stored_inputs import stored_arrays


@pytest.fixture
def store(program: Program, model: Path, pictures: Path, tmp_path: Path) -> Path:
    assert program("heatmaps", model, pictures, "-o", tmp_path / "h.h5", "--composite", "epsilon") == 0
    return tmp_path / "h.h5"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_metric_says_a_sentence_and_the_folder_holds_the_numbers(
    program: Program, store: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert program("evaluate", store, model, "-o", out, "--steps", "4") == 0
    lines = program.out.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == list(METRICS)
    assert lines[-1] == f"9 images -> {out}"
    summary = json.loads((out / "summary.json").read_text())
    assert [verdict["metric"] for verdict in summary["verdicts"]] == list(METRICS)
    assert (summary["composite"], summary["images"], summary["skipped"]) == ("epsilon", 9, {})
    images = read(out / "images.csv")
    assert len(images) == 9
    assert all(0 < float(row["gini"]) < 1 and float(row["max_sensitivity"]) > 0 for row in images)
    areas = np.mean([float(row["road_area_least"]) for row in images])
    assert areas == pytest.approx(summary["verdicts"][1]["numbers"]["area_least"], rel=1e-4)
    curves = read(out / "curves.csv")
    assert {(row["metric"], row["order"]) for row in curves} >= {("road", "least"), ("insertion", "random")}
    whole = [float(row["mean_score"]) for row in curves if float(row["share_of_pixels"]) == 0]
    with HeatmapStore(store) as heatmaps:
        odds = np.exp(heatmaps.prediction[:])
    assert whole[0] == pytest.approx((odds.max(axis=1) / odds.sum(axis=1)).mean(), rel=1e-4)
    assert [row["lowest_node"] for row in read(out / "randomisation.csv")] == ["dense", "conv_2", "conv_1"]
    with Image.open(out / "curves.png") as picture:
        assert picture.width == 1200


def test_where_heatmaps_ignore_the_weights_a_composite_that_follows_them_is_named(
    program: Program, model: Path, pictures: Path, tmp_path: Path
) -> None:
    deaf = tmp_path / "deaf.h5"
    assert program("heatmaps", model, pictures, "-o", deaf, "--rule", "Conv=flat", "--rule", "Gemm=flat") == 0
    found = evaluate_store(deaf, model, tmp_path / "out", metrics=["randomisation"])
    (verdict,) = found.verdicts
    assert verdict.judgement == "bad"
    name = verdict.sentence.split("those by composite ")[1].split()[0]
    store = tmp_path / "better.h5"
    assert program("heatmaps", model, pictures, "-o", store, "--composite", name) == 0
    (better,) = evaluate_store(store, model, tmp_path / "better", metrics=["randomisation"]).verdicts
    assert better.judgement == "good"
    assert better.numbers["rank_all"] == pytest.approx(verdict.numbers[f"rank_all_{name}"])


def test_equal_seeds_give_equal_numbers(program: Program, store: Path, model: Path, tmp_path: Path) -> None:
    tables = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        found = ("evaluate", store, model, "-o", tmp_path / name, "--steps", "3", "--limit", "2", "--seed", seed)
        assert program(*found) == 0
        tables.append((tmp_path / name / "images.csv").read_text())
    assert tables[0] == tables[1] != tables[2]


def test_layouts_and_batch_sizes_are_looked_after(
    program: Program, make_model: Callable[..., Path], pictures: Path, tmp_path: Path
) -> None:
    found = {}
    for name, changes in (("plain", {}), ("last", {"layout": "NHWC"}), ("two", {"batch": 2})):
        model, store = make_model(f"{name}.onnx", **changes), tmp_path / f"{name}.h5"
        assert program("heatmaps", model, pictures, "-o", store, "--composite", "epsilon") == 0
        found[name] = evaluate_store(store, model, tmp_path / name, steps=3, limit=3)
    for name in ("last", "two"):
        assert found[name].ginis == pytest.approx(found["plain"].ginis, rel=1e-4)
        assert found[name].sensitivities == pytest.approx(found["plain"].sensitivities, rel=1e-3)
        for metric, orders in found[name].curves.items():
            for one, other in zip(orders["most"], found["plain"].curves[metric]["most"], strict=True):
                assert one.scores == pytest.approx(other.scores, rel=1e-3)
    shapes = [stored_arrays(tmp_path / f"{name}.h5", limit=2)[0].shape for name in ("plain", "last")]
    assert shapes == [(2, 3, 12, 12)] * 2


def test_moved_images_are_found_again_and_broken_ones_are_named(
    program: Program, store: Path, model: Path, pictures: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.move(pictures, moved)
    arguments = ("evaluate", store, model, "-o", tmp_path / "out", "--metrics", "deletion", "--steps", "3")
    assert program(*arguments) == 2
    assert "No such file" in program.err
    (moved / "cat" / "1.png").write_bytes(b"broken")
    assert program(*arguments, "--data", moved, "--json") == 0
    said = json.loads(program.out)
    assert said["images"] == 8
    assert ["not a picture" in reason for reason in said["skipped"].values()] == [True]
    (moved / "cat" / "0.png").rename(moved / "cat" / "zero.png")
    with pytest.raises(DataError, match="name the data set it is of"):
        evaluate_store(store, model, tmp_path / "out", data=moved, overwrite=True)


def test_what_does_not_fit_is_one_line(
    program: Program, store: Path, model: Path, make_model: Callable[..., Path], pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert program("evaluate", store, model, "-o", out, "--metrics", "nonsense") == 2
    assert "metric 'nonsense' is unknown; choose among flipping" in program.err
    assert program("evaluate", store, make_model("other.onnx", batch=4), "-o", out) == 2
    assert "heatmaps of another model" in program.err
    assert program("evaluate", store, model, "-o", out, "--steps", "1") == 2
    save_picture(pictures / "cat" / "0.png", 77)
    assert program("evaluate", store, model, "-o", out, "--metrics", "sensitivity") == 2
    assert "0.png is not what its composite gives now: the image has changed" in program.err
    assert not out.exists()
    everything = tmp_path / "all.h5"
    assert program("heatmaps", model, pictures, "-o", everything, "--seed", "all") == 0
    assert program("evaluate", everything, model, "-o", out) == 2
    assert "heatmaps that explain every output at once" in program.err
    assert program("evaluate", store, model, "-o", out, "--metrics", "sparseness") == 0
    assert program("evaluate", store, model, "-o", out, "--metrics", "sparseness") == 2
    assert "use --overwrite" in program.err


@pytest.mark.parametrize("name", ["epsilon-gamma-box", "input-x-gradient", "guided-backprop"])
def test_the_composite_is_read_back_from_the_store(
    program: Program, model: Path, pictures: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "h.h5"
    options = ("--gamma", "0.5") if "gamma" in name else ()
    assert program("heatmaps", model, pictures, "-o", path, "--composite", name, *options) == 0
    with HeatmapStore(path) as heatmaps:
        found = composite_of(heatmaps)
    assert found.times_input == composite(name).times_input
    evaluated = evaluate_store(path, model, tmp_path / "out", metrics=("sensitivity",), limit=2)  # compares heatmaps
    assert np.isfinite(evaluated.sensitivities).all()


def test_a_model_with_one_output_is_asked_for_the_class_that_it_decides_for(program: Program, tmp_path: Path) -> None:
    shape = ["n", 1, 6, 6]
    weights = np.zeros((36, 1), dtype=np.float32)
    weights[:6] = -0.5  # the first row of pixels speaks against
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "w"], ["z"], "dense"),
        helper.make_node("Sigmoid", ["z"], ["y"], "sigmoid"),
    ]
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    x = 0.1 * np.random.default_rng(0).random((6, 1, 6, 6)).astype(np.float32)
    x[:, :, 0] += 1
    np.save(tmp_path / "x.npy", x)
    store = tmp_path / "h.h5"
    assert program("heatmaps", tmp_path / "m.onnx", tmp_path / "x.npy", "-o", store, "--composite", "epsilon") == 0
    found = evaluate_store(store, tmp_path / "m.onnx", tmp_path / "out", metrics=("deletion",), steps=6)
    most, random = found.curves["deletion"]["most"], found.curves["deletion"]["random"]
    assert all(curve.scores[0] > 0.9 for curve in most)  # of the class that is decided for, by a negative output
    assert all(one.area < other.area - 0.05 for one, other in zip(most, random, strict=True))


def test_arrays_for_other_libraries_are_as_the_model_had_them(store: Path, model: Path) -> None:
    from lrp_onnx import Explainer

    x, y, a = stored_arrays(store)
    assert (x.shape, y.shape, a.shape) == ((9, 3, 12, 12), (9,), (9, 3, 12, 12))
    again = Explainer(model, "epsilon").explain(x, y)
    assert again.relevance["x"].numpy() == pytest.approx(a, rel=1e-3, abs=1e-5)


def test_overfitting_prints_its_verdict(program: Program, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert program("overfitting", store, store, "-o", out) == 0
    assert program.out.splitlines() == ["no sign of overfitting in decisions and heatmaps", f"-> {out}"]
    elsewhere = tmp_path / "elsewhere.h5"
    shutil.copy(store, elsewhere)
    with h5py.File(elsewhere, "r+") as file:
        file.attrs["model_sha256"] = "0" * 64
    assert program("overfitting", store, elsewhere, "-o", out, "--overwrite") == 2
    assert "differ in model_sha256" in program.err
    assert program("overfitting", store, store, "-o", out, "--overwrite", "--json") == 0
    assert json.loads(program.out)["decides_worse"] is False
