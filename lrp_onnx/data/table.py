"""Tables of text that people keep in a spreadsheet: UTF-8, cells separated by comma, semicolon or tab."""

from __future__ import annotations

import csv
from collections.abc import Collection
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from lrp_onnx.errors import DataError


@dataclass(frozen=True)
class Table:
    """A table with a header.

    Attributes
    ----------
    path : pathlib.Path
    header : tuple of str
        Names of the columns, as they are written.
    rows : tuple of (int, dict of str to str)
        Line number, and cells by column, of each row that is not blank. Cells have no spaces around them; those that a
        row is too short for are left out.
    separator : str
        "," or ";" or a tab.
    """

    path: Path
    header: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, str]], ...]
    separator: str

    def number(self, text: str) -> float:
        """A cell as a number; NaN when it is empty.

        Raises
        ------
        ValueError
            It is no number.
        """
        # Spreadsheets that separate columns by semicolons do so because they write decimal commas.
        return float(text.replace(",", ".") if self.separator == ";" else text) if text else float("nan")


def read_table(path: Path, columns: Collection[str] | None = None) -> Table:
    """Read a .csv or .tsv file as a person, a program or a spreadsheet wrote it.

    Parameters
    ----------
    path : pathlib.Path
    columns : collection of str, optional
        Those to keep, if they are there; all by default.

    Raises
    ------
    DataError
        When it cannot be read, or is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            # The one that comes first, as names of columns may hold the others.
            separator = min(",;\t", key=lambda mark: (first + ",;\t").index(mark))
            reader = csv.reader(chain([first], file), delimiter=separator)
            header = tuple(name.strip() for name in next(reader, ()))
            kept = [(place, name) for place, name in enumerate(header) if columns is None or name in columns]
            rows = tuple(
                (reader.line_num, {name: row[place].strip() for place, name in kept if place < len(row)})
                for row in reader
                if any(map(str.strip, row))
            )
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text ({error.reason}); save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path}: the table cannot be read: {reason}") from error
    return Table(path, tuple(name for _, name in kept), rows, separator)
