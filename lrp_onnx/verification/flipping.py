"""Does what a heatmap marks matter to the model: put something else there, and watch the score against random order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.debug.evaluation_verdicts import Verdict, removal_verdict
from lrp_onnx.debug.faithfulness import ROAD_FRACTIONS, Classifier, Curve, Inputs, gone_at, place_ranks
from lrp_onnx.engine import Explainer
from lrp_onnx.verification.places import Filler, Places, Tokens, places_of
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
    """Squares, numbers and tokens become noise, the most relevant of all inputs first, or in random order.

    What should fall is the probability of the explained class, or else (`classes` is False) the number explained.
    Where that is no worse than chance, once more with what says nothing in their place, for noise may be what the model
    looks for: what surrounds a pixel (ROAD), the mean of the samples, a mask token. The mean fall along the curve is
    the AOPC of Samek et al. 2017 and, of tokens, the comprehensiveness of DeYoung et al. 2020; Achtibat et al. 2024
    compare explanations of transformers by such curves.
    """
    if samples.random:
        return _skip("needs DATA: how a model takes noise says nothing of its heatmaps")
    flipping = _Flipping(explainer, samples, targets, classes, seed, progress)
    if not flipping.numbers.any() and not classes:
        return _skip("the explained numbers are 0, which cannot fall")
    if not flipping.rows:
        return _skip("the samples hold padding and special tokens alone; there is no word to replace")
    noisy = flipping.verdict("noise")
    if noisy.judgement == "good":
        return Check("faithfulness", "pass", noisy.sentence, noisy.numbers)
    # noise is no neutral value: on a dark ground it covers whatever it hits, the strokes of a digit least of all
    calm = flipping.verdict("neutral")
    numbers = {**noisy.numbers, **{f"neutral_{name}": number for name, number in calm.numbers.items()}}
    found = {noisy.judgement, calm.judgement}
    judgement: Judgement = "pass" if calm.judgement == "good" else "fail" if found == {"bad"} else "warn"
    return Check("faithfulness", judgement, f"{calm.sentence}; {noisy.sentence}", numbers)


@dataclass(eq=False)
class _Flipping:
    """Samples whose places go, over all inputs that have relevance: ranked together, as relevance adds up over them."""

    explainer: Explainer
    samples: Samples
    targets: Targets
    classes: bool
    seed: int
    progress: Callable[[int, int], None]

    def __post_init__(self) -> None:
        count = self.samples.count
        self.arrays = {name: a[:count] if a.ndim else a for name, a in self.samples.arrays.items()}
        self.classifier = Classifier(self.explainer.graph, output=self.explainer.output, batch_size=self.samples.batch)

    @cached_property
    def outputs(self) -> NDArray[np.float64]:
        """(n, elements)"""
        return self.classifier.outputs(self.arrays).reshape(self.samples.count, -1)

    @cached_property
    def numbers(self) -> NDArray[np.float64]:
        """What was explained of each sample, (n,)."""
        return values_of(self.outputs, self.targets[: self.samples.count])

    @cached_property
    def rows(self) -> list[int]:
        """The samples that have a score to fall, and something to go."""
        scored = [row for row, number in enumerate(self.numbers) if self.classes or number]
        return [row for row in scored if any(one.relevance(row, "noise").size for one in self.inputs)]

    @cached_property
    def inputs(self) -> list[Places]:
        found = walk(self.explainer, self.samples, self.targets, seed="auto").by_input
        return places_of(self.explainer, self.samples, found)

    def verdict(self, filler: Filler) -> Verdict:
        curves: dict[str, list[Curve]] = {"most": [], "random": []}
        for done, row in enumerate(self.rows, start=1):
            score, against = self._explained(row)
            relevance = [one.relevance(row, filler) for one in self.inputs]
            ends = np.cumsum([len(one) for one in relevance])[:-1]
            together, ties = np.concatenate(relevance), np.random.default_rng((self.seed, row))
            for order, values in (("most", -together if against else together), ("random", np.zeros_like(together))):
                ranks = place_ranks(values, random=ties)
                curves[order].append(self._curve(filler, score, row, ranks, ends))
            self.progress(done, len(self.rows))
        return removal_verdict(self._metric(filler), curves, _in_words(self.inputs, filler))

    def _explained(self, row: int) -> tuple[Callable[[Inputs], NDArray[np.float64]], bool]:
        """The score that should fall, and whether relevance below 0 speaks for it."""
        target = self.targets[row]
        if self.classes:
            against = bool(self.outputs.shape[1] == 1 and self.numbers[row] < 0)
            return self.classifier.score(int(target), against=against), against
        negative = bool(self.numbers[row] < 0)
        weights = np.eye(1, self.outputs.shape[1], int(target))[0] if self.targets.dtype.kind == "i" else target
        return self.classifier.number(weights, negative=negative), negative

    def _metric(self, filler: Filler) -> str:
        if filler == "noise":
            return "flipping"
        return "road" if any(one.kind == "picture" for one in self.inputs) else "deletion"

    def _curve(
        self,
        filler: Filler,
        score: Callable[[Inputs], NDArray[np.float64]],
        row: int,
        ranks: NDArray[np.int64],
        ends: NDArray[np.intp],
    ) -> Curve:
        """The score of one sample while the places of its inputs go; `ends` tell which are of which input."""
        random = np.random.default_rng((self.seed, row, 1))
        replace = {one.name: one.replace(row, filler, random) for one in self.inputs}
        shares = np.array(ROAD_FRACTIONS) if self._metric(filler) == "road" else np.linspace(0, 1, STEPS + 1)
        changed: dict[str, list[NDArray[np.generic]]] = {name: [] for name in replace}
        for gone in gone_at(shares, ranks):
            for name, of_input in zip(replace, np.split(gone, ends), strict=True):
                changed[name].append(replace[name](of_input))
        return Curve(shares, score({**self._unchanged(row, len(shares)), **_stacked(changed)}))

    def _unchanged(self, row: int, times: int) -> dict[str, NDArray[np.generic]]:
        return {name: np.repeat(a[row : row + 1], times, axis=0) if a.ndim else a for name, a in self.arrays.items()}


def _stacked(changed: Mapping[str, Sequence[NDArray[np.generic]]]) -> dict[str, NDArray[np.generic]]:
    return {name: np.stack(values) for name, values in changed.items()}


def _in_words(inputs: Sequence[Places], filler: Filler) -> str:
    """What is done, where the input is no one picture."""
    if len(inputs) > 1:
        noise = "flipping the {first} {share} of all inputs to noise"
        return noise if filler == "noise" else "replacing the {first} {share} of all inputs by neutral values"
    (one,) = inputs
    if isinstance(one, Tokens):
        calm = "those of other samples" if one.neutral is None else one.neutral[0]
        return f"replacing the {{first}} {{share}} of the tokens by {'random ones' if filler == 'noise' else calm}"
    return "flipping the {first} {share} of the numbers to noise" if (one.kind, filler) == ("numbers", "noise") else ""


def _skip(reason: str) -> Check:
    return Check("faithfulness", "skip", reason)
