"""A model that ONNX Runtime optimised, and saved, is explained as the model that it was."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from lrp_onnx.engine import Explainer
from lrp_onnx.errors import UnsupportedOpError
from lrp_onnx.graph import blocked
from lrp_onnx.rules import composite

pytestmark = [pytest.mark.filterwarnings("ignore")]
Made = tuple[nn.Module, tuple[Tensor, ...]]


class Pictures(nn.Module):
    """Convolutions of many and of few channels and in groups, with what is fused into them and what stands between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 32, 3, 2), nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 1)
        self.odd, self.next = nn.Conv2d(32, 20, 1), nn.Conv2d(20, 32, 3)
        self.depth, self.groups = nn.Conv2d(64, 64, 3, groups=64), nn.Conv2d(64, 32, 1, groups=2)
        self.head = nn.Sequential(nn.Linear(32, 6), nn.ReLU(), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.two(nn.functional.leaky_relu(self.one(x), 0.1)) + x)
        y = self.next(torch.relu(self.odd(x)))
        x = nn.functional.max_pool2d(torch.cat([y, x[:, :, 1:-1, 1:-1]], 1), 2, 1)
        x = nn.functional.interpolate(nn.functional.avg_pool2d(x, 2), scale_factor=2)
        return self.head(self.groups(torch.sigmoid(self.depth(x))).mean((2, 3)))


class Tokens(nn.Module):
    """Embeddings, and a transformer as BERT has it, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 16), nn.Embedding(6, 16)
        self.norm = nn.LayerNorm(16)
        self.qkv, self.out = nn.ModuleList(nn.Linear(16, 16) for _ in range(3)), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.norms = nn.ModuleList([nn.LayerNorm(16), nn.LayerNorm(16)])
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.words(ids) + self.places(torch.arange(6)))
        q, k, v = (layer(x).view(-1, 6, 4, 4).transpose(1, 2) for layer in self.qkv)
        scores = q @ k.transpose(2, 3) / 2 + (1 - mask[:, None, None].float()) * -1e4
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 6, 16)
        x = self.norms[0](x + self.out(mixed))
        x = self.norms[1](x + self.down(nn.functional.gelu(self.up(x))))
        return self.head(x[:, 0])


def pictures() -> Made:
    return Pictures(), (torch.randn(2, 3, 17, 17),)


def tokens() -> Made:
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    return Tokens(), (torch.randint(0, 20, (2, 6)), mask)


def exported(make: Callable[[], Made], opset: int) -> tuple[bytes, dict[str, Tensor]]:
    torch.manual_seed(0)
    module, inputs = make()
    names, file = [f"i{k}" for k in range(len(inputs))], io.BytesIO()
    torch.onnx.export(module.eval(), inputs, file, dynamo=False, opset_version=opset, input_names=names)
    return file.getvalue(), dict(zip(names, inputs, strict=True))


def optimised(model: bytes, level: str, folder: Path) -> bytes:
    path = folder / "optimised.onnx"
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.optimized_model_filepath, options.log_severity_level = str(path), 4
    options.intra_op_num_threads = 1
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return path.read_bytes()


@pytest.mark.parametrize(
    ("make", "opset", "level", "expected"),
    [
        (pictures, 17, "ORT_ENABLE_EXTENDED", {"FusedConv", "FusedGemm"}),
        (pictures, 17, "ORT_ENABLE_ALL", {"FusedGemm"}),
        (tokens, 17, "ORT_ENABLE_EXTENDED", {"SkipLayerNormalization", "Gelu"}),
        (tokens, 14, "ORT_ENABLE_ALL", {"SkipLayerNormalization", "Gelu"}),
    ],
)
@pytest.mark.parametrize("name", ["attnlrp", "epsilon"])
def test_relevance_is_that_of_the_model_before(
    make: Callable[[], Made], opset: int, level: str, expected: set[str], name: str, tmp_path: Path
) -> None:
    before, inputs = exported(make, opset)
    after = optimised(before, level, tmp_path)
    assert {n.op_type for n in onnx.load_from_string(after).graph.node if n.domain == "com.microsoft"} >= expected
    by = composite(name, eps=1e-12)
    one, other = (Explainer(model, by, dtype="float64").explain(inputs) for model in (before, after))
    torch.testing.assert_close(other.output, one.output, rtol=1e-6, atol=1e-6)
    for key, wanted in one.relevance.items():
        assert wanted.abs().max() > 1e-4
        assert (other.relevance[key] - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_weights_in_the_layout_of_another_processor_are_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = optimised(exported(pictures, 17)[0], "ORT_ENABLE_ALL", tmp_path)
    if not any(node.domain == "com.microsoft.nchwc" for node in onnx.load_from_string(model).graph.node):
        pytest.skip("ONNX Runtime has no such layout for this processor")
    monkeypatch.setattr(blocked, "block_size", lambda: 7)
    with pytest.raises(UnsupportedOpError, match="ORT_ENABLE_EXTENDED"):
        Explainer(model)
