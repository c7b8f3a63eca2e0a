"""The page of a training run: curves, strips, where the relevance lies, what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from lrp_onnx.debug.training_record import EpochRecord, spread
from lrp_onnx.debug.training_strips import FOLDER, PANEL, strip_stem
from lrp_onnx.files import written_whole
from lrp_onnx.render.line_svg import line_chart
from lrp_onnx.render.page import page_template

_TRAINING = {"loss": ("loss", "train_loss", "training_loss"), "accuracy": ("accuracy", "acc", "train_accuracy")}
_PLACES = (
    ("top left", "top", "top right"),
    ("left", "centre", "right"),
    ("bottom left", "bottom", "bottom right"),
)
_PHASES = ("export", "predict", "explain", "draw", "total")
_MOST_COLUMNS = 8


@dataclass(frozen=True)
class Place:
    """The ninth of the picture that holds most relevance in an epoch, and its share."""

    epoch: int
    name: str
    share: float


def write_page(path: Path, about: Mapping[str, Any], epochs: Sequence[EpochRecord]) -> None:
    """Write the page; its pictures lie beside it in ``strips/``.

    Parameters
    ----------
    path : pathlib.Path
    about : mapping
        classes, validation_images, watched, composite, target.
    epochs : sequence of EpochRecord
        At least one.
    """
    names = {label: _name(about, label) for label in about["watched"]}
    stems = {PANEL: "The same images", **{strip_stem(label): f"Class {name}" for label, name in names.items()}}
    text = page_template("debug/training_page.html.j2").render(
        about=about,
        last=epochs[-1],
        epochs=epochs,
        charts=_charts(epochs),
        strips=[(title, f"{FOLDER}/{stem}.png") for stem, title in stems.items() if _there(path, stem)],
        places={name: found for label, name in names.items() if (found := _places(epochs, label))},
        phases=_PHASES,
        mean_seconds=_mean_seconds(epochs),
        cost=cost_share(epochs),
        failures=[epoch for epoch in epochs if epoch.error],
    )
    with written_whole(path, overwrite=True) as new:
        new.write_text(text, encoding="utf-8")


def cost_share(epochs: Sequence[EpochRecord]) -> float | None:
    """Time for heatmaps relative to the time of training; the first record, which exports the graph, is left out."""
    timed = [epoch.seconds for epoch in epochs if "training" in epoch.seconds and "total" in epoch.seconds]
    training = sum(seconds["training"] for seconds in timed)
    return sum(seconds["total"] for seconds in timed) / training if training else None


def _there(path: Path, stem: str) -> bool:
    return (path.parent / FOLDER / f"{stem}.png").is_file()


def _name(about: Mapping[str, Any], label: int) -> str:
    classes = about["classes"] or ()
    return str(classes[label]) if label < len(classes) else str(label)


def _charts(epochs: Sequence[EpochRecord]) -> list[Markup]:
    charts = []
    for what, aliases in _TRAINING.items():
        validation = [(e.epoch, value) for e in epochs if (value := getattr(e, what)) is not None]
        known = next((alias for alias in aliases if any(alias in e.metrics for e in epochs)), "")
        training = [(e.epoch, e.metrics[known]) for e in epochs if known in e.metrics]
        lines = [("validation", _finite(validation)), ("training", _finite(training))]
        lines = [(name, points) for name, points in lines if points]
        if lines:
            charts.append(line_chart(what, lines, "epoch"))
    return charts


def _finite(points: Sequence[tuple[int, float | None]]) -> list[tuple[float, float]]:
    return [(float(x), y) for x, y in points if y is not None and math.isfinite(y)]


def _places(epochs: Sequence[EpochRecord], label: int) -> list[Place]:
    """Where most relevance of the class's images lies, over the epochs."""
    places = []
    for epoch in spread([e for e in epochs if e.store], _MOST_COLUMNS):
        mass = [image.mass for image in epoch.images if image.label == label]
        if mass:
            mean = np.mean(mass, axis=0)  # (3, 3)
            row, column = np.unravel_index(mean.argmax(), mean.shape)
            places.append(Place(epoch.epoch, _PLACES[row][column], float(mean[row, column])))
    return places


def _mean_seconds(epochs: Sequence[EpochRecord]) -> dict[str, float | None]:
    later = [epoch.seconds for epoch in epochs[1:] if not epoch.error]
    return {
        phase: float(np.mean([s[phase] for s in later if phase in s])) if any(phase in s for s in later) else None
        for phase in _PHASES
    }
