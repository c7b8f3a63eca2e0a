"""What is known of a training run, epoch by epoch, and the JSON file that keeps it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from lrp_onnx.errors import DataError
from lrp_onnx.files import written_whole

FORMAT, FORMAT_VERSION = "lrp-onnx-training-run", 1
Role = Literal["panel", "best", "worst"]
_T = TypeVar("_T")


@dataclass(frozen=True)
class ImageRecord:
    """One explained image of an epoch.

    Attributes
    ----------
    role : {"panel", "best", "worst"}
        Of the fixed panel, or the image of its class with the highest or lowest score of that class.
    row : int
        In the validation set.
    store_row : int
        In the epoch's store.
    label, predicted : int
    score : float
        Of the true class, 0 to 1.
    confidence : float
        Score of the predicted class, 0 to 1.
    mass : tuple of tuple of float
        Share of |relevance| in each ninth of the picture, rows from the top; sums to 1, or 0 without relevance.
    """

    role: Role
    row: int
    store_row: int
    label: int
    predicted: int
    score: float
    confidence: float
    mass: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class EpochRecord:
    """One recorded epoch.

    Attributes
    ----------
    epoch : int
    loss, accuracy : float or None
        On the validation images; None where the epoch failed.
    metrics : dict of str to float
        What the training loop said, such as its own loss.
    seconds : dict of str to float
        Wall time: "export" (weights to ONNX), "predict", "explain" (also loading the graph), "draw", "total" of these
        and what is between, and "training", the time since the record before (absent for the first).
    store : str
        The heatmaps, relative to the run's folder; "" where the epoch failed.
    export : str
        How the ONNX model came about.
    images : tuple of ImageRecord
        The panel, then best and worst of each class.
    error : str
        What went wrong, "" if nothing did.
    """

    epoch: int
    loss: float | None = None
    accuracy: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    store: str = ""
    export: str = ""
    images: tuple[ImageRecord, ...] = ()
    error: str = ""


def thirds(relevance: np.ndarray) -> tuple[tuple[float, ...], ...]:
    """Share of |relevance| (H, W) in each ninth of the picture, three rows of three."""
    magnitude = np.abs(relevance.astype(np.float64))
    total = float(magnitude.sum()) or 1.0
    return tuple(
        tuple(float(part.sum()) / total for part in np.array_split(band, 3, axis=1))
        for band in np.array_split(magnitude, 3, axis=0)
    )


def spread(values: Sequence[_T], most: int) -> list[_T]:
    """At most so many of the values, evenly spread, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[place] for place in np.linspace(0, len(values) - 1, most).round().astype(int)]


def write_records(path: Path, about: dict[str, Any], epochs: Sequence[EpochRecord]) -> None:
    """Write the run as JSON; numbers that are not finite become null."""
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **about, "epochs": [asdict(e) for e in epochs]}
    with written_whole(path, overwrite=True) as new:
        text = json.dumps(_finite(content), ensure_ascii=False, indent=1, allow_nan=False)
        new.write_text(text + "\n", encoding="utf-8")


def read_records(path: Path) -> list[EpochRecord]:
    """Read the epochs of a run.

    Raises
    ------
    DataError
        The file is not one that `write_records` wrote.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["format_version"] > FORMAT_VERSION:
            raise ValueError(f"format {content['format']!r}, version {content['format_version']}")
        return [_epoch(entry) for entry in content["epochs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no record of a training run ({error}); name another folder") from error


def _epoch(entry: dict[str, Any]) -> EpochRecord:
    images = tuple(ImageRecord(**{**image, "mass": tuple(map(tuple, image["mass"]))}) for image in entry["images"])
    return EpochRecord(**{**entry, "images": images})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
