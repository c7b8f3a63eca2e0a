"""Whole models as exporters write them come out in the form that the engine expects, and compute the same."""

from __future__ import annotations

import io
from collections import Counter

import pytest

from lrp_onnx.graph import Graph, load, verify_canonical


def exported(name: str, opset: int) -> Graph:
    """A torchvision model with random weights and BatchNormalization statistics, in the older exporter's spelling."""
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    module = getattr(models, name)(weights=None).eval()
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
    file = io.BytesIO()
    torch.onnx.export(
        module,
        torch.randn(1, 3, 64, 64),
        file,
        dynamo=False,
        opset_version=opset,
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,  # keeps BatchNormalization apart
        input_names=["x"],
        dynamic_axes={"x": {0: "batch"}},
    )
    return load(file.getvalue())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "opset", "expected"),
    [
        ("resnet18", 9, {"Conv": 20, "Relu": 17}),
        ("mobilenet_v2", 11, {"Conv": 52, "Clip": 35}),
        ("mobilenet_v3_small", 13, {"Conv": 52, "HardSwish": 19, "HardSigmoid": 9}),
        ("efficientnet_b0", 13, {"Conv": 81, "Swish": 49, "Sigmoid": 16}),
        ("convnext_tiny", 14, {"LayerNormalization": 23, "Gelu": 18}),
        ("densenet121", 17, {"Conv": 120, "BatchNormalization": 62}),
        ("shufflenet_v2_x0_5", 12, {"Conv": 56, "Shape": 1}),
    ],
)
def test_torchvision_models_become_canonical(name: str, opset: int, expected: dict[str, int]) -> None:
    graph = exported(name, opset)
    found = Counter(node.op_type for node in graph.nodes)
    assert {op: found[op] for op in expected} == expected
    for node in graph.nodes:
        if node.op_type == "BatchNormalization":
            assert graph.producer[node.inputs[0]].op_type not in {"Conv", "ConvTranspose", "Gemm", "MatMul"}
    assert not isinstance(graph.shapes[next(iter(graph.outputs))][0], int)
    assert verify_canonical(graph, inner=True) < 1e-5
