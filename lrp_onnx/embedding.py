"""The embedding that a model gives one picture or text: the reference that others are compared with."""

from __future__ import annotations

import os

import numpy as np
import torch

from lrp_onnx.engine.explainer import ATTENTION_MASK
from lrp_onnx.engine.seed import output_name
from lrp_onnx.forward import make_forward
from lrp_onnx.graph import Graph
from lrp_onnx.inputs import feed_for, first_inputs, open_both
from lrp_onnx.targets import pooled


def embed(
    graph: Graph,
    data: str | os.PathLike[str],
    *,
    output: str | None = None,
    vocabulary: str | os.PathLike[str] | None = None,
) -> np.ndarray:
    """Embedding (D,) of the first picture, array row or text of `data`; of a sequence (T, D) the mean, see `pooled`.

    Parameters
    ----------
    output : str, optional
        Name of the model's output; the first by default.
    vocabulary : path-like
        For texts.

    Raises
    ------
    DataError, TargetError
        When `data` cannot be read, or the output is no embedding.
    """
    name = output_name(graph, output)
    _, dataset = open_both(graph, data, unlabelled=True, vocabulary=vocabulary)
    feed = feed_for(graph, dataset)
    main, others = first_inputs(dataset, feed)
    batch = feed.batch_by_name(main[None], {key: value[None] for key, value in others.items()})
    inputs = {key: torch.from_numpy(value) for key, value in batch.items()}
    found = make_forward(graph, [name], torch.float32, torch.device("cpu"))(inputs)[name]
    return pooled(found, inputs.get(ATTENTION_MASK))[0].numpy()
