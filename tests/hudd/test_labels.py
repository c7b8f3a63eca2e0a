"""Labels that a person filled in are read as they were meant, checked, and never lost; known ones are filled in."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lrp_onnx.data import open_dataset
from lrp_onnx.errors import DataError, OutputError
from lrp_onnx.hudd import assign_store, cluster_store, fill_labels, read_labels, read_unsafe
from lrp_onnx.hudd.label_table import match_images

CLASSES = ("cat", "dog", "élan")
HEADER = ["image", "cluster", "distance", "rank", "label", "reason"]
CAUSES = [0] * 8 + [1] * 6 + [2] * 4


def write_set(folder: Path, images: Sequence[Path | str], labels: Sequence[str] | None = None, **changes: Any) -> Path:
    """An unsafe set of two clusters, its table filled in with `labels`."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [
        {"image": str(image), "cluster": 1 + place % 2, "distance": 0.1 * place, "rank": 1 + place // 2, "choice": 1}
        for place, image in enumerate(images)
    ]
    values = {
        "format": "lrp-onnx-unsafe-set", "format_version": 1, "images": 20, "layer": "conv", "factor": 2.0,
        "profile": "default", "quotas": {"1": 4, "2": 4}, "thresholds": {"1": 0.5, "2": 0.5}, "too_far": 10,
        "over_quota": 0, "explanation": "so it is", "selected": chosen,
    }  # fmt: skip
    (folder / "assignment.json").write_text(json.dumps(values | changes), encoding="utf-8")
    rows = zip(chosen, labels or [""] * len(chosen), strict=True)
    write_table(folder, [[one["image"], one["cluster"], one["distance"], one["rank"], text, "?"] for one, text in rows])
    return folder


def write_table(
    folder: Path,
    rows: Sequence[Sequence[Any]],
    header: Sequence[str] = HEADER,
    separator: str = ",",
    encoding: str = "utf-8",
) -> None:
    with (folder / "unsafe.csv").open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=separator).writerows([header, *rows])


def read(path: Path) -> list[dict[str, str]]:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return list(csv.DictReader(lines, delimiter=";" if ";" in lines[0] else ","))


def refused(folder: Path, classes: Sequence[str] | None = CLASSES, **options: Any) -> str:
    before = (folder / "unsafe.csv").read_bytes()
    with pytest.raises(DataError) as caught:
        read_labels(folder, classes, **options)
    assert (folder / "unsafe.csv").read_bytes() == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Four pictures in two folders, two of them with the same name."""
    paths = [tmp_path / "improve" / name for name in ("a/1.png", "a/2.png", "b/1.png", "b/3.png")]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path)
    return paths


@pytest.fixture
def make_clusters(tmp_path: Path, make_store: Callable[..., Path]) -> Callable[..., Path]:
    """A heatmap store whose heatmaps are alike where the causes are."""

    def make(causes: Sequence[int], name: str, **changes: Any) -> Path:
        random, count = np.random.default_rng(len(causes)), len(causes)
        centres = np.random.default_rng(7).normal(size=(9, 24))
        values = centres[np.asarray(causes)] + 0.05 * random.normal(size=(count, 24))
        paths = [f"/{Path(name).stem}/{row}.png" for row in range(count)]
        return make_store({"conv": values.astype(np.float32)}, name, **{"paths": paths, **changes})

    cluster_store(make(CAUSES, "errors.h5"), tmp_path / "T", layer="conv")
    return make


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_that_went_through_a_spreadsheet_says_the_same(
    tmp_path: Path, images: list[Path], encoding: str, separator: str
) -> None:
    folder = write_set(tmp_path / "U", images)
    header = ["Reason", "LABEL ", "mine", "image", "cluster", "rank", "distance"]
    rows = [
        ["a; reason, with\nmarks", f" {label} ", "x", f" {image}", 7, 7, "0,5"]
        for image, label in zip(reversed(images), ("Élan", "1.0", "0", "DOG"), strict=True)
    ]
    write_table(folder, [rows[0], [""] * 7, *rows[1:], [], [""] * 9], header, separator, encoding)
    labels = read_labels(folder, CLASSES)
    assert dict(zip(labels.paths, labels.answers.tolist(), strict=True)) == {
        str(image): label for image, label in zip(images, (1, 0, 1, 2), strict=True)
    }
    assert labels.answers.dtype == np.int64 and labels.unlabelled == () and labels.notes == ()
    assert [(one.image, one.cluster, one.rank) for one in labels.selected] == [
        (0, 1, 1),
        (1, 2, 1),
        (2, 1, 2),
        (3, 2, 2),
    ]
    assert [one.distance for one in labels.selected] == pytest.approx([0, 0.1, 0.2, 0.3])
    dataset = labels.dataset(CLASSES)
    assert dataset.labels.tolist() == [1, 0, 1, 2] and dataset.paths == list(map(str, images))
    assert read_labels(folder / "unsafe.csv", CLASSES).paths == labels.paths


@pytest.mark.parametrize(
    "classes, outputs, texts, answers",
    [
        (None, 3, ("0", "1", "2", "2."), [0, 1, 2, 2]),
        (None, 1, ("0", "1", "1,0", "1"), [0, 1, 1, 1]),
        (("crane", "Crane", "x"), 3, ("crane", "Crane", "X", "2"), [0, 1, 2, 2]),
        (("2", "1", "0"), 3, ("2", "1", "0", "0.0"), [0, 1, 2, 2]),
        (("000", "007", "030"), 3, ("7", "007", "30", "0"), [1, 1, 2, 0]),  # as spreadsheets strip zeros
    ],
)
def test_classes_go_by_name_then_by_index(
    tmp_path: Path, images: list[Path], classes: Any, outputs: int, texts: Sequence[str], answers: list[int]
) -> None:
    labels = read_labels(write_set(tmp_path / "U", images, texts), classes, outputs=outputs)
    assert labels.answers.tolist() == answers


@pytest.mark.parametrize(
    "classes, outputs, text",
    [
        (CLASSES, 3, "caat"), (CLASSES, 3, "3"), (CLASSES, 3, "-1"), (CLASSES, 3, "1.5"), (None, 3, "cat"),
        (None, 1, "2"), (("crane", "crane", "x"), 3, "crane"), (("Crane", "cRANE", "x"), 3, "crane"),
        (("10", "20", "30"), 3, "1"), (("1", "01", "2"), 3, "001"),
    ],
)  # fmt: skip
def test_a_label_that_means_no_class_or_several_is_refused_with_its_lines(
    tmp_path: Path, images: list[Path], classes: Any, outputs: int, text: str
) -> None:
    folder = write_set(tmp_path / "U", images, [text, text, "0", text] if classes != ("10", "20", "30") else [text] * 4)
    said = refused(folder, classes, outputs=outputs)
    assert said.startswith(f"{folder / 'unsafe.csv'}: '{text}' (lines 2, 3")
    assert "not one class of the model; expected" in said and f"an index from 0 to {max(outputs, 2) - 1}" in said
    assert refused(folder, classes, outputs=outputs, partial=True) == said


def test_numbers_to_regress_may_have_decimal_commas(tmp_path: Path, images: list[Path]) -> None:
    folder = write_set(tmp_path / "U", images, ["0.5 1", "0,25  -1e-1", "1;2", "3 4"])
    labels = read_labels(folder, outputs=2, regression=True)
    assert labels.answers.tolist() == [[0.5, 1], [0.25, np.float32(-0.1)], [1, 2], [3, 4]]
    assert labels.dataset().targets is not None
    for text in ("1", "1 2 3", "nan 1", "1 x"):
        said = refused(write_set(tmp_path / "U", images, ["1 2", text, "1 2", "1 2"]), outputs=2, regression=True)
        assert f"'{text}' (line 3): expected 2 numbers, separated by spaces" in said
    said = refused(write_set(tmp_path / "U", images, ["1", "1 2", "1", "1"]), regression=True)
    assert "labels of 1, 2 numbers" in said


def test_empty_labels_and_missing_rows_are_named_and_can_be_left_out(tmp_path: Path, images: list[Path]) -> None:
    folder = write_set(tmp_path / "U", images, ["", "dog", "", "cat"])
    rows = [list(row.values()) for row in read(folder / "unsafe.csv")]
    write_table(folder, rows[:3])
    said = refused(folder)
    assert "3 of 4 images have no label: 1.png (line 2), 1.png (line 4), 3.png (no row)" in said and "--partial" in said
    labels = read_labels(folder, CLASSES, partial=True)
    assert labels.paths == (str(images[1]),) and labels.answers.tolist() == [1]
    assert labels.unlabelled == (str(images[0]), str(images[2]), str(images[3]))
    assert labels.notes == ("3 of 4 selected images have no label and are left out",)
    assert (labels.selected[0].image, labels.selected[0].cluster) == (0, 2)


def test_two_rows_of_an_image_must_agree(tmp_path: Path, images: list[Path]) -> None:
    folder = write_set(tmp_path / "U", images, ["cat", "dog", "dog", "cat"])
    rows = [list(row.values()) for row in read(folder / "unsafe.csv")]
    again = [*rows[1][:4], "1", "also dog"]
    empty = [*rows[2][:4], "", ""]
    write_table(folder, [*rows, again, empty])
    labels = read_labels(folder, CLASSES)
    assert labels.answers.tolist() == [0, 1, 1, 0]
    assert labels.notes == (f"2 images have several rows: {images[1]}, {images[2]}",)
    again[4] = "élan"
    write_table(folder, [*rows, again])
    assert f"{images[1]} has the labels 'dog' (line 3) and 'élan' (line 6)" in refused(folder)
    assert "dog" in refused(folder, partial=True)


def test_images_that_were_never_selected_are_refused_even_with_the_name_of_one_that_was(
    tmp_path: Path, images: list[Path]
) -> None:
    folder = write_set(tmp_path / "U", images[1:], ["cat"] * 3)
    rows = [list(row.values()) for row in read(folder / "unsafe.csv")]
    write_table(folder, [*rows, [str(images[0]), 1, 0, 1, "cat", ""]])
    assert f"1 images were never selected: {images[0]} (line 5)" in refused(folder)


def test_every_kind_of_mistake_is_told_at_once(tmp_path: Path, images: list[Path]) -> None:
    folder = write_set(tmp_path / "U", images, ["caat", "", "0", "hund"])
    said = refused(folder)
    assert "'caat' (line 2), 'hund' (line 5)" in said and "; also: 1 of 4 images have no label: 2.png (line 3)" in said


@pytest.mark.parametrize("prefix", ["/elsewhere/improve/", "", "C:\\photos\\improve\\"])
def test_images_are_known_again_in_another_folder(tmp_path: Path, images: list[Path], prefix: str) -> None:
    folder = write_set(tmp_path / "U", images)
    names = [prefix + "/".join(image.parts[-2:]) for image in images]
    names = [name.replace("/", "\\") if "\\" in prefix else name for name in names]
    write_table(folder, [[name, 1, 0, 1, label, ""] for name, label in zip(names, "0120", strict=True)])
    labels = read_labels(folder, CLASSES)
    assert labels.paths == tuple(map(str, images)) and labels.answers.tolist() == [0, 1, 2, 0]
    assert labels.notes[0].startswith("4 images have other paths")


def test_ends_of_paths_match_only_where_they_tell_images_apart() -> None:
    known = ["/x/a/1.png", "/x/b/1.png", "/x/b/2.png"]
    assert match_images(["/y/b/1.png", "1.png", "/y/2.png", "/x/a/1.png", "3.png"], known) == [1, None, 2, 0, None]
    assert match_images(["/y/c/2.png", "/y/d/2.png"], known) == [None, None]  # only one of them can be it
    assert match_images(["/x/a/1.png", "/q/1.png"], known[:1]) == [0, None]  # taken


def test_pictures_that_are_gone_are_taken_from_where_they_are_now(tmp_path: Path, images: list[Path]) -> None:
    folder = write_set(tmp_path / "U", images, ["cat"] * 4)
    (folder / "2").mkdir()
    images[1].rename(folder / "2" / "0001-2.png")
    moved = tmp_path / "moved" / "b"
    moved.mkdir(parents=True)
    images[2].rename(moved / "1.png")
    rows = [list(row.values()) for row in read(folder / "unsafe.csv")]
    rows[2][0] = str(moved / "1.png")
    write_table(folder, rows)
    labels = read_labels(folder, CLASSES)
    assert labels.dataset().paths == [
        str(p) for p in (images[0], folder / "2" / "0001-2.png", moved / "1.png", images[3])
    ]
    images[3].unlink()
    with pytest.raises(DataError, match=r"1 of 4 labelled images are gone \(.*3\.png\); put them back"):
        labels.dataset()


@pytest.mark.parametrize("content, said", [
    ("image,label\nélan.png,cat\n".encode("latin-1"), "UTF-8"),
    ("image,label\na.png,cat\n".encode("utf-16"), "UTF-8"),
    (b"", "expected one column 'image', got none"),
    (b"picture,label\na.png,cat\n", "expected one column 'image', got picture, label"),
    (b"image,class\na.png,cat\n", "expected one column 'label', got image, class"),
    (b"image,label,Label\na.png,cat,dog\n", "expected one column 'label'"),
    (b"image,label\na.png,cat\n,dog\n", "line 3: no image"),
])  # fmt: skip
def test_a_file_that_is_no_table_of_labels_is_one_line(
    tmp_path: Path, images: list[Path], content: bytes, said: str
) -> None:
    folder = write_set(tmp_path / "U", images)
    (folder / "unsafe.csv").write_bytes(content)
    assert said in refused(folder, partial=True)


def test_a_folder_without_an_unsafe_set_says_what_to_do(tmp_path: Path, images: list[Path]) -> None:
    with pytest.raises(DataError, match=r"no unsafe set there \(assignment\.json\); make it with `lrp-onnx assign`"):
        read_labels(tmp_path)
    folder = write_set(tmp_path / "U", images, format_version=99)
    with pytest.raises(DataError, match=r"cannot be used .*keeps labels"):
        read_labels(folder)
    write_set(folder, images)
    (folder / "unsafe.csv").unlink()
    with pytest.raises(DataError, match=r"unsafe\.csv"):
        read_labels(folder)


def test_rows_of_array_files_are_labelled_too(tmp_path: Path) -> None:
    values = np.arange(60, dtype=np.float32).reshape(5, 3, 2, 2)
    np.save(tmp_path / "x.npy", values)
    paths = [f"{tmp_path / 'x.npy'}[{row}]" for row in (3, 0, 4)]
    labels = read_labels(write_set(tmp_path / "U", paths, ["cat", "dog", "cat"]), CLASSES)
    dataset = labels.dataset()
    np.testing.assert_array_equal(np.stack([dataset.read(row, None) for row in range(3)]), values[[3, 0, 4]])
    assert dataset.labels.tolist() == [0, 1, 0]
    np.save(tmp_path / "x.npy", values[:4])
    with pytest.raises(DataError, match=r"x\.npy\[4\]: .* has 4 rows now"):
        labels.dataset()


def test_known_labels_fill_empty_cells_only_and_keep_the_form_of_the_table(tmp_path: Path, images: list[Path]) -> None:
    folder = write_set(tmp_path / "U", images)
    rows = [["mine", str(image), text] for image, text in zip(images[:3], ("", "cat", ""), strict=True)]
    write_table(folder, rows, ["note", "image", "label"], ";", "utf-8-sig")
    known = tmp_path / "known" / "dog"
    known.mkdir(parents=True)
    for name in ("2.png", "3.png"):
        (known / name).write_bytes(b"picture")
    (known.parent / "cat").mkdir()
    filled = fill_labels(folder, known.parent, CLASSES)
    assert (filled.filled, filled.kept, filled.unknown) == (1, 1, (str(images[0]), str(images[2])))
    assert "1 of 1 images were found in" in filled.notes[0]
    assert (folder / "unsafe.csv").read_bytes().startswith(b"\xef\xbb\xbfnote;image;label\n")
    assert [(row["note"], row["label"]) for row in read(folder / "unsafe.csv")] == [
        ("mine", ""), ("mine", "cat"), ("mine", ""), ("", "dog"),
    ]  # fmt: skip
    assert read_labels(folder, CLASSES, partial=True).answers.tolist() == [0, 1]
    again = fill_labels(folder, known.parent, CLASSES)
    assert (again.filled, again.kept, len(again.unknown)) == (0, 2, 2)


def test_known_labels_come_from_manifests_by_path_then_by_its_end(tmp_path: Path, images: list[Path]) -> None:
    folder = write_set(tmp_path / "U", images)
    manifest = tmp_path / "known.csv"
    manifest.write_text(f"image,label\n{images[0]},élan\nb/1.png,0\n2.png,\n/q/3.png,dog\n", encoding="utf-8")
    filled = fill_labels(folder, manifest, CLASSES)
    assert [row["label"] for row in read(folder / "unsafe.csv")] == ["élan", "", "cat", "dog"]
    assert (filled.filled, filled.unknown) == (3, (str(images[1]),))
    numbers = tmp_path / "numbers.csv"
    numbers.write_text("image,x,y\na/1.png,1.5,2\na/2.png,,1\nb/1.png,1e-3,0.1\n", encoding="utf-8")
    filled = fill_labels(write_set(tmp_path / "R", images), numbers, outputs=2, regression=True)
    assert [row["label"] for row in read(tmp_path / "R" / "unsafe.csv")] == ["1.5 2", "", "0.001 0.1", ""]
    assert filled.unknown == (str(images[1]), str(images[3]))  # a number that is not known is no label


def test_known_labels_of_arrays_go_by_row(tmp_path: Path) -> None:
    x = np.zeros((5, 3), np.float32)
    np.savez(tmp_path / "improve.npz", x=x)
    np.savez(tmp_path / "known.npz", x=x, y=np.array([0, 1, 2, 1, 0]))
    paths = [f"{tmp_path / 'improve.npz'}[{row}]" for row in (3, 0, 2)]
    folder = write_set(tmp_path / "U", paths)
    assert fill_labels(folder, tmp_path / "known.npz", CLASSES).filled == 3
    assert read_labels(folder, CLASSES).answers.tolist() == [1, 0, 2]
    own = open_dataset(tmp_path / "known.npz").subset([2, 3])
    assert fill_labels(write_set(folder, paths), own, CLASSES).unknown == (paths[1],)
    np.savez(tmp_path / "known.npz", x=x[:4], y=np.array([0, 1, 2, 1]))
    with pytest.raises(DataError, match=r"known\.npz has 4 rows, .*improve\.npz 5"):
        fill_labels(folder, tmp_path / "known.npz", CLASSES)


def test_known_labels_that_do_not_fit_leave_the_table_as_it_was(tmp_path: Path, images: list[Path]) -> None:
    folder = write_set(tmp_path / "U", images, ["cat", "", "", ""])
    before = (folder / "unsafe.csv").read_bytes()
    manifest = tmp_path / "known.csv"
    for text, options, said in (
        ("image,label\nz.png,cat\n", {}, "knows none of the 4 selected images"),
        ("image,label\na/2.png,bird\n", {}, "'bird' matches no class"),
        ("image,label\na/2.png,9\n", {"classes": None, "outputs": 3}, "label 9: not one class of the model"),
        ("image,x\na/2.png,1\n", {}, "numbers, but the model tells classes apart"),
        ("image,label\na/2.png,cat\n", {"regression": True}, "classes, but the model gives numbers"),
        ("image,x\na/2.png,1\n", {"regression": True, "outputs": 2}, "label 1: expected 2 numbers"),
    ):
        manifest.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=said):
            fill_labels(folder, manifest, **{"classes": CLASSES, **options})
        assert (folder / "unsafe.csv").read_bytes() == before


def test_assign_writes_down_what_was_selected_and_why(tmp_path: Path, make_clusters: Callable[..., Path]) -> None:
    found = assign_store(make_clusters([0, 0, 1, 2, 8], "i.h5"), tmp_path / "T", tmp_path / "U", factor=0.25)
    values = json.loads((tmp_path / "U" / "assignment.json").read_text(encoding="utf-8"))
    assert list(values) == [
        "format", "format_version", "images", "layer", "factor", "profile", "quotas", "thresholds", "too_far",
        "over_quota", "explanation", "selected",
    ]  # fmt: skip
    assert (values["images"], values["layer"], values["factor"], values["profile"]) == (5, "conv", 0.25, "default")
    assert values["quotas"] == {"1": 2, "2": 2, "3": 1}
    first = found.assignment.selected[0]
    assert values["selected"][0] == {
        "image": f"/i/{first.image}.png", "cluster": 1, "distance": first.distance, "rank": 1, "choice": 1,
    }  # fmt: skip
    saved = read_unsafe(tmp_path / "U")
    assert saved.thresholds == found.assignment.thresholds and saved.quotas == found.assignment.quotas
    assert (saved.too_far, saved.over_quota) == (found.assignment.too_far, found.assignment.over_quota)
    assert saved.paths == tuple(row["image"] for row in read(found.table))
    assert saved.explanation == found.assignment.explanation


def test_nothing_selected_is_read_as_nothing(tmp_path: Path, make_clusters: Callable[..., Path]) -> None:
    assign_store(make_clusters([7, 8], "i.h5"), tmp_path / "T", tmp_path / "U")
    labels = read_labels(tmp_path / "U", CLASSES)
    assert len(labels) == 0 and labels.unlabelled == () and labels.unsafe.explanation.startswith("nothing selected")


def label(folder: Path, **labels: str) -> None:
    """Fill in labels by the image's name, as a person would."""
    rows = read(folder / "unsafe.csv")
    rows = [{**row, "label": labels.get(f"_{Path(row['image']).stem}", row["label"])} for row in rows]
    write_table(folder, [list(row.values()) for row in rows], list(rows[0]), ";", "utf-8-sig")


def labels_of(folder: Path, name: str = "unsafe.csv") -> dict[str, str]:
    return {row["image"]: row["label"] for row in read(folder / name) if row["label"]}


def test_labels_outlive_their_selection_and_are_used_again(tmp_path: Path, make_clusters: Callable[..., Path]) -> None:
    folder = tmp_path / "U"
    some, others = (
        make_clusters([0, 0, 1, 2], "i.h5"),
        make_clusters([8, 8, 1, 2], "i2.h5", paths=[f"/i/{n}.png" for n in range(4)]),
    )
    found = assign_store(some, tmp_path / "T", folder)
    assert (found.labelled, found.set_aside) == (0, 0) and len(found.assignment.selected) == 4
    with pytest.raises(OutputError, match="exists already; use --overwrite"):
        assign_store(some, tmp_path / "T", folder)
    label(folder, _0="dog", _2="élan", _3="caat")
    (folder / "mine.ods").write_text("notes")
    found = assign_store(others, tmp_path / "T", folder, overwrite=True)
    assert (folder / "mine.ods").read_text() == "notes"
    assert (found.labelled, found.set_aside) == (2, 1)
    assert labels_of(folder) == {"/i/2.png": "élan", "/i/3.png": "caat"}
    assert labels_of(folder, "labels.csv") == {"/i/0.png": "dog"}
    label(folder, _3="cat")
    found = assign_store(some, tmp_path / "T", folder, overwrite=True)
    assert (found.labelled, found.set_aside) == (3, 0)
    assert labels_of(folder) == {"/i/0.png": "dog", "/i/2.png": "élan", "/i/3.png": "cat"}
    assert not (folder / "labels.csv").exists()
    label(folder, _0="")  # taken back: it does not rise again
    assign_store(some, tmp_path / "T", folder, overwrite=True)
    assert labels_of(folder) == {"/i/2.png": "élan", "/i/3.png": "cat"}
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.parametrize("moment", ["folder.rename(old)", "new.rename(folder)", "unlink"])
def test_a_kill_while_the_unsafe_set_is_replaced_loses_no_label(
    tmp_path: Path, make_clusters: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    folder, improvement = tmp_path / "U", make_clusters([0, 0, 1, 2], "i.h5")
    assign_store(improvement, tmp_path / "T", folder)
    label(folder, _1="dog", _3="cat")
    child = os.fork()
    if not child:
        rename, unlink = Path.rename, Path.unlink

        def renamed(path: Path, target: Path) -> Path:
            result = rename(path, target)
            if (path, moment) in [(folder, "folder.rename(old)"), (tmp_path / ".U.new", "new.rename(folder)")]:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        def unlinked(path: Path, missing_ok: bool = False) -> None:
            unlink(path, missing_ok)
            if moment == "unlink" and path.name == ".U.labels.csv":
                os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(Path, "rename", renamed)
        monkeypatch.setattr(Path, "unlink", unlinked)
        try:
            assign_store(improvement, tmp_path / "T", folder, overwrite=True)
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assign_store(improvement, tmp_path / "T", folder, overwrite=True)
    assert labels_of(folder) == {"/i/1.png": "dog", "/i/3.png": "cat"}
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.parametrize(
    "content",
    ["image,label\n/i/0.png,élan\n".encode("utf-16"), b"a,b\n1,2\n", b"image,label\n/i/0.png,cat\n/i/0.png,dog\n"],
)
def test_a_table_that_cannot_be_understood_might_have_labels_and_is_not_replaced(
    tmp_path: Path, make_clusters: Callable[..., Path], content: bytes
) -> None:
    improvement, table = make_clusters([0, 0, 1], "i.h5"), tmp_path / "U" / "unsafe.csv"
    assign_store(improvement, tmp_path / "T", tmp_path / "U")
    table.write_bytes(content)
    with pytest.raises(OutputError, match="it may hold labels: mend it, move it away, or name another folder"):
        assign_store(improvement, tmp_path / "T", tmp_path / "U", overwrite=True)
    assert table.read_bytes() == content
