"""Does relevance go where it should: conservation node by node in float64, and what float32 makes of the heatmap."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lrp_onnx.engine import Explainer
from lrp_onnx.engine.seed import Seed, Target
from lrp_onnx.heatmap_run import absorbed
from lrp_onnx.judging import require_rows
from lrp_onnx.rules import Composite, find
from lrp_onnx.targets import Chosen, fixed, from_one
from lrp_onnx.verification.report import Check, Judgement
from lrp_onnx.verification.samples import Samples, chosen

# Share of what arrives at a node that its rule loses or invents beyond bias and stabiliser
CONSERVES, LEAKS = 1e-2, 5e-2
STABILISED = 1e-2  # share of the relevance that stabilisers may take before it is worth a word
SAME, OTHER = 0.999, 0.9  # cosines between the heatmaps of float32 and float64
TINY_EPS = 1e-12  # a stabiliser that takes next to nothing, so that what is still lost was lost by a rule
_ABSORBING = {"eps": TINY_EPS, "factor": 0.0}  # parameters by which rules absorb on purpose
# What a batch is explained for, from its rows and its inputs by name
Aim = Callable[[slice, Mapping[str, NDArray[np.generic]]], Target]
Targets = NDArray[Any]  # int (n,), or float (n, …)
_NO_DECOMPOSITION = {"gradient", "guided", "deconvnet"}
_SHOWN = 3


@dataclass
class _Flow:
    """Relevance of one node, summed over all samples."""

    rule: str
    arrived: float = 0.0
    handed: float = 0.0
    bias: float = 0.0

    @property
    def lost(self) -> float:
        return self.arrived - self.handed - self.bias

    @property
    def share_lost(self) -> float:
        """Of what went through the node."""
        return abs(self.lost) / max(abs(self.arrived), abs(self.handed), abs(self.bias), np.finfo(np.float64).tiny)


@dataclass
class Walks:
    """What explaining every sample gave.

    Attributes
    ----------
    by_input : dict of str to (n, …)
        Relevance of each input that has any.
    targets : int (n,), or float (n, …)
        Index of the explained element of the output; where several are explained, how much each counts.
    outputs : (n,)
        Its value, or theirs by what they count.
    shape : tuple of int
        Of one sample's output.
    flows : dict of str to _Flow
        By node, from the output down.
    """

    by_input: dict[str, NDArray[np.float64]]
    targets: Targets
    outputs: NDArray[np.float64]
    shape: tuple[int, ...]
    flows: dict[str, _Flow]

    @cached_property
    def relevance(self) -> NDArray[np.float64]:
        """(n, elements of all inputs)"""
        return np.concatenate([one.reshape(len(one), -1) for one in self.by_input.values()], axis=1)


def walk(
    explainer: Explainer,
    samples: Samples,
    targets: Targets | None = None,
    *,
    aim: Aim | None = None,
    seed: Seed = "one",
    first: bool = False,
) -> Walks:
    """Explain samples for what an earlier walk explained, or what `aim` chooses; with `first` the first batch alone.

    From 1 unless `seed` says otherwise, because logits of either sign would cancel out in sums.

    Raises
    ------
    DataError
        The output has no row per sample.
    """
    found: dict[str, list[NDArray[np.float64]]] = {}
    chosen_in, values, flows, done = list[Targets](), [], dict[str, _Flow](), 0
    for part in samples.parts():
        rows = slice(done, done + samples.batch)
        given: Target = aim(rows, part) if aim is not None else "predicted"
        if targets is not None:
            given = targets[rows] if targets.dtype.kind == "i" else fixed(targets[rows])
        several = _Several(given, alike=seed == "one") if isinstance(given, Chosen) else None
        result = explainer.explain(
            part, given if several is None else several.chosen, labels=samples.labels[rows], seed=seed
        )
        count = len(next(iter(part.values())))
        require_rows(explainer.graph.name, explainer.output, tuple(result.output.shape), count)
        done += samples.batch
        for name, relevance in result.relevance.items():
            if relevance.ndim and len(relevance) == count:
                found.setdefault(name, []).append(relevance.double().cpu().numpy())
        chosen_in.append(np.asarray(result.target) if several is None else several.targets())
        values.append(values_of(result.output.cpu().numpy(), chosen_in[-1]))
        for node in result.conservation:
            flow = flows.setdefault(node.node, _Flow(node.rule))
            flow.arrived += float(node.arrived)
            flow.handed += float(node.handed)
            flow.bias += float(node.bias)
        if first:
            break
    shape = tuple(result.output.shape[1:])
    if len({one.dtype.kind for one in chosen_in}) > 1:  # a map, say, of which one batch shows a single pixel
        chosen_in = [_weights(one, shape) for one in chosen_in]
    by_input = {name: np.concatenate(parts) for name, parts in found.items()}
    return Walks(by_input, np.concatenate(chosen_in), np.concatenate(values), shape, flows)


class _Several:
    """A target that may be of several elements, and what it chose."""

    def __init__(self, chosen: Chosen, alike: bool) -> None:
        self._inner = chosen
        kept = Chosen(chosen.text, self._keep)
        self.chosen = from_one(kept) if alike else kept

    def _keep(self, output: Tensor, valid: Tensor | None) -> Tensor:
        self._weights = self._inner.weights(output, valid)
        return self._weights

    def targets(self) -> Targets:
        flat = self._weights.flatten(1)
        if bool(((flat == 1).sum(dim=1) == 1).all()) and bool(((flat != 0).sum(dim=1) == 1).all()):
            return flat.argmax(dim=1).cpu().numpy()
        return self._weights.float().cpu().numpy()


def _weights(targets: Targets, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if targets.dtype.kind == "f":
        return targets.astype(np.float32, copy=False)
    ones = np.zeros((len(targets), int(np.prod(shape))), np.float32)
    ones[np.arange(len(targets)), targets] = 1
    return ones.reshape(-1, *shape)


def values_of(output: NDArray[np.floating], targets: Targets) -> NDArray[np.float64]:
    """What targets explain of outputs (n, …), (n,)."""
    flat = output.reshape(len(output), -1).astype(np.float64)
    if targets.dtype.kind == "i":
        return np.asarray(flat[np.arange(len(flat)), targets])
    return np.asarray((flat * targets.reshape(flat.shape)).sum(axis=1))


def check_conservation(explainer: Explainer, walks: Walks, samples: Samples) -> Check:
    """What biases, stabilisers and rules take, node by node; `explainer` and `walks` are in float64.

    What a node loses is told from what its stabiliser takes by a second walk with next to none.
    """
    composite, flows = explainer.composite, walks.flows
    if composite.gradient:
        reason = f"{composite.name} is a gradient: it is no share of the output, so that nothing is conserved"
        return Check("conservation", "skip", reason)
    if not walks.outputs.any():
        reason = "the explained outputs are 0: there is nothing to share out, and every heatmap is 0"
        return Check("conservation", "fail", reason)
    bare = Explainer(explainer.graph, _bare(composite), dtype="float64", output=explainer.output)
    exact = walk(bare, samples, walks.targets, first=True).flows
    start = next(iter(flows.values())).arrived
    biases = sum(flow.bias for flow in flows.values()) / start
    lost = sum(abs(flow.lost) for flow in flows.values()) / abs(start)
    reached = float(walks.relevance.sum()) / start
    leaks = {name: flow.share_lost for name, flow in exact.items() if flow.rule not in _NO_DECOMPOSITION}
    worst = dict(sorted(leaks.items(), key=lambda item: item[1], reverse=True)[:_SHOWN])
    leak = max(worst.values(), default=0.0)
    numbers = {"input": reached, "biases": biases, "lost": lost, "leak": leak}
    if np.isfinite(list(numbers.values())).all():
        judgement, reason = _judge(exact, worst, numbers)
    else:
        bad = [name for name, flow in flows.items() if not np.isfinite([flow.arrived, flow.handed]).all()]
        judgement, reason = "fail", f"relevance is NaN or infinite at {chosen(bad)}"
    return Check("conservation", judgement, reason, numbers, {name: share for name, share in worst.items() if share})


def _judge(
    exact: Mapping[str, _Flow], worst: Mapping[str, float], numbers: Mapping[str, float]
) -> tuple[Judgement, str]:
    account = (
        f"{_percent(numbers['input'])} of the relevance reached the input, biases took {_percent(numbers['biases'])}, "
        f"{numbers['lost']:.1e} is lost"
    )
    if advice := absorbed(numbers["biases"]):
        account += f" ({advice})"
    node = next(iter(worst), "")
    where = f"at '{node}' (rule {exact[node].rule})" if node else "nowhere"
    gradients = [name for name, flow in exact.items() if flow.rule in _NO_DECOMPOSITION]
    leak = _percent(numbers["leak"])
    if numbers["leak"] > LEAKS:
        return "fail", f"{leak} of what arrived {where} is lost or invented, by neither bias nor stabiliser; {account}"
    if gradients:
        return "warn", f"a gradient, which does not conserve, is the rule of {chosen(gradients)}; {account}"
    if numbers["leak"] > CONSERVES:
        return "warn", f"{leak} of what arrived {where} found nothing to go to; {account}"
    if numbers["lost"] > STABILISED:
        return "warn", f"{account}: much for a stabiliser; a smaller --eps leaves more to the heatmap"
    return "pass", f"{account}; by the rule of any one node at most {numbers['leak']:.1e}"


def check_precision(rough: Walks, exact: Walks) -> Check:
    """Heatmaps in float32, as they are computed by default, against those in float64."""
    count = len(rough.relevance)
    finite = int(np.all(np.isfinite(rough.relevance), axis=1).sum())
    if finite < count:
        reason = f"{count - finite} of {count} heatmaps in float32 hold NaN or infinity; use --dtype float64"
        return Check("precision", "fail", reason)
    scale = abs(exact.relevance).max(axis=1, keepdims=True)
    scale[scale == 0] = 1.0
    one, other = rough.relevance / scale, exact.relevance / scale
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    alike = np.all(one == other, axis=1).astype(np.float64)  # of heatmaps that are 0
    cosines = np.divide((one * other).sum(axis=1), lengths, out=alike, where=lengths > 0)
    numbers = {"cosine": float(cosines.min()), "largest": float(abs(one - other).max())}
    reason = (
        f"float32 against float64: cosine {numbers['cosine']:.6f}, largest difference {numbers['largest']:.1e} of the "
        "largest value"
    )
    if numbers["cosine"] >= SAME:
        return Check("precision", "pass", reason, numbers)
    judgement: Judgement = "warn" if numbers["cosine"] >= OTHER else "fail"
    return Check("precision", judgement, f"{reason}; rounding shows, use --dtype float64 or a larger --eps", numbers)


def _bare(composite: Composite) -> Composite:
    """The same rules, with next to no stabiliser."""
    taken = set(composite.parameters) | {name for entry in composite.entries for name in find(entry.rule).parameters}
    return composite.with_parameters({k: v for k, v in _ABSORBING.items() if k in taken | {"eps"}})


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")
