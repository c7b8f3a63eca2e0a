"""Heatmaps of varied pictures come back to where the original's are, and the table tells what fails."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from lrp_onnx.debug.alignment import move_back, similarity
from lrp_onnx.debug.heat_table import heat_table, most_columns
from lrp_onnx.debug.stability import ALL, Judged, summarise, worst_rows, write_stability
from lrp_onnx.debug.variation_images import write_variations
from lrp_onnx.debug.variations import Scene, choose
from lrp_onnx.errors import DataError, OutputError
from lrp_onnx.heatmaps import compute_heatmaps
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.render.colours import colour_table

SIZE = (150, 110)  # of pictures, width and height
MOVES = [str(one) for one in choose() if one.variation.move]
PREPARATIONS = [
    Preprocess(size=(96, 120)),
    Preprocess(size=96, resize="shortest-edge", crop=0.9),
    Preprocess(size=(96, 101), resize="letterbox"),
]


def spot(x: float, y: float, width: float = 5) -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
    grey = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 2 / width**2)
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def brightness(picture: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Stands for a heatmap that moves with the picture; brighter than what fills frames only."""
    return np.maximum(preprocess(Image.fromarray(picture))[0].astype(np.float64) - 0.6, 0)


def centre(heatmap: np.ndarray) -> np.ndarray:
    rows, columns = np.mgrid[: heatmap.shape[0], : heatmap.shape[1]] + 0.5
    return np.array([(heatmap * columns).sum(), (heatmap * rows).sum()]) / heatmap.sum()


@pytest.mark.parametrize("preprocess", PREPARATIONS, ids=lambda one: one.resize)
@pytest.mark.parametrize("text", MOVES)
@pytest.mark.parametrize("place", [(68, 50), (85, 62)])
def test_a_heatmap_that_moves_with_the_picture_comes_back(text, preprocess, place):
    (chosen,) = choose([text])
    picture = spot(*place)
    varied = chosen(picture, Scene(np.random.default_rng(0)))
    matrix, size = chosen.geometry(*SIZE)
    heatmap, there = brightness(picture, preprocess), brightness(varied, preprocess)
    moved, valid = move_back(there, matrix, SIZE, size, preprocess)
    np.testing.assert_allclose(centre(moved), centre(heatmap), atol=0.35)
    # what it was in the varied picture, as long as all of it is still in sight
    assert moved.sum() == pytest.approx(there.sum(), rel=0.06)
    assert similarity(heatmap, moved, valid)[1] > 0.97
    assert (moved[~valid] == 0).all()


@pytest.mark.parametrize("preprocess", PREPARATIONS, ids=lambda one: one.resize)
def test_only_what_both_pictures_show_is_valid(preprocess):
    ones = np.ones(preprocess.size)
    moved, valid = move_back(ones, np.eye(3), SIZE, SIZE, preprocess)
    shown = preprocess(Image.new("RGB", SIZE, "white"))[0] == 1  # all but the letterbox
    np.testing.assert_array_equal(valid, shown)
    np.testing.assert_allclose(moved, shown)
    for text in ("rotation=30", "perspective=-50", "crop=0.5"):
        (chosen,) = choose([text])
        matrix, size = chosen.geometry(*SIZE)
        _, valid = move_back(ones, matrix, SIZE, size, preprocess)
        # a white picture, varied and varied back, is white where it never left the frame
        out = chosen(np.full((SIZE[1], SIZE[0], 3), 255, np.uint8), Scene(np.random.default_rng(0)))
        seen = (preprocess(Image.fromarray(out))[0] > 0.99) & (preprocess(Image.new("RGB", size, "white"))[0] == 1)
        inverse, _ = move_back(seen.astype(float), matrix, SIZE, size, preprocess)
        assert ((inverse > 0) & valid).sum() > 0.93 * valid.sum()
        assert 0.1 < valid.mean() < shown.mean()


def test_a_shift_beyond_the_frame_leaves_nothing_to_compare():
    away = np.array([[1.0, 0, 500], [0, 1, 0], [0, 0, 1]])
    moved, valid = move_back(np.ones((96, 120)), away, SIZE, SIZE, PREPARATIONS[0])
    assert not valid.any()
    assert not moved.any()
    assert all(np.isnan(value) for value in similarity(moved, moved, valid))


def test_similarity_is_that_of_scipy_and_of_the_formula():
    from scipy.stats import spearmanr

    random = np.random.default_rng(0)
    one, valid = np.round(random.normal(size=(20, 30)), 1), random.random((20, 30)) > 0.3
    other = one + random.normal(size=one.shape)
    rank, cosine = similarity(one, other, valid)
    assert rank == pytest.approx(spearmanr(one[valid], other[valid]).statistic)
    a, b = one[valid], other[valid]
    assert cosine == pytest.approx((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))
    np.testing.assert_allclose(similarity(one, 3 * one, valid), 1)
    np.testing.assert_allclose(similarity(one, -one, valid, smooth=2), -1)


def test_smoothing_sees_nothing_outside_the_valid_part():
    random = np.random.default_rng(0)
    one, other = random.normal(size=(2, 20, 30))
    valid = np.zeros((20, 30), bool)
    valid[5:15, 5:25] = True
    elsewhere = np.where(valid, other, 1e6)
    assert similarity(one, other, valid, 2) == similarity(one, elsewhere, valid, 2)
    assert similarity(one, other, valid, 2) != similarity(one, other, valid)


def test_constant_heatmaps_have_no_likeness():
    zero, valid = np.zeros((4, 5)), np.ones((4, 5), bool)
    assert all(np.isnan(value) for value in similarity(zero, valid * 1.0, valid))


def brightness_model(path: Path) -> Path:
    """Class "bright" if the picture is brighter than a third on average, with a mirror-symmetric convolution before."""
    kernel = np.array([[1, 2, 1], [0, 4, 0], [1, 2, 1]], np.float32)[None, None].repeat(3, axis=1) / 36
    weights = {"w": kernel, "dense": np.array([[-10.0], [10.0]], np.float32), "bias": np.float32([3.3, -3.3])}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["m"]),
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("Gemm", ["f", "dense", "bias"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    entries = {"lrp_onnx.preprocess": Preprocess(size=(32, 40)).to_json()}
    helper.set_model_props(model, {**entries, "lrp_onnx.classes": json.dumps(["night", "bright"])})
    onnx.save_model(model, path)
    return path


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, Path]:
    """A store and a manifest: four bright pictures, which fail in the dark, and two dark ones, which cannot."""
    random = np.random.default_rng(0)
    for row in range(6):
        level = 40 if row < 2 else 150
        picture = np.clip(random.normal(level, 25, (32, 40, 3)), 0, 255).astype(np.uint8)
        path = tmp_path / "images" / ("night" if row < 2 else "bright") / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    made = write_variations(tmp_path / "images", tmp_path / "varied", variations=["dark=0.4", "mirror", "rotation=20"])
    model = brightness_model(tmp_path / "model.onnx")
    compute_heatmaps(model, made.manifest, tmp_path / "h.h5", composite="epsilon", batch_size=4)
    return tmp_path / "h.h5", made.manifest


def read(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {(row["label"], row["variation"]): row for row in csv.DictReader(file)}


def test_fails_in_the_dark_and_not_in_the_mirror_is_a_row(case, tmp_path):
    store, manifest = case
    seen: list[tuple[int, int]] = []
    found = write_stability(store, manifest, tmp_path / "table", smooth=0, progress=lambda *at: seen.append(at))
    assert seen[-1] == (24, 24)
    rows = read(tmp_path / "table" / "stability.csv")
    assert list(rows)[:4] == [(ALL, name) for name in ("original", "dark=0.4", "mirror", "rotation=20")]
    assert {label for label, _ in rows} == {ALL, "night", "bright"}
    dark = rows["bright", "dark=0.4"]
    assert (dark["images"], dark["accuracy"], dark["kept"]) == ("4", "0", "0")
    assert float(dark["confidence"]) < 0.5 < float(rows["bright", "original"]["confidence"])
    assert rows["night", "dark=0.4"]["kept"] == rows["night", "mirror"]["accuracy"] == "1"
    assert float(rows[ALL, "dark=0.4"]["accuracy"]) == pytest.approx(2 / 6, abs=1e-5)
    for label in (ALL, "night", "bright"):  # a mirror-equivariant model: its heatmap comes back exactly
        assert float(rows[label, "mirror"]["rank"]) == pytest.approx(1, abs=1e-4)
        assert float(rows[label, "mirror"]["cosine"]) == pytest.approx(1, abs=1e-5)
        assert 0.4 < float(rows[label, "rotation=20"]["rank"]) < 1
    assert found.worst == (found.worst[0],)
    assert found.worst[0].startswith("bright, dark=0.4: 0% right instead of 100%, 0% of decisions kept, heatmap rank")
    assert found.worst[0].endswith("(4 images)")
    report = json.loads((tmp_path / "table" / "stability.json").read_text(encoding="utf-8"))
    assert report["worst"] == list(found.worst)
    assert report["target"] == "predicted"
    assert len(report["rows"]) == len(rows) == 12
    with (tmp_path / "table" / "images.csv").open(encoding="utf-8", newline="") as file:
        images = list(csv.DictReader(file))
    assert len(images) == 24
    shares = {row["variation"]: float(row["valid"]) for row in images}
    assert shares["original"] == shares["mirror"] == 1 > shares["rotation=20"] > 0.5


def test_the_chart_is_legible_and_coloured_by_the_numbers(case, tmp_path):
    found = write_stability(*case, tmp_path / "table")
    with Image.open(found.chart) as image:
        chart = np.asarray(image)
    assert chart.shape[1] == 1200
    best, worst = colour_table("viridis")[-1], colour_table("viridis")[0]
    assert (chart == best).all(axis=2).sum() > (chart == worst).all(axis=2).sum() > 500


def test_pictures_without_a_heatmap_are_left_out_and_counted(case, tmp_path):
    store, manifest = case
    lines = manifest.read_text(encoding="utf-8").splitlines()
    extra = lines[1].replace("bright/2", "bright/99")
    manifest.write_text("\n".join([*lines, extra]), encoding="utf-8")
    found = write_stability(store, manifest, tmp_path / "table")
    assert found.notes == ("pictures left out, because they or their original have no heatmap in the store: 1",)
    without_originals = [line for line in lines if "original" not in line or "night" in line]
    manifest.write_text("\n".join(without_originals), encoding="utf-8")
    assert {one.label for one in write_stability(store, manifest, tmp_path / "t2").summaries} == {ALL, "night"}


def test_what_does_not_fit_is_said(case, tmp_path):
    store, manifest = case
    write_stability(store, manifest, tmp_path / "table")
    with pytest.raises(OutputError, match="exists already"):
        write_stability(store, manifest, tmp_path / "table")
    with pytest.raises(DataError, match="smooth is -1"):
        write_stability(store, manifest, tmp_path / "t", smooth=-1)
    lines = manifest.read_text(encoding="utf-8").splitlines()
    other = tmp_path / "other.csv"
    for text, said in [
        ("\n".join(lines), "holds no heatmap of a picture in"),
        (lines[0], "holds no pictures"),
        ("image,label\na.png,x", "no column 'source'"),
        (f"{lines[0]}\n{lines[1]} 5", "line 2: expected width, height and nine numbers"),
    ]:
        other.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=said):
            write_stability(store, other, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def judged(label: str, variation: str, correct: int | None, kept: int, rank: float | None = 0.5) -> Judged:
    return Judged("i", label, "s", variation, 0, correct, None, kept, rank, rank, 1.0)


def test_the_worst_rows_come_first_and_without_labels_decisions_count():
    results = [judged("a", "original", 1, 1), judged("a", "x", 0, 0), judged("a", "y", 1, 1)]
    results += [judged("b", "original", 1, 1), judged("b", "original", 0, 1), judged("b", "x", 0, 1, None)]
    sentences = list(worst_rows(list(summarise(results, ["original", "x", "y"]))))
    assert sentences == [
        "a, x: 0% right instead of 100%, 0% of decisions kept, heatmap rank correlation 0.50 (1 image)",
        "b, x: 0% right instead of 50%, 100% of decisions kept (1 image)",
    ]
    unlabelled = [judged("", "original", None, 1), judged("", "x", None, 0), judged("", "y", None, 1)]
    sentences = list(worst_rows(list(summarise(unlabelled, ["original", "x", "y"]))))
    assert sentences == [f"{ALL}, x: 0% of decisions kept, heatmap rank correlation 0.50 (1 image)"]


def test_heat_tables_refuse_what_they_cannot_show():
    chart = heat_table([("one", [[0.0, np.nan]])], ["row"], ["a", "a very long name of a column"], title="t")
    assert chart.shape[1] == 1200
    with pytest.raises(DataError, match=r"shape \(1, 1\); expected \(1, 2\)"):
        heat_table([("one", [[0.0]])], ["row"], ["a", "b"], title="t")
    too_many = ["c"] * (most_columns(2) + 1)
    with pytest.raises(DataError, match="rows and 1 to"):
        heat_table([("one", [range(len(too_many))])] * 2, ["row"], too_many, title="t")
