"""Videos of results: frames with a label, or under their heatmap, as H.264 in an MP4 that browsers play."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from lrp_onnx.debug.video_frames import import_av
from lrp_onnx.errors import DataError, OutputError
from lrp_onnx.render import overlay
from lrp_onnx.render.colours import normalise

if TYPE_CHECKING:
    from av import VideoFrame

Planes = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]  # Y (h, w), U and V (h / 2, w / 2)
Box = tuple[slice, slice]  # rows and columns
_ENCODERS = {"libx264": {"preset": "ultrafast", "crf": "23"}, "libopenh264": {"b": "2000000"}}
_CLOCK = 90_000  # ticks a second: times of any frame rate fall on it
_KEY_FRAMES = 60  # at most so many frames apart, so that players can jump
_BLACK, _WHITE, _NO_COLOUR = 16, 235, 128  # of Y, Y and U or V
_ZERO = 128  # the level that stands for no relevance


class VideoWriter:
    """Writes frames to one file; made by `video_writer`."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._container, self._stream = container, stream
        self._last = -1
        self.frames = 0

    def write(self, frame: VideoFrame, time: float) -> None:
        """Append a frame (yuv420p, of the size that was said) that is shown from `time`, in seconds."""
        self._last = frame.pts = max(round(time * _CLOCK), self._last + 1)
        frame.time_base = Fraction(1, _CLOCK)
        frame.pict_type = 0  # the encoder decides; a decoded frame carries what it was in its clip
        self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))


@contextmanager
def video_writer(path: Path, size: tuple[int, int], rate: float, colours: int | None = None) -> Iterator[VideoWriter]:
    """A video file to write frames to; after an error or an interrupt there is none.

    Parameters
    ----------
    path : pathlib.Path
        An MP4 file.
    size : (int, int)
        Width and height, even.
    rate : float
        Frames a second, about; each frame has its own time.
    colours : int, optional
        FFmpeg's number of the colour space of the frames.

    Raises
    ------
    DataError
        PyAV has no H.264 encoder.
    OutputError
        The file cannot be written.
    """
    av = import_av()
    name = next((name for name in _ENCODERS if name in av.codecs_available), None)
    if name is None:
        raise DataError(f"this PyAV has no H.264 encoder ({' or '.join(_ENCODERS)}); install one from pypi.org")
    finished = False
    try:
        with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream(name, rate=Fraction(rate).limit_denominator(1001), options=_ENCODERS[name])
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            context = stream.codec_context
            context.time_base, context.gop_size = Fraction(1, _CLOCK), _KEY_FRAMES
            if colours is not None:
                context.colorspace = colours
            writer = VideoWriter(container, stream)
            yield writer
            writer.finish()
        finished = True
    except av.error.FFmpegError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if not finished:
            path.unlink(missing_ok=True)


def planes_of(frame: VideoFrame) -> Planes:
    """The planes of a yuv420p (or yuv444p) frame, to look at and, after ``frame.make_writable()``, to paint on."""
    views = []
    for plane in frame.planes:
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        views.append(rows[: plane.height, : plane.width])
    return views[0], views[1], views[2]


def draw_label(planes: Planes, left: str, right: str) -> None:
    """Write two texts on a black band at the foot of a frame."""
    luma, *chroma = planes
    height, width = luma.shape
    size = band_height(height)
    luma[-size:] = _BLACK
    for plane in chroma:
        plane[-size // 2 :] = _NO_COLOUR
    pad = size // 3
    said = _text(right, size, width // 2)
    luma[-size:, width - pad - said.shape[1] : width - pad] = said
    said = _text(left, size, max(1, width - 3 * pad - said.shape[1]))
    luma[-size:, pad : pad + said.shape[1]] = said


def band_height(height: int) -> int:
    """Of the band with the label, in pixels; even."""
    return min(max(18, round(height * 0.07)), height // 2) // 2 * 2 or 2


def _text(text: str, height: int, most: int) -> NDArray[np.uint8]:
    """White text on black, as luma (height, at most `most`); a text that is too long ends in "…"."""
    glyphs = [_glyph(character, height) for character in text]
    if sum(glyph.shape[1] for glyph in glyphs) > most:
        end = _glyph("…", height)
        while glyphs and sum(glyph.shape[1] for glyph in glyphs) + end.shape[1] > most:
            glyphs.pop()
        glyphs.append(end)
    return np.concatenate([np.full((height, 0), _BLACK, np.uint8), *glyphs], axis=1)[:, :most]


@lru_cache(maxsize=512)
def _glyph(character: str, height: int) -> NDArray[np.uint8]:
    """One character; numbers change from frame to frame, and drawing them anew would cost as much as the whole band."""
    font = _font(max(8, round(height * 0.7)))
    image = Image.new("L", (max(1, round(font.getlength(character))), height), _BLACK)
    ImageDraw.Draw(image).text((0, height / 2), character, fill=_WHITE, font=font, anchor="lm")
    return np.asarray(image)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)  # ships with Pillow, so that videos look alike on every machine


def place_on_frame(values: NDArray[Any], placement: NDArray[np.float64], size: tuple[int, int]) -> tuple[Any, Box]:
    """A picture of the model's input, as large as it is in the frame, and the place where it is.

    Parameters
    ----------
    values : (h, w)
        uint8 or float32.
    placement : float64 (3, 3)
        Leads from points of the frame to points of the input, see `Preprocess.geometry`.
    size : (int, int)
        Width and height of the frame.

    Returns
    -------
    ndarray
        As `values`, of the height and width of the box.
    (slice, slice)
        Rows and columns of the frame, from even to even, that the model sees.
    """
    (tall, wide), (width, height) = values.shape, size
    rows, (top, bottom) = _shared(placement[1, 1], placement[1, 2], tall, height)
    columns, (left, right) = _shared(placement[0, 0], placement[0, 2], wide, width)
    shape = columns.stop - columns.start, rows.stop - rows.start
    if not all(shape):
        return values[:0, :0], (rows, columns)
    there = Image.fromarray(values).resize(shape, Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    return np.asarray(there), (rows, columns)


def _shared(scale: float, shift: float, edge: int, length: int) -> tuple[slice, tuple[float, float]]:
    """Along one axis: pixels of a frame of this length that lie in an input of that edge, and where they begin and end
    in it. A point p of the frame is at scale p + shift there."""
    # rounded against the noise of the matrices, so that an input that shows the whole frame loses no pixel of it
    first = 2 * math.ceil(max(0.0, round(-shift / scale, 6)) / 2)
    last = max(first, 2 * math.floor(min(length, round((edge - shift) / scale, 6)) / 2))
    return slice(first, last), (max(0.0, scale * first + shift), min(float(edge), scale * last + shift))


def draw_heatmap(planes: Planes, relevance: ArrayLike, placement: NDArray[np.float64]) -> None:
    """Lay relevance (h, w) of the model's input over a frame, in the colours of `overlay`, and frame what it saw."""
    luma, *chroma = planes
    height, width = luma.shape
    levels = np.rint(normalise(relevance) * 127 + _ZERO).astype(np.uint8)
    there, box = place_on_frame(levels, placement, (width, height))
    table = _heat_table()
    index = there.astype(np.intp) * 256 + luma[box]  # into the table, flat
    luma[:] = np.take(table[0, _ZERO * 256 : (_ZERO + 1) * 256], luma)
    luma[box] = table[0][index]
    for plane, colours in zip(chroma, table[1:], strict=True):
        plane[:] = _NO_COLOUR
        plane[box[0].start // 2 : box[0].stop // 2, box[1].start // 2 : box[1].stop // 2] = colours[index[::2, ::2]]
    corners = np.linalg.inv(placement) @ np.array([[0, 0, 1], [*np.shape(relevance)[::-1], 1]]).T
    (left, right), (top, bottom) = np.rint(corners[:2]).astype(int)
    for x in (left, right):
        if 0 < x < width:
            luma[max(0, top) : max(0, bottom), x] = _WHITE
    for y in (top, bottom):
        if 0 < y < height:
            luma[y, max(0, left) : max(0, right)] = _WHITE


@cache
def _heat_table() -> NDArray[np.uint8]:
    """Y, U and V of each level of relevance over each luma, uint8 (3, 256 · 256): `overlay`, worked out once."""
    from av import VideoFrame

    greys = np.clip((np.arange(256) - _BLACK) * 255 / (_WHITE - _BLACK), 0, 255).astype(np.uint8)
    picture = np.broadcast_to(greys[None, :, None], (256, 256, 3))
    levels = np.broadcast_to((np.arange(256)[:, None] - _ZERO) / 127, (256, 256))
    colours = VideoFrame.from_ndarray(overlay(picture, levels, vmax=1.0), format="rgb24")
    return np.asarray(colours.reformat(format="yuv444p").to_ndarray(), np.uint8).reshape(3, -1)


def size_of_output(size: tuple[int, int], longest: int, shortest: int = 320) -> tuple[int, int]:
    """Even width and height of a video with the proportions of `size`, not larger than `longest` nor tiny."""
    edge = max(size)
    scale = min(longest, max(edge, shortest)) / edge
    width, height = (max(2, round(length * scale / 2) * 2) for length in size)
    return width, height
