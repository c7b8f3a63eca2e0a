"""Stores whose heatmaps explain no class: evaluated by the number explained, no table of what is not there."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from small_model import Program

from lrp_onnx.debug.evaluation import evaluate_store
from lrp_onnx.debug.explained import explained_by
from lrp_onnx.debug.stability import write_stability
from lrp_onnx.debug.variation_images import write_variations
from lrp_onnx.graph import load
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.store import HeatmapStore

SIZE = 12
TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
net (float[N,3,12,12] x) => (float[N,2,6,6] maps, float[N,36,6] boxes, float[N,4] numbers) {
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r1 = Relu(c1)
    c2 = Conv<pads=[1,1,1,1], strides=[2,2]>(r1, w2)
    r2 = Relu(c2)
    maps = Conv(r2, wm)
    b = Conv(r2, wb)
    bf = Reshape(b, to)
    boxes = Transpose<perm=[0,2,1]>(bf)
    m = GlobalAveragePool(r2)
    f = Flatten(m)
    numbers = MatMul(f, wn)
}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    random = np.random.default_rng(2)
    proto = onnx.parser.parse_model(TEXT)
    shapes = {"w1": (6, 3, 3, 3), "b1": (6,), "w2": (8, 6, 3, 3), "wm": (2, 8, 1, 1), "wb": (6, 8, 1, 1), "wn": (8, 4)}
    for name, shape in shapes.items():
        values = random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        proto.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0, 6, 36]), "to"))
    onnx.helper.set_model_props(proto, {"lrp_onnx.preprocess": Preprocess(size=(SIZE, SIZE), range=(-1, 1)).to_json()})
    onnx.save(proto, tmp_path / "any.onnx")
    return tmp_path / "any.onnx"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(5)
    for row in range(6):
        pixels = np.clip(random.normal(120, 60, (20, 24, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{row}.png")
    return folder


TARGETS = {
    "map": ("--output-name", "maps", "--target", "segmentation:1"),
    "box": ("--output-name", "boxes", "--target", "box:best,skip=4"),
    "number": ("--output-name", "numbers", "--target", "index:2"),
    "margin": ("--output-name", "numbers", "--target", "similarity:REFERENCE,dot"),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_what_is_followed_is_the_number_explained(
    program: Program, model: Path, pictures: Path, tmp_path: Path, kind: str
) -> None:
    np.save(tmp_path / "r.npy", np.array([1.0, -1.0, 0.5, 0.0]))
    options = [text.replace("REFERENCE", str(tmp_path / "r.npy")) for text in TARGETS[kind]]
    store = tmp_path / "h.h5"
    assert program("heatmaps", model, pictures, "-o", store, "--composite", "epsilon", *options) == 0
    out = tmp_path / "out"
    assert program("evaluate", store, model, "-o", out, "--steps", "3") == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["score"].startswith("the number explained") and summary["images"] == 6
    with HeatmapStore(store) as heatmaps:
        explained = explained_by(heatmaps, load(model))
        assert explained.output == options[1] and not explained.classes
        numbers = np.array([explained.number(row) for row in range(6)])
        names, sums = heatmaps.conservation or ([], np.empty(0))
        assert numbers == pytest.approx(sums[:6, names.index(explained.output)], rel=1e-4)  # where relevance starts
    with (out / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert np.array([float(row["deletion_score"]) for row in rows]) == pytest.approx(abs(numbers), rel=1e-3)
    found = {verdict["metric"]: verdict for verdict in summary["verdicts"]}
    assert found["flipping"]["numbers"]["area_most"] < found["flipping"]["numbers"]["area_random"]
    assert found["randomisation"]["judgement"] == "good" and found["sensitivity"]["numbers"]["max_sensitivity"] > 0


def test_a_turned_heatmap_of_a_map_is_worse_than_chance(
    program: Program, model: Path, pictures: Path, tmp_path: Path
) -> None:
    import h5py

    store = tmp_path / "h.h5"
    assert program("heatmaps", model, pictures, "-o", store, "--composite", "epsilon", *TARGETS["map"]) == 0
    right = evaluate_store(store, model, tmp_path / "a", metrics=["deletion"], steps=6)
    with h5py.File(store, "r+") as file:
        file["attribution"][:] = -file["attribution"][:]
    wrong = evaluate_store(store, model, tmp_path / "b", metrics=["deletion"], steps=6)
    assert right.verdicts[0].judgement == "good" and wrong.verdicts[0].judgement == "bad"


def test_the_worst_of_regressed_numbers_is_followed(
    program: Program, model: Path, pictures: Path, tmp_path: Path
) -> None:
    table = ["image,a,b,c,d", *(f"{row}.png,0,0,9,9" for row in range(6))]
    manifest = pictures / "targets.csv"
    manifest.write_text("\n".join(table), encoding="utf-8")
    for loss, weights in (("mse", 1), ("landmarks", 2)):
        store = tmp_path / f"{loss}.h5"
        options = ("--output-name", "numbers", "--target", "worst", "--composite", "epsilon", "--loss", loss)
        assert program("heatmaps", model, manifest, "-o", store, *options) == 0, program.err
        with HeatmapStore(store) as heatmaps:
            target = explained_by(heatmaps, load(model)).target(0)
            if weights == 1:
                assert target in (2, 3)
            else:
                assert np.array_equal(target, [0, 0, 1, 1])
        assert program("evaluate", store, model, "-o", tmp_path / loss, "--steps", "3") == 0, program.err
        assert program("stability", store, manifest, "-o", tmp_path / "s") == 2  # no manifest of `vary`


@pytest.mark.parametrize("kind", ["map", "box", "number"])
def test_stability_tells_heatmaps_and_the_number_and_no_decisions(
    program: Program, model: Path, pictures: Path, tmp_path: Path, kind: str
) -> None:
    made = write_variations(pictures, tmp_path / "varied", variations=["dark=0.8", "mirror"])
    store = tmp_path / "h.h5"
    assert program("heatmaps", model, made.manifest, "-o", store, "--composite", "epsilon", *TARGETS[kind]) == 0
    found = write_stability(store, made.manifest, tmp_path / "table")
    rows = {one.variation: one for one in found.summaries}
    assert all(one.kept is None and one.accuracy is None and one.confidence is None for one in rows.values())
    assert rows["original"].rank == pytest.approx(1) and 0 < (rows["dark=0.8"].rank or 0) < 1
    with HeatmapStore(store) as heatmaps:
        explained = explained_by(heatmaps, load(model))
        originals = [row for row, path in enumerate(heatmaps.samples["path"]) if "original" in path]
        mean = np.mean([explained.number(row) for row in originals])
    assert rows["original"].number == pytest.approx(mean, rel=1e-5)
    assert found.worst and all("decisions" not in sentence and "right" not in sentence for sentence in found.worst)
    assert "heatmap rank correlation" in found.worst[0] and "number explained" in found.worst[0]
    assert found.chart.is_file()


def test_no_table_tells_of_classes_where_there_are_none(
    program: Program, model: Path, pictures: Path, tmp_path: Path
) -> None:
    assert program("test", model, pictures, "-o", tmp_path / "r.csv", "--output-name", "boxes") == 0
    assert "outputs of shape (36, 6) predict no one class" in program.err
    with (tmp_path / "r.csv").open(newline="") as file:
        assert {row["predicted"] for row in csv.DictReader(file)} == {""}
    regions = tmp_path / "regions.csv"
    regions.write_text("image,label,x1,y1,x2,y2\n0.png,1,2,2,9,9\n1.png,1,2,2,9,9\n", encoding="utf-8")
    stores = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for store, name in zip(stores, ("epsilon", "epsilon-plus"), strict=True):
        assert program("heatmaps", model, pictures, "-o", store, "--composite", name, *TARGETS["box"]) == 0
    assert program("localise", stores[0], regions, "-o", tmp_path / "l", "--json") == 0  # any region counts
    assert json.loads(program.out)["by_class"] == {}
    with (tmp_path / "l" / "images.csv").open(newline="") as file:
        assert [row["predicted"] for row in csv.DictReader(file)] == ["", ""]
    assert program("compare", *stores, "-o", tmp_path / "c") == 0
    with (tmp_path / "c" / "groups.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["same"] == row["accuracy_a"] == row["winner"] == "" and 0 < float(row["rank"]) < 1
    assert program("overfitting", *stores[:1], *stores[:1], "-o", tmp_path / "o") == 2
    assert "heatmaps of outputs of shape (36, 6)" in program.err


def test_what_has_no_meaning_is_refused_in_one_line(
    program: Program, model: Path, pictures: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "r.npy", np.array([1.0, -1.0, 0.5, 0.0]))
    options = [text.replace("REFERENCE", str(tmp_path / "r.npy")) for text in TARGETS["margin"]]
    store = tmp_path / "h.h5"
    assert program("heatmaps", model, pictures, "-o", store, *options) == 0
    (tmp_path / "r.npy").unlink()
    assert program("evaluate", store, model, "-o", tmp_path / "out") == 2
    assert "r.npy: no such file" in program.err and program.err.count("error:") == 1
    everything = tmp_path / "all.h5"
    assert program("heatmaps", model, pictures, "-o", everything, "--seed", "all", "--output-name", "maps") == 0
    assert program("evaluate", everything, model, "-o", tmp_path / "out") == 2
    assert "every output at once" in program.err and program.err.count("error:") == 1
