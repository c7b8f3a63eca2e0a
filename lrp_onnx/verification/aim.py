"""What a verification explains of each batch: a target as `heatmaps` takes it, for samples as `verify` has them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrp_onnx.embedding import embed
from lrp_onnx.engine.seed import Target
from lrp_onnx.errors import TargetError
from lrp_onnx.graph import Graph
from lrp_onnx.inputs import classes_of, number_of_outputs
from lrp_onnx.judging import Judge
from lrp_onnx.losses import Loss
from lrp_onnx.targets import PLAIN, Chosen, parse
from lrp_onnx.verification.relevance import Aim
from lrp_onnx.verification.samples import Samples


def aim_at(
    target: str | int | Chosen,
    graph: Graph,
    output: str,
    samples: Samples,
    *,
    loss: Loss | None = None,
    vocabulary: str | os.PathLike[str] | None = None,
) -> Aim:
    """How a target, or its text, becomes what `Explainer.explain` takes for a batch of the samples.

    Raises
    ------
    TargetError
        The target is not known, or needs labels or numbers to predict that the samples do not have.
    """
    dataset = samples.source[0] if samples.source else None
    if isinstance(target, str):
        own, classes = (dataset.target_names, dataset.classes) if dataset else (None, None)
        embedded = partial(embed, graph, output=output, vocabulary=vocabulary)
        target = parse(target, own or classes_of(graph) or classes, embedded)
    if target == "label":
        if not len(samples.labels) or (samples.labels < 0).any():
            raise TargetError("target 'label' needs the class of every sample, and some have none; use another target")
        if number_of_outputs(graph, output) == 1:  # one output speaks for both classes
            target = 0
    if target != "worst":
        return lambda rows, inputs: target
    if samples.source is None or samples.expected is None:
        if number_of_outputs(graph, output) == 1:
            return lambda rows, inputs: 0
        raise TargetError("target 'worst' needs DATA with numbers to predict; use another target")
    judge, main = Judge(graph, output, *samples.source, loss), samples.source[1].input
    expected = samples.expected

    def worst(rows: slice, inputs: Mapping[str, NDArray[np.generic]]) -> Target:
        def farthest_off(output: Tensor, valid: Tensor | None) -> Tensor:
            found = judge.worst(output.cpu().numpy(), inputs[main], expected[rows])
            return torch.from_numpy(found).to(output)

        return Chosen("worst", farthest_off)

    return worst


def of_class(target: str | int | Chosen, samples: Samples, outputs: tuple[int, ...], *, sigmoid: bool = False) -> bool:
    """Whether a target is a class, with a probability of its own: the outputs are (K,) and not regressed.

    One output is a class where the samples have such, or it goes through a `sigmoid`; otherwise a number, which as a
    probability would be 0 or 1 whatever comes in.
    """
    if outputs == (1,) and not sigmoid and not (samples.labels >= 0).any():
        return False
    plain = target in PLAIN if isinstance(target, str) else isinstance(target, int)
    plain = plain or (isinstance(target, str) and ":" not in target)  # a class by name
    return plain and target != "worst" and samples.expected is None and len(outputs) == 1
