"""A Softmax over the last axis of a sequence, which opset 12 flattens, is cut with the sequence in one piece."""

from __future__ import annotations

import onnx
import pytest

from lrp_onnx.graph import load
from lrp_onnx.graph.check import verify_canonical


@pytest.mark.parametrize("opset", [11, 12, 13])
def test_logits_of_a_sequence_keep_their_shape(opset: int) -> None:
    text = f"""<ir_version: 7, opset_import: ["" : {opset}]> g (float[N,T,4] x) => (float[N,T,3] y)
        <float[4,3] w = {{1,2,3,4,5,6,7,8,9,1,2,3}}> {{ logits = MatMul(x, w) y = Softmax<axis=2>(logits) }}"""
    graph = load(onnx.parser.parse_model(text))
    assert graph.outputs["logits"].shape == ("N", "T", 3)
    assert graph.cuts["logits"].attributes["axis"] in (-1, 2)
    assert verify_canonical(graph) < 1e-6


def test_sizes_that_exporters_leave_open_are_no_sizes() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 7, opset_import: ["" : 17]> g (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }'
    )
    dimensions = proto.graph.input[0].type.tensor_type.shape.dim
    dimensions[0].dim_value, dimensions[2].dim_param, dimensions[3].dim_param = -1, "?", "?"
    assert load(proto, check=False).inputs["x"].shape == (None, 3, None, None)
