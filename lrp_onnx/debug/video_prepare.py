"""From a decoded frame to what the model takes and what is shown."""

from __future__ import annotations

from dataclasses import dataclass
from threading import local
from typing import TYPE_CHECKING

import numpy as np

from lrp_onnx.debug.video_frames import ClipFrame, upright
from lrp_onnx.debug.video_output import planes_of
from lrp_onnx.preprocess import LETTERBOX_GREY, Preprocess

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
        wide, tall = round(geometry[0, 0] * width), round(geometry[1, 1] * height)
        self._resized = wide, tall
        # Rows and columns of that which the model sees, and where they are in its input: crop or letterbox.
        (rows, self._rows), (columns, self._columns) = (
            (slice(max(0, -corner), min(long, size - corner)), slice(max(0, corner), min(size, corner + long)))
            for corner, long, size in zip(
                (round(geometry[1, 2]), round(geometry[0, 2])), (tall, wide), preprocess.size, strict=True
            )
        )
        self._seen = rows, columns
        self.placement = geometry @ np.diag([width / shown[0], height / shown[1], 1.0])
        self._local = local()

    def __call__(self, frame: ClipFrame) -> PreparedFrame:
        raw = upright(frame.raw)
        if raw.format.name in _YUV420:
            # Scaling planes and then their colours costs half of both in one, which FFmpeg has no fast way for; and
            # colours are a matter of each pixel, so that what is not seen needs none.
            small = _cropped(self._reformat("small", raw, self._resized, "yuv444p"), *self._seen)
            seen = self._reformat("seen", small, (small.width, small.height), "rgb24").to_ndarray()
        else:
            seen = self._reformat("seen", raw, self._resized, "rgb24").to_ndarray()[self._seen]
        pixels = np.full((*self._preprocess.size, 3), LETTERBOX_GREY, np.uint8)
        pixels[self._rows, self._columns] = seen
        shown = self._reformat("shown", raw, self._shown, "yuv420p", "BILINEAR")
        return PreparedFrame(frame.number, frame.time, self._preprocess.of_pixels(pixels), shown)

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


def _cropped(frame: VideoFrame, rows: slice, columns: slice) -> VideoFrame:
    """Some rows and columns of a yuv444p frame."""
    from av import VideoFrame

    planes = [plane[rows, columns] for plane in planes_of(frame)]
    crop = VideoFrame.from_ndarray(np.stack(planes), format="yuv444p")
    crop.colorspace, crop.color_range = frame.colorspace, frame.color_range
    return crop
