"""The randomisation sanity check: do heatmaps follow the model's weights, from the output down."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx
import torch
from numpy.typing import ArrayLike, NDArray

from lrp_onnx.debug.alignment import similarity
from lrp_onnx.engine import Explainer, Plan
from lrp_onnx.graph import Graph
from lrp_onnx.targets import fixed, from_one

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Randomised:
    """Heatmaps of a model whose last layers hold shuffled weights, against those of the model.

    Attributes
    ----------
    layers : int
        Layers shuffled so far, from the output on.
    node : str
        The one shuffled last, which is the lowest.
    rank, rank_abs : float64 (n,)
        Spearman's rank correlation of the pixels' relevance, and of its magnitude, for each image; NaN where a heatmap
        is constant or not finite.
    """

    layers: int
    node: str
    rank: Floats
    rank_abs: Floats


def weights_of(plan: Plan) -> dict[str, list[str]]:
    """Weights and biases that each linear layer and norm reads, from the output down to the input: node -> tensors.

    A tensor that several nodes read belongs to the highest of them.
    """
    result: dict[str, list[str]] = {}
    seen: set[str] = set()
    for step in reversed(plan.steps):
        linear = step.site.linear is not None and step.site.linear.weight is not None
        norm = step.site.op is not None and step.site.op.family == "normalisation"
        if not linear and not norm:
            continue
        arrays = {name: plan.graph.initializers.get(name) for name in step.node.inputs if name not in seen}
        # shuffling a single number would do nothing
        names = [n for n, array in arrays.items() if array is not None and array.dtype.kind == "f" and array.size > 1]
        if names:
            result[step.node.name] = names
            seen.update(names)
    return result


def shuffled(graph: Graph, tensors: Collection[str], *, seed: int = 0) -> Graph:
    """The same model with the values of some weights shuffled within each tensor, so that their distribution stays.

    Parameters
    ----------
    graph : Graph
        Is not modified.
    tensors : collection of str
        Names of initializers, such as `weights_of` finds.
    seed : int
        A tensor is shuffled alike, whichever others are.
    """
    arrays = {}
    for position, (name, array) in enumerate(graph.initializers.items()):
        if name in tensors:
            order = np.random.default_rng((seed, position)).permutation(array.size)
            arrays[name] = array.ravel()[order].reshape(array.shape)
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for tensor in model.graph.initializer:
        if tensor.name in arrays:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            tensor.CopyFrom(onnx.numpy_helper.from_array(arrays[tensor.name].astype(dtype), tensor.name))
    return replace(graph, model=model, initializers={**graph.initializers, **arrays})


def randomisation(
    explainer: Explainer,
    inputs: NDArray[np.generic] | Mapping[str, NDArray[np.generic]],
    targets: ArrayLike,
    *,
    stages: int | None = None,
    seed: int = 0,
    channels_last: bool = False,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> list[Randomised]:
    """Shuffle the weights from the output down, layer after layer, and compare heatmaps.

    The cascading randomisation of Adebayo et al. 2018 (arXiv:1810.03292). A heatmap that stays the same while the model
    is destroyed does not explain the model. Sixt et al. 2020 (arXiv:1912.09818) show that rules which let only positive
    parts through (z-plus, guided backpropagation) hardly follow the upper layers.

    Parameters
    ----------
    explainer : Explainer
    inputs : (n, …), or dict of str to (n, …)
        As the model takes them; of a model with a fixed batch size a multiple of it.
    targets : int (n,), or float (n, …)
        The output that each heatmap explains, throughout; or how much each element of the output counts in it.
    stages : int, optional
        At most so many models, evenly over the layers, with the last layer alone and all layers among them; left out,
        one for each layer.
    seed : int
        Of the shuffling.
    channels_last : bool
        Of the inputs.
    batch_size : int
    progress : callable, optional
        Called with (models explained, models in all).

    Returns
    -------
    list of Randomised
        Empty for a model without weights.
    """
    targets = np.asarray(targets)
    arrays = inputs if isinstance(inputs, Mapping) else {next(iter(explainer.graph.inputs)): inputs}
    report = progress or (lambda done, total: None)
    weights = weights_of(explainer.plan)
    nodes = list(weights)
    depths = _spread(len(nodes), stages)

    def heatmaps(current: Explainer) -> Floats:
        found = []
        for at in range(0, len(targets), batch_size):
            part = slice(at, at + batch_size)
            # from 1: a shuffled model's output may be negative, which would turn every rank around
            target = from_one(fixed(targets[part])) if targets.dtype.kind == "f" else targets[part]
            result = current.explain({name: array[part] for name, array in arrays.items()}, target, seed="one")
            several = [one.cpu().numpy().astype(np.float64) for one in result.relevance.values()]
            rows = several[0] if len(several) == 1 else np.concatenate([r.reshape(len(r), -1) for r in several], axis=1)
            found.append(rows)
        relevance = np.concatenate(found)
        return relevance if relevance.ndim < 4 else np.asarray(relevance.sum(axis=-1 if channels_last else 1))

    original, results = heatmaps(explainer), []
    for done, depth in enumerate(depths, start=1):
        graph = shuffled(explainer.graph, {name for node in nodes[:depth] for name in weights[node]}, seed=seed)
        precision: Literal["float32", "float64"] = "float64" if explainer.dtype == torch.float64 else "float32"
        device = str(explainer.device)
        other = Explainer(graph, explainer.composite, device=device, dtype=precision, output=explainer.output)
        current = heatmaps(other)
        rank, rank_abs = _rank_correlations(original, current), _rank_correlations(abs(original), abs(current))
        results.append(Randomised(depth, nodes[depth - 1], rank, rank_abs))
        report(done, len(depths))
    return results


def _spread(layers: int, stages: int | None) -> Sequence[int]:
    if stages is None or stages >= layers:
        return range(1, layers + 1)
    return sorted({round(depth) for depth in np.linspace(1, layers, max(2, stages))})


def _rank_correlations(ones: Floats, others: Floats) -> Floats:
    everywhere = np.ones(ones.shape[1:], dtype=bool)
    return np.array([similarity(one, other, everywhere)[0] for one, other in zip(ones, others, strict=True)])
