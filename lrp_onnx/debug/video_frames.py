"""Frames of a video clip, upright and in time, as far as it can be decoded; and helpers to read ahead of a model."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from lrp_onnx.errors import DataError

if TYPE_CHECKING:
    from av import VideoFrame

Item = TypeVar("Item")
_ANSI_ART = "tty"  # FFmpeg plays any file called .txt as a picture of its text
_STRAIGHT = 0.02  # of a display matrix: less beside its other numbers is rounding
_NO_RATE = 25.0  # frames a second, where a clip says nothing


@dataclass(frozen=True)
class ClipFrame:
    """One decoded frame.

    Attributes
    ----------
    number : int
        Place in the clip, from 0.
    time : float
        Seconds since the first frame.
    raw : av.VideoFrame
        As decoded; `upright` turns it.
    """

    number: int
    time: float
    raw: VideoFrame


class Clip:
    """A video file, open for one pass; a context manager. Audio is ignored.

    Attributes
    ----------
    size : (int, int)
        Width and height as shown: upright, with square pixels.
    rate : float
        Frames a second, on average.
    decoded, last_time : int, float
        Frames decoded so far, and when the last one is shown, in seconds.

    Raises
    ------
    DataError
        When the file is no video, holds no picture stream, or no frame of it can be decoded.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        av = import_av()
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"{self.path}: {'is a folder' if self.path.is_dir() else 'no such file'}; expected a video")
        self._error: type[Exception] = av.error.FFmpegError
        try:
            self._container = av.open(str(self.path))
        except self._error as error:
            raise DataError(f"{self.path}: not a video, or of a kind that cannot be read ({_reason(error)})") from error
        try:
            self._open()
        except BaseException:
            self._container.close()
            raise

    def _open(self) -> None:
        streams = self._container.streams
        covers = streams.video and streams.video[0].disposition.__class__.attached_pic
        videos = [stream for stream in streams.video if not stream.disposition & covers]
        if self._container.format.name == _ANSI_ART or not videos:
            held = ", ".join(sorted({stream.type for stream in streams if stream not in videos}))
            raise DataError(f"{self.path}: holds no video" + (f" (but {held})" if held else ", or its head is missing"))
        self._stream: Any = videos[0]
        self._stream.thread_type = "AUTO"
        self.rate = float(self._stream.average_rate or self._stream.guessed_rate or _NO_RATE)
        self.decoded = self._broken = self._damaged = 0
        self.last_time = 0.0
        self._read_to_end, self._why = False, ""
        self._frames = self._decode()
        first = next(self._frames, None)
        if first is None:
            raise DataError(f"{self.path}: no frame could be decoded" + (f" ({self._why})" if self._why else ""))
        self._first = first
        self.size = _shown_size(first.raw, self._stream.sample_aspect_ratio)

    @property
    def expected(self) -> int:
        """Frames that the clip says it has; 0 where it says nothing."""
        if self._stream.frames:
            return int(self._stream.frames)
        return round(self._seconds * self.rate)

    @property
    def _seconds(self) -> float:
        if self._stream.duration is not None:
            return float(self._stream.duration * self._stream.time_base)
        return (self._container.duration or 0) / 1e6

    def frames(self, *, every: int = 1, start: float = 0.0, end: float = float("inf")) -> Iterator[ClipFrame]:
        """Every so many frames between two times (seconds, `end` left out), in order; to be called once."""
        chosen = 0
        for frame in self._all():
            if frame.time >= end:
                return
            if frame.time >= start:
                if chosen % every == 0:
                    yield frame
                chosen += 1

    def _all(self) -> Iterator[ClipFrame]:
        yield self._first
        yield from self._frames

    def _decode(self) -> Generator[ClipFrame, None, None]:
        origin: float | None = None
        for raw in self._raw_frames():
            time = raw.time
            if time is not None:
                origin = time if origin is None else origin
                time -= origin
            if time is None or (self.decoded and time <= self.last_time):  # no time stamp, or it goes backwards
                time = self.last_time + 1 / self.rate if self.decoded else 0.0
            self.last_time = time
            self._damaged += bool(raw.is_corrupt)
            self.decoded += 1
            yield ClipFrame(self.decoded - 1, time, raw)

    def _raw_frames(self) -> Iterator[VideoFrame]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except self._error as error:  # the rest of the file cannot be read
                self._broken, self._why = self._broken + 1, self._why or _reason(error)
                packet = None
            if packet is None:
                self._read_to_end = True
                return
            try:
                frames = packet.decode()
            except self._error as error:
                self._broken, self._why = self._broken + 1, self._why or _reason(error)
                continue
            yield from frames

    def notes(self) -> tuple[str, ...]:
        """What of the clip could not be decoded, once it is read; nothing for a clip that is whole."""
        notes = []
        if (note := _skewed(self._first.raw)) is not None:
            notes.append(f"{self.path}: {note}")
        missing = self.expected - self.decoded
        few = missing > max(1.0, self.rate if not self._stream.frames else 1)  # durations are not exact
        if self._read_to_end and self.expected and few:
            notes.append(
                f"{self.path}: only {self.decoded} of {self.expected} frames could be decoded; the rest is lost"
            )
        if self._broken:
            notes.append(f"{self.path}: {self._broken} of its packets are broken and were left out ({self._why})")
        if self._damaged:
            notes.append(f"{self.path}: {self._damaged} of its frames are damaged")
        return tuple(notes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._frames.close()
        self._container.close()


def upright(frame: VideoFrame) -> VideoFrame:
    """The frame turned and mirrored as its display matrix says; the same frame where there is nothing to do."""
    turn = _display_matrix(frame)
    if turn is None:
        return frame
    from av import VideoFrame

    (a, b), (c, d) = turn
    pixels: Any = frame.to_ndarray(format="rgb24")
    right, down = (c, b) if abs(b) > abs(a) else (a, d)
    if abs(b) > abs(a):
        pixels = pixels.transpose(1, 0, 2)
    pixels = pixels[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]
    return VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")


def _display_matrix(frame: VideoFrame, *, also_small: bool = False) -> np.ndarray | None:
    """x' = a x + c y and y' = b x + d y as ((a, b), (c, d)); None for a frame that is to be shown as it is, or
    unless `also_small` about so."""
    from av.sidedata.sidedata import Type

    data: Any = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]
    if data is None:
        return None
    turn = np.frombuffer(bytes(data), np.int32)[:9].reshape(3, 3)[:2, :2].astype(np.float64)
    about_so = turn[0, 0] > abs(turn[0, 1]) and turn[1, 1] > 0
    return None if about_so and not also_small else turn


def _skewed(frame: VideoFrame) -> str | None:
    """What to say of a display matrix that is no quarter turn; None for all others."""
    turn = _display_matrix(frame, also_small=True)
    if turn is None or np.sort(abs(turn), axis=None)[1] <= _STRAIGHT * abs(turn).max():
        return None
    degrees = float(np.degrees(np.arctan2(turn[0, 1], turn[0, 0])))
    return (
        f"is to be shown turned by {degrees:.0f} degrees; its frames are turned by the nearest quarter, "
        f"{round(degrees / 90) * 90}"
    )


def _shown_size(frame: VideoFrame, aspect: Any) -> tuple[int, int]:
    width, height = max(1, round(frame.width * float(aspect or 1))), frame.height
    turn = _display_matrix(frame)
    return (height, width) if turn is not None and abs(turn[0, 1]) > abs(turn[0, 0]) else (width, height)


def read_ahead(items: Iterable[Item], ahead: int = 2) -> Generator[Item, None, None]:
    """The same items, made in a background thread while the ones before are worked on."""
    iterator = iter(items)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read") as pool:
        waiting = deque(pool.submit(next, iterator, None) for _ in range(ahead))
        try:
            while (item := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(next, iterator, None))
                yield item
        finally:
            for future in waiting:
                future.cancel()


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of so many items, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def import_av() -> Any:
    """PyAV.

    Raises
    ------
    DataError
        It is not installed.
    """
    try:
        import av
    except ImportError:
        raise DataError('videos need PyAV; install it: pip install "lrp-onnx[video]"') from None
    return av


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip()
