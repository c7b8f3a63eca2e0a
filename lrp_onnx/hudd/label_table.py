"""The table that a person fills in, perhaps with a spreadsheet: its images and labels, read and written back."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lrp_onnx.data.sources import IMAGE_COLUMN, LABEL_COLUMN
from lrp_onnx.data.table import Table, read_table
from lrp_onnx.errors import DataError
from lrp_onnx.files import written_whole

_BOM = "\ufeff"


@dataclass(frozen=True, eq=False)
class LabelRow:
    """An image, its label (empty for none), the line it is in (0 for none yet), and all cells by column."""

    line: int
    image: str
    label: str
    cells: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class LabelTable:
    """Images and labels, and whatever other columns there are.

    Attributes
    ----------
    table : Table
    image, label : str
        How these two columns are written there.
    rows : tuple of LabelRow
    """

    table: Table
    image: str
    label: str
    rows: tuple[LabelRow, ...]

    def write(self, rows: Sequence[LabelRow]) -> None:
        """Put these rows in place of those in the file, which changes whole or not at all."""
        path = self.table.path
        # by this mark spreadsheets know UTF-8
        mark = _BOM if path.read_bytes().startswith(_BOM.encode()) else ""
        with written_whole(path, overwrite=True) as new, new.open("w", encoding="utf-8", newline="") as file:
            file.write(mark)
            lines = csv.writer(file, delimiter=self.table.separator, lineterminator="\n")
            lines.writerow(self.table.header)
            for row in rows:
                cells = {**row.cells, self.image: row.image, self.label: row.label}
                lines.writerow([cells.get(column, "") for column in self.table.header])


def read_label_table(path: Path) -> LabelTable:
    """Read a table with the columns image and label, in any place.

    Raises
    ------
    DataError
        It cannot be read, lacks one of the columns or has one twice, or a row names no image.
    """
    table = read_table(path)
    found = {
        name: [column for column in table.header if column.lower() == name] for name in (IMAGE_COLUMN, LABEL_COLUMN)
    }
    for name, columns in found.items():
        if len(columns) != 1:
            header = ", ".join(table.header) or "none"
            raise DataError(f"{path}: expected one column '{name}', got {header}; give the header back its names")
    image, label = found[IMAGE_COLUMN][0], found[LABEL_COLUMN][0]
    rows = tuple(LabelRow(line, cells.get(image, ""), cells.get(label, ""), cells) for line, cells in table.rows)
    for row in rows:
        if not row.image:
            raise DataError(f"{path}, line {row.line}: no image; remove the row, or name its image")
    return LabelTable(table, image, label, rows)


def match_images(names: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """Where each image is in `known`, which may lie in another folder.

    Parameters
    ----------
    names, known : sequences of str
        Paths, with / or \\.

    Returns
    -------
    list of int or None
        The place of the same path. Else of the path whose end has most in common, at least the file's name, if it is
        the only one, nobody's same path, and no second name would go there too; else None.
    """
    parts = [tuple(path.replace("\\", "/").split("/")) for path in known]
    exact = {path: place for place, path in reversed(list(enumerate(parts)))}
    of_file: dict[str, list[int]] = {}
    for place, path in enumerate(parts):
        of_file.setdefault(path[-1], []).append(place)
    wanted = {name: tuple(name.replace("\\", "/").split("/")) for name in names}
    found = {name: exact[path] for name, path in wanted.items() if path in exact}
    taken = set(found.values())
    ends: dict[int, list[str]] = {}
    for name, path in wanted.items():
        if name in found:
            continue
        shared = {place: _shared(path, parts[place]) for place in of_file.get(path[-1], ())}
        longest = [place for place, count in shared.items() if count == max(shared.values())]
        if len(longest) == 1 and longest[0] not in taken:
            ends.setdefault(longest[0], []).append(name)
    found |= {same[0]: place for place, same in ends.items() if len(same) == 1}
    return [found.get(name) for name in names]


def few(items: Sequence[object], most: int = 3) -> str:
    """The first few of many, and how many more there are."""
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


def _shared(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count
