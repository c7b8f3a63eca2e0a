"""Folders of results: they appear whole or not at all, and replace only what is of their own kind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lrp_onnx.errors import OutputError


@contextmanager
def folder_written_whole(folder: Path, mark: str, *, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty folder to fill; when the block ends well it takes the place of `folder`.

    What a killed run left behind is cleared away.

    Parameters
    ----------
    folder : pathlib.Path
    mark : str
        A file that every folder of this kind holds; one without it was made by somebody else and is not replaced.
    overwrite : bool

    Raises
    ------
    OutputError
        When `folder` exists and may not be replaced, or cannot be written; what was there before stays.
    """
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    try:
        if old.is_dir() and not folder.exists():  # killed between the two renames below
            old.rename(folder)
        refuse_folder(folder, mark, overwrite)
        _remove(new, old)
        new.mkdir(parents=True)
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error}); what was there stays") from error
    finally:
        if old.is_dir() and not folder.exists():
            old.rename(folder)
        _remove(new, old)


def refuse_folder(folder: Path, mark: str, overwrite: bool) -> None:
    """Raise OutputError when there is something at `folder` that may not be replaced; see `folder_written_whole`."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / mark).is_file():
            raise OutputError(f"{folder} holds files of another kind (no {mark}); remove it, or name another folder")
        if not overwrite:
            raise OutputError(f"{folder} exists already; use --overwrite to replace it")


def _remove(*folders: Path) -> None:
    for folder in folders:
        if folder.is_dir():
            shutil.rmtree(folder)


def link_or_copy(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """A hard link to what `source` is, or a copy where links are not possible.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    """
    there = Path(source).resolve()
    if not there.is_file():
        raise FileNotFoundError(f"{source}: no such file")
    try:
        os.link(there, target)
    except OSError:
        shutil.copyfile(there, target)
