"""Is a heatmap faithful: what the model's score does when pixels go, or come, in the order of their relevance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from lrp_onnx.debug.imputation import NOISE, impute
from lrp_onnx.errors import DataError
from lrp_onnx.forward import make_forward
from lrp_onnx.graph import Graph

Images = NDArray[np.floating]  # (n, C, H, W)
Image = NDArray[np.floating]  # (C, H, W)
Floats = NDArray[np.float64]
Ranks = NDArray[np.int64]  # (H, W)
Score = Callable[[Images], Floats]  # of pictures, (n, C, H, W), one number each, (n,)
Inputs = Images | Mapping[str, NDArray[np.generic]]  # pictures, or all that a model takes by name, each (n, …)
First = Literal["most", "least"]

STEPS = 20
ROAD_FRACTIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)  # of the paper
REGION = 9 / 227  # edge of what pixel flipping flips at once, of the picture's: that of Samek et al.
BLUR = 5 / 224  # standard deviation of insertion's first picture, of the picture's edge: that of Petsiuk et al.


class Classifier:
    """A model as the metrics call it: pictures channels first in, probability of a class out, or another number.

    What takes pictures also takes every input of the model by name, as the model has it: there may be several, of any
    kind.

    Parameters
    ----------
    graph : Graph
    output : str, optional
        The first by default.
    channels_last : bool
        The model takes (N, H, W, C).
    batch_size : int
        Pictures at a time, if the model leaves it free.
    """

    def __init__(
        self, graph: Graph, *, output: str | None = None, channels_last: bool = False, batch_size: int = 16
    ) -> None:
        self.graph, self.channels_last = graph, channels_last
        self.output = output or next(iter(graph.outputs))
        self._fixed = graph.batch
        self._batch = self._fixed or batch_size
        cut = graph.cuts.get(self.output)
        self._each = cut is not None and cut.op_type == "Sigmoid"  # every output is a probability by itself
        self._forward = make_forward(graph, [self.output], torch.float32, torch.device("cpu"))

    def outputs(self, images: Inputs) -> Floats:
        """The model's output (n, …), in front of a last Softmax or Sigmoid, for pictures (n, C, H, W).

        Raises
        ------
        DataError
            The model has several inputs, and they are not given by name.
        """
        given = images if isinstance(images, Mapping) else self._by_name(images)
        count, found = max(len(values) for values in given.values() if values.ndim), []
        for start in range(0, count, self._batch):
            part = {name: self._full(v[start : start + self._batch]) if v.ndim else v for name, v in given.items()}
            tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in part.items()}
            found.append(self._forward(tensors)[self.output].numpy()[: count - start])
        return np.concatenate(found).astype(np.float64)

    def _by_name(self, images: Images) -> dict[str, NDArray[np.generic]]:
        if len(self.graph.inputs) != 1:
            raise DataError(f"{self.graph.name} has {len(self.graph.inputs)} inputs; expected one, a picture")
        values = np.moveaxis(images, 1, -1) if self.channels_last else images
        return {next(iter(self.graph.inputs)): values.astype(np.float32)}

    def _full(self, part: NDArray[np.generic]) -> NDArray[np.generic]:
        """A whole batch, where the model takes no other: the last picture again."""
        missing = (self._fixed or 0) - len(part)
        return part if missing <= 0 else np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])

    def logits(self, images: Inputs) -> Floats:
        """The same of a model that tells classes apart, (n, K); DataError for another."""
        outputs = self.outputs(images)
        if outputs.ndim != 2:
            raise DataError(f"{self.graph.name}: output '{self.output}' has shape {outputs.shape}; expected (N, K)")
        return outputs

    def number(self, weights: NDArray[np.floating], *, negative: bool = False) -> Callable[[Inputs], Floats]:
        """Σ weights · output, as a function of pictures: what heatmaps explain that are of no class.

        Parameters
        ----------
        weights : (…)
            Shaped as the output of one picture.
        negative : bool
            The number of the unchanged picture is below 0, and what made it so is looked for: give the opposite.
        """
        flat = (-1 if negative else 1) * np.asarray(weights, dtype=np.float64).ravel()

        def explained(images: Inputs) -> Floats:
            outputs = self.outputs(images)
            return np.asarray(outputs.reshape(len(outputs), -1) @ flat)

        return explained

    def score(self, target: int, *, against: bool = False) -> Callable[[Inputs], Floats]:
        """The probability of one class, as a function of pictures.

        Softmax over the outputs; sigmoid where the model ends in one, or has one output.

        Parameters
        ----------
        target : int
        against : bool
            Of a model with one output: the probability that the class is not there.
        """

        def probability(images: Inputs) -> Floats:
            logits = self.logits(images)
            chosen = logits[:, target]
            if self._each or logits.shape[1] == 1:
                return np.asarray(1 / (1 + np.exp(np.clip(chosen if against else -chosen, -700, 700))))
            top = logits.max(axis=1)
            return np.asarray(np.exp(chosen - top) / np.exp(logits - top[:, None]).sum(axis=1))

        return probability


@dataclass(frozen=True, eq=False)
class Curve:
    """The score over the share of pixels that went (for insertion: came); both (m,)."""

    fractions: Floats
    scores: Floats

    @property
    def area(self) -> float:
        """Mean score along the curve (trapezoids), over the shares that it covers."""
        widths = np.diff(self.fractions)
        return float((self.scores[1:] + self.scores[:-1]) / 2 @ widths / widths.sum())

    @property
    def aopc(self) -> float:
        """Area over the perturbation curve: mean of the first score minus each (Samek et al. 2017, eq. 12)."""
        return float(np.mean(self.scores[0] - self.scores))

    def loss_at(self, fraction: float) -> float:
        """Share of the first score that is gone when `fraction` of the pixels is."""
        return float(1 - np.interp(fraction, self.fractions, self.scores) / self.scores[0])


def relevance_ranks(
    heatmap: ArrayLike, *, first: First = "most", region: int = 1, random: np.random.Generator | None = None
) -> Ranks:
    """The order in which pixels go: 0 for the first.

    Parameters
    ----------
    heatmap : (H, W)
    first : {"most", "least"}
        Relevant.
    region : int
        Edge in pixels of squares that go at once, by their mean relevance; those at the right and lower edge may be
        smaller.
    random : numpy Generator, optional
        Breaks ties, which otherwise go in the order of reading.

    Returns
    -------
    int64 (H, W)
        Equal within a square.
    """
    values = np.asarray(heatmap, dtype=np.float64)
    height, width = values.shape
    cells = squares((height, width), region)
    return place_ranks(means_of(values, cells), first=first, random=random)[cells]


def squares(shape: tuple[int, int], region: int) -> Ranks:
    """The number of the square of `region` pixels' edge that each pixel is in, int64 (H, W)."""
    rows, columns = np.arange(shape[0]) // region, np.arange(shape[1]) // region
    return np.asarray(rows[:, None] * (columns[-1] + 1) + columns)


def means_of(values: Floats, cells: Ranks) -> Floats:
    """The mean of each cell, (P,), of values shaped as `cells`, which number them."""
    return np.asarray(np.bincount(cells.ravel(), values.ravel()) / np.bincount(cells.ravel()))


def place_ranks(
    relevance: Floats, *, first: First = "most", random: np.random.Generator | None = None
) -> NDArray[np.int64]:
    """`relevance_ranks` of places of any kind: the order in which they go by their relevance, both (P,)."""
    shuffled = np.arange(len(relevance)) if random is None else random.permutation(len(relevance))
    order = shuffled[np.argsort((-relevance if first == "most" else relevance)[shuffled], kind="stable")]
    rank = np.empty(len(relevance), dtype=np.int64)
    rank[order] = np.arange(len(relevance))
    return rank


def random_ranks(shape: tuple[int, int], random: np.random.Generator, *, region: int = 1) -> Ranks:
    """The baseline of every metric: the same squares in an order that knows nothing."""
    return relevance_ranks(np.zeros(shape), region=region, random=random)


def removal_curve(
    score: Score, image: Image, ranks: Ranks, fill: Image | Callable[[NDArray[np.bool_]], Image], fractions: ArrayLike
) -> Curve:
    """Scores of a picture with the first shares of its pixels replaced.

    Parameters
    ----------
    score : callable
        Such as `Classifier.score` or `Classifier.number` gives.
    image : (C, H, W)
    ranks : int (H, W)
        Of `relevance_ranks`.
    fill : (C, H, W) or callable
        The picture whose pixels come instead; or from a bool (H, W), what is replaced, to the finished picture.
    fractions : (m,)
        Shares of the ranks, ascending from 0.
    """
    shares = np.asarray(fractions, dtype=np.float64)
    pictures = [fill(gone) if callable(fill) else np.where(gone, fill, image) for gone in gone_at(shares, ranks)]
    return Curve(shares, np.asarray(score(np.stack(pictures)), dtype=np.float64))


def gone_at(shares: Floats, ranks: NDArray[np.int64]) -> Iterator[NDArray[np.bool_]]:
    """What is gone at each share: the first ranks, as bools of their shape."""
    count = int(ranks.max()) + 1
    return (ranks < round(share * count) for share in shares.tolist())


def pixel_flipping(
    score: Score, image: Image, ranks: Ranks, random: np.random.Generator, *, bounds: Image, steps: int = STEPS
) -> Curve:
    """Pixels become uniform noise, the first ranks first (Bach et al. 2015; Samek et al. 2017, arXiv:1509.06321).

    Samek et al. flip squares of 9 x 9 of 227 x 227 pixels: give `relevance_ranks` that region. The lower the curve for
    the most relevant first, the better; `Curve.aopc` sums it up.

    Parameters
    ----------
    score, image, ranks
        As `removal_curve`.
    random : numpy Generator
        Of the noise. Curves to be compared should get equal ones.
    bounds : (2, C)
        Lowest and highest value of each channel.
    steps : int
        The curve has one point more.
    """
    low, high = (np.asarray(bound, dtype=np.float64)[:, None, None] for bound in bounds)
    noise = random.uniform(low, high, image.shape)
    return removal_curve(score, image, ranks, noise, np.linspace(0, 1, steps + 1))


def road(
    score: Score, image: Image, ranks: Ranks, random: np.random.Generator | None = None, *, noise: float = NOISE
) -> Curve:
    """Pixels become what their surroundings let expect: ROAD (Rong et al. 2022, arXiv:2202.00449).

    Noisy linear imputation (`impute`) leaves no edges by which a mask, rather than what is missing, would change the
    score. Most relevant first, lower is better; least relevant first, higher. Points at `ROAD_FRACTIONS`. Rong et al.
    follow the accuracy of many pictures; here it is the score of one.
    """
    return removal_curve(
        score, image, ranks, lambda gone: impute(image, gone, noise=noise, random=random), ROAD_FRACTIONS
    )


def deletion(score: Score, image: Image, ranks: Ranks, *, steps: int = STEPS) -> Curve:
    """Pixels become the picture's mean colour; `Curve.area` is the deletion AUC, the lower the better.

    Petsiuk et al. 2018 (RISE, arXiv:1806.07421) take 0, the mean colour of all pictures that are normalised to it.
    """
    mean = np.broadcast_to(image.mean(axis=(1, 2), keepdims=True), image.shape)
    return removal_curve(score, image, ranks, mean, np.linspace(0, 1, steps + 1))


def insertion(score: Score, image: Image, ranks: Ranks, *, steps: int = STEPS) -> Curve:
    """Pixels come back into a blurred picture; `Curve.area` is the insertion AUC, the higher the better (ibid.)."""
    from scipy.ndimage import gaussian_filter

    deviation = max(1.0, BLUR * min(image.shape[1:]))
    blurred = gaussian_filter(np.asarray(image, dtype=np.float64), (0, deviation, deviation))
    return removal_curve(score, blurred, ranks, image, np.linspace(0, 1, steps + 1))


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of curves over the same shares."""
    return Curve(curves[0].fractions, np.mean([curve.scores for curve in curves], axis=0))
