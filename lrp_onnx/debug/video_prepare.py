"""From a decoded frame to what the model takes and what is shown."""

from __future__ import annotations

from dataclasses import dataclass
from threading import local
from typing import TYPE_CHECKING

import numpy as np

from lrp_onnx.debug.video_frames import ClipFrame, upright
from lrp_onnx.preprocess import Preprocess

if TYPE_CHECKING:
    from av import VideoFrame

_YUV420 = ("yuv420p", "yuvj420p")
_FILTERS = {
    "nearest": "POINT",
    "bilinear": "BILINEAR",
    "bicubic": "BICUBIC",
    "lanczos": "LANCZOS",
    "box": "AREA",
    "area": "AREA",
}


@dataclass(frozen=True, eq=False)
class PreparedFrame:
    """A frame as the model takes it, and as it is shown (yuv420p)."""

    number: int
    time: float
    input: np.ndarray
    shown: VideoFrame


class FramePreparation:
    """Makes of a decoded frame what the model takes and what is shown; called from several threads."""

    def __init__(self, preprocess: Preprocess, size: tuple[int, int], shown: tuple[int, int]) -> None:
        width, height = size
        geometry = preprocess.geometry(width, height)
        self._preprocess, self._shown = preprocess, shown
        # The size that the preprocessing would resize to itself: FFmpeg does it several times as fast.
        self._resized = round(geometry[0, 0] * width), round(geometry[1, 1] * height)
        self.placement = geometry @ np.diag([width / shown[0], height / shown[1], 1.0])
        self._local = local()

    def __call__(self, frame: ClipFrame) -> PreparedFrame:
        raw = upright(frame.raw)
        # Scaling planes and then their colours costs half of both in one, which FFmpeg has no fast way for.
        small = self._reformat("small", raw, self._resized, "yuv444p") if raw.format.name in _YUV420 else raw
        picture = self._reformat("picture", small, self._resized, "rgb24").to_image()
        shown = self._reformat("shown", raw, self._shown, "yuv420p", "BILINEAR")
        return PreparedFrame(frame.number, frame.time, self._preprocess(picture), shown)

    def _reformat(
        self, use: str, frame: VideoFrame, size: tuple[int, int], layout: str, how: str | None = None
    ) -> VideoFrame:
        """A frame in another size and layout; each use and thread keeps FFmpeg's tables, which are dear to make."""
        from av.video.reformatter import VideoReformatter

        if not hasattr(self._local, use):
            setattr(self._local, use, VideoReformatter())
        reformatter: VideoReformatter = getattr(self._local, use)
        return reformatter.reformat(
            frame, *size, layout, interpolation=how or _FILTERS[self._preprocess.filter], threads=1
        )
