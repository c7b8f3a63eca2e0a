"""Two models on the same images: paired by path, judged by name, their heatmaps brought into one frame."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lrp_onnx.debug.comparison import compare_stores
from lrp_onnx.debug.comparison_groups import adjust
from lrp_onnx.debug.regions import Box, Region, Regions
from lrp_onnx.debug.resampling import resample
from lrp_onnx.errors import DataError, OutputError, StoreError
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.store import HeatmapStore, StoreSpec

CLASSES = ["cat", "dog", "élan"]
PICTURE = (40, 20)  # width, height
SPOT = (24, 6, 32, 14)  # in the picture
SIZE = 16
Make = Callable[..., Path]


def spots(preprocess: Preprocess, spot: tuple[int, int, int, int], count: int) -> np.ndarray:
    """Heatmaps that are bright where a spot of the picture comes to lie, over faint noise."""
    matrix = preprocess.geometry(*PICTURE)
    (left, top, _), (right, bottom, _) = matrix @ (*spot[:2], 1), matrix @ (*spot[2:], 1)
    height, width = preprocess.size
    heatmaps = 0.02 * np.random.default_rng(0).random((count, 1, height, width))
    heatmaps[:, 0, max(0, round(top)) : round(bottom), max(0, round(left)) : round(right)] += 1
    return heatmaps


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A store of pictures: all bright at `SPOT` by default."""

    def make(
        name: str,
        predicted: Sequence[int],
        labels: Sequence[int] | None = None,
        *,
        classes: Sequence[str] | None = CLASSES,
        names: Sequence[str] = (),
        folder: str = "pictures",
        spot: tuple[int, int, int, int] = SPOT,
        attribution: np.ndarray | None = None,
        preprocess: Preprocess | None = None,
        done: Sequence[int] = (),
        **changes: Any,
    ) -> Path:
        count = len(predicted)
        way = preprocess or Preprocess(size=(SIZE, SIZE))
        paths = [tmp_path / folder / (names[row] if names else f"{row}.png") for row in range(count)]
        for row, path in enumerate(paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(row).integers(0, 256, (PICTURE[1], PICTURE[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        relevance = spots(way, spot, count) if attribution is None else attribution
        outputs = len(classes) if classes else 3
        fields: dict[str, Any] = {
            "paths": [str(path) for path in paths],
            "index": np.arange(count),
            "labels": labels,
            "input_shape": relevance.shape[1:],
            "outputs": outputs,
            "model": f"{name}.onnx",
            "model_sha256": f"{name:0<64}",
            "composite": '{"name": "epsilon"}',
            "target": "predicted",
            "seed": "logit",
            "preprocess": way.to_json(),
            "classes": classes,
        } | changes
        said, rows = np.array(predicted), np.array(done if len(done) else range(count))
        regression = "target_values" in fields
        with HeatmapStore.create(tmp_path / f"{name}.h5", StoreSpec(**fields), overwrite=True) as store:
            store.write(
                rows,
                attribution=relevance[rows],
                prediction=np.zeros((len(rows), outputs)) if regression else 3 * np.eye(outputs)[said[rows]],
                predicted=None if regression else said[rows],
                target=None if regression else said[rows],
                correct=said[rows] if regression else None if labels is None else (said == np.array(labels))[rows],
            )
            store.finish()
        return tmp_path / f"{name}.h5"

    return make


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ---- relevance in another frame


def test_resampling_keeps_the_sum_and_shares_pixels_out_by_area() -> None:
    relevance = np.random.default_rng(1).normal(size=(6, 9))
    np.testing.assert_array_equal(resample(relevance, (0, 0, 9, 6), (6, 9)), relevance)
    moved = resample(relevance, (-2, -3, 11, 8), (5, 7))
    assert moved.sum() == pytest.approx(relevance.sum())
    np.testing.assert_allclose(
        resample([[4.0, 8.0]], (0.25, 0, 1.75, 1), (1, 3)), [[2.0, 4.0 * 0.25 + 8.0 * 0.25, 4.0]]
    )


def test_what_lies_outside_of_the_frame_is_left_out() -> None:
    np.testing.assert_array_equal(resample([[1.0, 2.0], [3.0, 4.0]], (1, 0, 3, 2), (2, 2)), [[2.0, 0.0], [4.0, 0.0]])


# ---- who is right


def test_decisions_are_counted_by_class_with_the_exact_p(make: Make, tmp_path: Path) -> None:
    labels = [0] * 10 + [1] * 4
    a = make("a", [0] * 9 + [1] + [1, 1, 1, 0], labels)
    b = make("b", [0] + [1] * 8 + [2] + [1, 1, 0, 1], labels)
    found = compare_stores(a, b, tmp_path / "out")
    cat, dog = found.groups[1:3]
    assert (cat.name, cat.both_right, cat.only_a, cat.only_b, cat.both_wrong) == ("cat", 1, 8, 0, 1)
    assert cat.p == pytest.approx(2 / 2**8)
    assert cat.q == pytest.approx(2 * 2 / 2**8)  # two classes were tested
    assert cat.winner == "A"
    assert (dog.both_right, dog.only_a, dog.only_b, dog.both_wrong, dog.p, dog.winner) == (2, 1, 1, 0, 1.0, "")
    assert (cat.accuracy_a, cat.accuracy_b, cat.same) == (0.9, 0.1, 0.1)
    rows = {row["name"]: row for row in table(tmp_path / "out" / "groups.csv")}
    assert rows["all classes"]["only_a"] == "9"
    outcomes = [row["outcome"] for row in table(tmp_path / "out" / "images.csv")]
    of_cats, of_dogs = outcomes[:10], outcomes[10:]
    assert of_cats == ["both right", *["only A right"] * 8, "both wrong"]
    assert of_dogs == ["both right", "both right", "only A right", "only B right"]
    pairs = table(tmp_path / "out" / "disagreements.csv")
    assert pairs[0] == {"expected": "cat", "predicted_a": "cat", "predicted_b": "dog", "images": "8"}


def test_classes_are_matched_by_name_whatever_their_order(make: Make, tmp_path: Path) -> None:
    a = make("a", [0, 1, 2], [0, 1, 2])
    b = make("b", [2, 1, 0], [2, 1, 0], classes=CLASSES[::-1])
    found = compare_stores(a, b, tmp_path / "out")
    assert found.groups[0].same == 1
    assert found.groups[0].both_right == 3
    assert [image.predicted_b for image in found.images] == CLASSES


def test_one_store_without_labels_or_names_takes_those_of_the_other(make: Make, tmp_path: Path) -> None:
    found = compare_stores(make("a", [0, 1], [0, 1]), make("b", [0, 2], classes=None), tmp_path / "out")
    assert [image.outcome for image in found.images] == ["both right", "only A right"]
    assert any("has no class names" in note for note in found.notes)


def test_a_class_that_one_model_lacks_is_not_held_against_it(make: Make, tmp_path: Path) -> None:
    a, b = make("a", [0, 2], [0, 2]), make("b", [0, 1], [0, -1], classes=["cat", "dog"])
    found = compare_stores(a, b, tmp_path / "out")
    assert found.groups[0].judged == 1
    assert [image.right_b for image in found.images] == [True, None]
    assert any("A has 1 class that B has not (élan)" in note for note in found.notes)


def test_class_names_that_are_there_twice_stay_two_classes(make: Make, tmp_path: Path) -> None:
    twice = ["crane", "dog", "crane"]
    found = compare_stores(make("a", [0], [0], classes=twice), make("b", [2], [0], classes=twice), tmp_path / "out")
    assert found.groups[0].only_a == 1


def test_models_that_cannot_be_compared_are_refused_in_one_line(make: Make, tmp_path: Path) -> None:
    a = make("a", [0, 1], [0, 1])
    for other, words in (
        (make("b", [0, 1], [0, 1], classes=["x", "y"]), "no class in common: cat, dog, élan in .* x, y in"),
        (make("c", [0, 1], [1, 1]), "'cat' is expected in .*'dog' in"),
        (make("d", [0, 1], [0, 1], names=["p.png", "q.png"]), "no image is in both"),
        (make("e", [0, 1], None, classes=None, target_values=np.zeros((2, 1))), "regressed numbers"),
    ):
        with pytest.raises(DataError, match=words):
            compare_stores(a, other, tmp_path / "out")
    with pytest.raises(DataError, match=r"2 outputs .*--classes"):
        compare_stores(make("f", [0], [0], classes=["x", "y"]), make("g", [0], [0], classes=None), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_regression_is_compared_by_what_counts_as_right(make: Make, tmp_path: Path) -> None:
    values = {"target_values": np.zeros((3, 1)), "loss": "mse", "threshold": 0.5, "classes": None}
    found = compare_stores(make("a", [1, 1, 0], **values), make("b", [1, 0, 0], **values), tmp_path / "out")
    assert [image.outcome for image in found.images] == ["both right", "only A right", "both wrong"]
    assert found.groups[0].same is None
    assert found.groups[0].rank == pytest.approx(1)


# ---- which images


def test_images_in_one_store_alone_are_counted_and_named(make: Make, tmp_path: Path) -> None:
    a = make("a", [0, 1, 2], [0, 1, 2], names=["x.png", "y.png", "z.png"])
    b = make("b", [0, 1, 2], [0, 1, 2], names=["z.png", "x.png", "w.png"], done=[0, 2])
    with pytest.raises(DataError, match="'élan' is expected"):
        compare_stores(a, b, tmp_path / "out")
    b = make("b", [2, 0, 2], [2, 0, 2], names=["z.png", "x.png", "w.png"], done=[0, 2])
    found = compare_stores(a, b, tmp_path / "out")
    assert [Path(image.path).name for image in found.images] == ["z.png"]
    assert [Path(path).name for path in found.only_a] == ["x.png", "y.png"]  # x is not finished in B
    assert [Path(path).name for path in found.only_b] == ["w.png"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "2 images with a heatmap in A alone" in page
    assert ">y.png<" in page


def test_images_that_were_moved_are_matched_below_their_folder(make: Make, tmp_path: Path) -> None:
    names = ["cat/1.png", "dog/1.png"]
    a, b = (make(name, [0, 1], [0, 1], names=names, folder=f"of_{name}") for name in "ab")
    found = compare_stores(a, b, tmp_path / "out")
    assert [(image.row_a, image.row_b) for image in found.images] == [(0, 0), (1, 1)]
    assert any("matched by the path below" in note for note in found.notes)


# ---- heatmaps


def test_a_model_is_like_itself(make: Make, tmp_path: Path) -> None:
    a = make("a", [0, 1, 2], [0, 1, 1])
    found = compare_stores(a, a, tmp_path / "out")
    assert found.groups[0].rank == found.groups[0].cosine == pytest.approx(1)
    assert found.groups[0].winner == ""
    assert "both stores are of the same model" in found.notes
    assert table(tmp_path / "out" / "disagreements.csv") == []


@pytest.mark.parametrize(
    "other",
    [
        Preprocess(size=(20, 40)),
        Preprocess(size=(SIZE, SIZE), resize="shortest-edge"),
        Preprocess(size=(32, 32), resize="letterbox"),
        Preprocess(size=(14, 14), resize="shortest-edge", crop=0.8),
    ],
)
def test_heatmaps_of_other_inputs_are_compared_in_the_picture(make: Make, tmp_path: Path, other: Preprocess) -> None:
    a = make("a", [0, 0], [0, 0])
    there = make("b", [0, 0], [0, 0], preprocess=other)
    elsewhere = make("c", [0, 0], [0, 0], preprocess=other, spot=(12, 6, 20, 14))
    same = compare_stores(a, there, tmp_path / "same").groups[0]
    apart = compare_stores(a, elsewhere, tmp_path / "apart").groups[0]
    assert same.cosine > 0.85
    assert apart.cosine < 0.3
    assert same.rank > apart.rank + 0.1  # where neither is bright there is only noise to rank


def test_a_picture_of_unknown_size_is_not_compared_and_said_so(make: Make, tmp_path: Path) -> None:
    a = make("a", [0], [0])
    b = make("b", [0], [0], preprocess=Preprocess(size=(SIZE, SIZE), resize="letterbox"))
    (tmp_path / "pictures" / "0.png").unlink()
    found = compare_stores(a, b, tmp_path / "out")
    assert found.summary["all"]["rank"] is None
    assert any("cannot be compared" in note for note in found.notes)


def test_ways_of_explaining_that_differ_are_said(make: Make, tmp_path: Path) -> None:
    a, b = make("a", [0], [0]), make("b", [0], [0], target="label", composite='{"name": "gradient"}')
    notes = " ".join(compare_stores(a, b, tmp_path / "out").notes)
    assert "epsilon in A, gradient in B" in notes
    assert "predicted in A, label in B" in notes


def test_where_they_differ_most_comes_first(make: Make, tmp_path: Path) -> None:
    attribution = spots(Preprocess(size=(SIZE, SIZE)), SPOT, 4)
    attribution[2] = attribution[2, :, ::-1, ::-1]  # alike in decision, not in heatmap
    a = make("a", [0, 1, 0, 0], [0, 0, 0, 0])
    b = make("b", [1, 0, 0, 0], [0, 0, 0, 0], attribution=attribution)
    shown = compare_stores(a, b, tmp_path / "out").summary["most_different"]
    names = {one["difference"]: [Path(path).stem for path in one["images"]] for one in shown}
    assert names["only A right"] == ["0"]
    assert names["only B right"] == ["1"]
    assert names["same decision, heatmaps least alike"] == ["2", "3"]
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.width > 1000


def test_relevance_that_is_no_number_is_named(make: Make, tmp_path: Path) -> None:
    a, b = make("a", [0], [0]), make("b", [0], [0], attribution=np.full((1, 1, SIZE, SIZE), np.nan))
    with pytest.raises(StoreError, match=r"b\.h5: row 0 .*0\.png.* NaN"):
        compare_stores(a, b, tmp_path / "out")


def test_models_of_vectors_are_compared_too(make: Make, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(2, 7))
    a, b = (make(name, [0, 1], [0, 1], attribution=sign * values) for name, sign in (("a", 1), ("b", -1)))
    found = compare_stores(a, b, tmp_path / "out")
    assert [image.rank for image in found.images] == pytest.approx([-1, -1])


# ---- variations and parts


def test_variations_are_rows_and_one_image_counts_once(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    kinds = ["original", "dark", "blur"]
    names = [f"{image}--{kind}.png" for image in range(4) for kind in kinds]
    a = make("a", [0, 0, 0] * 4, [0] * 12, names=names)
    b = make("b", [0, 1, 1] * 4, [0] * 12, names=names)
    lines = [f"{name},cat,{name[0]},{name[3:-4]},,40,20,1 0 0 0 1 0 0 0 1\n" for name in names]
    header = "image,label,source,variation,value,width,height,homography\n"
    (folder / "manifest.csv").write_text(header + "".join(lines))
    found = compare_stores(a, b, tmp_path / "out", manifest=folder / "manifest.csv")
    rows = {row.name: row for row in found.groups if row.kind == "variation"}
    assert {name: (row.only_a, row.p) for name, row in rows.items()} == {
        "original": (0, 1.0),
        "dark": (4, 0.125),
        "blur": (4, 0.125),
    }
    assert (found.groups[0].only_a, found.groups[0].p) == (8, 0.125)  # four images, not eight


def test_parts_say_who_looks_where(make: Make, tmp_path: Path) -> None:
    count = 8
    a, b = make("a", [0] * count, [0] * count), make("b", [0] * count, [0] * count, spot=(4, 2, 12, 10))
    regions = [
        Region(f"{row}.png", "cat", part, Box(*box), f"{row}")
        for row in range(count)
        for part, box in (("head", SPOT), ("", (20, 2, 38, 18)))
    ]
    found = compare_stores(a, b, tmp_path / "out", regions=Regions(Path("r"), regions))
    parts = {part.part: part for part in found.parts}
    assert (parts["head"].carried_a, parts["head"].carried_b) == (count, 0)
    assert (parts["background"].carried_a, parts["background"].carried_b) == (0, count)
    assert parts["head"].looks == "A"
    assert parts["background"].looks == "B"
    assert parts["head"].mass_a > 0.8 > 0.1 > parts["head"].mass_b
    assert parts["head"].p == pytest.approx(2 / 2**count)
    assert [row.name for row in found.groups if row.kind == "part"] == ["head"]
    assert table(tmp_path / "out" / "parts.csv")[0]["part"] == "head"
    assert "who looks where" in (tmp_path / "out" / "report.html").read_text()


def test_adjusted_p_is_that_of_benjamini_and_hochberg() -> None:
    assert adjust([0.01, None, 0.02, 0.9]) == [pytest.approx(0.03), None, pytest.approx(0.03), pytest.approx(0.9)]


# ---- what is written


def test_the_page_needs_nothing_else_and_no_name_becomes_markup(make: Make, tmp_path: Path) -> None:
    bad = ["<script>alert(1)</script>", "dog", "c&d"]
    a, b = make("a", [0, 1], [0, 0], classes=bad), make("b", [1, 0], [0, 0], classes=bad)
    compare_stores(a, b, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert all(link.startswith(("data:", "#")) for link in re.findall(r'(?:src|href)="([^"]*)"', page))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["all"]["only_a"] == summary["all"]["only_b"] == 1
    assert [model["model"] for model in summary["models"]] == ["a.onnx", "b.onnx"]


def test_a_failed_run_leaves_what_was_there(make: Make, tmp_path: Path) -> None:
    a, b = make("a", [0], [0]), make("b", [1], [0])
    steps: list[tuple[int, int]] = []
    compare_stores(a, b, tmp_path / "out", progress=lambda *at: steps.append(at))
    assert steps == [(1, 1)]
    with pytest.raises(OutputError, match="--overwrite"):
        compare_stores(a, b, tmp_path / "out")
    with pytest.raises(DataError, match="smooth is 101"):
        compare_stores(a, b, tmp_path / "out", smooth=101, overwrite=True)
    bad = make("c", [0], [1])
    with pytest.raises(DataError):
        compare_stores(a, bad, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "report.html").is_file()
    compare_stores(a, b, tmp_path / "out", overwrite=True)
