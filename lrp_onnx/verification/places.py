"""Inputs as places that go one after the other: the squares of a picture, numbers, the words among token ids."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.data.texts import Vocabulary, role_of
from lrp_onnx.debug.faithfulness import REGION, means_of, squares
from lrp_onnx.debug.imputation import impute
from lrp_onnx.engine import Explainer
from lrp_onnx.verification.samples import Samples, table_sizes

Floats = NDArray[np.float64]
Gone = NDArray[np.bool_]  # (P,): the places that went
Filler = Literal["noise", "neutral"]  # what comes instead
Replace = Callable[[Gone], NDArray[np.generic]]  # one sample of the input, without what went


class Places(ABC):
    """One input of a model, cut into places.

    Parameters
    ----------
    name : str
        Of the input.
    values, relevance : (n, …)
        Of all samples.
    """

    kind: Literal["picture", "numbers", "tokens"]

    def __init__(self, name: str, values: NDArray[np.generic], relevance: Floats) -> None:
        self.name, self.values, self._relevance = name, values, relevance

    @abstractmethod
    def relevance(self, row: int, filler: Filler) -> Floats:
        """Of each place of a sample, (P,)."""

    @abstractmethod
    def replace(self, row: int, filler: Filler, random: np.random.Generator) -> Replace:
        """How a sample looks when places are gone."""


class Picture(Places):
    """Pictures: squares become noise, as Samek et al. 2017 flip them; pixels what surrounds them (ROAD)."""

    kind = "picture"

    def __init__(self, name: str, values: NDArray[np.generic], relevance: Floats, samples: Samples) -> None:
        super().__init__(name, values, relevance)
        self._last, pictures = samples.channels_last, np.asarray(values, dtype=np.float64)
        self._pictures = np.moveaxis(pictures, -1, 1) if self._last else pictures  # (n, C, H, W)
        self._heatmaps = relevance.sum(axis=-1 if self._last else 1)
        self._bounds = np.stack([self._pictures.min(axis=(0, 2, 3)), self._pictures.max(axis=(0, 2, 3))])
        if samples.preprocess is not None:  # what every picture may have
            allowed = np.array(samples.preprocess.bounds(), dtype=np.float64)
            self._bounds = allowed if allowed.shape == self._bounds.shape else self._bounds

    def relevance(self, row: int, filler: Filler) -> Floats:
        # that of a whole square, so that places at the edge, or of other inputs, can be held against it
        return means_of(self._heatmaps[row], self._cells(filler)) * self._edge(filler) ** 2

    def replace(self, row: int, filler: Filler, random: np.random.Generator) -> Replace:
        picture, cells = self._pictures[row], self._cells(filler)
        if filler == "noise":
            low, high = self._bounds[:, :, None, None]
            noise = random.uniform(low, high, picture.shape)
            return lambda gone: self._as_input(np.where(gone[cells], noise, picture))
        mean = picture.mean(axis=(1, 2), keepdims=True)

        def calm(gone: Gone) -> NDArray[np.generic]:
            whole = bool(gone.all())  # nothing is left to surround it; there are other inputs
            filled = np.broadcast_to(mean, picture.shape) if whole else impute(picture, gone[cells], random=random)
            return self._as_input(filled)

        return calm

    def _edge(self, filler: Filler) -> int:
        return max(1, round(REGION * min(self._heatmaps.shape[1:]))) if filler == "noise" else 1

    def _cells(self, filler: Filler) -> NDArray[np.int64]:
        return squares((self._heatmaps.shape[1], self._heatmaps.shape[2]), self._edge(filler))

    def _as_input(self, picture: Floats) -> NDArray[np.generic]:
        return _like(self.values, np.moveaxis(picture, 0, -1) if self._last else picture)


class Numbers(Places):
    """Numbers of any shape: each becomes noise between the ends of the samples, or the mean of the samples."""

    kind = "numbers"

    def __init__(self, name: str, values: NDArray[np.generic], relevance: Floats) -> None:
        super().__init__(name, values, relevance)
        self._floats = np.asarray(values, dtype=np.float64)
        columns = 0 if values.ndim == 2 and len(values) > 1 else None  # a table's columns have ranges of their own
        self._bounds = self._floats.min(axis=columns), self._floats.max(axis=columns)

    def relevance(self, row: int, filler: Filler) -> Floats:
        return self._relevance[row].ravel()

    def replace(self, row: int, filler: Filler, random: np.random.Generator) -> Replace:
        kept = self._floats[row]
        other = random.uniform(*self._bounds, kept.shape) if filler == "noise" else self._floats.mean(axis=0)
        return lambda gone: _like(self.values, np.where(gone.reshape(kept.shape), other, kept))


class Tokens(Places):
    """Token ids: words become random ones, or a token that says nothing; what stands for no word stays where it is.

    Tokens cannot be removed from inputs of a fixed length, as DeYoung et al. 2020 (ERASER, arXiv:1911.03429) do for
    comprehensiveness: a neutral token comes in their place.

    Parameters
    ----------
    name, values, relevance
        See `Places`; relevance is that of the rows which the ids pick.
    words : bool, shaped as values
        Where there is a word, and no padding.
    size : int or None
        Ids that the model has; those of the samples, where that is not known.
    vocabulary : Vocabulary or None
    """

    kind = "tokens"

    def __init__(
        self,
        name: str,
        values: NDArray[np.generic],
        relevance: Floats,
        words: NDArray[np.bool_],
        size: int | None,
        vocabulary: Vocabulary | None,
    ) -> None:
        super().__init__(name, values, relevance)
        special = [] if vocabulary is None else sorted(vocabulary.special)
        self._words = words & ~np.isin(values, special)
        self._all = np.setdiff1d(np.unique(values) if size is None else np.arange(size), special)
        self.neutral = None if vocabulary is None else vocabulary.neutral

    def relevance(self, row: int, filler: Filler) -> Floats:
        return self._relevance[row][self._words[row]]

    def replace(self, row: int, filler: Filler, random: np.random.Generator) -> Replace:
        kept, words = np.asarray(self.values[row]), self._words[row]
        if filler == "neutral" and self.neutral is not None:
            others: NDArray[Any] = np.full(int(words.sum()), self.neutral[1])
        else:
            others = random.choice(self._all if filler == "noise" else self._elsewhere(row), int(words.sum()))

        def replaced(gone: Gone) -> NDArray[np.generic]:
            result = kept.copy()
            result[words] = np.where(gone, others, kept[words])
            return result

        return replaced

    def _elsewhere(self, row: int) -> NDArray[np.generic]:
        """The words of the other samples, each as often as it is there; those of all, where there is one sample."""
        others = np.arange(len(self.values)) != row
        found = self.values[others][self._words[others]]
        return found if found.size else self.values[self._words]


def places_of(explainer: Explainer, samples: Samples, by_input: Mapping[str, Floats]) -> list[Places]:
    """The inputs that have relevance, as places.

    Masks stay as they are, and so do token types and positions: they say which of the other input counts, and where.
    """
    found: list[Places] = []
    arrays = {name: values[: samples.count] for name, values in samples.arrays.items() if values.ndim}
    tables = table_sizes(explainer.graph, explainer.output)
    vocabulary = None if samples.vocabulary is None else Vocabulary.read(samples.vocabulary)
    masks = [values != 0 for name, values in arrays.items() if role_of(name) == "mask"]
    content = [name for name in by_input if by_input[name].any() and role_of(name) == "ids"]
    for name in content or by_input:
        values, relevance = arrays[name], by_input[name][: samples.count]
        if name in explainer.plan.ids:
            words = np.ones(values.shape, bool)
            for mask in masks:
                if mask.shape == words.shape:
                    # of some models it calls padding what others call words: relevance is at the words
                    words &= ~mask if not relevance[mask].any() and relevance[~mask].any() else mask
            found.append(Tokens(name, values, relevance, words, tables.get(name), vocabulary))
        elif values.ndim == 4:
            found.append(Picture(name, values, relevance, samples))
        else:
            found.append(Numbers(name, values, relevance))
    return found


def _like(values: NDArray[np.generic], floats: Floats) -> NDArray[np.generic]:
    """Floats in the type of an input."""
    return (np.rint(floats) if values.dtype.kind in "iu" else floats).astype(values.dtype)
