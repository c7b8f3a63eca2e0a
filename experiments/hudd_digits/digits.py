"""The digits, split by seed, and the network that is to be improved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lrp_onnx.converters import convert
from lrp_onnx.data import Dataset, open_dataset
from lrp_onnx.demo.digits import load_digits, shares
from lrp_onnx.demo.digits import train as train_network
from lrp_onnx.graph import Graph, load

PARTS = ("training", "validation", "test", "improvement")


@dataclass(frozen=True, eq=False)
class Digits:
    """Four data sets without a common image; the labels of the improvement set stand in for a person."""

    training: Dataset
    validation: Dataset
    test: Dataset
    improvement: Dataset


def split(folder: Path, seed: int) -> Digits:
    """Shuffle the 5,000 digits, share them out, and write each part as an array file into `folder`."""
    images, labels = load_digits()
    parts = {}
    for name, rows in zip(PARTS, shares(len(images), seed).values(), strict=True):
        np.savez(folder / f"{name}.npz", x=images[rows], y=labels[rows])
        parts[name] = open_dataset(folder / f"{name}.npz")
    return Digits(**parts)


def train(training: Dataset, seed: int) -> Graph:
    """The demonstration's network, trained from scratch and converted to ONNX."""
    images = np.array(training.array)
    network = train_network(images, training.labels, seed)
    return load(convert(network, example=torch.from_numpy(images[:2])).model)
