"""dtype="bfloat16": heatmaps close to those in float32, the same decision, and no surprise where it cannot be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from lrp_onnx.engine import Explainer, explainer
from lrp_onnx.errors import DataError
from lrp_onnx.graph import Graph, load
from lrp_onnx.ops import Linear, has_bfloat16, narrowed
from lrp_onnx.rules import composite

X = np.random.default_rng(0).normal(size=(4, 3, 24, 24)).astype("f")
COMPOSITES = ["epsilon", "epsilon-plus-flat", "epsilon-alpha2-beta1", "epsilon-gamma-box", "montavon2019", "hudd"]


@pytest.fixture(scope="module")
def network() -> Graph:
    """Convolutions, of which one is strided and one in groups, pooling, and dense layers."""
    text = """(float[N,3,24,24] x) => (float[N,5] y) {
        c1 = Conv<pads=[1,1,1,1]>(x, w1, b1) r1 = Relu(c1)
        c2 = Conv<pads=[1,1,1,1], strides=[2,2]>(r1, w2, b2) r2 = Relu(c2)
        c3 = Conv<pads=[1,1,1,1], group=16>(r2, w3, b3) r3 = Relu(c3) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r3)
        f = Flatten(p) d = Gemm(f, w4, b4) r4 = Relu(d) y = Gemm(r4, w5, b5) }"""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 19]> g {text}')
    shapes = {"w1": (16, 3, 3, 3), "w2": (16, 16, 3, 3), "w3": (16, 1, 3, 3), "w4": (576, 32), "w5": (32, 5)}
    rng = np.random.default_rng(1)
    arrays = {name: rng.normal(size=shape) / np.sqrt(np.prod(shape[1:])) for name, shape in shapes.items()}
    arrays |= {
        name: rng.normal(size=size) / 10 for name, size in {"b1": 16, "b2": 16, "b3": 16, "b4": 32, "b5": 5}.items()
    }
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype("f"), name))
    return load(proto)


@pytest.mark.skipif(not has_bfloat16(torch.device("cpu")), reason="this processor has no kernels for bfloat16")
@pytest.mark.parametrize("name", COMPOSITES)
def test_heatmaps_are_those_of_float32_to_three_digits(name: str, network: Graph) -> None:
    bounds = {"low": -4.0, "high": 4.0} if name in ("epsilon-gamma-box", "montavon2019") else {}
    rules = composite(name, **bounds)
    exact, rounded = (Explainer(network, rules, dtype=dtype).explain(X) for dtype in ("float32", "bfloat16"))
    assert torch.equal(exact.output, rounded.output), "the forward pass is not touched"
    wanted, found = exact.relevance["x"].flatten(1), rounded.relevance["x"].flatten(1)
    assert found.dtype == torch.float32
    assert float(torch.nn.functional.cosine_similarity(found, wanted).min()) > 0.999
    assert not torch.equal(found, wanted), "or else nothing was rounded"


@pytest.mark.skipif(not has_bfloat16(torch.device("cpu")), reason="this processor has no kernels for bfloat16")
def test_weights_are_rounded_once_and_again_when_written_to() -> None:
    seen: list[Tensor] = []

    def product(x: Tensor, w: Tensor) -> Tensor:
        seen.append(w)
        return x @ w

    back: Callable[..., Tensor] = lambda s, w, shape: s @ w.T  # noqa: E731
    weight, x = torch.randn(4, 3), torch.randn(2, 4)
    op = narrowed(Linear(product, back, weight))
    first = op.forward(x, weight)
    op.forward(x, weight)
    assert seen[0] is seen[1]
    assert seen[0].dtype == torch.bfloat16
    weight.mul_(2)
    torch.testing.assert_close(op.forward(x, weight), 2 * first)


def test_a_device_without_the_kernels_is_refused(network: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explainer, "has_bfloat16", lambda device: False)
    with pytest.raises(DataError, match="device 'cpu' has no kernels for bfloat16; leave dtype at float32"):
        Explainer(network, dtype="bfloat16")
