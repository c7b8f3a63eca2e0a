"""What of a model's output is explained: targets by name, for sequences, maps, boxes and embeddings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from lrp_onnx.errors import DataError, TargetError

__all__ = [
    "TARGETS",
    "Chosen",
    "box",
    "element",
    "fixed",
    "from_one",
    "parse",
    "pooled",
    "position",
    "segmentation",
    "similarity",
    "target",
]

Valid = Tensor | None
PLAIN = ("predicted", "label", "worst")


@dataclass(frozen=True, eq=False)
class Chosen:
    """How much each element of the output counts in the number that is explained, Σ weights · output.

    Attributes
    ----------
    text : str
        What the target is called, as `parse` reads it.
    weights : callable
        Takes the output (N, …) and the positions of a sequence that are no padding, bool (N, T), or None; gives the
        weights, shaped as the output.
    """

    text: str
    weights: Callable[[Tensor, Valid], Tensor]


@dataclass(frozen=True)
class _Named:
    build: Callable[..., Chosen]
    usage: str
    meaning: str


TARGETS: dict[str, _Named] = {}
_Builder = TypeVar("_Builder", bound=Callable[..., Chosen])


def target(name: str, usage: str, meaning: str) -> Callable[[_Builder], _Builder]:
    """Register a function that makes a `Chosen` of its arguments, under a name for `parse`."""

    def register(build: _Builder) -> _Builder:
        TARGETS[name] = _Named(build, f"{name}:{usage}", meaning)
        return build

    return register


@target("index", "I[,J…]", "one element of each sample's output, by its place")
def element(*place: int) -> Chosen:
    """One element of each sample's output (N, …), by its place; negative counts from the end."""

    def weights(output: Tensor, valid: Valid) -> Tensor:
        shape = tuple(output.shape[1:])
        if len(place) != len(shape) or any(not -size <= at < size for at, size in zip(place, shape, strict=True)):
            raise TargetError(f"target 'index:{_join(place)}': the output of a sample has shape {shape}")
        return _ones_at(output, [torch.full((len(output),), at % size) for at, size in zip(place, shape, strict=True)])

    return Chosen(f"index:{_join(place)}", weights)


@target("position", "P[,CLASS]", "a class (by default the predicted one) at a position of a sequence; -1: the last")
def position(place: int, class_: int | None = None) -> Chosen:
    """A class at a position of an output (N, T, K), such as the next token at the last position.

    Parameters
    ----------
    place : int
        From 0; negative counts from the end of each sample, its padding left out where an attention mask says so.
    class_ : int, optional
        The one predicted there by default.
    """

    def weights(output: Tensor, valid: Valid) -> Tensor:
        if output.ndim != 3:
            raise TargetError(f"target '{text}' is for outputs (N, T, K), sequences; this one is {tuple(output.shape)}")
        real = _positions(output, valid)
        count = real.sum(dim=1)
        if int(count.min()) < (place + 1 if place >= 0 else -place):
            raise TargetError(f"target '{text}': a sample has {int(count.min())} positions")
        order = real.to(torch.int8).argsort(dim=1, descending=True, stable=True)  # those that are no padding first
        at = order.gather(1, (count + place if place < 0 else torch.full_like(count, place))[:, None])[:, 0]
        rows = torch.arange(len(output), device=output.device)
        found = output[rows, at].argmax(dim=1) if class_ is None else _class(class_, output.shape[2], text, output)
        return _ones_at(output, [at, found])

    text = f"position:{place}" + ("" if class_ is None else f",{class_}")
    return Chosen(text, weights)


@target("segmentation", "CLASS[,mask=FILE][,axis=A]", "a class of a map, where it is predicted, or where a mask is set")
def segmentation(class_: int, mask: Any = None, axis: int | None = None) -> Chosen:
    """A class of a segmentation map (N, K, H, W) or (N, H, W, K): its scores, summed over pixels.

    Parameters
    ----------
    class_ : int
        Of a map with one channel, 0.
    mask : array (h, w), optional
        Pixels that count, of any size: it is stretched over the map. By default those where the class is predicted (its
        score is the largest; of a map with one channel, above 0). Where there is none, relevance is 0 throughout.
    axis : int, optional
        Where the classes are; by default 1 or -1, whichever is the smaller dimension.
    """
    kept = None if mask is None else np.asarray(mask) > 0
    if kept is not None and kept.ndim != 2:
        raise TargetError(f"a mask for segmentation has shape {kept.shape}; expected (height, width)")

    def weights(output: Tensor, valid: Valid) -> Tensor:
        if output.ndim != 4:
            raise TargetError(f"target '{text}' is for maps (N, K, H, W); this output is {tuple(output.shape)}")
        at = axis if axis is not None else -1 if output.shape[-1] < output.shape[1] else 1
        if at not in (1, -1, 3):
            raise TargetError(f"target '{text}': axis is {at}; classes are on axis 1 or -1")
        maps = output.movedim(at, 1)
        number = int(_class(class_, maps.shape[1], text, output)[0])
        if kept is not None:
            area = _stretched(kept, maps.shape[2:]).to(output.device).expand(maps[:, 0].shape)
        else:
            area = maps[:, 0] > 0 if maps.shape[1] == 1 else maps.argmax(dim=1) == number
        result = torch.zeros_like(maps)
        result[:, number] = area.to(output.dtype)
        return result.movedim(1, at)

    text = f"segmentation:{class_}"
    return Chosen(text, weights)


@target("box", "best|B[,class=CLASS][,skip=S]", "a box's score; skip: numbers in front of the scores")
def box(which: int | Literal["best"] = "best", class_: int | None = None, skip: int = 0) -> Chosen:
    """One class score of one box of a detection head, (N, B, C), (N, C, B) or (N, B): there are more boxes than scores.

    Parameters
    ----------
    which : int or "best"
        Number of the box, or the one with the largest score.
    class_ : int, optional
        By default the one with the largest score.
    skip : int
        How many numbers a box has in front of its scores: 4 coordinates, say.
    """

    def weights(output: Tensor, valid: Valid) -> Tensor:
        if output.ndim not in (2, 3):
            raise TargetError(f"target '{text}' is for boxes (N, B, C) or (N, B); this output is {tuple(output.shape)}")
        last = output.ndim == 2 or output.shape[1] >= output.shape[2]
        boxes = output[:, :, None] if output.ndim == 2 else output if last else output.mT  # (N, B, C)
        scores = boxes[:, :, skip:]
        if not scores.shape[2]:
            raise TargetError(f"target '{text}': a box has {boxes.shape[2]} numbers, none behind the first {skip}")
        counts = torch.zeros_like(boxes[0], dtype=torch.bool)  # (B, C): what may win
        rows = slice(None) if which == "best" else int(_class(which, len(counts), text, output, "box")[0])
        columns = slice(skip, None)
        if class_ is not None:
            columns = int(_class(class_, scores.shape[2], text, output)[0]) + skip  # type: ignore[assignment]
        counts[rows, columns] = True
        won = boxes.masked_fill(~counts, -torch.inf).flatten(1).argmax(dim=1)
        result = torch.zeros_like(boxes).flatten(1).scatter(1, won[:, None], 1.0).reshape(boxes.shape)
        return (result if last else result.mT).reshape(output.shape)

    text = f"box:{which}" + ("" if class_ is None else f",class={class_}") + (f",skip={skip}" if skip else "")
    return Chosen(text, weights)


@target("similarity", "FILE[,cosine|dot]", "of an embedding to that in an .npy file, or of another picture or text")
def similarity(reference: Any, measure: Literal["cosine", "dot"] = "cosine") -> Chosen:
    """Similarity of an embedding x to a reference r that is held constant, as are both lengths in the cosine.

    The dot product Σ x·r starts from relevance x ⊙ r, the cosine from x ⊙ r / (|x| |r|), so that relevance adds up to
    the similarity. (A network ending in a bilinear form of two inputs, of which one is a constant, gives the same.)

    Parameters
    ----------
    reference : array (D,)
        As `pooled` gives it.
    measure : {"cosine", "dot"}

    Notes
    -----
    Embeddings are (N, D), or (N, T, D), of which the mean over T is taken, padding left out; see `pooled`.
    """
    wanted = torch.as_tensor(np.asarray(reference)).flatten()
    if measure not in ("cosine", "dot"):
        raise TargetError(f"similarity is 'cosine' or 'dot', not '{measure}'")

    def weights(output: Tensor, valid: Valid) -> Tensor:
        vectors = pooled(output, valid)
        if vectors.shape[1] != len(wanted):
            raise TargetError(f"the reference has {len(wanted)} numbers, the model's embeddings {vectors.shape[1]}")
        r = wanted.to(output).expand(vectors.shape)
        if measure == "cosine":
            r = r / (vectors.norm(dim=1) * r.norm(dim=1)).clamp_min(torch.finfo(r.dtype).tiny)[:, None]
        if output.ndim == 2:
            return r
        real = _positions(output, valid)
        return (real / real.sum(dim=1, keepdim=True).clamp_min(1)).to(r)[:, :, None] * r[:, None]

    return Chosen(f"similarity:{measure}", weights)


def fixed(weights: Any) -> Chosen:
    """The same weights, (N, …) or (…) for all samples, whatever the output is: what a target chose in other inputs."""
    rows = torch.as_tensor(weights)
    return Chosen("fixed", lambda output, valid: rows.to(output).expand(output.shape))


def from_one(chosen: Chosen) -> Chosen:
    """The same target for the seed "one": relevance starts at each element with its part of the number, 1 in all.

    So that heatmaps of numbers of either sign can be added up and compared, also those of a model with other weights.
    """

    def weights(output: Tensor, valid: Valid) -> Tensor:
        counts = chosen.weights(output, valid)
        parts = counts * output
        total = parts.flatten(1).sum(dim=1).reshape(-1, *[1] * (output.ndim - 1))
        return torch.where(total == 0, counts, parts / total)

    return Chosen(chosen.text, weights)


def pooled(output: Tensor, valid: Valid = None) -> Tensor:
    """Embeddings (N, D) from (N, D), or from (N, T, D) their mean over the positions that are no padding."""
    if output.ndim == 2:
        return output
    if output.ndim != 3:
        raise TargetError(f"embeddings are (N, D) or (N, T, D); this output is {tuple(output.shape)}")
    real = _positions(output, valid).to(output)[:, :, None]
    return (output * real).sum(dim=1) / real.sum(dim=1).clamp_min(1)


def parse(
    text: str, names: Sequence[str] | None = None, embed: Callable[[Path], np.ndarray] | None = None
) -> Literal["predicted", "label", "worst"] | int | Chosen:
    """A target from its text: predicted, label, worst, a number, the name of a class, or NAME:ARGUMENTS of `TARGETS`.

    Parameters
    ----------
    text : str
    names : sequence of str, optional
        Of the classes, or the regressed numbers, by index.
    embed : callable, optional
        Gives the embedding (D,) of a picture or text file, for references that are no .npy file.

    Raises
    ------
    TargetError
        With what could have been given.
    """
    if text in PLAIN:
        return text  # type: ignore[return-value]
    if text.lstrip("-").isdecimal():
        return int(text)
    if names is not None and text in names:
        return list(names).index(text)
    name, _, rest = text.partition(":")
    if name not in TARGETS:
        known = [*PLAIN, "a number", *(["the name of a class"] if names else [])]
        raise TargetError(
            f"target '{text}' is not known; expected {', '.join(known)}, {', '.join(n.usage for n in TARGETS.values())}"
        )
    named = TARGETS[name]
    parts = [part.strip() for part in rest.split(",") if part.strip()]
    given = dict(part.split("=", 1) for part in parts if "=" in part)
    given = {"class_" if key == "class" else key: value for key, value in given.items()}
    try:
        bound = inspect.signature(named.build).bind(*(part for part in parts if "=" not in part), **given)
    except TypeError:
        raise TargetError(f"target '{text}': expected {named.usage} – {named.meaning}") from None
    kinds = {"class_": lambda t: _class_number(t, names), "mask": read_mask, "reference": lambda t: _read(t, embed)}
    kinds |= {"measure": str, "which": lambda t: t if t == "best" else int(t)}
    arguments = {key: value for key, value in bound.arguments.items() if isinstance(value, str)}
    try:
        for key, value in arguments.items():
            bound.arguments[key] = kinds.get(key, int)(value)
        if "place" in bound.arguments and isinstance(bound.arguments["place"], tuple):
            bound.arguments["place"] = tuple(map(int, bound.arguments["place"]))
    except ValueError:
        raise TargetError(f"target '{text}': expected {named.usage} – {named.meaning}") from None
    chosen = named.build(*bound.args, **bound.kwargs)
    return Chosen(text, chosen.weights)


def read_mask(path: str) -> np.ndarray:
    """Pixels that count, bool (h, w), from a picture (not black) or an .npy file (not 0).

    Raises
    ------
    DataError
        When it cannot be read.
    """
    from PIL import Image

    try:
        if Path(path).suffix.lower() == ".npy":
            return np.load(path, allow_pickle=False) > 0
        with Image.open(path) as image:
            return np.asarray(image.convert("L")) > 0
    except (OSError, ValueError) as error:
        raise DataError(f"mask {path}: cannot be read ({error}); expected a picture or an .npy file") from error


def _read(text: str, embed: Callable[[Path], np.ndarray] | None) -> np.ndarray:
    path = Path(text)
    if not path.is_file():
        raise DataError(f"reference {path}: no such file; expected an .npy file, a picture or a text")
    if path.suffix.lower() != ".npy":
        if embed is None:
            raise DataError(f"reference {path}: expected an .npy file with the embedding")
        return embed(path)
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"reference {path}: cannot be read ({error})") from error


def _class_number(text: str, names: Sequence[str] | None) -> int:
    return list(names).index(text) if names is not None and text in names else int(text)


def _class(number: int, count: int, text: str, output: Tensor, what: str = "class") -> Tensor:
    """One number for all samples, having made sure that there is such a class."""
    if not -count <= number < count:
        raise TargetError(f"target '{text}': {what} {number} is outside of 0 to {count - 1}")
    return torch.full((len(output),), number % count, device=output.device)


def _positions(output: Tensor, valid: Valid) -> Tensor:
    """Positions of an output (N, T, …) that are no padding, bool (N, T)."""
    if valid is None or valid.shape != output.shape[:2]:
        return torch.ones(output.shape[:2], dtype=torch.bool, device=output.device)
    return valid.to(output.device) > 0


def _ones_at(output: Tensor, place: Sequence[Tensor]) -> Tensor:
    result = torch.zeros_like(output)
    rows = torch.arange(len(output), device=output.device)
    result[(rows, *(at.to(output.device) for at in place))] = 1.0
    return result


def _stretched(mask: np.ndarray, size: Sequence[int]) -> Tensor:
    rows, columns = (
        torch.arange(wanted) * there // wanted for wanted, there in zip(size, mask.shape, strict=True)
    )  # nearest
    return torch.from_numpy(mask)[rows][:, columns]


def _join(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))
