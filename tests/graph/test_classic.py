"""Linear models of classic machine learning (ai.onnx.ml), as scikit-learn exports them; trees are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import lrp_onnx
from lrp_onnx.errors import UnsupportedOpError
from lrp_onnx.graph import load
from lrp_onnx.graph.check import canonical_differences

RANDOM = np.random.default_rng(2)
X = RANDOM.normal(size=(6, 4)).astype(np.float32) * 3 + 1
W, B = RANDOM.normal(size=(3, 4)).astype(np.float32), RANDOM.normal(size=3).astype(np.float32)


def model(nodes: list[onnx.NodeProto], outputs: dict[str, tuple[int, list[Any]]]) -> onnx.ModelProto:
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    made = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()]
    graph = helper.make_graph(nodes, "classic", [given], made)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def classic(op: str, given: list[str], made: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, given, made, name=made[-1], domain="ai.onnx.ml", **attributes)


def classifier(post: str, **labels: Any) -> onnx.ModelProto:
    nodes = [
        classic("Scaler", ["x"], ["s"], offset=[1.0, 0.5, -1.0, 2.0], scale=[0.3, 1.0, 2.0, 0.5]),
        classic(
            "LinearClassifier",
            ["s"],
            ["label", "scores"],
            coefficients=W.ravel().tolist(),
            intercepts=B.tolist(),
            post_transform=post,
            **labels,
        ),
    ]
    kind = TensorProto.STRING if "classlabels_strings" in labels else TensorProto.INT64
    return model(nodes, {"label": (kind, ["N"]), "scores": (TensorProto.FLOAT, ["N", 3])})


@pytest.mark.parametrize("post", ["NONE", "SOFTMAX", "LOGISTIC"])
@pytest.mark.parametrize("labels", [{"classlabels_ints": [4, 7, 9]}, {"classlabels_strings": ["a", 'b"', "c"]}])
def test_a_linear_classifier_is_explained_from_its_scores(post: str, labels: dict[str, Any]) -> None:
    graph = load(classifier(post, **labels))
    assert not any(node.domain == "ai.onnx.ml" for node in graph.nodes)
    assert max(found.relative for found in canonical_differences(graph, {"x": X})) < 1e-5
    e = lrp_onnx.Explainer(graph, "epsilon").explain(X, 1)
    scale, offset = np.array([0.3, 1.0, 2.0, 0.5]), np.array([1.0, 0.5, -1.0, 2.0])
    assert e.output[:, 1].numpy() == pytest.approx((X - offset) * scale @ W[1] + B[1], rel=1e-4)
    assert e.relevance["x"].numpy() == pytest.approx(X * scale * W[1], rel=1e-2, abs=1e-4)


def test_a_linear_regressor_is_a_dense_layer() -> None:
    attributes = {"coefficients": W.ravel().tolist(), "intercepts": B.tolist(), "targets": 3}
    nodes = [classic("LinearRegressor", ["x"], ["y"], **attributes)]
    graph = load(model(nodes, {"y": (TensorProto.FLOAT, ["N", 3])}))
    assert max(found.relative for found in canonical_differences(graph, {"x": X})) < 1e-5
    assert lrp_onnx.Explainer(graph, "epsilon").explain(X, 0).relevance["x"].numpy() == pytest.approx(
        X * W[0], rel=1e-2
    )


@pytest.mark.parametrize("norm", ["L1", "L2", "MAX"])
def test_a_normaliser_computes_the_same(norm: str) -> None:
    nodes = [classic("Normalizer", ["x"], ["y"], norm=norm)]
    graph = load(model(nodes, {"y": (TensorProto.FLOAT, ["N", 4])}))
    assert max(found.relative for found in canonical_differences(graph, {"x": X})) < 1e-5
    lrp_onnx.Explainer(graph, "epsilon").explain(X)


def test_maps_of_probabilities_become_arrays() -> None:
    proto = classifier("SOFTMAX", classlabels_ints=[4, 7, 9])
    proto.graph.node.append(classic("ZipMap", ["scores"], ["maps"], classlabels_int64s=[4, 7, 9]))
    key_to_float = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    proto.graph.output[1].CopyFrom(helper.make_value_info("maps", helper.make_sequence_type_proto(key_to_float)))
    before = proto.SerializeToString()
    found = lrp_onnx.verify(proto, X, composite="epsilon")
    assert proto.SerializeToString() == before
    assert {found[name].judgement for name in ("canonical", "forward", "conservation")} == {"pass"}
    e = lrp_onnx.Explainer(proto, "epsilon", output="maps").explain(X, 2)
    assert e.output.shape == (6, 3)


def test_what_compares_is_refused_by_name() -> None:
    svm = classic(
        "SVMRegressor", ["x"], ["y"], coefficients=[1.0], support_vectors=[0.0] * 4, n_supports=1, rho=[0.0],
        kernel_type="RBF", kernel_params=[1.0, 0.0, 0.0],
    )  # fmt: skip
    with pytest.raises(UnsupportedOpError, match=r"SVMRegressor node 'y' .* nothing to share out"):
        lrp_onnx.Explainer(model([svm], {"y": (TensorProto.FLOAT, ["N", 1])}))
