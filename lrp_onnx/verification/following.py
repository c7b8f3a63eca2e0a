"""Does the heatmap follow the model: it must change when weights are shuffled; and which composite follows better."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from lrp_onnx.debug.evaluation_verdicts import FOLLOWS, STILL_ALIKE
from lrp_onnx.debug.randomisation import randomisation, weights_of
from lrp_onnx.engine import Explainer
from lrp_onnx.errors import RuleError
from lrp_onnx.rules import KINDS, Composite, composite
from lrp_onnx.verification.relevance import Targets
from lrp_onnx.verification.report import Check, Judgement
from lrp_onnx.verification.samples import Samples

STAGES = 3  # models with more and more shuffled layers
SHUFFLES = 3  # of each: what one draw gives may be 0.1 or 0.5
FEWEST = 16  # numbers in a heatmap; fewer have too few orders to tell
CLEARLY = 0.1  # a smaller gain is none
INSTEAD = ("epsilon-gamma-box", "attnlrp", "epsilon")  # composites that follow the weights more, the clearest first


def check_randomisation(
    explainer: Explainer,
    samples: Samples,
    targets: Targets,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None],
) -> Check:
    """Weights are shuffled in the ONNX initializers, from the output down; heatmaps must change.

    Where they hardly do, other composites are measured, and the reason names one that follows.
    """
    size = _elements(explainer, samples)
    if size < FEWEST:
        return Check("randomisation", "skip", f"heatmaps of {size} numbers are too small to compare their order")
    layers = len(weights_of(explainer.plan))
    if not layers:
        return Check("randomisation", "skip", "the model has no weights on the way of the relevance")
    follows = FOLLOWS + np.sqrt(2 / np.pi / (size - 1))  # what heatmaps of noise have on average comes on top
    ranks = _ranks(explainer, samples, targets, STAGES, seed, progress)
    top, (first, last) = next(iter(ranks)), _ends(ranks)
    numbers = {"rank_first": first, "rank_all": last, "layers": float(layers)}
    found = (
        f"rank correlation with heatmaps of shuffled weights: last layer {first:.2f}, all {layers} layers {last:.2f}"
    )
    if np.isnan(last):
        return Check("randomisation", "warn", "shuffled weights leave no heatmap at all", numbers, ranks)
    # a norm scales the one output that is explained, so that its weights alone change nothing
    linear = next(step for step in explainer.plan.steps if step.node.name == top).site.linear is not None
    if last <= follows and not (linear and first > STILL_ALIKE):
        return Check("randomisation", "pass", f"{found}: they follow the weights", numbers, ranks)
    measured: dict[str, float] = {}
    follower = ""
    for other in _others(explainer):
        above, measured[other.composite.name] = _ends(_ranks(other, samples, targets, 2, seed, progress))
        if measured[other.composite.name] <= follows and not above > STILL_ALIKE:
            follower = other.composite.name
            break
    what = "hardly depend on the last layer" if last <= follows else "show the input more than the model"
    reason = f"{found}: by {explainer.composite.name} they {what}; {_advice(follower, measured, last, follows)}"
    judgement: Judgement = "fail" if last > STILL_ALIKE else "warn"
    return Check("randomisation", judgement, reason, numbers | {f"rank_{k}": v for k, v in measured.items()}, ranks)


def _advice(follower: str, measured: Mapping[str, float], last: float, follows: float) -> str:
    best = min(measured, key=lambda name: measured[name], default="")
    if follower:
        advice = f"use --composite {follower} instead"
    elif best and measured[best] < last - CLEARLY:
        but = "not the last layer" if measured[best] <= follows else "not well"
        advice = f"--composite {best} follows better, but {but}"
    else:
        advice = "none of the composites tried follows better"
    tried = ", ".join(f"{name} {rank:.2f}" for name, rank in measured.items())
    return f"{advice} (all layers: {tried})" if tried else advice


def _ranks(
    explainer: Explainer,
    samples: Samples,
    targets: Targets,
    stages: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> dict[str, float]:
    """Mean magnitude of the rank correlation, by the node shuffled last, from the output down."""
    found: dict[str, list[float]] = {}
    for number in range(SHUFFLES):
        for stage in randomisation(
            explainer,
            samples.arrays,
            targets,
            stages=stages,
            seed=seed + number,
            channels_last=samples.channels_last,
            batch_size=samples.batch,
        ):
            found.setdefault(stage.node, []).extend(abs(stage.rank[np.isfinite(stage.rank)]).tolist())
        progress(number + 1, SHUFFLES)
    return {node: float(np.mean(ranks)) if ranks else float("nan") for node, ranks in found.items()}


def _ends(ranks: Mapping[str, float]) -> tuple[float, float]:
    """With the last layer shuffled, and with all."""
    values = list(ranks.values())
    return values[0], values[-1]


def _others(explainer: Explainer) -> Iterator[Explainer]:
    """The same model by other composites, those that give its nodes other rules."""
    seen = [_rules(explainer)]
    for name in INSTEAD:
        try:
            other = Explainer(explainer.graph, _like(explainer.composite, name), output=explainer.output)
        except RuleError:  # a box without bounds
            continue
        if _rules(other) not in seen:
            seen.append(_rules(other))
            yield other


def _rules(explainer: Explainer) -> list[tuple[str, str]]:
    return [(step.rule, str(step.parameters)) for step in explainer.plan.steps]


def _like(model: Composite, name: str) -> Composite:
    """The composite of that name, with what `model` says of single ops and nodes put first."""
    other = composite(name)
    kinds = {"linear", *KINDS}
    own = tuple(e for e in model.entries if not e.place and (e.node != "*" or (e.op and kinds.isdisjoint(e.op))))
    return replace(other, entries=(*own, *other.entries))


def _elements(explainer: Explainer, samples: Samples) -> int:
    """Numbers in the heatmap of one sample."""
    tensors = set(explainer.plan.tensors)
    return sum(int(np.prod(a.shape[1:])) for name, a in samples.arrays.items() if name in tensors and a.ndim)
