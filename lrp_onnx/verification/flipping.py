"""Does what a heatmap marks matter to the model: flip it to noise, and watch the score against random order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.debug.evaluation_verdicts import Verdict, removal_verdict
from lrp_onnx.debug.faithfulness import (
    REGION,
    Classifier,
    Curve,
    Images,
    Ranks,
    Score,
    pixel_flipping,
    random_ranks,
    relevance_ranks,
    removal_curve,
    road,
)
from lrp_onnx.engine import Explainer
from lrp_onnx.verification.relevance import Targets, values_of, walk
from lrp_onnx.verification.report import Check, Judgement
from lrp_onnx.verification.samples import Samples

STEPS = 10  # of a curve


def check_faithfulness(
    explainer: Explainer,
    samples: Samples,
    targets: Targets,
    *,
    classes: bool,
    seed: int = 0,
    progress: Callable[[int, int], None],
) -> Check:
    """Pixels (or numbers, where the input is no picture) become noise, the most relevant first, or in random order.

    What should fall is the probability of the explained class, or else (`classes` is False) the number explained.
    Where that is no worse than chance, once more with what their surroundings let expect (ROAD), or, of other inputs,
    the mean of the samples, for noise may be what the model looks for.
    """
    if samples.random:
        return _skip("needs DATA: how a model takes noise says nothing of its heatmaps")
    if len(samples.arrays) != 1:
        return _skip(f"the model has {len(samples.arrays)} inputs; it is for one")
    if explainer.plan.ids.intersection(samples.arrays):
        return _skip("the input holds ids; there is no noise between them")
    flipping = _Flipping(explainer, samples, targets, classes, seed, progress)
    if not flipping.rows:
        return _skip("the explained numbers are 0, which cannot fall")
    noisy = flipping.verdict("flipping")
    if noisy.judgement == "good":
        return Check("faithfulness", "pass", noisy.sentence, noisy.numbers)
    # noise is no neutral value: on a dark ground it covers whatever it hits, the strokes of a digit least of all
    calm = flipping.verdict("road" if flipping.of_pictures else "deletion")
    numbers = {**noisy.numbers, **{f"neutral_{name}": number for name, number in calm.numbers.items()}}
    found = {noisy.judgement, calm.judgement}
    judgement: Judgement = "pass" if calm.judgement == "good" else "fail" if found == {"bad"} else "warn"
    return Check("faithfulness", judgement, f"{calm.sentence}; {noisy.sentence}", numbers)


@dataclass(eq=False)
class _Flipping:
    """Samples as pictures (n, C, H, W), and their heatmaps; what is no picture is a row of pixels."""

    explainer: Explainer
    samples: Samples
    targets: Targets
    classes: bool
    seed: int
    progress: Callable[[int, int], None]

    def __post_init__(self) -> None:
        (array,) = self.samples.arrays.values()
        self.inputs = np.asarray(array[: self.samples.count], dtype=np.float32)
        self.of_pictures = self.inputs.ndim == 4
        self.last = self.of_pictures and self.samples.channels_last
        self.pictures = self._as_pictures(self.inputs)
        self.classifier = Classifier(
            self.explainer.graph,
            output=self.explainer.output,
            channels_last=self.last,
            batch_size=self.samples.batch,
        )

    def _as_pictures(self, values: Images) -> Images:
        if not self.of_pictures:
            return values.reshape(len(values), 1, 1, -1)
        return np.moveaxis(values, -1, 1) if self.last else values

    def _as_inputs(self, pictures: Images) -> Images:
        return pictures if self.of_pictures else pictures.reshape(len(pictures), *self.inputs.shape[1:])

    @cached_property
    def outputs(self) -> NDArray[np.float64]:
        """(n, elements)"""
        return self.classifier.outputs(self._as_inputs(self.pictures)).reshape(len(self.inputs), -1)

    @cached_property
    def numbers(self) -> NDArray[np.float64]:
        """What was explained of each sample, (n,)."""
        return values_of(self.outputs, self.targets[: len(self.inputs)])

    @cached_property
    def rows(self) -> list[int]:
        """The samples that have a score to fall."""
        return [row for row, number in enumerate(self.numbers) if self.classes or number]

    @cached_property
    def heatmaps(self) -> NDArray[np.float64]:
        """(n, H, W)"""
        found = walk(self.explainer, self.samples, self.targets, seed="auto").relevance[: len(self.inputs)]
        return np.asarray(self._as_pictures(found.reshape(self.inputs.shape)).sum(axis=1))

    @cached_property
    def bounds(self) -> NDArray[np.float64]:
        """Lowest and highest value of each channel, (2, C): what preprocessing allows, or what the samples have."""
        if self.samples.preprocess is not None:
            return np.array(self.samples.preprocess.bounds(), dtype=np.float64)
        ends = [self.pictures.min(axis=(0, 2, 3)), self.pictures.max(axis=(0, 2, 3))]
        return np.stack(ends).astype(np.float64)

    def verdict(self, metric: Literal["flipping", "road", "deletion"]) -> Verdict:
        curves: dict[str, list[Curve]] = {"most": [], "random": []}
        for done, row in enumerate(self.rows, start=1):
            heatmap, (probability, against) = self.heatmaps[row], self._explained(row)
            score: Score = partial(self._score, probability)
            edge = max(1, round(REGION * min(heatmap.shape))) if metric == "flipping" else 1
            ties = np.random.default_rng((self.seed, row))
            ranks = {
                "most": relevance_ranks(-heatmap if against else heatmap, region=edge, random=ties),
                "random": random_ranks((heatmap.shape[0], heatmap.shape[1]), ties, region=edge),
            }
            for order, first in ranks.items():
                curves[order].append(self._curve(metric, score, row, first))
            self.progress(done, len(self.rows))
        return removal_verdict(metric, curves)

    def _explained(self, row: int) -> tuple[Score, bool]:
        """The score that should fall, and whether relevance below 0 speaks for it."""
        target = self.targets[row]
        if self.classes:
            against = bool(self.outputs.shape[1] == 1 and self.numbers[row] < 0)
            return self.classifier.score(int(target), against=against), against
        negative = bool(self.numbers[row] < 0)
        weights = np.eye(1, self.outputs.shape[1], int(target))[0] if self.targets.dtype.kind == "i" else target
        return self.classifier.number(weights, negative=negative), negative

    def _score(self, probability: Score, pictures: Images) -> NDArray[np.float64]:
        return probability(self._as_inputs(pictures))

    def _curve(self, metric: str, score: Score, row: int, ranks: Ranks) -> Curve:
        picture, random = self.pictures[row], np.random.default_rng((self.seed, row, 1))
        if metric == "flipping":
            return pixel_flipping(score, picture, ranks, random, bounds=self.bounds, steps=STEPS)
        if metric == "road":
            return road(score, picture, ranks, random)
        mean = self.pictures.mean(axis=0)  # of the samples: what a number of a row is without knowing anything
        return removal_curve(score, picture, ranks, mean, np.linspace(0, 1, STEPS + 1))


def _skip(reason: str) -> Check:
    return Check("faithfulness", "skip", reason)
