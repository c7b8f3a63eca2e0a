"""How a data set goes into a model: class names, preprocessing, batch size, where the channels are."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from lrp_onnx.batch_axis import BatchAxis, batch_first
from lrp_onnx.converters.conversion import CLASSES_KEY
from lrp_onnx.data import Dataset, open_dataset
from lrp_onnx.data.dataset import reason_of
from lrp_onnx.data.sources import Unknown
from lrp_onnx.data.texts import is_text, open_texts
from lrp_onnx.engine.analysis import relevance_path
from lrp_onnx.engine.seed import output_name
from lrp_onnx.errors import DataError
from lrp_onnx.graph import Graph, load
from lrp_onnx.preprocess import METADATA_KEY, PRESETS, Preprocess, guess_layout

Model = Graph | str | os.PathLike[str] | bytes | onnx.ModelProto


@dataclass(frozen=True)
class Feed:
    """What stands between samples and the model's input.

    Attributes
    ----------
    input : str
        Name of the model's input; of several, the first that can have relevance.
    shape : tuple
        Its shape without batch; a free dimension is a string or None.
    preprocess : Preprocess or None
        None for arrays that are ready for the model.
    batch : int or None
        The only batch size that the model takes; None where it is free.
    channels_last : bool
        Pictures are (N, H, W, C).
    dtype : numpy.dtype
        What the model's input holds.
    notes : tuple of str
        What was guessed and the user should know.
    others : mapping of str to numpy.dtype
        The model's further inputs, and what they hold.
    """

    input: str
    shape: tuple[int | str | None, ...]
    preprocess: Preprocess | None
    batch: int | None
    channels_last: bool
    dtype: np.dtype[Any]
    notes: tuple[str, ...] = ()
    others: Mapping[str, np.dtype[Any]] = field(default_factory=dict)

    def pad(self, values: np.ndarray) -> np.ndarray:
        """Repeat the last sample until the model's fixed batch size is reached; results beyond n are to be dropped."""
        missing = (self.batch or 0) - len(values)
        return values if missing <= 0 else np.concatenate([values, np.repeat(values[-1:], missing, axis=0)])

    def batch_of(self, inputs: np.ndarray) -> np.ndarray:
        """A batch as the model takes it: its type, its fixed batch size."""
        return self._as(self.dtype, inputs)

    def batch_by_name(self, inputs: np.ndarray, others: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A batch for every input of the model, by name; see `batch_of`."""
        further = {name: self._as(dtype, others[name]) for name, dtype in self.others.items()}
        return {self.input: self.batch_of(inputs), **further}

    def _as(self, dtype: np.dtype[Any], values: np.ndarray) -> np.ndarray:
        if dtype.kind in "iu" and values.dtype.kind == "f":
            values = np.rint(values)
        return self.pad(values.astype(dtype, copy=False))

    def picture_size(self, inputs: np.ndarray) -> tuple[int, int] | None:
        """Height and width of a batch of pictures, pixels; None where the inputs are none."""
        if inputs.ndim != 4:
            return None
        return inputs.shape[1:3] if self.channels_last else inputs.shape[2:]

    def channels_first(self, relevance: np.ndarray) -> np.ndarray:
        """Relevance of the model's input, (n, C, H, W) whatever the model's layout; other than pictures as it is."""
        return np.ascontiguousarray(np.moveaxis(relevance, -1, 1)) if self.channels_last else relevance


def describe(graph: Graph, preprocess: Preprocess | None = None, classes: Sequence[str] | None = None) -> Graph:
    """The same model with other preprocessing or class names in its metadata; the file is not touched."""
    changes = {}
    if preprocess is not None:
        changes[METADATA_KEY] = preprocess.to_json()
    if classes is not None:
        changes[CLASSES_KEY] = json.dumps(list(classes), ensure_ascii=False)
    return replace(graph, metadata={**graph.metadata, **changes}) if changes else graph


def read_preprocess(text: str | None) -> dict[str, Any] | None:
    """A preset's name, a JSON file or JSON, as what `Preprocess.from_json` takes."""
    if text is None:
        return None
    if text in PRESETS:
        return {"preset": text}
    if not text.lstrip().startswith("{"):
        if not Path(text).is_file():
            raise DataError(f"preprocess {text}: no such preset or file; presets: {', '.join(PRESETS)}")
        text = Path(text).read_text(encoding="utf-8")
    try:
        values = json.loads(text)
    except ValueError as error:
        raise DataError(f"preprocess: not valid JSON ({error}): {text[:80]}") from error
    if not isinstance(values, dict):
        raise DataError(f"preprocess: expected a JSON object, got {text[:80]}")
    Preprocess.from_json(values)  # what is wrong with it should show before the model is read
    return values


def read_classes(path: Path | None) -> list[str] | None:
    """Class names from a text file, one a line, or a JSON list."""
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = json.loads(text) if text.lstrip().startswith("[") else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"classes {path}: cannot be read ({reason}); expected a name a line, or JSON") from error
    while names and not names[-1]:
        names.pop()
    if not names:
        raise DataError(f"classes {path}: holds no names")
    return [str(name) for name in names]


def load_described(
    path: Path, preprocess: str | None = None, classes: Path | None = None, batch_axis: BatchAxis | None = None
) -> Graph:
    """Load a model; what is said of its preprocessing, classes and batch takes the place of its own metadata.

    Raises
    ------
    ModelError, DataError
        One of them cannot be read, or does not fit the model.
    """
    said, names = read_preprocess(preprocess), read_classes(classes)
    graph = load(path)
    if batch_axis is not None:
        graph = batch_first(graph, batch_axis)
    shape = next((info.shape for info in graph.inputs.values()), None) or ()
    return describe(graph, None if said is None else Preprocess.for_input(said, shape[1:]), names)


def classes_of(graph: Graph) -> tuple[str, ...] | None:
    """Class names that the model carries, by index; None when it carries none."""
    text = graph.metadata.get(CLASSES_KEY)
    if text is None:
        return None
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list):
        raise DataError(f"{graph.name}: metadata '{CLASSES_KEY}' is no JSON list of names: {text[:60]!r}")
    return tuple(str(name) for name in names)


def number_of_outputs(graph: Graph, output: str | None = None) -> int | None:
    """K where an output (the first) is (N, K), None otherwise."""
    shape = graph.outputs[output_name(graph, output)].shape
    return shape[1] if shape is not None and len(shape) == 2 and isinstance(shape[1], int) else None


def open_both(
    model: Model,
    data: Dataset | str | os.PathLike[str],
    *,
    unlabelled: bool = False,
    output: str | None = None,
    vocabulary: str | os.PathLike[str] | None = None,
) -> tuple[Graph, Dataset]:
    """Load a model, its batch in front (see `batch_first`), and open a data set with the model's class names.

    Parameters
    ----------
    model, data
        Either may be open already.
    unlabelled : bool
        Read folders and labels that match no class of the model as unlabelled.
    output : str, optional
        Name of the output that labels are of; the first by default.
    vocabulary : path-like, optional
        For texts, see `open_texts`.

    Raises
    ------
    ModelError, DataError
        When one cannot be read, or labels and outputs do not fit each other.
    """
    graph = batch_first(model if isinstance(model, Graph) else load(model))
    classes = classes_of(graph)
    outputs = number_of_outputs(graph, output)
    if classes is not None and outputs is not None and outputs > 1 and len(classes) != outputs:
        raise DataError(
            f"{graph.name} has {outputs} outputs, but {len(classes)} class names; give as many with --classes"
        )
    if isinstance(data, Dataset):
        return graph, data
    dataset = _open(graph, data, classes, "unlabelled" if unlabelled else "error", vocabulary)
    if outputs is None or not (dataset.labels >= 0).any():
        return graph, dataset
    fits = dataset.labels.max() < max(outputs, 2)  # one output tells two classes apart
    if classes is None and dataset.classes is not None:
        # Names in alphabetical order are the classes of the model only if there are as many of them.
        fits = len(dataset.classes) == max(outputs, 2)
    if fits:
        return graph, dataset
    if unlabelled:
        samples = [replace(sample, label=None) for sample in dataset.samples]
        return graph, Dataset(dataset.root, samples, classes, dataset.array)
    found = f"class index {dataset.labels.max()}"
    if dataset.classes:
        found = f"{len(dataset.classes)} class{'es' if len(dataset.classes) > 1 else ''} in the data"
    raise DataError(
        f"{dataset.root}: {found}, but {graph.name} has {outputs} outputs and "
        f"{'no' if classes is None else 'other'} class names; give them with --classes, name folders by class index, "
        "or use --unlabelled"
    )


def _open(
    graph: Graph,
    data: str | os.PathLike[str],
    classes: tuple[str, ...] | None,
    unknown: Unknown,
    vocabulary: str | os.PathLike[str] | None,
) -> Dataset:
    inputs = {name: graph.inputs[name].shape for name in _inputs(graph)}
    if not is_text(data):
        if vocabulary is not None:
            raise DataError(f"{data}: a vocabulary is for texts, a .txt file or a table with a column 'text'")
        return open_dataset(data, classes=classes, unknown=unknown, inputs=tuple(inputs))
    if vocabulary is None:
        raise DataError(f"{data}: texts need a vocabulary (--vocab): a tokenizer.json, or a vocab.txt of WordPiece")
    return open_texts(data, vocabulary, inputs, classes=classes, unknown=unknown)


def _inputs(graph: Graph) -> list[str]:
    """Names of the model's inputs, the first that can have relevance before the others."""
    path = relevance_path(graph, output_name(graph), hold_detached=True)
    reached = {node.inputs[position] for node, active in path for position in active}
    return sorted(graph.inputs, key=lambda name: name not in reached)


def feed_for(graph: Graph, dataset: Dataset) -> Feed:
    """Decide how `dataset` goes into the model.

    Raises
    ------
    DataError
        When the model has inputs that the data set does not have, or its preprocessing gives something else than it
        takes.
    """
    first, *others = _inputs(graph)
    given = dataset.samples[0].others if len(dataset) else {}
    if missing := [name for name in others if name not in given]:
        raise DataError(
            f"{graph.name} has {len(graph.inputs)} inputs ({', '.join(graph.inputs)}), and {dataset.root} nothing for "
            f"'{missing[0]}'; give it an .npz file with an array, or a table with a column, for each"
        )
    info = graph.inputs[first]
    shape = info.shape or ()
    preprocess = Preprocess.from_metadata(graph.metadata)
    notes = list(graph.notes)
    pictures = dataset.of_pictures or (
        dataset.array is not None and dataset.array.dtype == np.uint8 and len(shape) == 4
    )
    if preprocess is None and pictures and (dataset.array is None or dataset.array.shape[1:] != tuple(shape[1:])):
        preprocess = Preprocess.from_input_shape(shape)
        notes.append(
            f"{graph.name} does not say how pictures become its input; guessing {preprocess.to_json()} "
            "(give --preprocess to be sure)"
        )
    if preprocess is not None and pictures and not _fits(preprocess.shape, shape[1:]):
        wanted = tuple("any" if size is None else size for size in shape[1:])
        raise DataError(
            f"{graph.name}: the preprocessing gives arrays of shape {preprocess.shape}, but input '{info.name}' takes "
            f"{wanted}; mend size, layout or colour with --preprocess"
        )
    batch = shape[0] if shape and isinstance(shape[0], int) and shape[0] > 0 else graph.batch
    if batch is not None and shape[0] != batch:
        notes.append(
            f"{graph.name} calls its batch free, but its outputs have {batch} in front whatever comes in: samples go "
            f"in batches of {batch}"
        )
    dtypes = {name: np.dtype(onnx.helper.tensor_dtype_to_np_dtype(i.elem_type)) for name, i in graph.inputs.items()}
    return Feed(
        info.name,
        shape[1:],
        preprocess,
        batch,
        _channels_last(preprocess, shape),
        dtypes[first],
        tuple(notes),
        {name: dtypes[name] for name in others},
    )


def first_readable(dataset: Dataset, feed: Feed) -> np.ndarray:
    """The first sample that can be read, without batch; see `first_inputs`."""
    return first_inputs(dataset, feed)[0]


def first_inputs(dataset: Dataset, feed: Feed) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What the model's inputs get of the first sample that can be read, without batch; see `first_row`."""
    return first_row(dataset, feed)[1:]


def first_row(dataset: Dataset, feed: Feed) -> tuple[int, np.ndarray, dict[str, np.ndarray]]:
    """The first sample that can be read: its row, and what the model's inputs get of it, without batch.

    Raises
    ------
    DataError
        With the first reason, when there is none; or when it does not fit the model.
    """
    reason = ""
    for row, sample in enumerate(dataset.samples):
        try:
            values, others = dataset.read(row, feed.preprocess), dataset.read_others(row, feed.preprocess)
        except Exception as error:  # decoders raise anything on broken files
            reason = reason or f"{sample.path}: {reason_of(error)}"
            continue
        if not _fits(values.shape, feed.shape):
            wanted = tuple("any" if size is None else size for size in feed.shape)
            raise DataError(f"{sample.path} has shape {values.shape}; the model's input '{feed.input}' takes {wanted}")
        return row, values, others
    raise DataError(f"{dataset.root}: none of the {len(dataset)} samples could be read; the first, {reason}")


def sample_name(dataset: Dataset, path: str) -> str:
    """A sample's path relative to its data set, with "/"; this is how results name it."""
    base = dataset.root if dataset.root.is_dir() else dataset.root.parent
    relative = os.path.relpath(path, base).replace(os.sep, "/")
    return path if relative.startswith("../") else relative


def _fits(given: Sequence[int], wanted: Sequence[int | str | None]) -> bool:
    return len(given) == len(wanted) and all(
        not isinstance(want, int) or got == want for got, want in zip(given, wanted, strict=True)
    )


def _channels_last(preprocess: Preprocess | None, shape: Sequence[int | str | None]) -> bool:
    if len(shape) != 4:
        return False
    if preprocess is not None:
        return preprocess.layout == "NHWC"
    try:
        return guess_layout(shape) == "NHWC"
    except DataError:  # neither place looks like channels: take the order of most models
        return False
