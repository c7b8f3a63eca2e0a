"""Labels of the unsafe set: read from the table that a person filled in and checked, or filled in from known ones."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lrp_onnx.data import Dataset, Sample, open_dataset
from lrp_onnx.errors import DataError
from lrp_onnx.hudd.assign import Selected
from lrp_onnx.hudd.label_table import LabelRow, LabelTable, few, match_images, read_label_table
from lrp_onnx.hudd.label_text import Answer, LabelText
from lrp_onnx.hudd.unsafe import SavedUnsafeSet, read_unsafe

_ARRAY_ROW = re.compile(r"(.+\.np[yz])\[(\d+)\]", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Labels:
    """The labelled images of an unsafe set.

    Attributes
    ----------
    unsafe : SavedUnsafeSet
    selected : tuple of Selected
        The labelled ones, by cluster, then rank; `Selected.image` is the row of the arrays below.
    paths : tuple of str
        Images, by the names that they had when they were selected.
    answers : int64 (n,) or float32 (n, T)
        Class indexes, or numbers to regress.
    unlabelled : tuple of str
        Selected images without a label.
    missing : str
        The first of these by file name, and where in the table they are; empty where there are none.
    notes : tuple of str
        What the user should know.
    """

    unsafe: SavedUnsafeSet
    selected: tuple[Selected, ...]
    paths: tuple[str, ...]
    answers: np.ndarray
    unlabelled: tuple[str, ...]
    missing: str
    notes: tuple[str, ...]
    _named: tuple[str, ...]  # the images by the names that the table has now

    def __len__(self) -> int:
        return len(self.selected)

    def dataset(self, classes: Sequence[str] | None = None) -> Dataset:
        """The images with their labels, in the order of `selected`.

        A picture that is gone from where it was is taken from where the table says, or from the unsafe set's folder.

        Raises
        ------
        DataError
            When images are gone, or array rows of different shape or type stand beside each other.
        """
        folder, regression = self.unsafe.folder, self.answers.dtype.kind == "f"
        truths = self.answers.tolist()
        samples = [
            Sample(path, None if regression else truths[row], row, tuple(truths[row]) if regression else None)
            for row, path in enumerate(self.paths)
        ]
        names = None if classes is None else tuple(classes)
        if any(_ARRAY_ROW.fullmatch(path) for path in self.paths):
            return Dataset(folder, samples, names, _array_rows(self.paths, self._named))
        there = [self._find(row) for row in range(len(self))]
        if gone := [path for path, found in zip(self.paths, there, strict=True) if found is None]:
            raise DataError(
                f"{folder}: {len(gone)} of {len(self)} labelled images are gone ({few(gone)}); put them back"
            )
        return Dataset(folder, [replace(one, path=str(path)) for one, path in zip(samples, there, strict=True)], names)

    def _find(self, row: int) -> Path | None:
        one, table = self.selected[row], self.unsafe.table
        copies = sorted((self.unsafe.folder / str(one.cluster)).glob(f"{one.rank:04d}-*"))
        places = [Path(self.paths[row]), table.parent / self._named[row], *copies]
        return next((path.absolute() for path in places if path.is_file()), None)


@dataclass(frozen=True, eq=False)
class Filled:
    """What `fill_labels` did.

    Attributes
    ----------
    table : pathlib.Path
    filled, kept : int
        Images that got a label, and those that had one before.
    unknown : tuple of str
        Images without a label that the known labels say nothing about.
    notes : tuple of str
    """

    table: Path
    filled: int
    kept: int
    unknown: tuple[str, ...]
    notes: tuple[str, ...]


def read_labels(
    unsafe: str | os.PathLike[str],
    classes: Sequence[str] | None = None,
    *,
    outputs: int | None = None,
    regression: bool = False,
    partial: bool = False,
) -> Labels:
    """Read the labels that a person filled in, and check them.

    The table may have gone through a spreadsheet: byte order mark, comma, semicolon or tab, other columns and another
    order, blank lines, "1.0" for 1. Clusters, distances and ranks are those of ``assignment.json``, whatever the table
    says now. Images may be named by other paths than when they were selected, if their ends tell them apart.

    Parameters
    ----------
    unsafe : path-like
        Folder of `assign_store`, or the table in it.
    classes : sequence of str, optional
        Class names by index. A label is a class name (upper and lower case may differ where that is not ambiguous), or
        an index; digits that spreadsheets stripped of leading zeros still mean the class of that number.
    outputs : int, optional
        Number of outputs of the model; bounds the indexes, and says how many numbers there are to regress.
    regression : bool
        Labels are numbers, separated by spaces.
    partial : bool
        Leave out images without a label instead of raising.

    Raises
    ------
    DataError
        Naming lines and images: labels that mean no class, images without a label or a row, two labels for one image,
        images that were never selected, a file that is no UTF-8 text.
    """
    saved = read_unsafe(unsafe)
    table = read_label_table(saved.table)
    found = _by_image(saved, table)
    meaning = LabelText(classes, outputs, regression)
    answers, named, problems = _answers(found.rows, meaning)
    empty = [image for image, rows in found.rows.items() if not any(row.label for row in rows)]
    missing = few([f"{Path(image).name} ({_lines(found.rows[image]) or 'no row'})" for image in empty])
    if empty and not partial:
        problems.append(
            f"{len(empty)} of {len(found.rows)} images have no label: {missing}; fill them in, or go on without them "
            "with --partial"
        )
    if problems := found.problems + problems:
        raise DataError(f"{saved.table}: {'; also: '.join(problems)}")
    notes = list(found.notes)
    if empty:
        notes.append(f"{len(empty)} of {len(found.rows)} selected images have no label and are left out")
    chosen = [one for one in saved.selected if saved.paths[one.image] in answers]
    paths = tuple(saved.paths[one.image] for one in chosen)
    values = [answers[path] for path in paths]
    return Labels(
        unsafe=saved,
        selected=tuple(replace(one, image=row) for row, one in enumerate(chosen)),
        paths=paths,
        answers=np.array(values, dtype=np.float32 if regression else np.int64),
        unlabelled=tuple(empty),
        missing=missing,
        notes=tuple(notes),
        _named=tuple(named[path] for path in paths),
    )


def fill_labels(
    unsafe: str | os.PathLike[str],
    oracle: Dataset | str | os.PathLike[str],
    classes: Sequence[str] | None = None,
    *,
    outputs: int | None = None,
    regression: bool = False,
) -> Filled:
    """Write known labels into the empty cells of the table, as a person would; labels that are there stay.

    Parameters
    ----------
    unsafe, classes, outputs, regression
        As in `read_labels`.
    oracle : Dataset or path
        Known labels: a folder with a sub-folder per class, a manifest, or arrays with labels. Images are found in it by
        their path, else by the end of their path if only one has it; rows of an array file in another one by number.

    Raises
    ------
    DataError
        The table cannot be used, `oracle` has labels of another kind or knows none of the images; the table stays as it
        was.
    """
    saved = read_unsafe(unsafe)
    table = read_label_table(saved.table)
    found = _by_image(saved, table)
    if found.problems:
        raise DataError(f"{saved.table}: {'; also: '.join(found.problems)}")
    known = oracle if isinstance(oracle, Dataset) else open_dataset(oracle, classes=classes)
    if len(known) and (known.targets is not None) != regression:
        kind = "classes, but the model gives numbers" if regression else "numbers, but the model tells classes apart"
        raise DataError(f"{known.root}: its labels are {kind}")
    images = list(found.rows)
    empty = {image for image in images if not any(row.label for row in found.rows[image])}
    places = _places(images, known)
    known_of = {
        image: text
        for image, place in zip(images, places, strict=True)
        if place is not None and (text := _text(known, place))
    }
    if images and not known_of:
        raise DataError(f"{known.root} knows none of the {len(images)} selected images ({few(images)})")
    texts = {image: text for image, text in known_of.items() if image in empty}
    meaning = LabelText(classes or known.classes, outputs, regression)
    if wrong := sorted({text for text in texts.values() if meaning.read(text) is None}):
        raise DataError(f"{known.root}: label {few(wrong)}: {meaning.expected}")
    if texts:
        first = {rows[0].line: texts[image] for image, rows in found.rows.items() if rows and image in texts}
        rows = [replace(row, label=first.get(row.line, row.label)) for row in table.rows]
        rows += [LabelRow(0, image, text) for image, text in texts.items() if not found.rows[image]]
        table.write(rows)
    paths = set(known.paths)
    ends = sum(image in texts and image not in paths for image in images)
    note = f"{ends} of {len(texts)} images were found in {known.root} by the end of their path or by their row"
    unknown = tuple(image for image in images if image in empty and image not in texts)
    return Filled(saved.table, len(texts), len(images) - len(empty), unknown, (note,) if ends else ())


@dataclass(frozen=True, eq=False)
class _Found:
    """Rows of the table for each selected image, and what is wrong with the others."""

    rows: dict[str, list[LabelRow]]
    problems: list[str]
    notes: list[str]


def _by_image(saved: SavedUnsafeSet, table: LabelTable) -> _Found:
    rows: dict[str, list[LabelRow]] = {path: [] for path in saved.paths}
    known = list(rows)
    strangers, moved = [], 0
    for row, place in zip(table.rows, match_images([row.image for row in table.rows], known), strict=True):
        if place is None:
            strangers.append(row)
            continue
        rows[known[place]].append(row)
        moved += row.image != known[place]
    problems, notes = [], []
    if strangers:
        shown = few([f"{row.image} (line {row.line})" for row in strangers])
        problems.append(f"{len(strangers)} images were never selected: {shown}; remove these rows")
    if moved:
        notes.append(f"{moved} images have other paths than when they were selected; found by the end of their path")
    # what the same path selected twice has in the table is the same image twice, not a row too many
    twice = [path for path, of_image in rows.items() if len(of_image) > saved.paths.count(path)]
    if twice:
        notes.append(f"{len(twice)} images have several rows: {few(twice)}")
    return _Found(rows, problems, notes)


def _answers(
    rows_of: Mapping[str, list[LabelRow]], meaning: LabelText
) -> tuple[dict[str, Answer], dict[str, str], list[str]]:
    """The answer of each labelled image, what the table calls it, and what is wrong with labels."""
    answers: dict[str, Answer] = {}
    named: dict[str, str] = {}
    problems: list[str] = []
    strange: dict[str, list[LabelRow]] = {}
    for image, rows in rows_of.items():
        meant: dict[Answer, LabelRow] = {}
        for row in rows:
            answer = meaning.read(row.label) if row.label else None
            if answer is not None:
                meant.setdefault(answer, row)
                answers[image], named[image] = answer, row.image
            elif row.label:
                strange.setdefault(row.label, []).append(row)
        if len(meant) > 1:
            texts = " and ".join(f"'{row.label}' ({_lines([row])})" for row in meant.values())
            problems.append(f"{image} has the labels {texts}; keep the right one")
    if strange:
        texts = few([f"'{text}' ({_lines(rows)})" for text, rows in strange.items()])
        problems.append(f"{texts}: {meaning.expected}")
    widths = {len(answer) for answer in answers.values() if isinstance(answer, tuple)}
    if len(widths) > 1:
        problems.append(f"labels of {few(sorted(widths))} numbers; expected as many for every image")
    return answers, named, problems


def _lines(rows: Sequence[LabelRow]) -> str:
    return "" if not rows else f"{'line' if len(rows) == 1 else 'lines'} {few([row.line for row in rows])}"


def _text(known: Dataset, place: int) -> str:
    sample = known.samples[place]
    if sample.target is not None:  # NaN, such as of a landmark that is not visible, says that it is not known
        return "" if any(map(math.isnan, sample.target)) else " ".join(f"{value:.9g}" for value in sample.target)
    if sample.label is None:
        return ""
    named = known.classes is not None and known.classes.count(known.classes[sample.label]) == 1
    return known.classes[sample.label] if named and known.classes else str(sample.label)


def _places(images: list[str], known: Dataset) -> list[int | None]:
    places = match_images(images, known.paths)
    rows = [_ARRAY_ROW.fullmatch(image) for image in images]
    if known.array is None or not all(rows):
        return places
    files = {row[1] for row in rows if row}
    for file in files:
        count = len(open_dataset(file)) if Path(file).is_file() else len(known.array)
        if len(files) > 1 or count != len(known.array):
            raise DataError(
                f"{known.root} has {len(known.array)} rows, {few(sorted(files))} {count}; expected labels of these rows"
            )
    of_index = {int(index): place for place, index in enumerate(known.index)}
    return [of_index.get(int(row[2])) if row else None for row in rows]


def _array_rows(paths: Sequence[str], named: Sequence[str]) -> np.ndarray:
    opened: dict[str, Dataset] = {}
    rows = []
    for places in zip(paths, named, strict=True):
        found = [match for path in places if (match := _ARRAY_ROW.fullmatch(path))]
        here = next((match for match in found if Path(match[1]).is_file()), None)
        if here is None:
            raise DataError(f"{places[0]}: the array file is gone; put it back")
        dataset = opened.setdefault(here[1], opened.get(here[1]) or open_dataset(here[1]))
        if dataset.array is None or int(here[2]) >= len(dataset):
            raise DataError(f"{places[0]}: {here[1]} has {len(dataset)} rows now; put back the file that was explained")
        rows.append(np.array(dataset.array[int(here[2])]))
    if len({(row.shape, row.dtype) for row in rows}) > 1:
        raise DataError(f"{few(sorted(opened))}: arrays of different shape or type cannot be trained on together")
    return np.stack(rows)
