"""Files of hand-labelled regions: COCO JSON, Pascal VOC XML, CSV tables, folders of masks."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from lrp_onnx.data.table import read_table
from lrp_onnx.debug.regions import Box, MaskFile, Outline, Polygons, Region, Regions, Runs, Size, read_mask
from lrp_onnx.errors import DataError

MASK_NAMES = "names.csv"
_BOX = ("x1", "y1", "x2", "y2")


def read_regions(path: str | os.PathLike[str]) -> Regions:
    """Read what people marked.

    - COCO: a .json file. The polygons or run lengths (plain or compressed) of each annotation, or its ``bbox`` where
      there are none; its category is the name, ``part`` (also among its ``attributes``) the part.
    - Pascal VOC: an .xml file, or a folder of them, laid out as the pictures are. Pixels count from 1 there, the last
      one included. ``<part>`` in an ``<object>`` is a part.
    - CSV: separated by comma, semicolon or tab, with a header. Columns ``image``, ``label`` and ``part`` (one of
      these two is enough), and either ``x1``, ``y1``, ``x2``, ``y2`` or ``polygon`` ("x y x y x y …").
    - Masks: a folder of .png files, laid out and named as the pictures are, but for the extension. Bright pixels are
      the region; or, with a table ``names.csv`` (``value``, and ``label``, ``part`` or both) in the folder, pixel
      values say what is marked. Values whose name is empty are left out, and so is 0.

    Coordinates are those of the upright picture, continuous: the first pixel covers 0..1.

    Raises
    ------
    DataError
        When there is nothing at `path`, or an entry cannot be used; the message names it.
    """
    source = Path(path)
    suffix = source.suffix.lower()
    if source.is_dir():
        found = _voc(source, sorted(source.rglob("*.xml"))) or _masks(source)
    elif not source.exists():
        raise DataError(f"{source}: no such file or folder")
    elif suffix == ".json":
        found = _coco(source)
    elif suffix == ".xml":
        found = _voc(source, [source])
    elif suffix in (".csv", ".tsv"):
        found = _csv(source)
    else:
        found = None
    if found is None:
        raise DataError(
            f"{source}: expected COCO .json, Pascal VOC .xml, a .csv table, or a folder of .xml or .png files"
        )
    if not found.regions:
        raise DataError(f"{source}: no region in it")
    return found


# ---- COCO


def _coco(source: Path) -> Regions:
    try:
        content = json.loads(source.read_text(encoding="utf-8-sig"))
        files = {image["id"]: _posix(image["file_name"]) for image in content["images"]}
        sized = [image for image in content["images"] if image.get("width") and image.get("height")]
        sizes = {files[image["id"]]: (int(image["width"]), int(image["height"])) for image in sized}
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        annotations = content["annotations"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{source}: no COCO file ({_reason(error)}); expected JSON with images (id, file_name), categories "
            "(id, name) and annotations"
        ) from error
    regions = []
    for place, annotation in enumerate(annotations, start=1):
        where = f"{source}, annotation number {place}"
        try:
            image, name = files[annotation["image_id"]], names[annotation["category_id"]]
            part = annotation.get("part") or (annotation.get("attributes") or {}).get("part") or ""
            regions.append(Region(image, name, str(part), _coco_outline(annotation, where), where))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{where}: cannot be used ({_reason(error)})") from error
    return Regions(source, regions, sizes)


def _coco_outline(annotation: Mapping[str, Any], where: str) -> Outline:
    marked = annotation.get("segmentation")
    if not marked:
        left, top, width, height = annotation["bbox"]
        return _box((left, top, left + width, top + height), where)
    if isinstance(marked, list):
        return Polygons([_ring(ring, where) for ring in marked])
    height, width = marked["size"]
    counts = marked["counts"]
    counts = _uncompressed(counts) if isinstance(counts, str) else [int(count) for count in counts]
    if sum(counts) != width * height or min(counts) < 0:
        raise DataError(f"{where}: run lengths of {sum(counts)} pixels for a mask of {width} x {height}")
    return Runs(counts, (width, height))


def _uncompressed(text: str) -> list[int]:
    """COCO's compressed run lengths: 5 bits a character from "0" on, bit 6 says that more follow; from the fourth run
    on, each is kept as its difference to the one two before."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts


# ---- Pascal VOC


def _voc(source: Path, files: Sequence[Path]) -> Regions | None:
    regions: list[Region] = []
    sizes: dict[str, Size] = {}
    for file in files:
        try:
            root = ElementTree.parse(file).getroot()
        except (ElementTree.ParseError, OSError) as error:
            raise DataError(f"{file}: not a Pascal VOC file ({_reason(error)})") from error
        name = root.findtext("filename", "").strip()
        if not name:
            raise DataError(f"{file}: expected a Pascal VOC file, and there is no <filename> in it")
        folder = file.parent.relative_to(source) if source.is_dir() else Path()
        image = (folder / _posix(name)).as_posix()
        if (size := root.find("size")) is not None:
            width, height = (_number(size.findtext(edge), f"{file}, size, {edge}") for edge in ("width", "height"))
            if width and height:  # tools that do not know write 0
                sizes[image] = (int(width), int(height))
        for place, marked in enumerate(root.iter("object"), start=1):
            where = f"{file}, object {place}"
            label = marked.findtext("name", "").strip()
            regions.append(Region(image, label, "", _voc_box(marked, where), where))
            for part in marked.iter("part"):
                part_name = part.findtext("name", "").strip()
                at = f"{where}, part {part_name!r}"
                regions.append(Region(image, label, part_name, _voc_box(part, at), at))
    return Regions(source, regions, sizes) if files else None


def _voc_box(marked: ElementTree.Element, where: str) -> Box:
    edges = ("xmin", "ymin", "xmax", "ymax")
    left, top, right, bottom = (_number(marked.findtext(f"bndbox/{edge}"), f"{where}, {edge}") for edge in edges)
    return _box((left - 1, top - 1, right, bottom), where)


# ---- tables


def _csv(source: Path) -> Regions:
    header, rows = _table(source)
    outlined = "polygon" in header or set(_BOX) <= set(header)
    if "image" not in header or not {"label", "part"} & set(header) or not outlined:
        raise DataError(
            f"{source}: expected a header with image, label or part, and x1, y1, x2, y2 or polygon; got "
            f"{', '.join(header)}"
        )
    regions = []
    for where, row in rows:
        if not row.get("image"):
            raise DataError(f"{where}: column 'image' is empty")
        if row.get("polygon"):
            numbers = row["polygon"].replace(",", " ").replace(";", " ").split()
            outline: Outline = Polygons([_ring(numbers, where)])
        else:
            outline = _box([_number(row.get(edge), f"{where}, {edge}") for edge in _BOX], where)
        regions.append(Region(_posix(row["image"]), row.get("label", ""), row.get("part", ""), outline, where))
    return Regions(source, regions)


def _table(source: Path) -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """Header and rows of a CSV file by lower-case column names, each row with what to call it in an error."""
    table = read_table(source)
    rows = [
        (f"{source}, line {line}", {name.lower(): cell for name, cell in cells.items()}) for line, cells in table.rows
    ]
    return [name.lower() for name in table.header], rows


# ---- masks


def _masks(source: Path) -> Regions | None:
    files = sorted(source.rglob("*.png"))
    names = _mask_names(source / MASK_NAMES)
    regions: list[Region] = []
    sizes: dict[str, Size] = {}
    for file in files:
        image = file.relative_to(source).with_suffix("").as_posix()
        values = read_mask(file)
        sizes[image] = (values.shape[1], values.shape[0])
        if names is None:
            if values.any():
                regions.append(Region(image, "", "", MaskFile(file), str(file)))
            continue
        for value in np.unique(values[values > 0]).tolist():
            if value not in names:
                raise DataError(f"{file}: pixel value {value} has no name in {source / MASK_NAMES}")
            label, part = names[value]
            if label or part:
                regions.append(Region(image, label, part, MaskFile(file, value), f"{file}, value {value}"))
    return Regions(source, regions, sizes, stems=True) if files else None


def _mask_names(path: Path) -> dict[int, tuple[str, str]] | None:
    """Label and part by pixel value; None when there is no such table."""
    if not path.is_file():
        return None
    header, rows = _table(path)
    if "value" not in header or not {"label", "part"} & set(header):
        raise DataError(f"{path}: expected a header with value, and label, part or both; got {', '.join(header)}")
    return {
        int(_number(row.get("value"), f"{where}, value")): (row.get("label", ""), row.get("part", ""))
        for where, row in rows
    }


# ---- shared


def _box(edges: Sequence[Any], where: str) -> Box:
    left, top, right, bottom = (_number(edge, where) for edge in edges)
    if right <= left or bottom <= top:
        raise DataError(f"{where}: the box from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) has no area")
    return Box(left, top, right, bottom)


def _ring(numbers: Sequence[Any], where: str) -> list[tuple[float, float]]:
    values = [_number(number, where) for number in numbers]
    if len(values) < 6 or len(values) % 2:
        raise DataError(f"{where}: a polygon of {len(values)} numbers; expected x and y of three corners or more")
    return list(zip(values[::2], values[1::2], strict=True))


def _number(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: {value!r} is no number")
    return number


def _posix(name: str) -> str:
    return name.strip().replace("\\", "/")


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)
