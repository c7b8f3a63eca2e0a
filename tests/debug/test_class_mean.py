"""Generic heatmaps: objects of any place and size come together, and what is stacked is what the numbers say."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lrp_onnx.cli.app import run
from lrp_onnx.debug.class_mean import CELLS, align, by_region, by_relevance, write_class_means
from lrp_onnx.debug.regions import Box, Region, Regions
from lrp_onnx.errors import DataError, OutputError, StoreError
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.store import HeatmapStore, StoreSpec

SIZE = 40
Boxes = Sequence[tuple[int, int, int, int]]  # left, top, right, bottom
Make = Callable[..., Path]


def objects(boxes: Boxes, size: int = SIZE) -> np.ndarray:
    """Heatmaps of boxes whose upper half speaks for the class twice as much as the lower half."""
    heatmaps = np.zeros((len(boxes), 1, size, size))
    for heatmap, (left, top, right, bottom) in zip(heatmaps, boxes, strict=True):
        heatmap[0, top:bottom, left:right] = 1
        heatmap[0, top : (top + bottom) // 2, left:right] = 2
    return heatmaps


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A store of such heatmaps, each of another strength."""

    def make(boxes: Boxes, labels: Sequence[int], predicted: Sequence[int] = (), **changes: Any) -> Path:
        relevance = changes.pop("attribution", objects(boxes))
        said, count = np.array(predicted or [max(0, label) for label in labels]), len(relevance)
        fields: dict[str, Any] = {
            "paths": [str(tmp_path / f"{row}.png") for row in range(count)],
            "index": np.arange(count),
            "labels": labels,
            "input_shape": relevance.shape[1:],
            "outputs": 3,
            "model": "net.onnx",
            "model_sha256": "0" * 64,
            "composite": "{}",
            "target": "predicted",
            "seed": "logit",
            "preprocess": Preprocess(size=(SIZE, SIZE)).to_json(),
            "classes": ["cat", "dog/wolf", "cat"],
        } | changes
        with HeatmapStore.create(tmp_path / "h.h5", StoreSpec(**fields), overwrite=True) as store:
            store.write(
                np.arange(count),
                attribution=relevance * 10.0 ** (np.arange(count) % 5).reshape(-1, *[1] * (relevance.ndim - 1)),
                prediction=np.eye(3)[said],
                predicted=said,
                target=said,
                correct=np.where(np.array(labels) < 0, -1, said == np.array(labels)),
            )
            store.finish()
        return tmp_path / "h.h5"

    return make


BOXES = [(0, 0, 8, 8), (20, 4, 36, 20), (10, 16, 34, 40), (3, 25, 15, 37)]


def table(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (folder / "class_means.csv").open(encoding="utf-8") as file:
        return {(row["group"], row["decision"]): row for row in csv.DictReader(file)}


def test_place_and_size_of_evenly_spread_relevance_are_those_of_its_square() -> None:
    heatmap = np.zeros((30, 50))
    heatmap[4:14, 30:40] = -3
    found, marked = by_relevance(heatmap), by_region(heatmap != 0)
    assert found is not None
    assert (found.x, found.y, found.size) == pytest.approx((35, 9, 10))
    assert (marked.x, marked.y, marked.size) == (35, 9, 10)
    assert by_relevance(np.zeros((3, 3))) is None


def test_a_single_pixel_has_the_size_of_a_pixel() -> None:
    heatmap = np.zeros((9, 9))
    heatmap[2, 5] = 1
    found = by_relevance(heatmap)
    assert found is not None
    assert (found.x, found.y, found.size) == pytest.approx((5.5, 2.5, 1))


def test_an_aligned_object_fills_the_middle_half_of_the_frame() -> None:
    heatmap = objects([(20, 4, 36, 20)])[0, 0]
    density = align(heatmap / heatmap.sum(), by_region(heatmap > 0))
    quarter = CELLS // 4
    assert density.mean() == pytest.approx(1)
    assert density[quarter : CELLS // 2, quarter:-quarter] == pytest.approx(4 * 4 / 3)
    assert density[CELLS // 2 : -quarter, quarter:-quarter] == pytest.approx(4 * 2 / 3)
    assert np.abs(density[:, :quarter]).max() == 0


@pytest.mark.parametrize("regions", [True, False])
def test_objects_of_any_place_size_and_strength_come_together(make: Make, tmp_path: Path, regions: bool) -> None:
    for row in range(len(BOXES)):
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / f"{row}.png")
    marked = Regions(Path("r"), [Region(f"{row}.png", "cat", "", Box(*box), "") for row, box in enumerate(BOXES)])
    done = write_class_means(make(BOXES, [0] * 4), tmp_path / "out", regions=marked if regions else None)
    assert done.images == 4
    assert [path.name for path in done.pictures] == ["0000-class_cat_0.png"]
    with np.load(tmp_path / "out" / "0000-class_cat_0.npz") as arrays:
        assert set(arrays.files) == {"all_mean", "all_spread"}
        alone = objects(BOXES[1:2])[0, 0] / objects(BOXES[1:2]).sum()
        place = by_region(alone > 0) if regions else by_relevance(alone)
        assert place is not None
        np.testing.assert_allclose(arrays["all_mean"], align(alone, place), atol=0.3)
        assert arrays["all_spread"].max() < 0.5
    row = table(tmp_path / "out")["class cat (0)", "all"]
    assert float(row["alike"]) > 0.99
    assert float(row["shown"]) == pytest.approx(1)
    sizes = np.sqrt([(right - left) * (bottom - top) for left, top, right, bottom in BOXES]) / SIZE
    assert float(row["size"]) == pytest.approx(sizes.mean(), rel=0.03)
    assert float(row["size_spread"]) == pytest.approx(sizes.std(ddof=1), rel=0.05)


def test_mean_and_spread_are_those_of_numpy(make: Make, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    relevance = random.normal(size=(6, 1, SIZE, SIZE)) * random.random((6, 1, SIZE, 1))
    write_class_means(make((), [1] * 6, attribution=relevance), tmp_path / "out")
    unit = [one[0] / np.abs(one).sum() for one in relevance]
    stack = np.stack([align(one, place) for one in unit if (place := by_relevance(one))])
    with np.load(tmp_path / "out" / "0000-class_dog_wolf.npz") as arrays:
        np.testing.assert_allclose(arrays["all_mean"], stack.mean(axis=0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(arrays["all_spread"], stack.std(axis=0, ddof=1), rtol=1e-4, atol=1e-5)
    energy = (stack.mean(axis=0) ** 2).sum() / (stack**2).sum(axis=(1, 2)).mean()
    assert float(table(tmp_path / "out")["class dog/wolf", "all"]["alike"]) == pytest.approx(energy, rel=1e-4)


def test_right_and_wrong_decisions_are_stacked_apart_too(make: Make, tmp_path: Path) -> None:
    store = make([*BOXES, *BOXES, (0, 0, 8, 8)], [0] * 4 + [1] * 4 + [-1], [0, 0, 1, 0, 1, 1, 1, 1, 2])
    done = write_class_means(store, tmp_path / "out")
    images = {key: int(row["images"]) for key, row in table(tmp_path / "out").items()}
    assert images == {
        ("class cat (0)", "all"): 4,
        ("class cat (0)", "right"): 3,
        ("class cat (0)", "wrong"): 1,
        ("class dog/wolf", "all"): 4,
        ("class cat (2)", "all"): 1,  # without a label, by its prediction
    }
    assert len(done.pictures) == 3
    assert done.images == 9
    for path in (*done.pictures, done.sheet):
        with Image.open(path) as picture:
            assert picture.width >= 520


def test_clusters_are_stacked_by_the_paths_of_their_images(make: Make, tmp_path: Path) -> None:
    store = make(BOXES, [0, 0, 1, 1])
    folder = tmp_path / "case" / "LayerX"
    folder.mkdir(parents=True)
    numbers = {"0.png": 2, "2.png": 1, "3.png": -1, "gone.png": 1}
    lines = "".join(f"{tmp_path / name},{number}\n" for name, number in numbers.items())
    (folder / "clusters.csv").write_text(f"image,cluster\n{lines}")
    for given in (tmp_path / "case", folder, folder / "clusters.csv"):
        done = write_class_means(store, tmp_path / "out", by=given, overwrite=True)
        assert [path.name for path in done.pictures] == ["0000-cluster_1.png", "0001-cluster_2.png", "0002-noise.png"]
        assert done.images == 3
    (folder / "clusters.csv").write_text("image,cluster\nother.png,1\n")
    with pytest.raises(DataError, match="no image of the clusters"):
        write_class_means(store, tmp_path / "none", by=folder)
    with pytest.raises(DataError, match="is neither 'class' nor a folder"):
        write_class_means(store, tmp_path / "none", by="nope")
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_aligned_is_left_out_and_counted(make: Make, tmp_path: Path) -> None:
    relevance = objects(BOXES)
    relevance[1] = 0
    store = make(BOXES, [0] * 4, attribution=relevance)
    for row in range(4):
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / f"{row}.png")
    regions = Regions(Path("r"), [Region(f"{row}.png", "cat", "", Box(*BOXES[row]), "") for row in (0, 1)])
    done = write_class_means(store, tmp_path / "out", regions=regions)
    assert done.images == 1
    assert done.left_out == {"no relevance": 1, "no region that the model sees": 2}
    with pytest.raises(DataError, match="1 left out for no relevance"):
        write_class_means(make((), [0], attribution=np.zeros((1, 1, SIZE, SIZE))), tmp_path / "none")


def test_more_groups_than_a_sheet_has_room_for_all_get_a_page(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrp_onnx.debug.class_mean.MOST_ON_SHEET", 2)
    sizes = []
    for name, labels in (("two", [0, 0, 1, 1]), ("three", [0, 1, 1, 2])):
        done = write_class_means(make(BOXES, labels), tmp_path / name)
        assert len(done.pictures) == len(set(labels))
        with Image.open(done.sheet) as sheet:
            sizes.append(sheet.size)
    assert sizes[0] == sizes[1]


def test_memory_does_not_grow_with_the_number_of_images(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrp_onnx.render.unit_heatmaps._BLOCK_BYTES", 1 << 18)
    peaks = []
    for count in (40, 400):
        store = make((), [0] * count, attribution=np.ones((count, 3, SIZE, SIZE)))
        tracemalloc.start()
        write_class_means(store, tmp_path / "out", overwrite=True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1e6  # all heatmaps would be 15 MB


def test_stores_that_cannot_be_stacked_are_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="expected pictures"):
        write_class_means(make((), [0], attribution=np.ones((1, 7))), tmp_path / "out")
    with pytest.raises(StoreError, match=r"0\.png.* NaN"):
        write_class_means(make((), [0], attribution=np.full((1, 1, SIZE, SIZE), np.nan)), tmp_path / "out")
    with pytest.raises(DataError, match="colour map 'jet'"):
        write_class_means(make(BOXES, [0] * 4), tmp_path / "out", cmap="jet")
    with pytest.raises(DataError, match="limit"):
        write_class_means(make(BOXES, [0] * 4), tmp_path / "out", limit=0)
    assert not (tmp_path / "out").exists()
    write_class_means(make(BOXES, [0] * 4), tmp_path / "out")
    with pytest.raises(OutputError, match="--overwrite"):
        write_class_means(make(BOXES, [0] * 4), tmp_path / "out")


def test_the_command_stacks_and_says_so(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, out = str(make(BOXES, [0, 0, 1, 1])), str(tmp_path / "out")
    assert run(["render", store, "--class-mean", "-o", out, "--limit", "3"]) == 0
    assert "3 images in 2 groups" in capsys.readouterr().out
    assert run(["render", store, "--class-mean", "-o", out, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 4
    assert run(["render", store, "--by", "clusters", "-o", str(tmp_path / "none")]) == 2
    assert "use them with --class-mean" in capsys.readouterr().err
