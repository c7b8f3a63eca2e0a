"""Max-sensitivity: how much a heatmap changes when the picture hardly does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Images = NDArray[np.floating]  # (n, C, H, W)

SAMPLES = 10
RADIUS = 0.02  # of the range of the input's values


def max_sensitivity(
    explain: Callable[[Images], Images],
    image: NDArray[np.floating],
    random: np.random.Generator,
    *,
    radius: ArrayLike,
    samples: int = SAMPLES,
) -> float:
    """Largest relative change of a heatmap under small noise.

    max over δ of ‖Φ(x + δ) − Φ(x)‖ / ‖Φ(x)‖, with δ uniform in ±radius for each value; Yeh et al. 2019
    (arXiv:1901.09392) do not divide. 0 is a heatmap that does not move, 1 one that moves by as much as it says. NaN
    where Φ(x) is 0.

    Parameters
    ----------
    explain : callable
        From pictures (n, C, H, W) to their relevance, always of the same class; pixels' channels are summed here.
    image : (C, H, W)
    random : numpy Generator
    radius : float or (C,)
        In the units of the input, per channel where they differ.
    samples : int
    """
    width = np.broadcast_to(np.asarray(radius, dtype=np.float64), (len(image),))[:, None, None]
    noise = random.uniform(-width, width, (samples, *image.shape))
    pictures = np.concatenate([image[None], image + noise]).astype(np.float32)
    heatmaps = np.asarray(explain(pictures), dtype=np.float64).sum(axis=1).reshape(len(pictures), -1)
    length = np.linalg.norm(heatmaps[0])
    if not length:
        return float("nan")
    return float(np.linalg.norm(heatmaps[1:] - heatmaps[0], axis=1).max() / length)
