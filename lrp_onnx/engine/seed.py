"""Targets and seeds: from the model's output to the initial relevance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lrp_onnx.accelerator import Fetching
from lrp_onnx.engine.analysis import FLOATS
from lrp_onnx.errors import TargetError
from lrp_onnx.graph import Graph
from lrp_onnx.ops import moved
from lrp_onnx.targets import PLAIN, Chosen, parse

Fixed = Literal["predicted", "label"] | str | int | Sequence[int] | np.ndarray | Tensor | Chosen
Target = Fixed | Callable[[Tensor], Fixed]
Seed = Literal["auto", "logit", "one", "all"]


def make_seed(
    output: Tensor,
    target: Target,
    labels: Sequence[int] | np.ndarray | None,
    seed: Seed,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Initial relevance, shaped as `output` (N, …), and the target of each sample, (N,) over the flattened output.

    `valid` (N, T) tells the positions of a sequence from its padding. The target lies where the output does, so that
    nothing waits for it before the walk; it is -1 where several elements are explained, and None where that is known.

    Raises
    ------
    TargetError
        The target does not fit the output, or the seed is not known.
    """
    if seed not in ("logit", "one", "all"):
        raise TargetError(f"seed must be 'auto', 'logit', 'one' or 'all', not '{seed}'")
    if not output.ndim:
        raise TargetError("the model's output is a single number for the whole batch; expected one row per sample")
    n = output.shape[0]
    if callable(target):
        target = target(output)
    if isinstance(target, str) and target not in PLAIN:
        target = parse(target)
    array = None if isinstance(target, str | Chosen) else _array(target)
    shaped = array is not None and array.shape == tuple(output.shape) and (array.ndim > 1 or array.dtype.kind == "b")
    if shaped and array is not None and array.dtype.kind != "b":
        return moved(torch.as_tensor(array).to(output.dtype), output.device), None
    if seed == "all":
        return output.clone(), None
    if isinstance(target, Chosen) or shaped:
        if isinstance(target, Chosen):
            weights = target.weights(output, valid)
        else:
            weights = moved(torch.as_tensor(array).to(output.dtype), output.device)
        return (weights * output if seed == "logit" else weights), _single(weights)
    flat = output.reshape(n, -1)
    index = _index(flat, target, array, labels)
    initial = torch.zeros_like(flat)
    rows = torch.arange(n, device=output.device)
    initial[rows, index] = flat[rows, index] if seed == "logit" else 1.0
    return initial.reshape(output.shape), index


def output_name(graph: Graph, name: str | None = None) -> str:
    """The output of the canonical graph that is meant: the first of floats, or by name, also as the file has it.

    Raises
    ------
    TargetError
        There is no such output.
    """
    if name is None:
        floats = (n for n, info in graph.outputs.items() if info.elem_type in FLOATS)
        return next(floats, next(iter(graph.outputs)))
    before = {node.outputs[0]: logit for logit, node in graph.cuts.items()}
    found = name if name in graph.outputs else before.get(name, graph.aliases.get(name, name))
    if found not in graph.outputs:
        raise TargetError(f"no output is named '{name}'; the model has {', '.join(graph.outputs)}")
    return found


def fetched(parts: Sequence[Fetching | None]) -> np.ndarray | None:
    """The target of each sample for the host, of parts of a batch; None where several elements are explained."""
    found = [None if part is None else part.wait()[0].numpy() for part in parts]
    known = [index for index in found if index is not None and (index >= 0).all()]
    return np.concatenate(known) if len(known) == len(parts) else None


def _single(weights: Tensor) -> Tensor:
    """Index of the element that alone counts in each sample, (N,); -1 where several do."""
    flat = weights.reshape(len(weights), -1)
    alone = (flat != 0).sum(dim=1) == 1
    return torch.where(alone, flat.abs().argmax(dim=1), -1)


def _array(target: Any) -> np.ndarray:
    return target.detach().cpu().numpy() if isinstance(target, Tensor) else np.asarray(target)


def _index(flat: Tensor, target: Fixed, array: np.ndarray | None, labels: Sequence[int] | np.ndarray | None) -> Tensor:
    n, k = flat.shape
    if array is None:
        if target == "predicted":
            return flat.argmax(dim=1)
        if target != "label":
            raise TargetError(
                f"target must be 'predicted', 'label', an index, an array or a target by name, not '{target}'"
            )
        if labels is None:
            raise TargetError("target='label' needs labels; this data has none")
        array = np.asarray(labels)
    if array.dtype.kind not in "iu" or array.shape not in ((), (n,)):
        raise TargetError(
            f"target has shape {array.shape} and type {array.dtype}; expected an integer, {n} integers, "
            f"or initial relevance shaped as the output ({n}, {k})"
        )
    if array.size and (array.min() < 0 or array.max() >= k):
        wrong = array.max() if array.max() >= k else array.min()
        raise TargetError(f"target {wrong} is outside of the model's {k} outputs (0 to {k - 1})")
    return moved(torch.from_numpy(np.broadcast_to(array, (n,)).astype(np.int64)), flat.device)
