"""Result files appear whole or not at all, and never in place of others unless that was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from lrp_onnx.errors import OutputError

if TYPE_CHECKING:
    import onnx

_PROTOBUF_LIMIT = (1 << 31) - 1  # bytes that one protobuf message can have


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise OutputError when there is something at `path` that may not be replaced."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already; use --overwrite to replace it")


@contextmanager
def written_whole(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a place to write to; what is there when the block ends well moves to `path`, with the files beside it.

    Raises
    ------
    OutputError
        When `path` exists and `overwrite` is False, or cannot be written; what was there before stays.
    """
    refuse_existing(path, overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            yield Path(folder) / path.name
            # the file itself comes last: once it is there, what it refers to is there
            for new in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
                new.replace(path.parent / new.name)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); nothing was changed") from error


def save_model(model: onnx.ModelProto, path: str | Path, *, overwrite: bool = False) -> list[Path]:
    """Write an ONNX file; weights beyond protobuf's 2 GB go into ``<path>.data`` beside it.

    Returns
    -------
    list of pathlib.Path
        The files written.

    Raises
    ------
    OutputError
        When `path` exists and `overwrite` is False, or cannot be written.
    """
    import onnx

    path = Path(path)
    with written_whole(path, overwrite=overwrite) as new:
        if model.ByteSize() <= _PROTOBUF_LIMIT:
            onnx.save_model(model, new)
            return [path]
        copy = onnx.ModelProto()
        copy.CopyFrom(model)  # saving would move the weights out of the caller's object
        onnx.save_model(copy, new, save_as_external_data=True, location=f"{path.name}.data")
    return [path, path.with_name(f"{path.name}.data")]
