"""A ViT block, a BERT layer and a Llama-style layer get the relevance of AttnLRP's published formulas, in float64."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from functools import partial

import attnlrp_reference as lrp
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrp_onnx import rules
from lrp_onnx.engine import Explainer, Explanation
from lrp_onnx.graph import load

TOLERANCE = 1e-6  # relative to the largest value
BATCH, TOKENS, WIDTH, HEADS, KEY_HEADS = 2, 7, 16, 4, 2


class VitBlock(nn.Module):
    """Pre-norm, nn.MultiheadAttention, GELU, as in torchvision's vision transformers; a class token and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2, self.norm = (nn.LayerNorm(WIDTH, eps=1e-6) for _ in range(3))
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.up, self.down, self.head = nn.Linear(WIDTH, 40), nn.Linear(40, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm_1(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        x = x + self.down(F.gelu(self.up(self.norm_2(x))))
        return self.head(self.norm(x)[:, 0])

    def reference(self, x: Tensor) -> Tensor:
        inner = self.attention
        q, k, v = lrp.linear(norm(self.norm_1, x), inner.in_proj_weight, inner.in_proj_bias).chunk(3, dim=-1)
        mixed = lrp.joined(lrp.attention(lrp.heads(q, HEADS), lrp.heads(k, HEADS), lrp.heads(v, HEADS)))
        x = lrp.add(x, dense(inner.out_proj, mixed))
        x = lrp.add(x, dense(self.down, lrp.activation(F.gelu, dense(self.up, norm(self.norm_2, x)))))
        return dense(self.head, norm(self.norm, x)[:, 0])


class BertLayer(nn.Module):
    """Post-norm, separate projections, a padding mask, GELU; a pooler with Tanh."""

    def __init__(self, masked: float = -1e4) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out, self.pooler = (nn.Linear(WIDTH, WIDTH) for _ in range(5))
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH, eps=1e-12), nn.LayerNorm(WIDTH, eps=1e-12)
        self.up, self.down, self.head = nn.Linear(WIDTH, 40), nn.Linear(40, WIDTH), nn.Linear(WIDTH, 5)
        mask = torch.zeros(1, 1, 1, TOKENS)
        mask[..., -2:] = masked
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part(x)) for part in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / (WIDTH / HEADS) ** 0.5 + self.mask
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
        x = self.norm_1(self.out(mixed) + x)
        x = self.norm_2(self.down(F.gelu(self.up(x))) + x)
        return self.head(torch.tanh(self.pooler(x[:, 0])))

    def reference(self, x: Tensor) -> Tensor:
        q, k, v = (lrp.heads(dense(part, x), HEADS) for part in (self.query, self.key, self.value))
        x = norm(self.norm_1, lrp.add(dense(self.out, lrp.joined(lrp.attention(q, k, v, self.mask))), x))
        x = norm(self.norm_2, lrp.add(dense(self.down, lrp.activation(F.gelu, dense(self.up, x))), x))
        return dense(self.head, lrp.activation(torch.tanh, dense(self.pooler, x[:, 0])))


class RmsNorm(nn.Module):
    """As transformers writes it in Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(WIDTH)), 1e-5

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class LlamaLayer(nn.Module):
    """RMSNorm, rotary positions, grouped queries, a causal mask, SwiGLU; a head on the last token."""

    def __init__(self) -> None:
        super().__init__()
        width = WIDTH // HEADS
        self.query, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.key, self.value = (nn.Linear(WIDTH, KEY_HEADS * width, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(WIDTH, 40, bias=False) for _ in range(2))
        self.down, self.head = nn.Linear(40, WIDTH, bias=False), nn.Linear(WIDTH, 5, bias=False)
        self.norm_1, self.norm_2, self.norm = (RmsNorm() for _ in range(3))
        angles = torch.arange(TOKENS)[:, None] * 10_000 ** (-torch.arange(0, width, 2) / width)
        angles = torch.cat([angles, angles], dim=-1).double()
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        self.register_buffer("mask", torch.full((TOKENS, TOKENS), -torch.inf).triu(1))

    def rotated(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-second, first], dim=-1) * self.sin

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm_1(x)
        q = self.rotated(split_heads(self.query(normed)))
        k = self.rotated(split_heads(self.key(normed), KEY_HEADS))
        v = split_heads(self.value(normed), KEY_HEADS)
        k, v = (part.repeat_interleave(HEADS // KEY_HEADS, dim=1) for part in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        normed = self.norm_2(x)
        x = x + self.down(F.silu(self.gate(normed)) * self.up(normed))
        return self.head(self.norm(x)[:, -1])

    def reference(self, x: Tensor) -> Tensor:
        def rotated(x: Tensor) -> Tensor:
            first, second = x.chunk(2, dim=-1)
            turned = torch.cat([lrp.scale(second, -1.0), first], dim=-1)
            return lrp.add(lrp.scale(x, self.cos), lrp.scale(turned, self.sin))

        def rms(part: RmsNorm, x: Tensor) -> Tensor:
            return lrp.rms_norm(x, part.weight, part.eps)

        normed = rms(self.norm_1, x)
        q = rotated(lrp.heads(dense(self.query, normed), HEADS))
        k, v = (lrp.heads(dense(part, normed), KEY_HEADS) for part in (self.key, self.value))
        k, v = (part.repeat_interleave(HEADS // KEY_HEADS, dim=1) for part in (rotated(k), v))
        x = lrp.add(x, dense(self.out, lrp.joined(lrp.attention(q, k, v, self.mask))))
        normed = rms(self.norm_2, x)
        gated = lrp.product(lrp.activation(F.silu, dense(self.gate, normed)), dense(self.up, normed))
        x = lrp.add(x, dense(self.down, gated))
        return dense(self.head, rms(self.norm, x)[:, -1])


def split_heads(x: Tensor, count: int = HEADS) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def dense(part: nn.Linear, x: Tensor) -> Tensor:
    return lrp.linear(x, part.weight, part.bias)


def norm(part: nn.LayerNorm, x: Tensor) -> Tensor:
    return lrp.layer_norm(x, part.weight, part.bias, part.eps)


def seeded(network: nn.Module) -> nn.Module:
    """The network in float64 with random parameters, those of norms and biases too."""
    torch.manual_seed(0)
    network = network.double().eval()
    for name, parameter in network.named_parameters():
        wide = parameter.ndim > 1
        values = torch.randn(parameter.shape, dtype=torch.float64) * (parameter.shape[-1] ** -0.5 if wide else 0.3)
        parameter.data.copy_(values + 1.0 if "norm" in name and name.endswith("weight") else values)
    return network


def tokens() -> Tensor:
    return torch.randn(BATCH, TOKENS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def exported(network: nn.Module, how: str) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "torchscript":
            torch.onnx.export(network, (tokens(),), file, dynamo=False, opset_version=18)
        else:
            opset = 23 if how == "fused" else None  # which has Attention and RMSNormalization
            program = torch.onnx.export(network, (tokens(),), dynamo=True, opset_version=opset, verbose=False)
            program.save(file)  # type: ignore[union-attr]
    return file.getvalue()


def by_reference(network: nn.Module) -> tuple[Tensor, Tensor]:
    """Output, and relevance of the input for the predicted class."""
    x = tokens().requires_grad_()
    output = network.reference(x)
    best = output.detach().argmax(dim=-1, keepdim=True)
    seed = torch.zeros_like(output).scatter(-1, best, output.detach().gather(-1, best))
    output.backward(seed)
    return output.detach(), x.grad


def explained(network: nn.Module, how: str = "torchscript", name: str = "attnlrp", **rule_of: str) -> Explanation:
    composite = rules.composite(name, eps=lrp.EPS, gate="half").override(rule_of)
    return Explainer(load(exported(network, how)), composite, dtype="float64").explain(tokens())


def difference(found: Explanation, wanted: Tensor) -> float:
    (relevance,) = found.relevance.values()
    return float((relevance - wanted).abs().max() / wanted.abs().max())


LAYERS = {
    "vit": VitBlock,
    "bert": BertLayer,
    "bert-masked-by-infinity": partial(BertLayer, -torch.inf),
    "llama": LlamaLayer,
}


@pytest.mark.parametrize(
    "how", ["torchscript", *(pytest.param(h, marks=pytest.mark.slow) for h in ("dynamo", "fused"))]
)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_layer_gets_the_relevance_of_the_published_formulas(layer: Callable[[], nn.Module], how: str) -> None:
    network = seeded(layer())
    output, wanted = by_reference(network)
    found = explained(network, how)
    torch.testing.assert_close(found.output, output, rtol=0, atol=1e-7)  # fused attention rounds its scale to float32
    assert difference(found, wanted) <= TOLERANCE


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_attention_to_values_alone_is_cp_lrp(layer: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    network = seeded(layer())
    both = by_reference(network)[1]
    monkeypatch.setattr(lrp, "attention", lrp.attention_to_values)
    wanted, found = by_reference(network)[1], explained(network, name="cp-lrp")
    assert difference(found, wanted) <= TOLERANCE
    assert difference(found, both) > 1e-2, "and something else than AttnLRP"
    assert "Softmax" not in {node.op_type for node in found.conservation}, "nothing is carried below the weights"


@pytest.mark.parametrize("rule_of", [{"Softmax": "gradient"}, {"LayerNormalization": "gradient"}, {"Gelu": "gradient"}])
def test_the_comparison_sees_another_rule(rule_of: dict[str, str]) -> None:
    network = seeded(BertLayer())
    assert difference(explained(network, **rule_of), by_reference(network)[1]) > 1e-2


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_the_ledger_accounts_for_every_node_of_a_layer(layer: Callable[[], nn.Module]) -> None:
    """What is not handed on is what biases, masks and the constant term of the softmax's expansion take."""
    for node in explained(seeded(layer())).conservation:
        scale = max(1.0, abs(float(node.arrived)), abs(float(node.bias)))
        assert abs(float(node.remainder)) <= 1e-8 * scale, f"{node.node} ({node.rule})"
