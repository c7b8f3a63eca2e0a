"""Texts as a `Dataset`: split into tokens by a vocabulary, as the ids, masks and types that a model of tokens takes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lrp_onnx.data.dataset import Dataset, Sample
from lrp_onnx.data.sources import Truth, Unknown, read_truths
from lrp_onnx.data.table import read_table
from lrp_onnx.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

TEXT_COLUMN, SECOND_COLUMN = "text", "text2"
MOST_TOKENS = 512
Shape = tuple[int | str | None, ...] | None
Role = Literal["ids", "mask", "types", "positions"]
_MASK, _UNKNOWN, _PADDING = ("[MASK]", "<mask>"), ("[UNK]", "<unk>"), ("[PAD]", "<pad>")


@dataclass(frozen=True)
class Vocabulary:
    """What a vocabulary says of ids beside words.

    Attributes
    ----------
    special : frozenset of int
        What stands for no word: [CLS], [SEP], [MASK], padding …
    neutral : (str, int) or None
        The token, and its id, that says nothing in a word's place: the mask, or else the unknown word, or padding.
    """

    special: frozenset[int]
    neutral: tuple[str, int] | None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Of a file, see `open_vocabulary`."""
        tokenizer = open_vocabulary(path)
        known = {name: tokenizer.token_to_id(name) for name in (*_MASK, *_UNKNOWN, *_PADDING)}
        added = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        neutral = next(((name, number) for name, number in known.items() if number is not None), None)
        return cls(frozenset(added - {known[name] for name in _UNKNOWN}), neutral)


def role_of(name: str) -> Role:
    """What an input of a model of tokens takes, by its name."""
    lower = name.lower()
    if "mask" in lower:
        return "mask"
    if "type" in lower or "segment" in lower:
        return "types"
    return "positions" if "position" in lower else "ids"


def is_text(path: str | os.PathLike[str]) -> bool:
    """Whether a data set holds texts: a .txt file, or a table with a column ``text``."""
    source = Path(path)
    if source.suffix.lower() not in (".csv", ".tsv") or not source.is_file():
        return source.suffix.lower() == ".txt"
    return TEXT_COLUMN in (name.lower() for name in read_table(source).header)


def open_texts(
    path: str | os.PathLike[str],
    vocabulary: str | os.PathLike[str],
    inputs: Mapping[str, Shape],
    *,
    classes: Sequence[str] | None = None,
    unknown: Unknown = "error",
) -> Dataset:
    """Open a .txt file (a text a line) or a table with a column ``text`` (and ``text2``: pairs; ``label``; numbers).

    Every sample is as long as the model's input, or else as the longest text; what is longer is cut.

    Parameters
    ----------
    path : path-like
    vocabulary : path-like
        A tokenizer.json of the package tokenizers, or a vocab.txt of WordPiece, a token a line.
    inputs : mapping of str to shape
        The model's inputs; the one with the ids first.
    classes, unknown
        As in `open_dataset`.

    Raises
    ------
    DataError
        When a file cannot be read, or the model has an input that is not known from texts.
    """
    source = Path(path)
    texts, truths, names, target_names = _read(source, None if classes is None else tuple(classes), unknown)
    tokenizer = open_vocabulary(vocabulary)
    fixed = next((shape[1] for shape in inputs.values() if shape and len(shape) == 2), None)
    most = fixed if isinstance(fixed, int) else MOST_TOKENS
    tokenizer.enable_truncation(most)
    encoded = tokenizer.encode_batch(texts)
    length = most if isinstance(fixed, int) else max((len(one.ids) for one in encoded), default=0)
    pad = next((i for i in map(tokenizer.token_to_id, _PADDING) if i is not None), 0)
    arrays = {name: _array(name, place, encoded, length, pad) for place, name in enumerate(inputs)}
    first, *others = arrays
    samples = [
        Sample(
            f"{source}[{row}]",
            label,
            row,
            target,
            {name: arrays[name][row] for name in others},
            (*one.tokens, *[""] * (length - len(one.tokens))),
        )
        for row, (one, (label, target)) in enumerate(zip(encoded, truths, strict=True))
    ]
    return Dataset(source, samples, names, arrays[first], target_names=target_names)


def open_vocabulary(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer that a file describes, without padding or cutting of its own.

    Raises
    ------
    DataError
        When it cannot be read, or the package tokenizers is missing.
    """
    try:
        from tokenizers import BertWordPieceTokenizer, Tokenizer
    except ImportError as error:
        raise DataError(f"texts need a package: pip install tokenizers ({error})") from error
    source = Path(path)
    if not source.is_file():
        raise DataError(f"vocabulary {source}: no such file; expected a tokenizer.json, or a vocab.txt of WordPiece")
    try:
        if source.suffix.lower() == ".json":
            tokenizer = Tokenizer.from_file(str(source))
        else:
            words = source.read_text(encoding="utf-8").split()
            cased = any(word != word.lower() for word in words if not word.startswith("["))
            tokenizer = BertWordPieceTokenizer(str(source), lowercase=not cased)._tokenizer
    except Exception as error:  # the package raises Exception itself
        raise DataError(f"vocabulary {source}: cannot be read ({error})") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _read(
    source: Path, classes: tuple[str, ...] | None, unknown: Unknown
) -> tuple[list[Any], Sequence[Truth], tuple[str, ...] | None, tuple[str, ...] | None]:
    """Texts or pairs of them, class and target of each, class names, names of the targets."""
    if source.suffix.lower() == ".txt":
        try:
            texts = [line.strip() for line in source.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{source}: cannot be read ({error}); expected UTF-8, a text a line") from error
        if not texts:
            raise DataError(f"{source}: no texts found in it")
        return texts, [(None, None)] * len(texts), classes, None
    table = read_table(source)
    columns = {name.lower(): name for name in table.header}
    taken = [columns[name] for name in (TEXT_COLUMN, SECOND_COLUMN) if name in columns]
    for line, row in table.rows:
        if not row.get(taken[0]):
            raise DataError(f"{source}, line {line}: column '{TEXT_COLUMN}' is empty")
    rows = [tuple(row.get(name, "") for name in taken) for _, row in table.rows]
    truths, names, target_names = read_truths(table, taken, classes, unknown)
    return [row if len(row) == 2 else row[0] for row in rows], truths, names, target_names


def _array(name: str, place: int, encoded: Sequence[Encoding], length: int, pad: int) -> np.ndarray:
    """What an input takes, int64 (N, T); its name says what that is."""
    role, filler = role_of(name), 0
    if role == "mask":
        rows = [one.attention_mask for one in encoded]
    elif role == "types":
        rows = [one.type_ids for one in encoded]
    elif role == "positions":
        rows = [list(range(length)) for _ in encoded]
    elif place == 0:
        rows, filler = [one.ids for one in encoded], pad
    else:
        raise DataError(
            f"input '{name}' is not known from texts (ids, attention mask, token types, positions are); give the model "
            "an .npz file with an array for each input"
        )
    result = np.full((len(rows), length), filler, np.int64)
    for row, values in enumerate(rows):
        result[row, : len(values)] = values
    return result
