"""What an evaluation's numbers say, in one plain sentence for each metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.debug.faithfulness import Curve, mean_curve
from lrp_onnx.debug.randomisation import Randomised

Floats = NDArray[np.float64]
Judgement = Literal["good", "bad", "undecided", ""]

SHARE = 0.2  # of the pixels, in the sentences
LEVEL = 0.05  # of significance
STILL_ALIKE, FOLLOWS = 0.9, 0.3  # rank correlations with the heatmaps of a shuffled model
_WHAT = {
    "flipping": "flipping the {first} {share} of the picture to noise",
    "road": "replacing the {first} {share} by what surrounds it",
    "deletion": "deleting the {first} {share}",
}
_BETTER = "the heatmaps find what the model uses"
_WORSE = "the heatmaps are no better than chance"
_UNCLEAR = "too few samples, or too small a difference, to tell"


@dataclass(frozen=True)
class Verdict:
    """What one metric says.

    Attributes
    ----------
    metric : str
    judgement : {"good", "bad", "undecided", ""}
        "" where there is nothing to hold the number against.
    sentence : str
    numbers : dict of str to float
    """

    metric: str
    judgement: Judgement
    sentence: str
    numbers: Mapping[str, float] = field(default_factory=dict)


def removal_verdict(metric: str, curves: Mapping[str, Sequence[Curve]], what: str = "") -> Verdict:
    """Of flipping, road or deletion: curves of all images by order, "most", "random", and for road "least".

    `what` says in words what is done, where inputs are no pictures, with {first} and {share} in it.
    """
    means = {order: mean_curve(some) for order, some in curves.items()}
    losses = {order: mean.loss_at(SHARE) for order, mean in means.items()}
    difference = _areas(curves["random"]) - _areas(curves["most"])
    judgement, better = _beats_chance(difference)
    what = (what or _WHAT[metric]).format(first="most relevant", share=_percent(SHARE))
    least = f"; the least relevant {_change(losses['least'])}" if "least" in losses else ""
    sentence = f"{what} {_change(losses['most'])} of the score{least}; random order {_change(losses['random'])}"
    numbers = {f"area_{order}": float(_areas(some).mean()) for order, some in curves.items()}
    if metric != "road":  # whose shares are not evenly spaced
        numbers |= {f"aopc_{order}": float(np.mean([one.aopc for one in some])) for order, some in curves.items()}
    numbers |= {f"loss_{order}": loss for order, loss in losses.items()}
    return Verdict(metric, judgement, f"{sentence}: {better}", numbers)


def insertion_verdict(curves: Mapping[str, Sequence[Curve]]) -> Verdict:
    """Of insertion: curves of all images by order, "most" and "random"."""
    means = {order: mean_curve(some) for order, some in curves.items()}
    kept = {
        order: float(np.interp(SHARE, mean.fractions, mean.scores) / mean.scores[-1]) for order, mean in means.items()
    }
    judgement, better = _beats_chance(_areas(curves["most"]) - _areas(curves["random"]))
    sentence = (
        f"a blurred picture with the most relevant {_percent(SHARE)} put back has {_percent(kept['most'])} of the "
        f"score; with a random {_percent(SHARE)} {_percent(kept['random'])}: {better}"
    )
    numbers = {f"area_{order}": float(_areas(some).mean()) for order, some in curves.items()}
    return Verdict("insertion", judgement, sentence, numbers | {f"score_{order}": one for order, one in kept.items()})


def sparseness_verdict(ginis: Floats) -> Verdict:
    """Of the Gini index of each image."""
    mean = _mean(ginis)
    if np.isnan(mean):
        return Verdict("sparseness", "bad", "every heatmap is zero: there is nothing in them")
    return Verdict(
        "sparseness", "", f"Gini index {mean:.2f}, where 0 is an even heatmap and 1 a single pixel", {"gini": mean}
    )


def sensitivity_verdict(worst: Floats, radius: float) -> Verdict:
    """Of the max-sensitivity of each image."""
    mean = _mean(worst)
    sentence = (
        f"noise of at most {_percent(radius)} of the input's range changes a heatmap by {_percent(mean)} of its own "
        "size at worst, on average"
    )
    return Verdict("sensitivity", "", sentence, {"max_sensitivity": mean})


def randomisation_verdict(
    stages: Sequence[Randomised], better: tuple[str, Sequence[Randomised]] | None = None
) -> Verdict:
    """Of the models with more and more shuffled layers; and the name and stages of a composite that does better."""
    if not stages:
        return Verdict("randomisation", "undecided", "the model has no weights on the way of the relevance")
    first, last = _rank_correlations(stages)
    numbers = {"rank_first": first, "rank_all": last, "layers": float(stages[-1].layers)}
    if np.isnan(last):
        return Verdict("randomisation", "undecided", "a model of shuffled weights gives no heatmap at all", numbers)
    sentence = (
        f"with the last layer's weights shuffled heatmaps correlate by {first:.2f} with the model's, with those of all "
        f"{stages[-1].layers} layers by {last:.2f}"
    )
    advice = ""
    if better is not None:
        name, others = better
        other_first, other_last = _rank_correlations(others)
        numbers |= {f"rank_first_{name}": other_first, f"rank_all_{name}": other_last}
        advice = f"; those by composite {name} follow the weights ({other_first:.2f} and {other_last:.2f})"
    if last > FOLLOWS:
        return Verdict(
            "randomisation", "bad", f"{sentence}: they show the picture more than the model{advice}", numbers
        )
    if first > STILL_ALIKE:
        return Verdict("randomisation", "bad", f"{sentence}: they hardly depend on the last layer{advice}", numbers)
    return Verdict("randomisation", "good", f"{sentence}: they follow the weights", numbers)


def _rank_correlations(stages: Sequence[Randomised]) -> tuple[float, float]:
    """With the last layer shuffled, and with all; means over the images."""
    first, last = (_mean(abs(stage.rank)) for stage in (stages[0], stages[-1]))
    return first, last


def _beats_chance(differences: Floats) -> tuple[Judgement, str]:
    """Whether differences between images are above 0, by Wilcoxon's signed rank test."""
    from scipy.stats import wilcoxon

    known = differences[np.isfinite(differences)]
    better = f"on {int((known > 0).sum())} of {len(known)} samples more than chance"
    if not known.any():
        return "bad", f"{better}, {_WORSE}"
    p = float(wilcoxon(known, alternative="greater").pvalue)
    if p <= LEVEL:
        return "good", f"{better} (p = {p:.2g}), {_BETTER}"
    if p < 0.5 or 0.5 ** len(known) > LEVEL:  # so few images cannot be significant
        return "undecided", f"{better} (p = {p:.2g}), {_UNCLEAR}"
    return "bad", f"{better} (p = {p:.2g}), {_WORSE}"


def _areas(curves: Sequence[Curve]) -> Floats:
    return np.array([curve.area for curve in curves])


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def _change(loss: float) -> str:
    return f"costs {_percent(loss)}" if loss >= 0 else f"adds {_percent(-loss)}"


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")
