"""Files of hand-labelled regions are read as they are meant, and what cannot be used is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lrp_onnx.debug.region_files import read_regions
from lrp_onnx.debug.regions import Box, Polygons, Regions
from lrp_onnx.errors import DataError

SIZE = (14, 9)  # width, height


def drawn() -> np.ndarray:
    """A mask that was encoded by pycocotools 2.0 as COCO_TEXT."""
    mask = np.zeros((9, 14), dtype=bool)
    mask[2:7, 3:11] = True
    mask[4, 5:8] = False
    mask[0, 13] = mask[8, 0] = True
    return mask


COCO_TEXT = "81d04@00MM030M030M0330000`0LD"


def coco(path: Path, *annotations: dict[str, Any]) -> Path:
    content = {
        "images": [{"id": 7, "file_name": "cats/a.jpg", "width": 14, "height": 9}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 7, "category_id": 1, **one} for one in annotations],
    }
    path.write_text(json.dumps(content))
    return path


def mask_of(found: Regions, place: int = 0) -> np.ndarray:
    return found.regions[place].mask(SIZE)


def box(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((9, 14), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def test_coco_boxes_polygons_and_both_kinds_of_run_lengths_cover_the_same_pixels(tmp_path: Path) -> None:
    columns = drawn().T.ravel()
    starts = np.flatnonzero(np.diff(columns, prepend=False))
    counts = np.diff([0, *starts, columns.size]).tolist()
    found = read_regions(
        coco(
            tmp_path / "a.json",
            {"bbox": [3, 2, 8, 5]},
            {"segmentation": [[3, 2, 11, 2, 11, 7, 3, 7]], "bbox": [0, 0, 1, 1]},
            {"segmentation": {"size": [9, 14], "counts": counts}},
            {"segmentation": {"size": [9, 14], "counts": COCO_TEXT}, "part": "ear"},
        )
    )
    assert (mask_of(found, 0) == box(3, 2, 11, 7)).all()
    assert (mask_of(found, 1) == box(3, 2, 11, 7)).all()
    assert (mask_of(found, 2) == drawn()).all()
    assert (mask_of(found, 3) == drawn()).all()
    assert found.sizes == {"cats/a.jpg": SIZE}
    assert [(one.image, one.name, one.part) for one in found.regions][2:] == [
        ("cats/a.jpg", "cat", ""),
        ("cats/a.jpg", "cat", "ear"),
    ]


def test_a_polygon_covers_the_pixels_whose_centre_is_inside_it() -> None:
    random = np.random.default_rng(0)
    angles = np.sort(random.uniform(0, 2 * np.pi, 9))
    radii = random.uniform(3, 9, 9)
    corners = [(float(10 + r * np.cos(a)), float(10 + r * np.sin(a))) for a, r in zip(angles, radii, strict=True)]
    fine = Image.new("1", (2000, 2000))  # a hundred times finer, where an outline's width does not matter
    ImageDraw.Draw(fine).polygon([(100 * x, 100 * y) for x, y in corners], fill=1)
    centres = np.asarray(fine)[50::100, 50::100]
    assert (Polygons([corners]).mask((20, 20)) == centres).all()


def test_a_rectangle_covers_the_same_as_box_and_as_polygon() -> None:
    for left, top, right, bottom in ((3.5, 2.5, 7.5, 4.5), (3.4, 2.6, 7.6, 4.4), (-2, -1, 99, 2)):
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        assert (Polygons([corners]).mask(SIZE) == Box(left, top, right, bottom).mask(SIZE)).all()


def test_voc_counts_pixels_from_one_and_has_parts(tmp_path: Path) -> None:
    text = """<annotation><filename>a.jpg</filename><size><width>14</width><height>9</height></size>
        <object><name>cat</name><bndbox><xmin>4</xmin><ymin>3</ymin><xmax>11</xmax><ymax>7</ymax></bndbox>
        <part><name>head</name><bndbox><xmin>4</xmin><ymin>3</ymin><xmax>5</xmax><ymax>4</ymax></bndbox></part>
        </object></annotation>"""
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "a.xml").write_text(text)
    found = read_regions(tmp_path)
    assert [(one.image, one.name, one.part) for one in found.regions] == [
        ("cats/a.jpg", "cat", ""),
        ("cats/a.jpg", "cat", "head"),
    ]
    assert (mask_of(found, 0) == box(3, 2, 11, 7)).all()
    assert (mask_of(found, 1) == box(3, 2, 5, 4)).all()
    assert found.sizes == {"cats/a.jpg": SIZE}
    assert read_regions(tmp_path / "cats" / "a.xml").regions[0].image == "a.jpg"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_has_boxes_and_polygons(tmp_path: Path, separator: str) -> None:
    lines = [
        ["Image", "label", "part", "x1", "y1", "x2", "y2", "polygon"],
        ["cats\\a.jpg", "cat", "", "3", "2", "11", "7", ""],
        ["cats/a.jpg", "cat", "ear", "", "", "", "", "3 2 11 2 11 7 3 7"],
    ]
    table = tmp_path / "regions.csv"
    table.write_text("\n".join(separator.join(line) for line in lines))
    found = read_regions(table)
    assert [(one.image, one.name, one.part) for one in found.regions] == [
        ("cats/a.jpg", "cat", ""),
        ("cats/a.jpg", "cat", "ear"),
    ]
    assert all((mask_of(found, place) == box(3, 2, 11, 7)).all() for place in (0, 1))


@pytest.mark.parametrize("bright", [1, 255])
def test_a_mask_is_what_is_bright(tmp_path: Path, bright: int) -> None:
    (tmp_path / "cats").mkdir()
    Image.fromarray(drawn().astype(np.uint8) * bright).save(tmp_path / "cats" / "a.b.png")
    Image.fromarray(np.zeros((9, 14), np.uint8)).save(tmp_path / "cats" / "nothing marked.png")
    found = read_regions(tmp_path)
    assert [one.image for one in found.regions] == ["cats/a.b"]
    assert found.stems
    assert (mask_of(found) == drawn()).all()


def test_pixel_values_of_a_mask_are_named_by_a_table(tmp_path: Path) -> None:
    values = np.zeros((9, 14), np.uint8)
    values[:3], values[3:5], values[8] = 2, 5, 255
    picture = Image.fromarray(values)
    picture.putpalette([3 * (255 - index // 3) % 256 for index in range(768)])  # colours say nothing, indexes do
    picture.save(tmp_path / "a.png")
    (tmp_path / "names.csv").write_text("value,label,part\n2,cat,ear\n5,cat,\n255,,\n")
    found = read_regions(tmp_path)
    assert [(one.name, one.part) for one in found.regions] == [("cat", "ear"), ("cat", "")]
    assert (mask_of(found, 0) == (values == 2)).all()
    assert (mask_of(found, 1) == (values == 5)).all()


def test_names_are_classes_or_parts(tmp_path: Path) -> None:
    table = tmp_path / "regions.csv"
    names = ["cat", "1", "ear", "cat/ear", "cat/left/ear", ""]
    table.write_text("image,label,x1,y1,x2,y2\n" + "".join(f"a.jpg,{name},0,0,2,2\n" for name in names))
    regions = read_regions(table).regions
    assert [one.meaning(["dog", "cat"]) for one in regions] == [
        ("cat", ""),
        ("cat", ""),
        ("", "ear"),
        ("cat", "ear"),
        ("cat/left", "ear"),
        ("", ""),
    ]
    assert [one.meaning(None) for one in regions[:3]] == [("", "cat"), ("1", ""), ("", "ear")]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("r.json", "{", "r.json: no COCO file"),
        ("r.json", '{"images": [], "annotations": []}', "no 'categories'"),
        ("r.csv", "image,label,x1\na,b,1\n", "expected a header with image"),
        ("r.csv", "image,label,x1,y1,x2,y2\na,b,1,2,1,4\n", "line 2: the box .* has no area"),
        ("r.csv", "image,label,x1,y1,x2,y2\na,b,0,0,1,1\n,b,1,2,3,4\n", "line 3: column 'image' is empty"),
        ("r.csv", "image,label,x1,y1,x2,y2\na,b,1,2,x,4\n", "line 2, x2: 'x' is no number"),
        ("r.csv", "image,label,polygon\na,b,1 2 3 4 5\n", "line 2: a polygon of 5 numbers"),
        ("r.csv", "image,label,x1,y1,x2,y2\n", "no region in it"),
        ("r.xml", "<annotation>", "r.xml: not a Pascal VOC file"),
        ("r.xml", "<annotation/>", "no <filename>"),
        ("r.txt", "", "expected COCO .json"),
    ],
)
def test_a_bad_file_is_named_with_its_entry(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read_regions(tmp_path / name)


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        ({"image_id": 9, "bbox": [0, 0, 1, 1]}, "annotation number 1: cannot be used"),
        ({}, "annotation number 1: cannot be used"),
        ({"bbox": [0, 0, 0, 1]}, "annotation number 1: the box"),
        ({"segmentation": {"size": [9, 14], "counts": [3, 4]}}, "run lengths of 7 pixels for a mask of 14 x 9"),
        ({"segmentation": {"size": [9, 14], "counts": "8"}}, "run lengths"),
    ],
)
def test_a_bad_coco_annotation_is_named(tmp_path: Path, annotation: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_regions(coco(tmp_path / "a.json", annotation))


def test_bad_masks_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a\.png: the mask cannot be read"):
        read_regions(tmp_path)
    Image.fromarray(np.full((9, 14), 3, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "names.csv").write_text("value,label\n2,cat\n")
    with pytest.raises(DataError, match=r"a\.png: pixel value 3 has no name"):
        read_regions(tmp_path)


def test_a_region_beside_the_picture_is_named(tmp_path: Path) -> None:
    found = read_regions(coco(tmp_path / "a.json", {"bbox": [100, 2, 8, 5]}))
    with pytest.raises(DataError, match=r"annotation number 1: covers no pixel of cats/a\.jpg, which is 14 x 9"):
        mask_of(found)
