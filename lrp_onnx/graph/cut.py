"""Cut the activation that turns a model's logits into probabilities, so that relevance starts at the logits."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import onnx_ir as ir

from lrp_onnx.graph.model import Node
from lrp_onnx.graph.values import is_float, is_op

_ACTIVATIONS = ("Softmax", "LogSoftmax", "Sigmoid")
_ROUNDING = ("QuantizeLinear", "DequantizeLinear")  # of a quantised model's probabilities
_RESHAPING = (*_ROUNDING, "Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze")


def cut_activations(model: ir.Model, names: Collection[str | None]) -> dict[str, Node]:
    """Make the input of each trailing Softmax, LogSoftmax or Sigmoid the graph output in its place.

    Nodes behind the activation that only reshape its result go with it. The output takes the logit tensor's own name.

    Parameters
    ----------
    model : onnx_ir.Model
        Is modified.
    names : collection of str
        The tensors of the model before conversion. Older Softmax flattens its input, for which the opset converter
        adds nodes; the logit is looked for before those.

    Returns
    -------
    dict of str to Node
        New output name -> the activation that was cut; its `outputs` hold the name of the output that it replaces.
    """
    cuts: dict[str, Node] = {}
    outputs = model.graph.outputs
    for index, output in enumerate(outputs):
        node = output.producer()
        while is_op(node, *_RESHAPING):
            node = node.inputs[0].producer()  # type: ignore[union-attr]
        if not is_op(node, *_ACTIVATIONS):
            continue
        assert node is not None
        attributes: dict[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
        logit = node.inputs[0]
        if logit is not None and logit.name not in names and (source := _before_flatten(logit)) is not None:
            logit = source
            attributes["axis"] = 1 if source.shape is not None and source.shape[-1] == 1 else -1
        if logit is None or logit.producer() is None or logit.is_graph_output() or not is_float(logit):
            continue
        outputs[index] = logit
        cuts[str(logit.name)] = Node(
            name=str(node.name),
            op_type=node.op_type,
            inputs=(str(logit.name),),
            outputs=(str(output.name),),
            attributes=attributes,
        )
    return cuts


def _before_flatten(value: ir.Value) -> ir.Value | None:
    """The (N, C, 1, …) tensor that `value` (N, C) was flattened from, or the (N, …, C), if it was."""
    node = value.producer()
    if not is_op(node, "Flatten", "Reshape"):
        return None
    assert node is not None
    source = node.inputs[0]
    if source is None or source.shape is None or value.shape is None or len(value.shape) != 2:
        return None
    if list(source.shape)[1:] == [value.shape[1], *[1] * (len(source.shape) - 2)]:
        return source
    rows = isinstance(value.shape[1], int) and source.shape[-1] == value.shape[1] and len(source.shape) > 2
    return source if rows and source.shape[-1] != 1 else None
