"""The linear view of a single node, as planning makes it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lrp_onnx.graph import Node
from lrp_onnx.ops import Linear, find


def linear(op_type: str, weight: Tensor, **attributes: Any) -> Linear:
    """The op with this weight, for an input that gets relevance."""
    node = Node("n", op_type, ("x", "w"), ("z",), attributes)
    op = find(node)
    assert op is not None
    assert op.linear is not None
    made = op.linear(node, {1: weight}, (0,))
    assert made is not None
    return made
