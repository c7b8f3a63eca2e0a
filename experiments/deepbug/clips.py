"""Clips made of photographs, with a known peak: where `video` finds it; and what it says of a clip without one."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lrp_onnx.debug.video import analyse_video

RATE, WIDTH, HEIGHT = 30, 640, 360


@dataclass(frozen=True)
class Event:
    """A photograph that shows up within a clip, whole and clear at one time."""

    photograph: str
    label: str
    peak: float  # seconds


# Between them the clip is grey noise, or another photograph.
EVENTS = (
    Event("espresso/coffee.png", "espresso", 3.0),
    Event("tripod/camera.png", "tripod", 8.0),
    Event("fox squirrel/squirrel_cls.jpg", "fox squirrel", 13.0),
    Event("Pekinese/chicky_512.png", "Pekinese", 18.0),
)
_REACH, _LENGTH = 2.0, 21.0  # seconds: from a peak to where nothing is left of it, and of the clip
_FLASH = 2.5 / RATE  # seconds before and after


def write_clip(pictures: Path, path: Path, way: str, seed: int = 0) -> None:
    """Write a clip in which each event flashes up out of noise for five frames ("flash"), fades in out of it and back
    ("fade"), or comes near and goes ("zoom")."""
    import av

    random = np.random.default_rng(seed)
    noise = random.integers(90, 166, (HEIGHT, WIDTH, 1), dtype=np.uint8).repeat(3, axis=2)
    shown = {event: Image.open(pictures / event.photograph).convert("RGB") for event in EVENTS}
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "fast", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(round(_LENGTH * RATE)):
            time = number / RATE
            event = min(EVENTS, key=lambda one: abs(one.peak - time))
            strength = max(0.0, 1 - abs(event.peak - time) / _REACH)
            picture = _fitted(shown[event], strength if way == "zoom" else 1.0, noise)
            if way == "flash":
                picture = picture if abs(time - event.peak) < _FLASH else noise
            elif way == "fade":
                picture = np.rint(noise + (picture - noise.astype(float)) * strength).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _fitted(picture: Image.Image, share: float, around: np.ndarray) -> np.ndarray:
    """A picture in the middle of the frame, as high as this share of it."""
    height = round(HEIGHT * share)
    if height < 2:
        return around
    width = round(picture.width * height / picture.height)
    page = Image.fromarray(around)
    page.paste(
        picture.resize((width, height), Image.Resampling.BICUBIC), ((WIDTH - width) // 2, (HEIGHT - height) // 2)
    )
    return np.asarray(page)


def find_peaks(model: Path, pictures: Path, folder: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row a clip and event: when the class is at its peak by construction, and when `video` finds it."""
    rows = []
    for way in ("flash", "fade", "zoom"):
        clip, out = folder / f"{way}.mp4", folder / way
        folder.mkdir(parents=True, exist_ok=True)
        if not out.exists():
            write_clip(pictures, clip, way)
            analyse_video(clip, model, out, classes=[event.label for event in EVENTS])
            say(f"clip {way}")
        peaks = json.loads((out / "summary.json").read_text(encoding="utf-8"))["peaks"]
        for event, peak in zip(EVENTS, peaks, strict=True):
            rows.append(
                {
                    "clip": way,
                    "class": event.label,
                    "peak at, s": event.peak,
                    "found at, s": peak["time"],
                    "frames off": round((peak["time"] - event.peak) * RATE),
                    "score": peak["score"],
                    "frames within 1 % of it": _near(out / "frames.csv", event.label, peak["score"]),
                }
            )
    return rows


def _near(table: Path, label: str, score: float) -> int:
    with table.open(encoding="utf-8", newline="") as file:
        return sum(float(row[f"score_{label}"]) >= 0.99 * score for row in csv.DictReader(file))


def watch(
    model: Path, clip: Path, folder: Path, classes: Sequence[str], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """A row a label of a clip without a known peak: share of its frames."""
    out = folder / clip.stem
    if not out.exists():
        analyse_video(clip, model, out, classes=list(classes), smooth=1.0, heatmaps=True, heatmap_every=5)
        say(f"clip {clip.name}")
    found = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return [
        {"label": name, "frames": count, "share": count / found["frames"]} for name, count in found["labels"].items()
    ]
