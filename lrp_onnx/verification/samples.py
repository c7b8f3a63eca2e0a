"""What a model is verified on: samples of a data set, arrays, or random numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from lrp_onnx.data import Dataset, batches
from lrp_onnx.data.texts import is_text
from lrp_onnx.engine.analysis import looks_up, relevance_path
from lrp_onnx.engine.seed import output_name
from lrp_onnx.errors import DataError
from lrp_onnx.graph import Graph, Node
from lrp_onnx.graph.model import TensorInfo
from lrp_onnx.inputs import Feed, feed_for, open_both
from lrp_onnx.preprocess import Preprocess

Data = Dataset | str | os.PathLike[str] | NDArray[np.generic] | Mapping[str, NDArray[np.generic]]

_Number = TypeVar("_Number", bound=np.generic)

AT_ONCE = 2  # samples; in float64, with every inner tensor of them, more would not fit small machines
_FREE = 32  # size of a free dimension that is not the batch, of random inputs


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs by name, batch first, as the model takes them.

    Attributes
    ----------
    arrays : dict of str to array
    count : int
        Samples; the rest, up to whole batches, is padding.
    batch : int
        Samples at a time.
    channels_last : bool
        Pictures are (N, H, W, C).
    preprocess : Preprocess or None
        Of pictures, if it is known.
    random : bool
        These are random numbers, no data.
    labels : int64 (n,)
        Class of each sample, -1 where none is known.
    expected : (n, T) or None
        Numbers to predict, where the data has those and no classes.
    source : (Dataset, Feed) or None
        Where the samples are from, if not from arrays.
    notes : tuple of str
        What was guessed.
    vocabulary : path-like or None
        Of token ids, if it is known.
    """

    arrays: Mapping[str, NDArray[np.generic]]
    count: int
    batch: int
    channels_last: bool = False
    preprocess: Preprocess | None = None
    random: bool = False
    labels: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    expected: NDArray[np.floating] | None = None
    source: tuple[Dataset, Feed] | None = None
    notes: tuple[str, ...] = ()
    vocabulary: str | os.PathLike[str] | None = None

    def parts(self) -> Iterator[dict[str, NDArray[np.generic]]]:
        """Batch after batch."""
        whole = max((len(array) for array in self.arrays.values() if array.ndim), default=1)
        for at in range(0, whole, self.batch):
            yield {name: a[at : at + self.batch] if a.ndim else a for name, a in self.arrays.items()}


def take_samples(
    graph: Graph,
    data: Data | None,
    count: int,
    seed: int,
    *,
    output: str | None = None,
    vocabulary: str | os.PathLike[str] | None = None,
) -> Samples:
    """At most `count` samples, evenly over the data; random numbers where there is no data.

    Labels are of the named output, texts are read by the vocabulary, see `open_both`; of ids in an array file it tells
    which stand for no word.

    Raises
    ------
    DataError
        The data cannot be read, or does not fit the model.
    """
    if count < 1:
        raise DataError(f"samples is {count}; expected at least 1")
    if data is None:
        return _random(graph, count, seed, output)
    if isinstance(data, np.ndarray):
        data = {next(iter(graph.inputs)): data}
    if isinstance(data, Mapping):
        return replace(_given(graph, data, count), vocabulary=vocabulary)
    reads = isinstance(data, Dataset) or is_text(data) or not table_sizes(graph, output)
    given = vocabulary if reads else None  # ids are read without
    graph, dataset = open_both(graph, data, unlabelled=True, output=output, vocabulary=given)
    feed = feed_for(graph, dataset)
    few = dataset.subset(_spread(len(dataset), count))
    batch = next(batches(few, feed.preprocess, len(few)))
    unread = [f"{path} cannot be read: {reason}" for path, reason in few.failures.items()]
    arrays = {name: _whole(a, feed.batch) for name, a in feed.batch_by_name(batch.inputs, batch.others).items()}
    return Samples(
        arrays,
        len(batch.rows),
        feed.batch or AT_ONCE,
        feed.channels_last,
        feed.preprocess,
        labels=_whole(batch.labels, feed.batch),
        expected=None if batch.targets is None else _whole(batch.targets, feed.batch),
        source=(few, feed),
        notes=(*feed.notes, *unread),
        vocabulary=vocabulary,
    )


def _given(graph: Graph, data: Mapping[str, NDArray[np.generic]], count: int) -> Samples:
    if missing := [name for name in graph.inputs if name not in data]:
        raise DataError(f"input '{missing[0]}' is missing; the model wants {', '.join(graph.inputs)}")
    found = len(data[next(iter(graph.inputs))])
    if odd := [name for name in graph.inputs if len(data[name]) != found]:
        raise DataError(f"input '{odd[0]}' has {len(data[odd[0]])} samples, '{next(iter(graph.inputs))}' {found}")
    rows, fixed = _spread(found, count), graph.batch
    arrays = {name: _whole(_typed(info, data[name][rows]), fixed) for name, info in graph.inputs.items()}
    preprocess = Preprocess.from_metadata(graph.metadata)
    last = preprocess is not None and preprocess.layout == "NHWC"
    return Samples(arrays, len(rows), fixed or AT_ONCE, last, preprocess)


def table_sizes(graph: Graph, output: str | None = None) -> dict[str, int]:
    """How many ids there are, from 0, of each input that holds such: rows of the smallest table that they pick from."""
    path = relevance_path(graph, output_name(graph, output), hold_detached=True)
    found: dict[str, int] = {}
    for node, active in reversed(path):
        sizes = [found[name] for name in node.outputs if name in found]
        if looks_up(graph, node):
            sizes.append(_rows(graph, node))
        for name in (node.inputs[position] for position in active) if sizes else ():
            found[name] = min(*sizes, found.get(name, sizes[0]))
    return {name: found[name] for name in graph.inputs if name in found}


def _rows(graph: Graph, node: Node) -> int:
    """Of the table that a node picks from: an embedding's, or one-hot rows."""
    if node.op_type == "Gather":
        return int(graph.initializers[node.inputs[0]].shape[node.attributes.get("axis", 0)])
    if node.op_type == "OneHot":
        return int(graph.initializers[node.inputs[1]].reshape(-1)[0])
    compared = graph.producer[node.inputs[0]]  # a Cast of what was compared with all ids
    return next(graph.initializers[name].size for name in compared.inputs if name in graph.initializers)


def _random(graph: Graph, count: int, seed: int, output: str | None) -> Samples:
    random, fixed = np.random.default_rng(seed), graph.batch
    preprocess, tables = Preprocess.from_metadata(graph.metadata), table_sizes(graph, output)
    arrays = {
        name: _draw(info, preprocess, random, fixed or count, tables.get(name)) for name, info in graph.inputs.items()
    }
    last = preprocess is not None and preprocess.layout == "NHWC"
    return Samples(arrays, fixed or count, fixed or AT_ONCE, last, preprocess, random=True)


def _draw(
    info: TensorInfo, preprocess: Preprocess | None, random: np.random.Generator, count: int, ids: int | None
) -> NDArray[np.generic]:
    """Noise within what preprocessing allows, or standard normal; `ids` of the table that the model looks up in."""
    sizes = [
        size if isinstance(size, int) and axis else count if not axis else _FREE
        for axis, size in enumerate(info.shape or ())
    ]
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(info.elem_type))
    if ids is not None:
        return random.integers(0, ids, sizes).astype(dtype)
    if dtype.kind in "iu":
        return np.ones(sizes, dtype) if "mask" in info.name else random.integers(0, 2, sizes).astype(dtype)
    if dtype.kind != "f":
        return (random.random(sizes) < 0.5).astype(dtype)
    if preprocess is not None and tuple(sizes[1:]) == preprocess.shape:
        axis = -1 if preprocess.layout == "NHWC" else 1
        low, high = (np.expand_dims(b, [a for a in range(4) if a != axis % 4]) for b in preprocess.bounds())
        return random.uniform(low, high, sizes).astype(dtype)
    return random.standard_normal(sizes).astype(dtype)


def _spread(found: int, count: int) -> list[int]:
    """At most `count` of `found` rows, evenly."""
    return sorted({round(row) for row in np.linspace(0, found - 1, min(count, found))})


def _typed(info: TensorInfo, values: NDArray[np.generic]) -> NDArray[np.generic]:
    return values.astype(onnx.helper.tensor_dtype_to_np_dtype(info.elem_type), copy=False)


def _whole(values: NDArray[_Number], batch: int | None) -> NDArray[_Number]:
    """Whole batches: the last sample again where some are missing."""
    missing = -len(values) % (batch or 1)
    return np.concatenate([values, np.repeat(values[-1:], missing, axis=0)]) if missing else values


def chosen(names: Sequence[str]) -> str:
    """A few names of many, for a sentence."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
