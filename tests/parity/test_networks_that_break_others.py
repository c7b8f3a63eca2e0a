"""Networks on which libraries that hook modules go wrong conserve node by node, from either exporter of PyTorch.

Relevance is lost or doubled there by: sums and activations that are no modules, a module that is called twice, several
inputs, BatchNorm in front of its convolution, products, and norms that a canoniser does not know.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrp_onnx import rules
from lrp_onnx.engine import Explainer, Explanation
from lrp_onnx.graph import Graph, load

TOLERANCE = 1e-10
BATCH, SIZE = 2, 12


def conv(inputs: int, outputs: int, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class Residual(nn.Module):
    """x + f(x) written by hand, in place and not, with activations that are functions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c, self.d = conv(3, 6), conv(6, 6), conv(6, 6), conv(6, 8, stride=2), conv(8, 8)
        self.skip, self.norm, self.head = nn.Conv2d(6, 8, 1, stride=2), nn.BatchNorm2d(6), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = torch.relu(x + self.b(F.relu(self.norm(self.a(x)))))
        x = self.skip(x) + self.d(F.relu(self.c(x)))
        x = x.clamp(min=0)
        return self.head(x.mean((2, 3)))


class Shared(nn.Module):
    """One convolution, one activation module and one weight matrix, each used more than once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.relu = conv(3, 6), conv(6, 6), nn.ReLU()
        self.dense = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        for _ in range(3):
            x = self.relu(self.again(x))
        x = self.relu(self.dense(x.amax((2, 3))))
        return F.linear(x, self.dense.weight.T)


class TwoInputs(nn.Module):
    """A picture and a row of numbers; the picture is read twice, the numbers join late and scale what came before."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.numbers, self.head = conv(3, 6), conv(3, 6), nn.Linear(5, 12), nn.Linear(24, 4)

    def forward(self, x: Tensor, numbers: Tensor) -> Tensor:
        pooled = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], dim=1).mean((2, 3))
        told = torch.tanh(self.numbers(numbers))
        return self.head(torch.cat([pooled, told * pooled], dim=1))

    def example(self) -> tuple[Tensor, ...]:
        return picture(), normal(BATCH, 5)


class Dense(nn.Module):
    """A DenseNet block: BatchNorm -> ReLU -> Conv on all that came before, a transition, and a BatchNorm at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(conv(6 + 4 * i, 4) for i in range(3))
        self.between, self.last, self.head = nn.Conv2d(18, 9, 1), nn.BatchNorm2d(9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, convolution in zip(self.norms, self.convs, strict=True):
            features.append(convolution(F.relu(norm(torch.cat(features, dim=1)))))
        x = F.avg_pool2d(self.between(torch.cat(features, dim=1)), 2)
        return self.head(F.adaptive_avg_pool2d(F.relu(self.last(x)), 1).flatten(1))


class NormHead(nn.Module):
    """Tokens of a picture, pooled, under a LayerNorm head, as in ConvNeXt; LayerNorm over channels of NCHW by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 16, 4, stride=4), nn.LayerNorm(16), nn.Linear(16, 4)
        self.scale, self.group = nn.Parameter(torch.ones(16, 1, 1)), nn.GroupNorm(4, 16)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        centred = x - x.mean(1, keepdim=True)
        x = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-6) * self.scale
        x = x + F.gelu(self.deep(self.group(x)))
        return self.head(self.norm(x.flatten(2).mean(-1)))


class Gated(nn.Module):
    """Squeeze and excitation, a gated linear unit, hard-swish and a channel shuffle, all by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze, self.excite = conv(3, 8), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.wide, self.head = conv(4, 8), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * (x + 3).clamp(0, 6) / 6
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        kept, turned = x.chunk(2, dim=1)
        signal, gate = self.wide(turned + kept).chunk(2, dim=1)
        return self.head((signal * torch.sigmoid(gate)).mean((2, 3)))


class Decoder(nn.Module):
    """A U-Net in small: strided down, transposed up, skip connections by concatenation and by sum, a map as output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.deep = conv(3, 4), conv(4, 8, stride=2), conv(8, 8)
        self.up, self.out = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.leaky_relu(self.stem(x), 0.125)
        low = F.elu(self.deep(F.relu(self.down(first))))
        high = F.relu(self.up(low)) + F.interpolate(low[:, :4], scale_factor=2, mode="bilinear", align_corners=False)
        return self.out(torch.cat([first, high], dim=1))


class Siamese(nn.Module):
    """One encoder for two pictures, with weights under weight_norm, and a head on sum and difference."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv(3, 6), nn.ReLU(), nn.MaxPool2d(2), conv(6, 6), nn.ReLU())
        self.between, self.head = nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.Linear(16, 4)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        a, b = (F.relu(self.between(self.encoder(x).mean((2, 3)))) for x in (one, other))
        return self.head(torch.cat([a - b, a + b], dim=1))

    def example(self) -> tuple[Tensor, ...]:
        return picture(), normal(BATCH, 3, SIZE + 2, SIZE + 2)[..., 1:-1, 1:-1]


class Steps(nn.Module):
    """A recurrent network by hand: rows of a picture, one after the other, through the same two matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.take, self.keep, self.head = nn.Linear(3 * SIZE, 10), nn.Linear(10, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], 10)
        for row in x.permute(2, 0, 1, 3).flatten(2).unbind(0):
            state = torch.tanh(self.take(row) + self.keep(state))
        return self.head(state)


class Moves(nn.Module):
    """What only moves or picks: strides, flips, rolls, stacks, padding, shuffles, masks, functional dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.head = conv(3, 8), conv(2, 4), nn.Linear(4, 4)
        self.register_buffer("kept", (torch.arange(SIZE) % 3 > 0).double())

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.stem(x)), 0.5, training=self.training)
        x = torch.stack([x, x.flip(-1), x.roll(2, dims=-2)], dim=0).amax(0)
        x = F.pixel_shuffle(F.pad(x[:, :, ::2, 1:], (1, 0, 0, 0), mode="reflect"), 2)
        x = x[:, [1, 0]] * self.kept[None, None, :, None]
        x = torch.where(x > 0.1, x, 0.5 * x)
        first, second = self.last(x).split(2, dim=1)
        x = torch.cat([torch.maximum(first, second), torch.minimum(first, second)], dim=1)
        return self.head(F.relu(x).mean((2, 3)))


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def picture() -> Tensor:
    return normal(BATCH, 3, SIZE, SIZE)


def seeded(network: nn.Module) -> nn.Module:
    """The network in float64, with biases and statistics of norms that are not zero and one."""
    torch.manual_seed(0)
    network = network.double().eval()
    for name, values in network.state_dict().items():
        if values.is_floating_point():
            fan = values[0].numel() if values.ndim > 1 else 0
            drawn = torch.randn_like(values) * (1.5 / fan) ** 0.5 if fan else 0.3 * torch.randn_like(values)
            unit = name.endswith("running_var") or (values.ndim == 1 and name.endswith("weight")) or "scale" in name
            values.copy_(0.7 + drawn.abs() if unit else drawn)
    return network


def example_of(network: nn.Module) -> tuple[Tensor, ...]:
    return network.example() if isinstance(network, TwoInputs | Siamese) else (picture(),)


def exported(network: nn.Module, *, dynamo: bool = False) -> Graph:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            torch.onnx.export(network, example_of(network), dynamo=True, verbose=False).save(file)  # type: ignore[union-attr]
        else:
            torch.onnx.export(network, example_of(network), file, dynamo=False, opset_version=18)
    return load(file.getvalue())


def explained(network: nn.Module, graph: Graph, by: rules.Composite) -> Explanation:
    example = example_of(network)
    inputs = dict(zip(graph.inputs, example, strict=True))
    found = Explainer(graph, by, dtype="float64").explain(inputs, seed="all", layers="all")
    torch.testing.assert_close(found.output, network(*example).detach(), rtol=0, atol=1e-9)
    return found


def assert_conserves(found: Explanation, graph: Graph) -> None:
    """Up to rounding, which is relative to what goes through a node and not to its sum."""
    outputs = {node.name: node.outputs for node in graph.nodes}
    for node in found.conservation:
        through = sum(
            float(found.relevance[name].abs().sum()) for name in outputs[node.node] if name in found.relevance
        )
        assert float(node.bias) == 0, node.node
        assert abs(float(node.remainder)) <= TOLERANCE * max(1.0, through), f"{node.node} ({node.rule})"
    arrived = sum(float(found.relevance[name].sum()) for name in graph.inputs)
    assert abs(arrived - float(found.output.sum())) <= 10 * TOLERANCE * max(1.0, abs(arrived))
    assert all(found.relevance[name].abs().max() > 0 for name in graph.inputs)


NETWORKS = {
    kind.__name__: kind
    for kind in (Residual, Shared, TwoInputs, Dense, NormHead, Gated, Decoder, Siamese, Steps, Moves)
}
COMPOSITES = {
    "epsilon": rules.composite("epsilon", bias="ignore", eps=1e-14),
    "epsilon-plus": rules.composite("epsilon-plus", bias="ignore", eps=1e-14),
    "epsilon-plus-flat": rules.composite("epsilon-plus-flat", bias="ignore", eps=1e-14),
    "epsilon-gamma-box": rules.composite("epsilon-gamma-box", bias="ignore", eps=1e-14, low=-6.0, high=6.0),
    "attnlrp": rules.composite("attnlrp", bias="ignore", eps=1e-14),
}
# where an output may have no positive part, for want of a ReLU behind it and of many inputs, z-plus has no taker
NO_TAKER = {"Residual", "NormHead", "Gated", "Decoder"}


@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("kind", NETWORKS.values(), ids=NETWORKS)
def test_relevance_is_conserved(kind: Callable[[], nn.Module], dynamo: bool) -> None:
    network = seeded(kind())
    graph = exported(network, dynamo=dynamo)
    for name, by in COMPOSITES.items():
        if not (kind.__name__ in NO_TAKER and name.startswith("epsilon-plus")):
            assert_conserves(explained(network, graph, by), graph)


def test_both_inputs_of_two_get_their_share() -> None:
    """Against the sums by hand: the head is linear in both halves, and a product halves what arrives."""
    network = seeded(TwoInputs())
    graph = exported(network)
    found = explained(network, graph, COMPOSITES["epsilon"])
    image, numbers = network.example()
    pooled = torch.cat([network.left(image).relu(), network.right(image).relu()], dim=1).mean((2, 3))
    product = torch.tanh(network.numbers(numbers)) * pooled
    weight = network.head.weight.detach()
    logits = torch.cat([pooled, product], dim=1) @ weight.T
    share = torch.cat([pooled, product], dim=1)[:, None] * weight / logits[..., None]  # (N, 4, 24)
    arrived = (share * found.output[..., None]).sum(1)
    of_numbers = (arrived[:, 12:].sum() / 2).item()
    assert found.relevance[list(graph.inputs)[1]].sum().item() == pytest.approx(of_numbers, rel=1e-9)


def test_the_check_sees_a_sum_that_hands_all_to_both() -> None:
    """As where a hook on modules does not see `x + f(x)`: each branch gets the whole."""
    network = seeded(Residual())
    graph = exported(network)
    with pytest.raises(AssertionError, match="Add"):
        assert_conserves(explained(network, graph, COMPOSITES["epsilon"].override({"Add": "gradient"})), graph)
