"""From relevance to colour: maps, scaling that outliers cannot spoil, reduction over channels, overlays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from lrp_onnx.errors import DataError

RGB = NDArray[np.uint8]  # (H, W, 3)
Relevance = NDArray[np.float64]

_TABLE_SIZE = 511  # odd, so that relevance 0 falls on the middle anchor exactly


@dataclass(frozen=True)
class ColourMap:
    """Anchor colours at equal distances; `signed` maps run from −vmax to +vmax, the others show |relevance|."""

    anchors: tuple[str, ...]
    signed: bool


COLOUR_MAPS = {
    "seismic": ColourMap(("#00004c", "#0000ff", "#ffffff", "#ff0000", "#800000"), signed=True),
    "bwr": ColourMap(("#0000ff", "#ffffff", "#ff0000"), signed=True),
    "coldnhot": ColourMap(("#ffffff", "#00ffff", "#0000ff", "#000000", "#ff0000", "#ffff00", "#ffffff"), signed=True),
    "hot": ColourMap(("#000000", "#ff0000", "#ffff00", "#ffffff"), signed=False),
    "gray": ColourMap(("#000000", "#ffffff"), signed=False),
    "viridis": ColourMap(
        (
            *("#440154", "#482878", "#3e4989", "#31688e", "#26828e"),
            *("#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"),
        ),
        signed=False,
    ),
}


def colour_map(name: str) -> ColourMap:
    """Return the colour map called `name`.

    Raises
    ------
    DataError
        No such map; the message lists those there are.
    """
    if name not in COLOUR_MAPS:
        raise DataError(f"colour map {name!r} is unknown; choose one of {', '.join(COLOUR_MAPS)}")
    return COLOUR_MAPS[name]


@cache
def colour_table(name: str) -> RGB:
    """Colours of the map `name` from its lowest to its highest value, uint8 (511, 3)."""
    anchors = colour_map(name).anchors
    corners = np.array([[int(hex_[i : i + 2], 16) for i in (1, 3, 5)] for hex_ in anchors])  # (A, 3)
    where, positions = np.linspace(0, 1, len(anchors)), np.linspace(0, 1, _TABLE_SIZE)
    table = np.stack([np.interp(positions, where, channel) for channel in corners.T], axis=1)
    table = np.rint(table).astype(np.uint8)
    table.setflags(write=False)  # cached: one caller must not repaint it for all
    return table


def finite(relevance: ArrayLike) -> Relevance:
    """Return relevance as float64, having made sure that every value is a number.

    Raises
    ------
    DataError
        Some values are NaN or infinite; the message says how many.
    """
    values = np.asarray(relevance, dtype=np.float64)
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise DataError(
            f"{bad} of {values.size} relevance values are NaN or infinite, so there is nothing to colour; "
            "look for overflow in the model (float32 activations, eps too small) with another composite or float64"
        )
    return values


def robust_max(relevance: ArrayLike, percentile: float = 99.5) -> float:
    """Return the |relevance| that the strongest colour stands for: a percentile, so that outliers do not fade the rest.

    When more values are zero than the percentile leaves out, the largest |relevance| is returned; 0.0 means all zero.

    Parameters
    ----------
    relevance
        Any shape.
    percentile
        In (0, 100].

    Raises
    ------
    DataError
        NaN or infinite values, or a percentile out of range.
    """
    if not 0 < percentile <= 100:
        raise DataError(f"percentile must lie above 0 and not above 100, got {percentile}")
    magnitude = np.abs(finite(relevance))
    if not magnitude.size:
        return 0.0
    return float(np.percentile(magnitude, percentile)) or float(magnitude.max())


def normalise(relevance: ArrayLike, vmax: float | None = None, percentile: float = 99.5) -> Relevance:
    """Scale relevance to [−1, 1], cut at ±`vmax` (by default `robust_max`); all-zero relevance stays zero."""
    values = finite(relevance)
    scale = robust_max(values, percentile) if vmax is None else float(vmax)
    if not np.isfinite(scale) or scale < 0:
        raise DataError(f"vmax must be a finite number that is not negative, got {vmax}")
    return np.clip(values / scale, -1, 1) if scale > 0 else np.zeros_like(values)


def reduce_channels(relevance: ArrayLike, how: str = "sum") -> Relevance:
    """Reduce (…, H, W) to one picture (H, W) over all leading axes; (H, W) comes back as it is.

    Parameters
    ----------
    relevance
        Two axes or more, channels first.
    how
        "sum" (default: keeps the relevance of a pixel whole), "mean", "max-abs" (the strongest channel, with its
        sign) or "norm" (Euclidean, so without sign).

    Raises
    ------
    DataError
        Fewer than two axes, or an unknown `how`.
    """
    values = np.asarray(relevance, dtype=np.float64)
    if values.ndim < 2:
        raise DataError(f"a picture needs relevance of shape (…, H, W), got {values.shape}")
    stack = values.reshape(-1, *values.shape[-2:])  # (C, H, W)
    match how:
        case "sum":
            return np.asarray(stack.sum(axis=0))
        case "mean":
            return np.asarray(stack.mean(axis=0))
        case "max-abs":
            return np.take_along_axis(stack, np.abs(stack).argmax(axis=0)[None], axis=0)[0]
        case "norm":
            return np.asarray(np.sqrt((stack**2).sum(axis=0)))
    raise DataError(f"channels can be reduced by sum, mean, max-abs or norm, got {how!r}")


def to_rgb(relevance: ArrayLike, *, cmap: str = "seismic", vmax: float | None = None, percentile: float = 99.5) -> RGB:
    """Colour a relevance picture.

    Parameters
    ----------
    relevance
        (H, W); reduce channels first with `reduce_channels`.
    cmap
        A name in `COLOUR_MAPS`. Signed maps ("seismic", "bwr", "coldnhot") put relevance 0 in their middle, the
        others ("hot", "gray", "viridis") show |relevance| from 0 on.
    vmax
        The |relevance| that the strongest colour stands for; the default is `robust_max` of this picture.
    percentile
        Of |relevance|, for that default.

    Returns
    -------
    ndarray
        uint8 (H, W, 3); all-zero relevance gives the colour of 0 throughout (white for "seismic").

    Raises
    ------
    DataError
        Wrong shape, NaN or infinite relevance, unknown map, vmax or percentile out of range.
    """
    if np.ndim(relevance) != 2:
        raise DataError(f"relevance to colour must have the shape (H, W), got {np.shape(relevance)}")
    scaled = normalise(relevance, vmax, percentile)
    unit = (scaled + 1) / 2 if colour_map(cmap).signed else np.abs(scaled)
    return colour_table(cmap)[np.rint(unit * (_TABLE_SIZE - 1)).astype(np.intp)]


def resize_relevance(relevance: ArrayLike, height: int, width: int) -> Relevance:
    """Resample relevance (H, W) linearly to (`height`, `width`); values are interpolated, not colours."""
    values = np.asarray(relevance, dtype=np.float64)
    peak = float(np.abs(values).max(initial=0.0))
    if values.shape == (height, width) or peak == 0:
        return np.zeros((height, width)) if peak == 0 else values
    # Pillow interpolates float32 only, which relevance far from 1 would leave
    small = Image.fromarray((values / peak).astype(np.float32))
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float64) * peak


def overlay(
    image: NDArray[Any],
    relevance: ArrayLike,
    *,
    cmap: str = "seismic",
    vmax: float | None = None,
    percentile: float = 99.5,
    alpha: float = 0.9,
) -> RGB:
    """Lay a heatmap over a grey, lightened copy of the image; the stronger the relevance, the less shines through.

    Parameters
    ----------
    image
        uint8 (H, W, 3).
    relevance
        (h, w) of any size; it is stretched over the image.
    alpha
        Opacity where |relevance| reaches `vmax`, in [0, 1].

    Returns
    -------
    ndarray
        uint8 (H, W, 3). Where relevance is 0 only the grey image shows, so colour always means relevance.

    Raises
    ------
    DataError
        The image is not uint8 (H, W, 3), `alpha` is out of range, or `to_rgb` cannot colour the relevance.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise DataError(f"an overlay needs a uint8 image of shape (H, W, 3), got {image.dtype} {image.shape}")
    if not 0 <= alpha <= 1:
        raise DataError(f"alpha must lie in [0, 1], got {alpha}")
    scale = robust_max(relevance, percentile) if vmax is None else vmax
    values = resize_relevance(finite(relevance), *image.shape[:2])
    grey = np.asarray(Image.fromarray(image).convert("L"), dtype=np.float64)[..., None]
    backdrop = 110 + grey * (145 / 255)  # lightened, so that dark reds and blues stand out in shadows too
    scaled = normalise(values, scale)
    # Opacity tells strong from weak; the map's own weak and strong ends would only whiten or blacken the image.
    heat = to_rgb(np.sign(scaled) * (0.5 + 0.3 * np.abs(scaled)), cmap=cmap, vmax=1.0)
    opacity = alpha * np.abs(scaled)[..., None] ** 0.7
    mixed = (1 - opacity) * backdrop + opacity * heat
    return np.rint(mixed).astype(np.uint8)
