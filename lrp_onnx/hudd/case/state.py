"""What a case has done already: which step was made from what, so that only what changed is done again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrp_onnx.data import open_dataset
from lrp_onnx.errors import DataError, OutputError
from lrp_onnx.files import written_whole

FORMAT, FORMAT_VERSION = "lrp-onnx-case", 1
Parts = dict[str, str]


@dataclass
class Record:
    """A step as it was last run.

    Attributes
    ----------
    inputs : dict of str to str
        What it was made from, each in a few words or as a hash.
    summary : str
        What came out; empty while it is not finished.
    stop : str
        Why the steps behind it make no sense; empty where they do.
    result : str
        Hash of all that later steps take from it, where that does not follow from `inputs`: what a person's labels
        mean.
    """

    inputs: Parts
    summary: str = ""
    stop: str = ""
    result: str = ""

    def digest(self) -> str:
        return self.result or digest(self.inputs)


@dataclass
class State:
    """The records of a case, kept in a file that is replaced whole after every change."""

    path: Path
    records: dict[str, Record] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> State:
        """The state at `path`; an empty one where there is none.

        Raises
        ------
        DataError
            The file is not what `save` wrote.
        """
        if not path.exists():
            return cls(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format"] != FORMAT or values["format_version"] > FORMAT_VERSION:
                raise ValueError(f"format {values['format']} {values['format_version']}")
            return cls(path, {name: Record(**record) for name, record in values["steps"].items()})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: cannot be used ({error}); remove it, and every step is done again") from error

    def note(self, name: str, record: Record) -> None:
        """Keep what is known of a step.

        Raises
        ------
        OutputError
            It cannot be written.
        """
        self.records[name] = record
        values = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "steps": {step: vars(one) for step, one in self.records.items()},
        }
        with written_whole(self.path, overwrite=True) as new:
            new.write_text(json.dumps(values, ensure_ascii=False, indent=1), encoding="utf-8")


def digest(values: Any) -> str:
    """Hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What differs between the inputs of a step then and now, in words; empty where nothing does."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(names)


def file_digest(path: Path) -> str:
    """Hash of a file's content, and of external weights beside a model.

    Raises
    ------
    OutputError
        It cannot be read.
    """
    total = hashlib.sha256()
    try:
        for part in (path, path.with_name(f"{path.name}.data")):
            if part.is_file():
                with part.open("rb") as file:
                    total.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror or error})") from error
    return total.hexdigest()[:16]


def data_digest(path: Path, progress: Callable[[int, int], None] | None = None) -> str:
    """Hash of a data set: names, labels and content of its samples.

    Raises
    ------
    DataError
        It cannot be opened.
    """
    dataset = open_dataset(path, unknown="unlabelled")
    if dataset.array is not None:
        return file_digest(path)
    base = path if path.is_dir() else path.parent
    total = hashlib.sha256()
    for row, sample in enumerate(dataset.samples):
        name = os.path.relpath(sample.path, base).replace(os.sep, "/")
        label = dataset.classes[sample.label] if dataset.classes and sample.label is not None else sample.label
        total.update(json.dumps([name, label, sample.target]).encode())
        try:
            with Path(sample.path).open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        except OSError:  # a sample that cannot be read is the test's to report
            total.update(b"?")
        if progress is not None and row % 100 == 0:
            progress(row, len(dataset))
    return total.hexdigest()[:16]
