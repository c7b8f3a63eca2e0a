"""The distances of one layer as a spreadsheet, the way HUDD hands them on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lrp_onnx.errors import DataError
from lrp_onnx.hudd.tree import distances_of
from lrp_onnx.store.disk import disk_errors

MOST_IMAGES = 16_383  # a sheet has 16,384 columns, and the first names the image


def export_xlsx(path: str | os.PathLike[str], condensed: NDArray[Any], names: Sequence[str]) -> None:
    """Write the full distance matrix: names in the first row and the first column, a row an image.

    Rows go to disk as they are written, so memory stays flat; the whole file appears at once.

    Parameters
    ----------
    path : path-like
    condensed : array (n (n - 1) / 2,)
    names : sequence of str (n,)

    Raises
    ------
    DataError
        When there are more images than a sheet has columns, names and distances do not fit, or XlsxWriter is missing.
    """
    path, count = Path(path), len(names)
    if count > MOST_IMAGES:
        raise DataError(f"{path}: {count} images, but a sheet holds {MOST_IMAGES}; use the distances file instead")
    if count * (count - 1) // 2 != len(condensed):
        raise DataError(f"{path}: {count} names, but {len(condensed)} distances; expected n (n - 1) / 2")
    xlsxwriter = xlsx_writer()
    new = path.with_name(f".{path.name}.new")
    try:
        with disk_errors(path):
            # Text that looks like a number, a link or a formula stays text.
            options = {"constant_memory": True, "strings_to_urls": False, "strings_to_formulas": False}
            with xlsxwriter.Workbook(new, options) as book:
                book.use_zip64()
                sheet = book.add_worksheet("distances")
                sheet.write_row(0, 1, names)
                for row, name in enumerate(names):
                    sheet.write_string(row + 1, 0, name)
                    sheet.write_row(row + 1, 1, distances_of(condensed, row).tolist())
            new.replace(path)
    except xlsxwriter.exceptions.XlsxWriterException as error:
        raise DataError(f"{path}: cannot be written ({error})") from error
    finally:
        new.unlink(missing_ok=True)


def xlsx_writer() -> Any:
    """The package that writes spreadsheets.

    Raises
    ------
    DataError
        When it is missing.
    """
    try:
        import xlsxwriter  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataError("a spreadsheet needs a package: pip install 'lrp-onnx[xlsx]'") from error
    return xlsxwriter
