"""A store becomes a folder of pictures that a person can find their way in."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from lrp_onnx.errors import DataError, StoreError
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.render import overlay, render_store, to_rgb
from lrp_onnx.store import HeatmapStore, LayerInfo, StoreSpec

CLASSES = ["cat", "dog/wolf", "élan"]
SIZE = 24


LAYERS = {
    "/conv/out": LayerInfo((8, 6, 6), "conv", "Conv", 0),
    "/pool/out": LayerInfo((8, 1, 1), "pool", "GlobalAveragePool", 1),
    "/fc/out": LayerInfo((5,), "fc", "Gemm", 2),
}


def make_store(
    folder: Path,
    *,
    n: int = 6,
    labelled: bool = True,
    targets: np.ndarray | None = None,
    shape: tuple[int, ...] = (3, SIZE, SIZE),
    edit: Callable[[h5py.File], None] | None = None,
) -> Path:
    """A store of `n` photographs, class i % 3, of which every fourth is taken for the next class."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 3
    predicted = np.where(np.arange(n) % 4 == 3, (labels + 1) % 3, labels)
    images = [folder / "images" / str(labels[i]) / f"photo {i // 3}.png" for i in range(n)]
    for image in images:
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(image)
    classified = labelled and targets is None
    spec = StoreSpec(
        paths=[str(image) for image in images],
        index=np.arange(n),
        labels=labels if classified else None,
        target_values=targets,
        input_shape=shape,
        outputs=3,
        layers=LAYERS,
        model="net.onnx",
        model_sha256="0" * 64,
        composite="{}",
        target="predicted",
        seed="logit",
        preprocess=Preprocess(size=(SIZE, SIZE)).to_json() if len(shape) == 3 else None,
        classes=CLASSES,
        layer_dtype="float16",
    )
    with HeatmapStore.create(folder / "heatmaps.h5", spec) as store:
        store.write(
            np.arange(n),
            attribution=rng.normal(size=(n, *shape)),
            prediction=4 * np.eye(3)[predicted],
            predicted=predicted if targets is None else None,
            correct=predicted == labels if classified else None,
            target=predicted if targets is None else None,
            layers={name: rng.normal(size=(n, *info.shape)) for name, info in LAYERS.items()},
        )
    if edit:
        with h5py.File(folder / "heatmaps.h5", "r+") as file:
            edit(file)
    return folder / "heatmaps.h5"


class _Links(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("href", "src")]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_every_sample_gets_a_heatmap_and_an_overlay_and_every_class_a_sheet(tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    done = render_store(make_store(tmp_path), out)
    assert len(list((out / "heatmaps").iterdir())) == len(list((out / "overlays").iterdir())) == 6
    assert [path.name for path in done.sheets] == ["0000-cat.png", "0001-dog_wolf.png", "0002-lan.png"]
    assert done.without_image == 0
    assert {path.relative_to(out).as_posix() for path in (done.index, *done.sheets, *done.pictures)} == files(out)


def test_pictures_show_the_sample_they_are_named_after(tmp_path: Path) -> None:
    store, out = make_store(tmp_path), tmp_path / "pictures"
    render_store(store, out, cmap="bwr", percentile=90)
    with h5py.File(store) as file:
        relevance = file["attribution"][4].astype(np.float64).sum(axis=0)
        photograph = Path(file["samples/path"].asstr()[4])
    expected = to_rgb(relevance, cmap="bwr", percentile=90)
    assert np.array_equal(
        np.asarray(Image.open(out / "heatmaps" / f"00004-{photograph.stem.replace(' ', '_')}.png")), expected
    )
    seen = np.asarray(Image.open(photograph).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    expected = overlay(seen, relevance, cmap="bwr", percentile=90)
    drawn = np.asarray(Image.open(out / "overlays" / f"00004-{photograph.stem.replace(' ', '_')}.png"))
    assert np.array_equal(drawn, expected)


def test_the_index_links_every_sheet_and_names_every_class(tmp_path: Path) -> None:
    done = render_store(make_store(tmp_path), tmp_path / "pictures", images="none")
    page = done.index.read_text(encoding="utf-8")
    assert {f"sheets/{path.name}" for path in done.sheets} == set(_Links(page).found)
    assert all(name in page for name in CLASSES)
    assert done.pictures == ()


def test_names_from_a_store_cannot_become_markup_or_leave_the_folder(tmp_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        file.attrs["classes"] = json.dumps(["<script>", "../../up", "c"])
        file["samples/path"][0] = "../../../etc/pass\nwd\x01.png"
        file["samples/path"][1] = "C:\\photos\\" + "x" * 400 + ".png"

    out = tmp_path / "deep" / "pictures"
    done = render_store(make_store(tmp_path, edit=edit), out)
    assert "<script>" not in done.index.read_text(encoding="utf-8")
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"pictures"}
    assert "heatmaps/00000-pass_wd.png" in files(out)
    assert all(len(path.name) < 100 for path in done.pictures)


def test_samples_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        file["samples/path"][...] = "same.png"

    done = render_store(make_store(tmp_path, edit=edit), tmp_path / "pictures", images="heatmap")
    assert len(set(done.pictures)) == 6


def test_a_sample_whose_image_is_gone_is_drawn_as_its_heatmap_alone(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    for image in (tmp_path / "images" / "0").iterdir():
        image.unlink()
    for image in (tmp_path / "images" / "1").iterdir():
        image.write_bytes(b"no image any more")
    out = tmp_path / "pictures"
    done = render_store(store, out, images="overlay")
    assert done.without_image == 4
    assert len(list((out / "overlays").iterdir())) == 2
    assert len(list((out / "heatmaps").iterdir())) == 4


def test_samples_from_an_array_file_are_shown_too(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (6, SIZE, SIZE, 3), dtype=np.uint8)
    np.save(tmp_path / "data.npy", pictures)

    def edit(file: h5py.File) -> None:
        for row in range(6):
            file["samples/path"][row] = f"{tmp_path / 'data.npy'}[{5 - row}]"

    store = make_store(tmp_path, edit=edit)
    assert render_store(store, tmp_path / "p", images="overlay").without_image == 0
    with h5py.File(store) as file:
        expected = overlay(pictures[5], file["attribution"][0].astype(np.float64).sum(axis=0))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "p" / "overlays" / "00000-data_npy_5.png")), expected)


def test_layers_are_drawn_in_the_order_of_execution(tmp_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        for layer in file["layers"].values():  # red, white, red
            layer[...] = 0 if layer.attrs["tensor"] == "/pool/out" else 1

    done = render_store(make_store(tmp_path, n=1, edit=edit), tmp_path / "p", images="none", layers="all")
    sheet = np.asarray(Image.open(done.pictures[0]))
    colours = [sheet[130, 28 + 202 * cell + 80].tolist() for cell in (1, 2, 3)]
    assert colours == [[128, 0, 0], [255, 255, 255], [128, 0, 0]]


def test_layers_are_drawn_when_asked_for(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    done = render_store(store, tmp_path / "all", images="none", layers="all")
    one = render_store(store, tmp_path / "one", images="none", layers=["/fc/out"])
    assert len(done.pictures) == len(one.pictures) == 6
    assert {path.parent.name for path in done.pictures} == {"layers"}
    assert Image.open(done.pictures[0]).width > Image.open(one.pictures[0]).width
    with pytest.raises(StoreError, match=r"no layer '/nope'; it holds /conv/out, /pool/out, /fc/out"):
        render_store(store, tmp_path / "none", layers=["/nope"])
    assert not (tmp_path / "none").exists()


def test_unfinished_samples_are_left_out(tmp_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        file["samples/done"][2:] = 0
        file["attribution"][2:] = np.nan

    done = render_store(make_store(tmp_path, edit=edit), tmp_path / "pictures")
    assert len(done.sheets) == 2


def test_limit_takes_the_first_samples_and_progress_counts_them(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    done = render_store(
        make_store(tmp_path), tmp_path / "p", limit=2, images="heatmap", progress=lambda *now: seen.append(now)
    )
    assert [path.name[:5] for path in done.pictures] == ["00000", "00001"]
    assert seen == [(1, 2), (2, 2)]


def test_one_sheet_for_all_and_further_pages_when_there_are_many(tmp_path: Path) -> None:
    store = make_store(tmp_path, n=50)
    done = render_store(store, tmp_path / "p", images="none", per_class=False)
    assert [path.name for path in done.sheets] == ["all-page1.png", "all-page2.png"]


def test_unlabelled_data_is_grouped_by_prediction_and_never_red(tmp_path: Path) -> None:
    done = render_store(make_store(tmp_path, n=4, labelled=False), tmp_path / "p", images="none", cmap="gray")
    assert [path.name for path in done.sheets] == ["0000-cat.png", "0001-dog_wolf.png", "0002-lan.png"]
    red = np.array([0xC6, 0x28, 0x28])
    assert not any((np.asarray(Image.open(path)) == red).all(axis=2).any() for path in done.sheets)
    assert "wrong</small>" not in done.index.read_text(encoding="utf-8")


def test_wrong_predictions_are_red_and_counted(tmp_path: Path) -> None:
    done = render_store(make_store(tmp_path, n=4), tmp_path / "p", images="none", cmap="gray")
    red = np.array([0xC6, 0x28, 0x28])
    assert [(np.asarray(Image.open(path)) == red).all(axis=2).any() for path in done.sheets] == [True, False, False]
    assert "2 samples, 1 wrong" in done.index.read_text(encoding="utf-8")


def test_wrong_predictions_come_first(tmp_path: Path) -> None:
    done = render_store(make_store(tmp_path, n=4), tmp_path / "p", images="none", cmap="gray", per_class=False)
    sheet = np.asarray(Image.open(done.sheets[0]))
    rows, _ = np.nonzero((sheet == [0xC6, 0x28, 0x28]).all(axis=2))
    assert 0 < rows.min() < rows.max() < sheet.shape[0] * 0.6  # the fourth sample is the wrong one


def test_a_regression_store_is_drawn_on_one_sheet(tmp_path: Path) -> None:
    done = render_store(make_store(tmp_path, targets=np.zeros((6, 2))), tmp_path / "p")
    assert [path.name for path in done.sheets] == ["all.png"]


def test_a_model_of_vectors_is_drawn_as_bars(tmp_path: Path) -> None:
    done = render_store(make_store(tmp_path, shape=(40,)), tmp_path / "p")
    assert (done.without_image, len(done.pictures)) == (6, 6)


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    for name in ("a", "b"):
        render_store(store, tmp_path / name, layers="all")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    for name in files(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_folder_in_use_stays_untouched_unless_overwriting_is_allowed(tmp_path: Path) -> None:
    store, out = make_store(tmp_path), tmp_path / "pictures"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(StoreError, match="already holds files"):
        render_store(store, out)
    assert files(out) == {"mine.txt"}
    render_store(store, out, overwrite=True)
    assert (out / "mine.txt").read_text() == "keep"
    with pytest.raises(StoreError, match="it is a file"):
        render_store(store, out / "mine.txt")


def test_a_picture_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "heatmaps").write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot write .*heatmaps.00003-photo_1\.png: File exists"):
        render_store(make_store(tmp_path), tmp_path / "p", images="heatmap", overwrite=True)


def test_a_store_with_a_part_missing_is_one_clear_error(tmp_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        del file["prediction"]

    with pytest.raises(StoreError, match=r"damaged.*prediction"):
        render_store(make_store(tmp_path, edit=edit), tmp_path / "p")


def test_relevance_that_is_no_number_names_the_sample(tmp_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        file["attribution"][3, 0, 5, 5] = np.nan

    with pytest.raises(StoreError, match=r"attribution, row 3 \(.*photo.*\) holds NaN"):
        render_store(make_store(tmp_path, edit=edit), tmp_path / "p")


def test_what_is_no_store_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="missing"):
        render_store(tmp_path / "missing.h5", tmp_path / "p")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(StoreError, match=r"text\.h5"):
        render_store(tmp_path / "text.h5", tmp_path / "p")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(StoreError, match=r"other\.h5"):
        render_store(tmp_path / "other.h5", tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_a_store_without_finished_samples_says_so(tmp_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        file["samples/done"][...] = 0

    with pytest.raises(StoreError, match="no finished sample"):
        render_store(make_store(tmp_path, edit=edit), tmp_path / "p")


def test_options_that_do_not_exist_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    for wrong in ({"images": "all"}, {"cmap": "jet"}, {"percentile": 101}, {"limit": 0}):
        with pytest.raises(DataError, match=str(next(iter(wrong.values())))):
            render_store(store, tmp_path / "p", **wrong)
    assert not (tmp_path / "p").exists()
