"""A folder of variations opens as a data set, is made once, and holds nothing else."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrp_onnx.data import open_dataset
from lrp_onnx.debug.variation_images import write_variations
from lrp_onnx.errors import DataError, OutputError

SOME = ["dark=0.5", "noise=30", "rotation=20", "mirror"]


def save(path: Path, seed: int = 0, size: tuple[int, int] = (20, 14)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def read(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    save(tmp_path / "images" / "cat" / "a.png", 1)
    save(tmp_path / "images" / "cat" / "b.jpg", 2, (30, 10))
    save(tmp_path / "images" / "élan" / "deep" / "a.png", 3)
    return tmp_path / "images"


def test_the_manifest_opens_as_a_data_set_and_says_what_was_done(images, tmp_path):
    made = write_variations(images, tmp_path / "out", variations=SOME)
    assert (made.images, made.pictures, made.written, made.failures) == (3, 15, 15, {})
    dataset = open_dataset(made.manifest)
    assert dataset.classes == ("cat", "élan")
    assert dataset.labels.tolist() == [0] * 10 + [1] * 5
    assert dataset.targets is None
    rows = read(made.manifest)
    assert [row["variation"] for row in rows[:5]] == ["original", "dark", "noise", "rotation", "mirror"]
    assert [row["value"] for row in rows[:5]] == ["", "0.5", "30", "20", ""]
    assert rows[-1]["image"] == "élan/deep/a--mirror.png"
    assert rows[-1]["source"] == "élan/deep/a.png"
    assert rows[9]["homography"] == "-1 0 30 0 1 0 0 0 1"
    assert (rows[9]["width"], rows[9]["height"]) == ("30", "10")
    for row in rows:
        assert pixels(tmp_path / "out" / row["image"]).shape == (int(row["height"]), int(row["width"]), 3)
    np.testing.assert_array_equal(pixels(tmp_path / "out/cat/a--original.png"), pixels(images / "cat/a.png"))
    np.testing.assert_array_equal(pixels(tmp_path / "out/cat/a--mirror.png"), pixels(images / "cat/a.png")[:, ::-1])


def test_the_folder_itself_opens_as_the_same_data_set(images, tmp_path):
    made = write_variations(images, tmp_path / "out", variations=SOME)
    folder, manifest = open_dataset(tmp_path / "out"), open_dataset(made.manifest)
    assert sorted(folder.paths) == sorted(manifest.paths)
    assert folder.classes == manifest.classes
    assert made.sheet == tmp_path / "out-sheet.png"
    assert pixels(made.sheet).shape[1] <= 1600


def test_the_same_call_makes_nothing_again_and_what_is_missing_alike(images, tmp_path):
    write_variations(images, tmp_path / "out", variations=SOME)
    first, sheet = contents(tmp_path / "out"), (tmp_path / "out-sheet.png").read_bytes()
    assert write_variations(images, tmp_path / "out", variations=SOME).written == 0
    assert contents(tmp_path / "out") == first
    (tmp_path / "out/cat/a--noise=30.png").unlink()
    (tmp_path / "out/cat/b--mirror.png").write_bytes(b"half a picture")
    assert write_variations(images, tmp_path / "out", variations=SOME).written == 2
    assert contents(tmp_path / "out") == first
    assert (tmp_path / "out-sheet.png").read_bytes() == sheet


def test_an_interrupted_call_goes_on(images, tmp_path):
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_variations(images, tmp_path / "out", variations=SOME, progress=interrupt)
    seen: list[tuple[int, int]] = []
    made = write_variations(images, tmp_path / "out", variations=SOME, progress=lambda *at: seen.append(at))
    assert (made.pictures, made.written) == (15, 5)
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    write_variations(images, tmp_path / "other", variations=SOME)
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


def test_a_changed_image_or_seed_is_made_anew(images, tmp_path):
    write_variations(images, tmp_path / "out", variations=SOME)
    before = pixels(tmp_path / "out/élan/deep/a--noise=30.png")
    save(images / "cat" / "a.png", 9)
    assert write_variations(images, tmp_path / "out", variations=SOME).written == 5
    np.testing.assert_array_equal(pixels(tmp_path / "out/cat/a--original.png"), pixels(images / "cat/a.png"))
    assert write_variations(images, tmp_path / "out", variations=SOME, seed=1).written == 15
    assert (pixels(tmp_path / "out/élan/deep/a--noise=30.png") != before).any()


def test_what_is_random_depends_on_the_image_but_not_on_the_others(images, tmp_path):
    save(images / "cat" / "twin.png", 1)
    write_variations(images, tmp_path / "out", variations=SOME)
    twins = [pixels(tmp_path / f"out/cat/{name}--noise=30.png") for name in ("a", "twin")]
    assert (twins[0] != twins[1]).any()
    for name in ("cat/b.jpg", "élan/deep/a.png", "cat/twin.png"):
        (images / name).unlink()
    write_variations(images, tmp_path / "alone", variations=SOME)
    np.testing.assert_array_equal(pixels(tmp_path / "alone/cat/a--noise=30.png"), twins[0])


def test_bad_images_are_named_and_left_out(images, tmp_path):
    (images / "cat" / "bad.png").write_bytes(b"no picture")
    made = write_variations(images, tmp_path / "out", variations=SOME)
    assert (made.images, made.pictures) == (3, 15)
    ((path, reason),) = made.failures.items()
    assert path.endswith("bad.png")
    assert "not a picture" in reason
    for good in ("cat/a.png", "cat/b.jpg", "élan/deep/a.png"):
        (images / good).unlink()
    with pytest.raises(DataError, match=r"not one image could be read; the first, .*bad\.png"):
        write_variations(images, tmp_path / "out2", variations=SOME)


def test_images_of_the_same_name_do_not_replace_each_other(images, tmp_path):
    save(images / "cat" / "a.bmp", 7)
    made = write_variations(images, tmp_path / "out", variations=["mirror"])
    names = [row["image"] for row in read(made.manifest)]
    assert len(set(names)) == len(names) == 8
    np.testing.assert_array_equal(pixels(tmp_path / "out/cat/a.bmp--original.png"), pixels(images / "cat/a.bmp"))


def test_images_of_a_manifest_come_into_folders_of_their_classes(images, tmp_path):
    (tmp_path / "lists").mkdir()
    lines = ["image,label", "../images/cat/a.png,cat", "../images/élan/deep/a.png,../up", f"{images}/cat/b.jpg,"]
    (tmp_path / "lists" / "m.csv").write_text("\n".join(lines), encoding="utf-8")
    before = contents(images)
    made = write_variations(tmp_path / "lists" / "m.csv", tmp_path / "out", variations=["mirror"])
    rows = read(made.manifest)
    assert [row["label"] for row in rows] == ["cat"] * 2 + ["../up"] * 2 + [""] * 2
    assert all((tmp_path / "out" / row["image"]).resolve().is_relative_to(tmp_path / "out") for row in rows)
    assert contents(images) == before
    np.testing.assert_array_equal(pixels(tmp_path / "out/cat/a--original.png"), pixels(images / "cat/a.png"))


def test_a_turned_photograph_is_made_upright(tmp_path):
    image = Image.open(save(tmp_path / "p.png", 1, (20, 14)))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by 90 degrees to see it
    image.save(tmp_path / "turned.jpg", exif=exif)
    made = write_variations(tmp_path / "turned.jpg", tmp_path / "out", variations=["mirror"])
    assert [(row["width"], row["height"]) for row in read(made.manifest)] == [("14", "20")] * 2


def test_large_pictures_and_their_masks_are_reduced_first(tmp_path):
    save(tmp_path / "images" / "large.png", 1, (400, 100))
    mask = np.zeros((100, 400), np.uint8)
    mask[:, 200:] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "large.png")
    options = {"variations": ["clear-background", "crop=0.5"], "masks": tmp_path / "masks"}
    made = write_variations(tmp_path / "images", tmp_path / "out", longest=200, **options)
    rows = read(made.manifest)
    assert [(row["width"], row["height"]) for row in rows] == [("200", "50"), ("200", "50"), ("100", "25")]
    original, cleared = (pixels(tmp_path / "out" / row["image"]) for row in rows[:2])
    with Image.open(tmp_path / "images" / "large.png") as image:
        np.testing.assert_array_equal(original, image.resize((200, 50), Image.Resampling.LANCZOS))
    assert (cleared[:, :100] == 255).all()
    np.testing.assert_array_equal(cleared[:, 100:], original[:, 100:])
    assert write_variations(tmp_path / "images", tmp_path / "out", longest=400, **options).written == 3
    assert pixels(tmp_path / "out" / rows[0]["image"]).shape == (100, 400, 3)


def test_masks_and_backgrounds(images, tmp_path):
    for name, size in (("cat/a.png", (20, 14)), ("cat/b.png", (9, 9))):
        path = tmp_path / "masks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = np.zeros(size[::-1], np.uint8)
        mask[2:8, 3:8] = 1
        Image.fromarray(mask).save(path)
    save(tmp_path / "rooms" / "room.png", 5)
    wanted = ["clear-background", "cluttered-background"]
    made = write_variations(
        images, tmp_path / "out", variations=wanted, masks=tmp_path / "masks", backgrounds=tmp_path / "rooms"
    )
    assert [row["variation"] for row in read(made.manifest)] == ["original", *wanted, "original", "original"]
    ((path, reason),) = made.failures.items()
    assert path.endswith("b.png")
    assert "(9, 9) pixels large; its picture is (30, 10)" in reason
    assert made.notes == ("without a mask, and so without variations that need one: 1 of the images",)
    cleared = pixels(tmp_path / "out/cat/a--clear-background.png")
    np.testing.assert_array_equal(cleared[2:8, 3:8], pixels(images / "cat/a.png")[2:8, 3:8])
    assert (cleared[8:] == 255).all()
    room = pixels(tmp_path / "rooms" / "room.png")
    np.testing.assert_array_equal(pixels(tmp_path / "out/cat/a--cluttered-background.png")[8:], room[8:])
    with pytest.raises(DataError, match="clear-background needs the place of the object"):
        write_variations(images, tmp_path / "out3", variations=wanted)
    with pytest.raises(DataError, match="no such folder of masks"):
        write_variations(images, tmp_path / "out3", masks=tmp_path / "nowhere")


def test_other_peoples_folders_and_arrays_are_refused(images, tmp_path):
    with pytest.raises(OutputError, match="lies inside"):
        write_variations(images, images / "cat" / "out", variations=SOME)
    with pytest.raises(OutputError, match=r"holds something else \(no manifest.csv\)"):
        write_variations(images / "cat", images / "élan", variations=SOME)
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 4, 4), np.float32))
    with pytest.raises(DataError, match="made of picture files"):
        write_variations(tmp_path / "x.npy", tmp_path / "out", variations=SOME)
    assert not (tmp_path / "out").exists()
