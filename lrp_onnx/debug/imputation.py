"""Noisy linear imputation: pixels of a picture replaced by what their surroundings let expect."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.errors import DataError

Image = NDArray[np.floating]  # (C, H, W)
NOISE = 0.01  # of the picture's standard deviation

# Offset (rows, columns) and weight of half of a pixel's neighbours; the others are their mirror images.
_NEIGHBOURS = (((0, 1), 1 / 6), ((1, 0), 1 / 6), ((1, 1), 1 / 12), ((1, -1), 1 / 12))


def impute(
    image: Image, missing: NDArray[np.bool_], *, noise: float = NOISE, random: np.random.Generator | None = None
) -> NDArray[np.float64]:
    """Replace pixels by the weighted mean of their eight neighbours, and add noise, so that no edge of a mask is left.

    Of Rong et al. 2022 (ROAD, arXiv:2202.00449): the four direct neighbours weigh 1/6, the diagonal ones 1/12, those
    outside of the picture nothing. Replaced pixels are neighbours of each other, so that their values solve a
    linear system.

    Parameters
    ----------
    image : (C, H, W)
    missing : bool (H, W)
        Pixels to replace, not all.
    noise : float
        Standard deviation of the Gaussian noise on replaced pixels, in those of the picture. Rong et al. add 0.01 to
        inputs normalised to a standard deviation of about 1.
    random : numpy Generator
        Of the noise; left out, it is seeded with 0.

    Returns
    -------
    float64 (C, H, W)

    Raises
    ------
    DataError
        When every pixel is missing, or shapes differ.
    """
    from scipy.sparse import coo_array, csc_array, csr_array, diags_array
    from scipy.sparse.linalg import splu

    if missing.shape != image.shape[1:] or missing.all():
        raise DataError(
            f"imputation needs a mask of shape {image.shape[1:]} that leaves some pixels, got {missing.shape} with "
            f"{int(missing.sum())} missing"
        )
    flat, result = missing.ravel(), np.array(image, dtype=np.float64).reshape(len(image), -1)
    if not flat.any():
        return result.reshape(image.shape)
    first, second, weights = _edges(*missing.shape)
    both = np.concatenate([first, second]), np.concatenate([second, first])
    adjacent = csr_array(coo_array((np.concatenate([weights, weights]), both), shape=(flat.size, flat.size)))[flat]
    system = diags_array(adjacent.sum(axis=1)) - adjacent[:, flat]
    known = adjacent[:, ~flat] @ result[:, ~flat].T  # (missing pixels, C)
    # the fastest of SuperLU's orderings for a symmetric system with the graph of a picture
    factors = splu(csc_array(system), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
    result[:, flat] = factors.solve(known).T
    if noise:
        random = np.random.default_rng(0) if random is None else random
        deviation = noise * float(np.std(image))
        result[:, flat] += deviation * random.standard_normal((len(result), int(flat.sum())))
    return result.reshape(image.shape)


def _edges(height: int, width: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Pairs of neighbouring pixels, as positions in the flat picture, and their weights."""
    pixels = np.arange(height * width).reshape(height, width)
    firsts, seconds, weights = [], [], []
    for (down, right), weight in _NEIGHBOURS:
        here = pixels[: height - down, max(0, -right) : width - max(0, right)]
        there = pixels[down:, max(0, right) : width - max(0, -right)]
        firsts.append(here.ravel())
        seconds.append(there.ravel())
        weights.append(np.full(here.size, weight))
    return np.concatenate(firsts), np.concatenate(seconds), np.concatenate(weights)
