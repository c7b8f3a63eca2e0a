"""The networks, the input and the sampled positions that the golden arrays and the test have to agree on."""

from __future__ import annotations

import numpy as np
import torch
import torchvision

ZENNIT = ("epsilon-plus", "epsilon-plus-flat", "epsilon-alpha2-beta1", "epsilon-gamma-box")
CAPTUM = "epsilon"
CAPTUM_EPS = 1e-9
LOW, HIGH = -3.0, 3.0
NETWORKS = {
    "alexnet": (*ZENNIT, CAPTUM),
    "vgg16": (*ZENNIT, CAPTUM),
    "resnet18": ZENNIT,  # captum's sums of two branches are not LRP's
    "resnet50": ZENNIT,
}
SAMPLED = 1400


def build(name: str) -> torch.nn.Module:
    """The torchvision architecture in float64 and eval mode, with seeded weights that keep logits of order 1.

    The weights are drawn by numpy, whose RandomState gives the same numbers in every version and environment.
    """
    with torch.device("meta"):  # torch's own initialisation takes seconds and is overwritten
        model = getattr(torchvision.models, name)(weights=None)
    model = model.to_empty(device="cpu").eval().double()
    rng = np.random.RandomState(0)
    state = model.state_dict()
    for key in sorted(state):
        values = _draw(rng, key, tuple(state[key].shape)) if state[key].is_floating_point() else np.zeros((), np.int64)
        state[key] = torch.from_numpy(values)
    model.load_state_dict(state)
    return model


def _draw(rng: np.random.RandomState, key: str, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) > 1:  # He for convolutions; dense layers a little smaller
        return rng.normal(0, np.sqrt((2 if len(shape) > 2 else 1) / np.prod(shape[1:])), shape)
    if key.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape)
    if key.endswith("weight"):  # of a BatchNorm
        return rng.uniform(0.5, 1.0, shape)
    return rng.normal(0, 0.05, shape)


def image() -> torch.Tensor:
    """(1, 3, 224, 224), float64, within the box of the z-box rule."""
    return torch.from_numpy(np.random.RandomState(1).uniform(-2, 2, (1, 3, 224, 224)))


def digest(relevance: torch.Tensor) -> np.ndarray:
    """What is kept of a heatmap: its sum, its largest magnitude, and its values at `SAMPLED` seeded positions."""
    flat = relevance.detach().double().numpy().ravel()
    at = np.random.RandomState(2).choice(flat.size, SAMPLED, replace=False)
    return np.concatenate([[flat.sum(), np.abs(flat).max()], flat[at]])
