"""Folders, manifests and arrays become the same kind of data set, in a fixed order, and broken files do not stop it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrp_onnx.data import Dataset, batches, open_dataset
from lrp_onnx.errors import DataError
from lrp_onnx.preprocess import Preprocess

GREY = Preprocess(size=2, colour="L", range=(0, 255))


def picture(path: Path, level: int = 0) -> Path:
    """A small picture of one grey level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), level).save(path)
    return path


def names(dataset: Dataset) -> list[str]:
    return [Path(path).relative_to(dataset.root).as_posix() for path in dataset.paths]


@pytest.fixture
def classes_folder(tmp_path) -> Path:
    for number, name in enumerate(["dog/b.png", "dog/a.jpg", "cat/x/deep.png", "cat/10.png", "cat/9.png"]):
        picture(tmp_path / "data" / name, 10 * number)
    return tmp_path / "data"


def test_a_folder_of_class_folders_is_sorted_by_path_and_labelled(classes_folder):
    dataset = open_dataset(classes_folder)
    assert names(dataset) == ["cat/10.png", "cat/9.png", "cat/x/deep.png", "dog/a.jpg", "dog/b.png"]
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1]
    assert dataset.index.tolist() == [0, 1, 2, 3, 4]
    assert dataset.classes == ("cat", "dog")
    assert all(Path(path).is_absolute() for path in dataset.paths)


def test_an_empty_class_folder_keeps_its_index(classes_folder):
    (classes_folder / "ant").mkdir()
    assert open_dataset(classes_folder).labels.tolist() == [1, 1, 1, 2, 2]


def test_a_flat_folder_has_no_labels_and_ignores_what_is_no_picture(tmp_path):
    for name in ["b.PNG", "a.jpg", ".hidden.png", ".git/x.png"]:
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    dataset = open_dataset(tmp_path, classes=["cat"])
    assert names(dataset) == ["a.jpg", "b.PNG"]
    assert dataset.labels.tolist() == [-1, -1]
    assert dataset.samples[0].label is None
    assert dataset.targets is None


def test_folder_names_are_looked_up_in_the_model_s_classes(classes_folder):
    assert open_dataset(classes_folder, classes=["dog", "ant", "cat"]).labels.tolist() == [2, 2, 2, 0, 0]


@pytest.mark.parametrize("classes", [["a", "b", "c"], None])
def test_folder_names_may_be_indexes(tmp_path, classes):
    for name in ["2/a.png", "00/a.png", "1/a.png"]:
        picture(tmp_path / name)
    assert open_dataset(tmp_path, classes=classes).labels.tolist() == [0, 1, 2]


def test_names_win_over_indexes(tmp_path):
    picture(tmp_path / "1" / "a.png")
    assert open_dataset(tmp_path, classes=["1", "0"]).labels.tolist() == [0]


def test_folders_that_match_no_class_are_named_or_unlabelled(classes_folder):
    for name in ["eel", "fox", "gnu", "7"]:
        (classes_folder / name).mkdir()
    with pytest.raises(DataError, match=r"folder '7', 'cat', 'eel' and 2 more matches no class .*\('dog', 'ant'\)"):
        open_dataset(classes_folder, classes=["dog", "ant"])
    dataset = open_dataset(classes_folder, classes=["dog", "ant"], unknown="unlabelled")
    assert dataset.labels.tolist() == [-1, -1, -1, 0, 0]


def test_a_class_name_that_the_model_has_twice_is_ambiguous(classes_folder):
    with pytest.raises(DataError, match=r"'cat' names classes \[0, 2\] of the model; use the index"):
        open_dataset(classes_folder, classes=["cat", "dog", "cat"])


def test_linked_folders_are_followed_but_not_in_circles(tmp_path):
    picture(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "self").symlink_to(tmp_path / "data")
    assert "cat/a.png" in names(open_dataset(tmp_path / "data"))


@pytest.mark.parametrize("text", ["{0},{1}", "{0};{1}", "{0}\t{1}"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_manifest_gives_paths_beside_it_and_labels(tmp_path, text, encoding):
    rows = [("Image", "Label"), ("pics/ä, b.png", "dog"), ("/abs/c.png", "0"), ("pics/d.png", "")]
    quoted = [text.format(*(f'"{cell}"' for cell in row)) for row in rows]
    (tmp_path / "m.csv").write_text("\r\n".join(quoted) + "\n\n", encoding=encoding)
    dataset = open_dataset(tmp_path / "m.csv", classes=["cat", "dog"])
    assert dataset.paths == [str(tmp_path / "pics/ä, b.png"), "/abs/c.png", str(tmp_path / "pics/d.png")]
    assert dataset.labels.tolist() == [1, 0, -1]


def test_manifest_labels_without_a_model_s_classes(tmp_path):
    (tmp_path / "m.csv").write_text("image,label,score\na.png,dog,x\nb.png,cat,\n")
    dataset = open_dataset(tmp_path / "m.csv")
    assert (dataset.labels.tolist(), dataset.classes) == ([1, 0], ("cat", "dog"))
    (tmp_path / "m.csv").write_text("image,label\na.png,11\nb.png,2\n")
    dataset = open_dataset(tmp_path / "m.csv")
    assert (dataset.labels.tolist(), dataset.classes) == ([11, 2], None)


@pytest.mark.parametrize(
    "text", ["image,yaw,pitch\na.png,0.5,-2\nb.png,1,3", "image;yaw;pitch\na.png;0,5;-2\nb.png;1;3"]
)
def test_a_manifest_without_labels_holds_regression_targets(tmp_path, text):
    (tmp_path / "m.csv").write_text(text)
    dataset = open_dataset(tmp_path / "m.csv")
    assert dataset.targets.tolist() == [[0.5, -2], [1, 3]]
    assert dataset.targets.dtype == np.float32
    assert dataset.labels.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "a header with a column 'image', got ''"),
        (b"path,label\na.png,1", "a header with a column 'image', got 'path,label'"),
        (b"image,label\n", "no samples"),
        (b"image,label\na.png,cow", "label 'cow' matches no class"),
        (b"image,label\na.png,cat\n,dog", "line 3: column 'image' is empty"),
        (b"image,yaw\na.png,left", "line 2: column 'yaw' holds 'left'"),
        (b"image,yaw\na.png", "line 2: column 'yaw' holds ''"),
        ("image,label\nä.png,cat".encode("latin-1"), "expected UTF-8 text"),
    ],
)
def test_wrong_manifests_are_refused_with_the_line(tmp_path, text, said):
    (tmp_path / "m.csv").write_bytes(text)
    with pytest.raises(DataError, match=said) as caught:
        open_dataset(tmp_path / "m.csv", classes=["cat", "dog"])
    assert "m.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_npy_arrays_pass_without_preprocessing(tmp_path):
    values = np.random.default_rng(0).normal(size=(5, 7, 4, 4))
    np.save(tmp_path / "x.npy", values)
    dataset = open_dataset(tmp_path / "x.npy")
    assert dataset.paths[3] == f"{tmp_path / 'x.npy'}[3]"
    for preprocess in (None, GREY):
        found = list(batches(dataset, preprocess, 2))
        assert [len(batch.inputs) for batch in found] == [2, 2, 1]
        inputs = np.concatenate([batch.inputs for batch in found])
        assert inputs.dtype == np.float32
        np.testing.assert_array_equal(inputs, values.astype(np.float32))


@pytest.mark.parametrize("shape", [(3, 6, 6), (3, 6, 6, 1), (3, 1, 6, 6), (3, 6, 6, 3), (3, 3, 6, 6)])
def test_uint8_arrays_of_pictures_are_preprocessed(tmp_path, shape):
    np.save(
        tmp_path / "x.npy", np.broadcast_to(np.arange(3, dtype=np.uint8).reshape(3, *[1] * (len(shape) - 1)), shape)
    )
    (batch,) = batches(open_dataset(tmp_path / "x.npy"), GREY, 8)
    assert batch.inputs.shape == (3, 1, 2, 2)
    np.testing.assert_array_equal(batch.inputs[:, 0, 0, 0], [0, 1, 2])
    (raw,) = batches(open_dataset(tmp_path / "x.npy"), None, 8)
    assert (raw.inputs.shape, raw.inputs.dtype) == (shape, np.uint8)


@pytest.mark.parametrize(("x", "y"), [("x", "y"), ("images", "labels"), ("data", "y")])
def test_npz_arrays_carry_labels_or_targets(tmp_path, x, y):
    np.savez(tmp_path / "a.npz", **{x: np.zeros((3, 2)), y: np.array([[2], [0], [1]], np.uint8)})
    assert open_dataset(tmp_path / "a.npz").labels.tolist() == [2, 0, 1]
    np.savez(tmp_path / "b.npz", **{x: np.zeros((3, 2)), y: np.array([0.5, 1, 2])})
    dataset = open_dataset(tmp_path / "b.npz")
    assert (dataset.labels.tolist(), dataset.targets.tolist()) == ([-1, -1, -1], [[0.5], [1], [2]])


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"a": np.zeros((2, 2))}, "expected an array named x or images or data, got a"),
        ({"x": np.zeros((2, 2)), "y": [1]}, r"2 inputs, but labels of shape \(1,\)"),
        ({"x": np.zeros((2, 2)), "y": [1, 3]}, "label 3 is no class index; expected 0 to 2"),
        ({"x": np.zeros((2, 2)), "y": [1, -1]}, "label -1 is no class index"),
        (
            {"x": np.zeros((2, 2)), "y": np.eye(2, dtype=int)},
            r"labels are int64 \(2, 2\); expected integer class indexes",
        ),
        ({"x": np.array(["a", "b"])}, "expected numbers of shape"),
        ({"x": np.array([{}, {}])}, "not a numeric NumPy array file"),
        ({"x": np.zeros((0, 2))}, "no samples"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, arrays, said):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=said):
        open_dataset(tmp_path / "a.npz", classes=["a", "b", "c"])


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
@pytest.mark.parametrize("content", [b"", b"junk", b"\x93NUMPY\x01\x00v\x00{'descr': '<f8'"])
def test_broken_array_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="not a numeric NumPy array file"):
        open_dataset(tmp_path / name)


def test_paths_with_nothing_to_read_are_refused(tmp_path):
    with pytest.raises(DataError, match="none: no such file or folder"):
        open_dataset(tmp_path / "none")
    with pytest.raises(DataError, match=r"no pictures found in it; looked for .*\.jpg"):
        open_dataset(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match=r"a.txt: expected an image folder, a picture"):
        open_dataset(tmp_path / "a.txt")


def test_a_single_picture_is_a_data_set(tmp_path):
    (batch,) = batches(open_dataset(picture(tmp_path / "a.png", 9)), GREY, 8)
    assert batch.inputs.tolist() == [[[[9, 9], [9, 9]]]]


def broken(kind: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        if kind == "text":
            path.write_text("no picture")
        elif kind == "empty":
            path.touch()
        elif kind == "truncated":
            noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
            path.write_bytes(path.read_bytes()[:1500])
        elif kind == "dangling link":
            path.unlink(missing_ok=True)
            path.symlink_to(path.parent / "nowhere.png")

    return make


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("kind", ["text", "empty", "truncated", "dangling link"])
def test_unreadable_files_are_listed_and_the_rest_is_read(tmp_path, suffix, kind):
    for level in (1, 3, 4):
        picture(tmp_path / f"{level}.png", level)
    bad = tmp_path / f"2{suffix}"
    broken(kind)(bad)
    dataset = open_dataset(tmp_path)
    found = list(batches(dataset, GREY, 2))
    assert [batch.rows.tolist() for batch in found] == [[0], [2, 3]]
    assert [int(level) for batch in found for level in batch.inputs[:, 0, 0, 0]] == [1, 3, 4]
    assert [Path(path).name for batch in found for path in batch.paths] == ["1.png", "3.png", "4.png"]
    assert list(dataset.failures) == [str(bad)]
    reason = dataset.failures[str(bad)]
    assert reason
    assert "\n" not in reason


def test_a_missing_picture_of_a_manifest_is_a_failure_not_an_end(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "m.csv").write_text("image,label\ngone.png,0\na.png,1\n")
    dataset = open_dataset(tmp_path / "m.csv")
    (batch,) = batches(dataset, GREY, 2)
    assert batch.labels.tolist() == [1]
    assert dataset.failures == {str(tmp_path / "gone.png"): "No such file or directory"}


def test_only_broken_pictures_end_in_one_clear_error(tmp_path):
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_text("no picture")
    with pytest.raises(DataError, match=r"none of the 2 samples could be read; the first, .*a\.png: not a picture"):
        list(batches(open_dataset(tmp_path), GREY, 1))


def test_arrays_that_hold_nan_are_failures(tmp_path):
    values = np.zeros((3, 2), np.float32)
    values[1, 0] = np.nan
    np.save(tmp_path / "x.npy", values)
    dataset = open_dataset(tmp_path / "x.npy")
    assert [batch.rows.tolist() for batch in batches(dataset, None, 3)] == [[0, 2]]
    assert list(dataset.failures.values()) == ["holds NaN or infinite values"]


def test_pictures_without_preprocessing_are_refused_at_once(classes_folder):
    with pytest.raises(DataError, match="pictures need preprocessing"):
        batches(open_dataset(classes_folder), None, 2)


def test_a_batch_size_below_one_is_refused(classes_folder):
    with pytest.raises(DataError, match="batch size is 0"):
        batches(open_dataset(classes_folder), GREY, 0)


def test_skipped_rows_are_not_read_and_the_others_keep_their_batch(classes_folder):
    dataset = open_dataset(classes_folder)
    found = list(batches(dataset, GREY, 2, skip=[0, 2, 3]))
    assert [batch.rows.tolist() for batch in found] == [[1], [4]]
    assert list(batches(dataset, GREY, 2, skip=range(5))) == []


def test_a_subset_keeps_the_rows_of_the_whole(classes_folder, tmp_path):
    (batch,) = batches(open_dataset(classes_folder).subset([3, 1]), GREY, 4)
    assert (batch.rows.tolist(), batch.index.tolist(), batch.labels.tolist()) == ([0, 1], [3, 1], [1, 0])
    np.save(tmp_path / "x.npy", np.arange(8.0).reshape(4, 2))
    (batch,) = batches(open_dataset(tmp_path / "x.npy").subset([3, 1]), None, 4)
    assert batch.inputs.tolist() == [[6, 7], [2, 3]]


def test_order_does_not_depend_on_the_file_system(classes_folder, monkeypatch):
    expected = open_dataset(classes_folder).paths
    walk = os.walk

    def backwards(*args: object, **options: object):
        for folder, folders, files in walk(*args, **options):
            folders.sort(reverse=True)
            yield folder, folders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    assert open_dataset(classes_folder).paths == expected


def test_reading_runs_only_a_few_batches_ahead_and_stops_with_its_reader(tmp_path):
    class Counting(np.ndarray):
        reads = 0

        def __getitem__(self, key):
            Counting.reads += 1
            return super().__getitem__(key)

    values = np.zeros((100, 2), np.float32)
    np.save(tmp_path / "x.npy", values)
    dataset = open_dataset(tmp_path / "x.npy")
    dataset.array = values.view(Counting)
    reader = batches(dataset, None, 1)
    next(reader)
    before = set(threading.enumerate())
    reader.close()
    assert 1 <= Counting.reads <= 4
    assert not any(thread.name.startswith("decode") and thread.is_alive() for thread in before)
