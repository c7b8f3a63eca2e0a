"""The three networks of the study, at 64 x 64 pixels, and how they are trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
import torchvision
from torch import nn

from experiments.deepbug.boards import CLASSES
from lrp_onnx.converters import convert
from lrp_onnx.data import open_dataset
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.stored_inputs import read_input

PREPROCESS = Preprocess(size=(64, 64), mean=(0.5,), std=(0.5,))
_BATCH = 32


@dataclass(frozen=True)
class Recipe:
    """A network, and how it is trained: passes over the data, and the highest learning rate of Adam."""

    make: Callable[[], nn.Module]
    epochs: int
    rate: float


def custom_cnn() -> nn.Module:
    """The seven-layer network of the study: four convolutions of 16, 32, 64 and 128 kernels, dense 256 and 2."""
    layers: list[nn.Module] = []
    before = 3
    for kernels, edge in ((16, 5), (32, 5), (64, 3), (128, 5)):
        layers += [nn.Conv2d(before, kernels, edge, padding=edge // 2), nn.ReLU(), nn.MaxPool2d(2)]
        before = kernels
    dense = [nn.Flatten(), nn.Linear(128 * 4 * 4, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, len(CLASSES))]
    return nn.Sequential(*layers, *dense)


def alexnet() -> nn.Module:
    """torchvision's AlexNet, all layers as wide as they are; the first stride is 2 and not 4, as the input is small."""
    network = torchvision.models.alexnet(num_classes=len(CLASSES))
    network.features[0].stride = (2, 2)  # so that 2 x 2 positions are left after the last pooling
    network.avgpool = nn.Identity()
    network.classifier[1] = nn.Linear(256 * 2 * 2, 4096)
    return network


def vgg16() -> nn.Module:
    """torchvision's VGG-16 with batch normalisation, its 13 convolutions as they are; dense 512 and 2.

    Without batch normalisation it does not start to learn from random weights in so few steps. 2 x 2 positions are
    left after the last pooling, too little for dense layers of 4096.
    """
    features = torchvision.models.vgg16_bn(num_classes=len(CLASSES)).features
    return nn.Sequential(
        features, nn.Flatten(), nn.Linear(512 * 2 * 2, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, len(CLASSES))
    )


RECIPES = {
    "custom-cnn": Recipe(custom_cnn, 8, 1e-3),
    "alexnet": Recipe(alexnet, 8, 2e-4),
    "vgg16": Recipe(vgg16, 4, 5e-4),
}


def train(recipe: Recipe, pictures: Path, seed: int, say: Callable[[str], None]) -> onnx.ModelProto:
    """Train on a folder of pictures by class, with no more variety than they have; the ONNX model."""
    torch.manual_seed(seed)
    x, y = read_pictures(pictures)
    network = recipe.make().to(memory_format=torch.channels_last)
    steps = recipe.epochs * -(-len(x) // _BATCH)
    optimiser = torch.optim.AdamW(network.parameters(), recipe.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=steps)
    for epoch in range(recipe.epochs):
        network.train()
        losses, right = 0.0, 0
        for rows in torch.randperm(len(x)).split(_BATCH):
            logits = network(x[rows])
            loss = nn.functional.cross_entropy(logits, y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses += loss.item() * len(rows)
            right += int((logits.argmax(dim=1) == y[rows]).sum())
        say(f"epoch {epoch + 1} of {recipe.epochs}: loss {losses / len(x):.3f}, {right / len(x):.1%} right")
    network = network.to(memory_format=torch.contiguous_format).eval()
    return convert(network, preprocess=PREPROCESS, classes=CLASSES).model


def read_pictures(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (n, 3, 64, 64) and class indexes (n,) of a folder of pictures by class."""
    dataset = open_dataset(folder)
    inputs = np.stack([read_input(dataset, row, PREPROCESS) for row in range(len(dataset))])
    labels = torch.tensor([sample.label for sample in dataset.samples])
    return torch.from_numpy(inputs).contiguous(memory_format=torch.channels_last), labels
