"""From a path to a `Dataset`: image folders, manifests, arrays, and the class names in them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from lrp_onnx.data.dataset import Dataset, Sample
from lrp_onnx.data.table import Table, read_table
from lrp_onnx.errors import DataError

IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga",
    ".tif", ".tiff", ".webp",
)  # fmt: skip
INPUT_KEYS, LABEL_KEYS = ("x", "images", "data"), ("y", "labels")
IMAGE_COLUMN, LABEL_COLUMN = "image", "label"
Unknown = Literal["error", "unlabelled"]
Truth = tuple[int | None, tuple[float, ...] | None]  # class index, regression target


def open_dataset(
    path: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    unknown: Unknown = "error",
    inputs: Sequence[str] = (),
) -> Dataset:
    """Open a picture, an image folder, a manifest or an array file.

    - Folder: pictures directly in it have no label; those in a sub-folder, at any depth, have the class that the
      sub-folder names. Hidden files and folders are ignored. Order: by relative POSIX path.
    - Manifest: .csv or .tsv, UTF-8, separated by comma, semicolon or tab, with a header. Column ``image`` holds paths
      relative to the manifest; column ``label`` a class name or index, empty for none. Without a ``label`` column, all
      other columns are numbers to regress, empty where not known (such as a landmark that is not visible).
    - Arrays: .npy, or .npz with ``x``, ``images`` or ``data`` and optionally ``y`` or ``labels`` (integers (N,): class
      indexes; floats (N,) or (N, T): regression targets, NaN where not known).

    Of a model with several inputs, a manifest has a column and an .npz file an array (N, …) for each, by its name.
    Cells are pictures or .npy files, relative to the manifest, or numbers separated by spaces.

    Parameters
    ----------
    path : path-like
    classes : sequence of str, optional
        The model's class names by index. Folder names and manifest labels are looked up there, by name first, then as
        an index. Without them, names that are all integers are indexes, and any other names are sorted.
    unknown : {"error", "unlabelled"}
        What to do with names that match no class.
    inputs : sequence of str, optional
        Names of the model's inputs, the one that data sets with one column or array are for first.

    Raises
    ------
    DataError
        When there is nothing at `path`, nothing in it, or labels that do not fit.
    """
    given = Path(path)
    source = given.parent.resolve() / given.name  # a link is not followed: a manifest's paths are relative to the link
    names = None if classes is None else tuple(classes)
    suffix = source.suffix.lower()
    if source.is_dir():
        dataset = _open_folder(source, names, unknown)
    elif not source.exists():
        raise DataError(f"{source}: no such file or folder")
    elif suffix in (".csv", ".tsv"):
        dataset = _open_manifest(source, names, unknown, tuple(inputs))
    elif suffix in (".npy", ".npz"):
        dataset = _open_array(source, names, tuple(inputs))
    elif suffix in IMAGE_SUFFIXES:
        dataset = Dataset(source, [Sample(str(source), None, 0)], names)
    else:
        raise DataError(f"{source}: expected an image folder, a picture, a .csv manifest, or a .npy or .npz array file")
    if not dataset.samples:
        raise DataError(f"{source}: no samples found in it")
    return dataset


def _open_folder(root: Path, classes: tuple[str, ...] | None, unknown: Unknown) -> Dataset:
    pictures = sorted(_find_pictures(root))
    if not pictures:
        raise DataError(f"{root}: no pictures found in it; looked for {' '.join(IMAGE_SUFFIXES)}")
    # An empty class folder counts too: leaving it out would shift the indexes of those behind it.
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    labels, classes = _class_labels(root, "folder", folders, classes, unknown)
    samples = []
    for index, relative in enumerate(pictures):
        folder, slash, _ = relative.partition("/")
        samples.append(Sample(str(root / relative), labels[folder] if slash else None, index))
    return Dataset(root, samples, classes)


def _find_pictures(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root, followlinks=True):
        here = Path(folder)
        # A link to a folder above would be walked forever.
        loops = {name for name in folders if here.resolve().is_relative_to((here / name).resolve())}
        folders[:] = [name for name in folders if not name.startswith(".") and name not in loops]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield (here / name).relative_to(root).as_posix()


def _open_manifest(source: Path, classes: tuple[str, ...] | None, unknown: Unknown, inputs: tuple[str, ...]) -> Dataset:
    table = read_table(source)
    columns = {name.lower(): name for name in table.header}  # in any case, to find them by
    wanted = inputs if inputs and inputs[0].lower() in columns else (IMAGE_COLUMN,)
    if missing := [name for name in wanted if name.lower() not in columns]:
        found = table.separator.join(table.header)
        raise DataError(f"{source}: expected a header with a column '{missing[0]}', got {found!r}")
    for line, row in table.rows:
        if empty := [name for name in wanted if not row.get(columns[name.lower()])]:
            raise DataError(f"{source}, line {line}: column '{empty[0]}' is empty")
    taken = [columns[name.lower()] for name in wanted]
    read = _path if wanted == (IMAGE_COLUMN,) else _cell
    cells = [{name: read(source, row[columns[name.lower()]]) for name in wanted} for _, row in table.rows]
    truths, classes, target_names = read_truths(table, taken, classes, unknown)
    first = [row.pop(wanted[0]) for row in cells]
    array = _stacked(source, wanted[0], first) if any(isinstance(value, np.ndarray) for value in first) else None
    paths = [str(value) if array is None else f"{source}[{i}]" for i, value in enumerate(first)]
    samples = [Sample(paths[i], label, i, target, cells[i]) for i, (label, target) in enumerate(truths)]
    return Dataset(source, samples, classes, array, target_names=target_names)


def _path(source: Path, text: str) -> str | np.ndarray:
    return str(source.parent / text)


def _cell(source: Path, text: str) -> str | np.ndarray:
    """Numbers, or the path of a file."""
    try:
        return np.array([float(part) for part in text.split()], dtype=np.float32)
    except ValueError:
        return _path(source, text)


def _stacked(source: Path, name: str, rows: Sequence[str | np.ndarray]) -> np.ndarray:
    try:
        return np.stack([np.asarray(row, dtype=np.float32) for row in rows])
    except ValueError:
        raise DataError(f"{source}: column '{name}' holds numbers, and not as many in every row") from None


def read_truths(
    table: Table, taken: Sequence[str], classes: tuple[str, ...] | None, unknown: Unknown
) -> tuple[list[Truth], tuple[str, ...] | None, tuple[str, ...] | None]:
    """Class index and regression target of each row, class names, and names of the targets.

    `taken` are the columns that hold inputs; without a column ``label``, the others are numbers to regress.
    """
    label = next((name for name in table.header if name.lower() == LABEL_COLUMN), "")
    texts = [row.get(label, "") for _, row in table.rows]
    targets: list[tuple[float, ...] | None] = [None] * len(texts)
    others = tuple(name for name in table.header if name not in taken)
    if not label and others:
        targets = [tuple(_number(table, line, row, name, taken) for name in others) for line, row in table.rows]
    labels, classes = _class_labels(table.path, "label", sorted({text for text in texts if text}), classes, unknown)
    found = [(labels.get(text), target) for text, target in zip(texts, targets, strict=True)]
    return found, classes, None if label else others or None


def _number(table: Table, line: int, row: Mapping[str, str], column: str, taken: Sequence[str]) -> float:
    try:
        return table.number(row[column])
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{table.path}, line {line}: column '{column}' holds {row.get(column, '')!r}; without a column "
            f"'{LABEL_COLUMN}' all columns but '{taken[0]}' are numbers to regress"
        ) from error


def _class_labels(
    source: Path, kind: str, names: list[str], classes: tuple[str, ...] | None, unknown: Unknown
) -> tuple[dict[str, int | None], tuple[str, ...] | None]:
    """The index of each class name, and the class names by index."""
    if classes is None:
        if all(name.isdecimal() for name in names):
            return {name: int(name) for name in names}, None
        return {name: label for label, name in enumerate(names)}, tuple(names)
    positions: dict[str, list[int]] = {}
    for position, name in enumerate(classes):
        positions.setdefault(name, []).append(position)
    labels: dict[str, int | None] = {}
    for name in names:
        found = positions.get(name, [])
        if len(found) > 1:
            raise DataError(f"{source}: {kind} '{name}' names classes {found} of the model; use the index instead")
        is_index = name.isdecimal() and int(name) < len(classes)
        labels[name] = found[0] if found else int(name) if is_index else None
    strange = [name for name in names if labels[name] is None]
    if strange and unknown == "error":
        raise DataError(
            f"{source}: {kind} {_few(strange)} matches no class of the model ({_few(classes)}); use class names or "
            "indexes, or read it as unlabelled"
        )
    return labels, classes


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _open_array(source: Path, classes: tuple[str, ...] | None, names: tuple[str, ...]) -> Dataset:
    others: dict[str, np.ndarray] = {}
    try:
        loaded = np.load(source, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            inputs, labels = loaded, None
        else:
            with loaded:
                named = names[:1] if names and names[0] in loaded else INPUT_KEYS
                inputs = _first_of(source, loaded, named)
                others = {name: loaded[name] for name in names[1:] if name in loaded}
                keys = [key for key in LABEL_KEYS if key in loaded and key not in names]
                labels = _first_of(source, loaded, keys) if keys else None
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{source}: not a numeric NumPy array file ({error})") from error
    if inputs.ndim < 2 or inputs.dtype.kind not in "fiub":
        raise DataError(f"{source}: expected numbers of shape (samples, …), got {inputs.dtype} {inputs.shape}")
    count = len(inputs)
    for name, array in others.items():
        if array.dtype.kind not in "fiub" or array.shape[:1] != (count,):
            raise DataError(f"{source}: {count} inputs, but '{name}' is {array.dtype} {array.shape}")
    nothing = [None] * count
    classified, targets = (nothing, nothing) if labels is None else _truths(source, labels, count, classes)
    samples = [
        Sample(f"{source}[{row}]", classified[row], row, targets[row], {name: others[name][row] for name in others})
        for row in range(count)
    ]
    return Dataset(source, samples, classes, inputs)


def _first_of(source: Path, arrays: Mapping[str, np.ndarray], keys: Sequence[str]) -> np.ndarray:
    for key in keys:
        if key in arrays:
            return arrays[key]
    raise DataError(f"{source}: expected an array named {' or '.join(keys)}, got {', '.join(arrays) or 'none'}")


def _truths(
    source: Path, labels: np.ndarray, count: int, classes: tuple[str, ...] | None
) -> tuple[Sequence[int | None], Sequence[tuple[float, ...] | None]]:
    """Class indexes and regression targets of `count` samples; one of the two is all None."""
    if labels.ndim < 1 or len(labels) != count:
        raise DataError(f"{source}: {count} inputs, but labels of shape {labels.shape}")
    if labels.dtype.kind == "f":
        return [None] * count, [tuple(row) for row in labels.reshape(count, -1).tolist()]
    if labels.dtype.kind not in "iu" or labels.size != count:
        raise DataError(
            f"{source}: labels are {labels.dtype} {labels.shape}; expected integer class indexes ({count},), or floats "
            "to regress"
        )
    highest = np.iinfo(np.int64).max if classes is None else len(classes) - 1
    wrong = labels[(labels < 0) | (labels > highest)]
    if wrong.size:
        raise DataError(f"{source}: label {wrong.flat[0]} is no class index; expected 0 to {highest}")
    return labels.reshape(count).tolist(), [None] * count
