"""Regions find their samples, move to where the heatmaps are, and the whole command writes what it says."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lrp_onnx.cli.app import run
from lrp_onnx.debug.localisation_report import localise_store
from lrp_onnx.debug.placed_regions import PlacedRegions
from lrp_onnx.debug.region_files import read_regions
from lrp_onnx.debug.regions import Box, Region, Regions
from lrp_onnx.errors import DataError, OutputError, StoreError
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.store import HeatmapStore, StoreSpec

CLASSES = ["cat", "dog"]
SIZE = 16  # of the model's input
PICTURE = (40, 20)  # width, height: a stretch to the input makes 2.5 x 1.25 pixels one


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Path]:
    """A store of pictures on disk; heatmaps are the attribution given, else a bright rectangle."""

    def make(
        names: Sequence[str],
        *,
        labels: Sequence[int] = (),
        predicted: Sequence[int] = (),
        attribution: np.ndarray | None = None,
        paths: Sequence[str] = (),
        done: Sequence[int] = (),
        **preprocess: Any,
    ) -> Path:
        for row, name in enumerate(names):
            (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(row).integers(0, 256, (PICTURE[1], PICTURE[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name)
        count = len(names)
        spec = StoreSpec(
            paths=paths or [str(tmp_path / "pictures" / name) for name in names],
            index=np.arange(count),
            labels=labels or [0] * count,
            input_shape=(3, SIZE, SIZE),
            outputs=2,
            model="model.onnx",
            model_sha256="0f" * 32,
            composite="{}",
            target="predicted",
            seed="logit",
            preprocess=Preprocess(size=(SIZE, SIZE), **preprocess).to_json(),
            classes=CLASSES,
        )
        if attribution is None:
            attribution = np.zeros((count, 3, SIZE, SIZE))
            attribution[:, 0, 4:8, 4:8] = 1
        said = np.array(predicted or [0] * count)
        rows = np.array(done if len(done) else range(count))
        path = tmp_path / "h.h5"
        with HeatmapStore.create(path, spec, overwrite=True) as store:
            store.write(
                rows,
                attribution=attribution[rows],
                prediction=np.eye(2)[said][rows],
                predicted=said[rows],
                target=said[rows],
                correct=(said == np.array(labels or [0] * count))[rows],
            )
            store.finish()
        return path

    return make


def region(image: str, box: tuple[float, float, float, float], name: str = "cat", part: str = "") -> Region:
    return Region(image, name, part, Box(*box), f"regions.csv, {image}")


def place(store: Path, *regions: Region, **fields: Any) -> PlacedRegions:
    with HeatmapStore(store) as heatmaps:
        placed = PlacedRegions(heatmaps, Regions(Path("regions.csv"), regions, **fields))
        for row in placed.rows:
            placed.at(row)
        return placed


def place_row(store: Path, image: str, box: tuple[float, float, float, float]) -> np.ndarray:
    """The region of the second sample."""
    with HeatmapStore(store) as heatmaps:
        marked = PlacedRegions(heatmaps, Regions(Path("regions.csv"), [region(image, box)])).at(1)
    assert marked is not None
    return marked.region


def mask(rows: slice, columns: slice) -> np.ndarray:
    there = np.zeros((SIZE, SIZE), dtype=bool)
    there[rows, columns] = True
    return there


@pytest.mark.parametrize(
    ("preprocess", "box", "expected", "visible"),
    [
        # 2.5 x 1.25 picture pixels a heatmap pixel
        ({"resize": "stretch"}, (10, 5, 20, 10), mask(slice(4, 8), slice(4, 8)), 1.0),
        # 40 x 20 becomes 32 x 16, and the middle 16 x 16 of that is seen: columns 10 to 30
        ({"resize": "shortest-edge"}, (15, 5, 25, 10), mask(slice(4, 8), slice(4, 12)), 1.0),
        ({"resize": "shortest-edge"}, (0, 5, 20, 10), mask(slice(4, 8), slice(0, 8)), 0.5),
        # 40 x 20 becomes 16 x 8 with 4 rows of grey above
        ({"resize": "letterbox"}, (10, 5, 20, 10), mask(slice(6, 8), slice(4, 8)), 1.0),
        ({"resize": "letterbox"}, (10, 0, 20, 20), mask(slice(4, 12), slice(4, 8)), 1.0),
    ],
)
def test_regions_move_to_where_the_model_sees_them(
    make_store: Callable[..., Path], preprocess: dict[str, Any], box: Any, expected: np.ndarray, visible: float
) -> None:
    store = make_store(["cat/a.png"], **preprocess)
    with HeatmapStore(store) as heatmaps:
        marked = PlacedRegions(heatmaps, Regions(Path("r"), [region("cat/a.png", box)])).at(0)
    assert marked is not None
    assert (marked.region == expected).all()
    assert marked.visible == pytest.approx(visible, abs=0.02)


def test_a_region_lies_on_the_bright_square_that_was_marked(make_store: Callable[..., Path], tmp_path: Path) -> None:
    """The picture's own pixels as the model gets them are the oracle, turned by EXIF as cameras do."""
    store = make_store(["a.jpg"], resize="shortest-edge", crop=0.8)
    pixels = np.zeros((60, 90), np.uint8)
    pixels[20:40, 30:50] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the upright picture is 60 x 90
    Image.fromarray(pixels).save(tmp_path / "pictures" / "a.jpg", exif=exif, quality=100)
    upright = (60 - 40, 30, 60 - 20, 50)
    with HeatmapStore(store) as heatmaps, Image.open(tmp_path / "pictures" / "a.jpg") as picture:
        marked = PlacedRegions(heatmaps, Regions(Path("r"), [region("a.jpg", upright, "cat")])).at(0)
        seen = Preprocess.from_json(heatmaps.preprocess or "")(picture)[0] > 0.5
    assert marked is not None
    assert seen.any()
    assert (marked.region == seen).all()


def test_images_are_found_by_the_end_of_their_path(make_store: Callable[..., Path]) -> None:
    store = make_store(["cat/a.png", "dog/a.png", "dog/b.png", "dog/c.png"], labels=[0, 1, 1, 1], done=[0, 1, 2])
    box = (0.0, 0.0, 40.0, 20.0)
    images = ("dog/a.png", "b.png", "c.png", "cat/b.png")
    placed = place(store, *(region(image, box, "dog") for image in images))
    assert placed.rows == [1, 2]
    assert [Path(path).name for path in placed.without_region] == ["a.png"]
    assert placed.without_image == ["c.png", "cat/b.png"]
    with pytest.raises(DataError, match=r"image 'a\.png' fits 2 samples"):
        place(store, region("a.png", box))
    with pytest.raises(DataError, match=r"no region is of an image in .*'z\.png'"):
        place(store, region("z.png", box))
    assert place(store, region("dog/b", box, "dog"), stems=True).rows == [2]


def test_rows_of_array_files_are_marked_on_the_models_input(make_store: Callable[..., Path], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3, SIZE, SIZE), np.float32))
    paths = [f"{tmp_path}/x.npy[{row}]" for row in (0, 1)]
    store = make_store(["a.png", "b.png"], paths=paths, resize="shortest-edge")
    assert (place_row(store, "x.npy[1]", (4, 4, 8, 8)) == mask(slice(4, 8), slice(4, 8))).all()


def test_rows_of_uint8_pictures_are_marked_on_the_picture(make_store: Callable[..., Path], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, PICTURE[1], PICTURE[0], 3), np.uint8))
    store = make_store(["a.png", "b.png"], paths=[f"{tmp_path}/x.npy[{row}]" for row in (0, 1)])
    assert (place_row(store, "x.npy[1]", (20, 0, 40, 10)) == mask(slice(0, 8), slice(8, 16))).all()
    (tmp_path / "x.npy").unlink()
    placed = place(store, region("x.npy[1]", (20, 0, 40, 10)))
    assert placed.at(1) is None
    assert "cannot be read" in placed.skipped[f"{tmp_path}/x.npy[1]"]


def test_regions_of_the_expected_class_count(make_store: Callable[..., Path]) -> None:
    store = make_store(["a.png", "b.png"], labels=[0, -1], predicted=[1, 1])
    left, right, ear = (0.0, 0.0, 20.0, 20.0), (20.0, 0.0, 40.0, 20.0), (0.0, 0.0, 10.0, 10.0)
    regions = [region(name, left) for name in ("a.png", "b.png")]
    regions += [region(name, right, "dog") for name in ("a.png", "b.png")]
    regions += [region(name, ear, "ear") for name in ("a.png", "b.png")]
    with HeatmapStore(store) as heatmaps:
        placed = PlacedRegions(heatmaps, Regions(Path("r"), regions))
        expected, explained = placed.at(0), placed.at(1)
    assert expected is not None and explained is not None
    assert (expected.region == mask(slice(0, 16), slice(0, 8))).all()
    assert (explained.region == mask(slice(0, 16), slice(8, 16))).all()
    assert (expected.parts["ear"] == mask(slice(0, 8), slice(0, 4))).all()
    assert placed.part_names == ["ear"]


def test_samples_that_regions_say_nothing_about_are_skipped_with_the_reason(make_store: Callable[..., Path]) -> None:
    store = make_store(["a.png", "b.png", "c.png"], resize="shortest-edge")
    (store.parent / "pictures" / "c.png").unlink()
    placed = place(
        store,
        region("a.png", (0, 0, 9, 20)),
        region("b.png", (0, 0, 40, 20), "dog"),
        region("c.png", (0, 0, 40, 20)),
    )
    assert [reason.split(",")[0] for reason in placed.skipped.values()] == [
        "its region is outside of what the model sees",
        "no region of class 'cat'",
        "the size of its picture is not known",
    ]
    known = place(store, region("c.png", (0, 0, 40, 20)), sizes={"c.png": PICTURE})
    assert not known.skipped


def test_regions_drawn_on_another_size_are_named(make_store: Callable[..., Path]) -> None:
    store = make_store(["a.png"])
    with pytest.raises(DataError, match=r"of a\.png were drawn on 20 x 40 pixels, and .* has 40 x 20"):
        place(store, region("a.png", (0, 0, 10, 10)), sizes={"a.png": (20, 40)})


@pytest.fixture
def judged(make_store: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """Four images: right and on the cat, right and on the corner, wrong and on the cat, unlabelled without a region."""
    attribution = np.full((4, 3, SIZE, SIZE), 1e-6)
    attribution[[0, 2], 0, 4:8, 4:8] = 1
    attribution[1, 0, :3, :3] = 1
    store = make_store(
        ["a.png", "b.png", "c.png", "d.png"],
        labels=[0, 0, 0, -1],
        predicted=[0, 0, 1, 1],
        attribution=attribution,
    )
    table = tmp_path / "regions.csv"
    rows = "".join(f"{name}.png,cat,head,10,5,20,10\n{name}.png,cat,,10,5,30,15\n" for name in "abc")
    table.write_text(f"image,label,part,x1,y1,x2,y2\n{rows}gone.png,cat,,0,0,1,1\n")
    return store, table


def test_the_report_counts_scores_and_names(judged: tuple[Path, Path], tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    found = localise_store(*judged, tmp_path / "out", margin=0.2, smoothing=0, progress=lambda *at: steps.append(at))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert [Path(path).name for path in found.without_region] == ["d.png"]
    assert found.without_image == ("gone.png",)
    assert [image.carried.part for image in found.images] == ["head", "background", "head"]
    assert [image.score01 for image in found.images] == [1, 0, 1]
    assert [image.score03 for image in found.images] == [3, 0, 3]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["confusion"]["macro"] == {"tp": 1, "fn": 1, "fp": 1, "tn": 0}
    assert summary["confusion"]["micro"] == {"tp": 0.25, "fn": 1.75, "fp": 0.25, "tn": 0.75}
    assert summary["all"]["area"] == 64 / 256
    assert summary["by_decision"]["right"]["mass"] == pytest.approx(0.5, abs=0.01)
    with (tmp_path / "out" / "images.csv").open() as file:
        assert [row["carried_by"] for row in csv.DictReader(file)] == ["head", "background", "head"]
    with (tmp_path / "out" / "parts.csv").open() as file:
        carried = {(row["group"], row["decision"], row["part"]): row["carried"] for row in csv.DictReader(file)}
    assert carried["cat", "right", "background"] == "1"
    assert carried["cat", "wrong", "head"] == "1"
    for picture in ("confusion.png", "parts.png", "sheet.png"):
        with Image.open(tmp_path / "out" / picture) as image:
            assert image.width >= 900


def test_each_class_is_counted_for_itself(make_store: Callable[..., Path], tmp_path: Path) -> None:
    store = make_store(["a.png", "b.png"], labels=[0, 1], predicted=[0, 1])
    regions = [region("a.png", (10, 5, 20, 10), "cat", "head"), region("b.png", (10, 5, 20, 10), "dog", "tail")]
    found = localise_store(store, Regions(Path("r"), regions), tmp_path / "out")
    assert {(row.group, row.part) for row in found.parts if row.carried} == {
        *(("all classes", part) for part in ("head", "tail")),
        ("cat", "head"),
        ("dog", "tail"),
    }
    assert [found.summary["by_class"][name]["images"] for name in CLASSES] == [1, 1]
    with (tmp_path / "out" / "confusion.csv").open() as file:
        counts = {(row["matrix"], row["group"]): float(row["tp"]) for row in csv.DictReader(file)}
    assert counts["macro", "all classes"] == 2
    assert counts["macro", "dog"] == 1


def test_the_command_prints_and_refuses_to_replace(
    judged: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, table = map(str, judged)
    out = str(tmp_path / "out")
    assert run(["localise", store, table, "-o", out]) == 0
    said = capsys.readouterr().out
    assert "cat, right: head 1, background 1" in said
    assert "1 image without a region" in said
    assert "1 image with regions, but not in the store: gone.png" in said
    assert run(["localise", store, table, "-o", out]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(["localise", store, table, "-o", out, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 3


def test_a_failed_run_leaves_nothing(judged: tuple[Path, Path], tmp_path: Path) -> None:
    for option in ({"threshold": 0.0}, {"margin": 1.5}, {"smoothing": -0.1}, {"factor": 0.5}):
        with pytest.raises(DataError, match=next(iter(option))):
            localise_store(*judged, tmp_path / "out", **option)
    (tmp_path / "bad.csv").write_text("image,label,x1,y1,x2,y2\na.png,cat,900,0,990,9\n")
    with pytest.raises(DataError, match="line 2: covers no pixel"):
        localise_store(judged[0], tmp_path / "bad.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    localise_store(*judged, tmp_path / "out")
    with pytest.raises(OutputError):
        localise_store(*judged, tmp_path / "out")


def test_relevance_that_is_no_number_is_named(make_store: Callable[..., Path], judged: tuple[Path, Path]) -> None:
    store = make_store(["a.png"], attribution=np.full((1, 3, SIZE, SIZE), np.nan))
    with pytest.raises(StoreError, match=r"a\.png: the relevance holds NaN"):
        localise_store(store, read_regions(judged[1]), store.parent / "out")
