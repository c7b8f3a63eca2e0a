"""Cut the activation that turns a model's logits into probabilities, so that relevance starts at the logits."""

from __future__ import annotations

import onnx_ir as ir

from lrp_onnx.graph.model import Node
from lrp_onnx.graph.values import is_float, is_op

_ACTIVATIONS = ("Softmax", "LogSoftmax", "Sigmoid")
_RESHAPING = ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze")


def cut_activations(model: ir.Model) -> dict[str, Node]:
    """Make the input of each trailing Softmax, LogSoftmax or Sigmoid the graph output in its place.

    Nodes behind the activation that only reshape its result go with it. The output takes the logit tensor's own name.

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
        logit = node.inputs[0]
        if logit is None or logit.producer() is None or logit.is_graph_output() or not is_float(logit):
            continue
        outputs[index] = logit
        cuts[str(logit.name)] = Node(
            name=str(node.name),
            op_type=node.op_type,
            inputs=(str(logit.name),),
            outputs=(str(output.name),),
            attributes={name: attribute.value for name, attribute in node.attributes.items()},
        )
    return cuts
