"""The classifier of chess pieces that chess-cv publishes, as an ONNX model."""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from pathlib import Path

import onnx
from safetensors.torch import load
from torch import nn

from lrp_onnx.converters import convert

WEIGHTS = "chess_cv/weights/pieces.safetensors"
CLASSES = ("bB", "bK", "bN", "bP", "bQ", "bR", "wB", "wK", "wN", "wP", "wQ", "wR", "xx")  # xx: an empty square


def piece_classifier(wheel: Path, *, centred: bool) -> onnx.ModelProto:
    """`SimpleCNN` of chess-cv with the weights in its wheel: float32 (N, 3, 32, 32) in 0..1 to 13 logits.

    `centred` takes the mean over the classes out of the last layer, and so out of every picture's logits. No prediction
    and no probability changes, but where relevance starts does: the published logits are all negative, with hardly a
    positive weight in the last layer, so that the predicted class only has evidence against it.
    """
    layers = OrderedDict[str, nn.Module]()
    for number, (channels, kernels) in enumerate([(3, 16), (16, 32), (32, 64)], start=1):
        layers[f"conv{number}"] = nn.Conv2d(channels, kernels, 3, padding=1)
        layers[f"relu{number}"] = nn.ReLU()
        layers[f"pool{number}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["fc1"], layers["relu4"] = nn.Linear(64 * 4 * 4, 128), nn.ReLU()
    layers["fc2"] = nn.Linear(128, len(CLASSES))
    with zipfile.ZipFile(wheel) as archive:
        weights = load(archive.read(WEIGHTS))
    # MLX has channels last, in its kernels and in what it flattens.
    for name in ("conv1.weight", "conv2.weight", "conv3.weight"):
        weights[name] = weights[name].permute(0, 3, 1, 2)
    weights["fc1.weight"] = weights["fc1.weight"].unflatten(1, (4, 4, 64)).permute(0, 3, 1, 2).flatten(1)
    if centred:
        for name in ("fc2.weight", "fc2.bias"):
            weights[name] -= weights[name].mean(dim=0)
    network = nn.Sequential(layers).eval()
    network.load_state_dict(weights)
    return convert(network, preprocess={"preset": "unit", "size": 32}, classes=CLASSES).model
