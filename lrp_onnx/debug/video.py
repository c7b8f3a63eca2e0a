"""A clip through a model: what it says of each frame, over time, and where in the frame it looks."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from lrp_onnx.data import Dataset
from lrp_onnx.debug.timeline import COLOURS, Peak, timeline_chart
from lrp_onnx.debug.video_frames import Clip, ClipFrame, in_batches, read_ahead
from lrp_onnx.debug.video_output import (
    VideoWriter,
    draw_heatmap,
    draw_label,
    place_on_frame,
    planes_of,
    size_of_output,
    video_writer,
)
from lrp_onnx.debug.video_prepare import FramePreparation, PreparedFrame
from lrp_onnx.debug.video_scores import FrameScores, Labels, class_names, class_scores, find_class
from lrp_onnx.engine import DEFAULT_COMPOSITE, Explainer
from lrp_onnx.errors import DataError
from lrp_onnx.folders import folder_written_whole, refuse_folder
from lrp_onnx.forward import make_forward
from lrp_onnx.graph import Graph, load
from lrp_onnx.inputs import Feed, Model, feed_for
from lrp_onnx.memory import MOST_AT_A_TIME, division, out_of_memory
from lrp_onnx.render import SheetItem, contact_sheet, overlay, reduce_channels, save_png
from lrp_onnx.rules import Composite
from lrp_onnx.runtime import first_line
from lrp_onnx.side_by_side import MOST_WORKERS, Turns, in_order, sharing_cores

FRAMES, LABELLED, HEATMAPS = "frames.csv", "labelled.mp4", "heatmaps.mp4"
TIMELINE, SUMMARY = "timeline.png", "summary.json"
_MOST_LINES = 5  # classes on the timeline beside those asked for
_MOST_PREPARING = 8
_PEAK_HEIGHT = 320  # of each picture on a sheet, pixels


@dataclass(frozen=True)
class VideoResult:
    """What `analyse_video` found and wrote.

    Attributes
    ----------
    folder : pathlib.Path
    frames, explained : int
        Frames that were classified, and those of them that were explained for the video of heatmaps.
    length : float
        Time of the last frame, in seconds from the clip's first.
    labels : dict of str to int
        Frames by the label shown on them, the most frequent first.
    peaks : tuple of Peak
        Of the classes asked for, or else of the most frequent label.
    files : tuple of str
        Names of the files in the folder.
    seconds : float
        What it took.
    notes : tuple of str
        What was guessed, and what of the clip could not be decoded.
    """

    folder: Path
    frames: int
    explained: int
    length: float
    labels: dict[str, int]
    peaks: tuple[Peak, ...]
    files: tuple[str, ...]
    seconds: float
    notes: tuple[str, ...]


def analyse_video(
    clip: str | os.PathLike[str],
    model: Model,
    out: str | os.PathLike[str],
    *,
    classes: Sequence[str] = (),
    every: int = 1,
    start: float = 0.0,
    end: float = float("inf"),
    smooth: float = 0.0,
    heatmaps: bool = False,
    heatmap_every: int = 1,
    composite: str | Composite = DEFAULT_COMPOSITE,
    longest: int = 640,
    batch_size: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> VideoResult:
    """Classify the frames of a clip, and show it.

    The folder `out` appears whole or not at all. It holds ``frames.csv`` (see `FrameScores`), ``labelled.mp4`` (label
    and score on each frame), ``timeline.png``, ``summary.json``; for each class asked for its peak frame
    ``peak-<class>.png`` and that under its heatmap, ``peak-<class>-heatmap.png``; and by option ``heatmaps.mp4``.
    Memory does not grow with the length of the clip.

    A frame is resized by FFmpeg, with the filter that the preprocessing names, and then goes the way of every picture.
    Its scores differ from those of the frame saved as a picture about as much as between two of FFmpeg's ways from
    YUV to RGB.

    Parameters
    ----------
    clip : path-like
        Any video that FFmpeg reads. Rotation and pixel shape are applied; times are those of the frames, also where
        their rate varies.
    model
        Path, bytes, onnx.ModelProto or Graph.
    out : path-like
    classes : sequence of str
        Names or numbers of classes to find the peak frame of.
    every : int
        Only each so many-th frame.
    start, end : float
        Seconds from the clip's first frame; `end` is left out.
    smooth : float
        Seconds, see `FrameScores`.
    heatmaps : bool
        Also write a video of heatmaps over frames. They explain the label that stands on the frame, and have a colour
        scale each.
    heatmap_every : int
        Only each so many-th of the classified frames is explained; it is shown until the next.
    composite : str or Composite
        For the heatmaps.
    longest : int
        The longer edge of videos and peak frames, pixels. A smaller clip is enlarged to 320, for the label's sake.
    batch_size : int, optional
        Frames at a time, if the model leaves it free; left out, 8, or as many as can be explained in half of the free
        memory. As many batches are worked on side by side as torch has threads (at most 8), if memory allows.
    overwrite : bool
    progress : callable, optional
        Called with (frames done, frames in all, as far as the clip knows).

    Raises
    ------
    DataError
        The clip cannot be read, holds no frames there, or does not fit the model; or PyAV is missing.
    TargetError
        The model has no such class.
    ModelError, UnsupportedOpError, RuleError, OutputError
    """
    folder = Path(out)
    for name, number in (("every", every), ("heatmap every", heatmap_every), ("batch size", batch_size)):
        if number is not None and number < 1:
            raise DataError(f"{name} is {number}; expected at least 1")
    if not (0 <= start < end and smooth >= 0 and longest >= 2):
        raise DataError(f"seconds {start:g} to {end:g}, smooth {smooth:g}, longest {longest}: expected times in order")
    refuse_folder(folder, FRAMES, overwrite)
    started = perf_counter()
    with Clip(clip) as opened:
        graph = model if isinstance(model, Graph) else load(model)
        explainer = Explainer(graph, composite) if heatmaps or classes else None
        feed = feed_for(graph, Dataset(opened.path, []))
        size, workers = _division(explainer if heatmaps else None, feed, batch_size, opened.expected or sys.maxsize)
        with sharing_cores(workers), folder_written_whole(folder, FRAMES, overwrite=overwrite) as new:
            run = _Run(opened, graph, feed, explainer, list(classes), heatmap_every if heatmaps else 0, longest, smooth)
            frames = opened.frames(every=every, start=start, end=end)
            run.classify(in_batches(frames, size), new, workers, _advance(opened, every, start, end, progress))
            if run.scores is None:
                raise DataError(
                    f"{opened.path}: has no frame between {start:g} and {end:g} s; its last frame is at "
                    f"{opened.last_time:.2f} s"
                )
            peaks = run.write_peaks(new)
            _write_timeline(new / TIMELINE, run, run.scores, peaks)
            labels = {run.scores.names[index]: count for index, count in run.scores.shown.most_common()}
            files = tuple(sorted([*(file.name for file in new.iterdir()), SUMMARY]))
            notes = (*run.feed.notes, *opened.notes())
            result = VideoResult(
                folder,
                run.scores.frames,
                run.explained,
                run.last_time,
                labels,
                peaks,
                files,
                perf_counter() - started,
                notes,
            )
            about = {"clip": str(opened.path), "model": graph.name, "model_sha256": graph.sha256, "smooth": smooth}
            if explainer is not None:
                about["composite"] = explainer.composite.name
            found = {name: value for name, value in asdict(result).items() if name not in ("folder", "seconds")}
            text = json.dumps({**about, **found}, ensure_ascii=False, indent=2)
            (new / SUMMARY).write_text(text + "\n", encoding="utf-8")
    return result


def _division(explainer: Explainer | None, feed: Feed, batch_size: int | None, frames: int) -> tuple[int, int]:
    """How many frames at a time, and how many such batches side by side; without explanations they are small."""
    if explainer is None:
        return feed.batch or batch_size or MOST_AT_A_TIME, min(torch.get_num_threads(), MOST_WORKERS)
    assert feed.preprocess is not None  # pictures always have one
    return division(explainer, {feed.input: feed.preprocess.shape}, frames, feed.batch or batch_size)


@dataclass(frozen=True, eq=False)
class _PeakFrame:
    picture: np.ndarray
    input: np.ndarray


@dataclass(frozen=True, eq=False)
class _Seen:
    """Frames, what stands on them, and the relevance (h, w) of those, by place, that are to be shown under it."""

    frames: Sequence[PreparedFrame]
    labels: Labels
    relevance: dict[int, np.ndarray]


class _Run:
    """One clip through one model: what is the same for every batch."""

    def __init__(
        self,
        clip: Clip,
        graph: Graph,
        feed: Feed,
        explainer: Explainer | None,
        asked: Sequence[str],
        heatmap_every: int,
        longest: int,
        smooth: float,
    ) -> None:
        self.clip, self.graph, self.explainer, self.smooth = clip, graph, explainer, smooth
        self.feed = feed
        assert feed.preprocess is not None  # pictures always have one
        self.size = size_of_output(clip.size, longest)
        self._prepare = FramePreparation(feed.preprocess, clip.size, self.size)
        self._asked, self._heatmap_every = asked, heatmap_every
        self.output = next(iter(graph.outputs))
        self._forward = make_forward(graph, [self.output], torch.float32, torch.device("cpu"))
        self.scores: FrameScores | None = None
        self.peaks: dict[int, _PeakFrame] = {}  # of the classes asked for
        self._asked_classes: list[int] = []
        self.explained, self.last_time = 0, 0.0
        self._single = False  # one output for two classes
        self._turns = Turns()

    def classify(
        self, batches: Iterator[list[ClipFrame]], folder: Path, workers: int, advance: Callable[[int], None]
    ) -> None:
        with ExitStack() as stack:
            table = stack.enter_context((folder / FRAMES).open("w", encoding="utf-8", newline=""))
            open_writer = partial(video_writer, size=self.size, rate=self.clip.rate)
            labelled = stack.enter_context(open_writer(folder / LABELLED))
            heat = stack.enter_context(open_writer(folder / HEATMAPS)) if self._heatmap_every else None
            preparers = min(_MOST_PREPARING, os.cpu_count() or 1)
            preparing = stack.enter_context(ThreadPoolExecutor(preparers, thread_name_prefix="prepare"))
            prepared = (list(preparing.map(self._prepare, batch)) for batch in batches)
            ahead = stack.enter_context(closing(read_ahead(prepared)))
            look = partial(self._look_at, table=table)
            for seen in stack.enter_context(closing(in_order(look, self._counted(ahead), workers))):
                self._write(seen, labelled, heat)  # while the next ones are looked at
                self.explained += len(seen.relevance)
                self.last_time = seen.frames[-1].time
                advance(labelled.frames)

    def _counted(self, batches: Iterable[list[PreparedFrame]]) -> Iterator[tuple[int, int, list[PreparedFrame]]]:
        """Batches with their number, and that of the frames before."""
        before = 0
        for number, batch in enumerate(batches):
            yield number, before, batch
            before += len(batch)

    def _look_at(self, counted: tuple[int, int, Sequence[PreparedFrame]], table: Any) -> _Seen:
        """Several batches are looked at side by side; labels are given in order, as they depend on earlier ones."""
        number, before, batch = counted
        inputs = self.feed.batch_of(np.stack([frame.input for frame in batch]))
        every = self._heatmap_every
        chosen = [row for row in range(len(batch)) if every and (before + row) % every == 0]
        with self._turns.passing(number):
            if len(chosen) == len(batch):  # the forward pass of the explanation gives the scores too
                found: list[Labels] = []

                def target(output: torch.Tensor) -> np.ndarray:
                    found.append(self._label(number, batch, output.numpy()[: len(batch)], table))
                    return self._target(found[0])

                relevance = self._explain(inputs, target, chosen)
                return _Seen(batch, found[0], relevance)
            output = self._forward({self.feed.input: torch.from_numpy(inputs)})[self.output].numpy()
            labels = self._label(number, batch, output[: len(batch)], table)
        if not chosen:
            return _Seen(batch, labels, {})
        picked = Labels(labels.classes[chosen], labels.scores[chosen])
        relevance = self._explain(self.feed.batch_of(inputs[chosen]), self._target(picked), chosen)
        return _Seen(batch, labels, relevance)

    def _label(self, number: int, batch: Sequence[PreparedFrame], output: np.ndarray, table: Any) -> Labels:
        if len(output) != len(batch):
            raise DataError(
                f"{self.graph.name}: output '{self.output}' has {len(output)} rows for {len(batch)} frames; "
                "expected one each"
            )
        scores = class_scores(self.graph, self.output, output)
        with self._turns.of(number):
            if self.scores is None:
                self._single = output[0].size == 1
                names = class_names(self.graph, scores.shape[1])
                self._asked_classes = list(dict.fromkeys(find_class(name, names) for name in self._asked))
                self.scores = FrameScores(table, names, self._asked_classes, self.smooth)
            labels = self.scores.take([frame.number for frame in batch], [frame.time for frame in batch], scores)
            self._keep_peaks(batch)
        return labels

    def _target(self, labels: Labels) -> np.ndarray:
        """The outputs to explain, as many as the model takes at a time."""
        return self.feed.pad(np.zeros_like(labels.classes) if self._single else labels.classes)

    def _explain(self, inputs: np.ndarray, target: Any, rows: Sequence[int]) -> dict[int, np.ndarray]:
        assert self.explainer is not None
        try:
            found = self.explainer.explain(inputs, target).relevance[self.feed.input].numpy()
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise DataError(
                f"{self.graph.name}: there is no memory to explain {len(inputs)} frames at a time "
                f"({first_line(error)}); take a smaller batch size (--batch-size)"
            ) from error
        pictures = self.feed.channels_first(found[: len(rows)])
        return {row: reduce_channels(picture) for row, picture in zip(rows, pictures, strict=True)}

    def _keep_peaks(self, batch: Sequence[PreparedFrame]) -> None:
        assert self.scores is not None
        by_number = {frame.number: frame for frame in batch}
        for index in self._asked_classes:
            frame = by_number.get(self.scores.peak(index).frame)
            if frame is not None:
                self.peaks[index] = _PeakFrame(frame.shown.to_ndarray(format="rgb24"), frame.input)

    def _write(
        self,
        seen: _Seen,
        labelled: VideoWriter,
        heat: VideoWriter | None,
    ) -> None:
        from av import VideoFrame

        assert self.scores is not None
        labels, relevance = seen.labels, seen.relevance
        for row, frame in enumerate(seen.frames):
            texts = f"{self.scores.names[labels.classes[row]]}  {labels.scores[row]:.2f}", f"{frame.time:.2f} s"
            if heat is not None and row in relevance:
                copy = VideoFrame.from_ndarray(frame.shown.to_ndarray(), format="yuv420p")
                draw_heatmap(planes_of(copy), relevance[row], self._prepare.placement)
                draw_label(planes_of(copy), *texts)
                heat.write(copy, frame.time)
            frame.shown.make_writable()  # the decoder may still need it, to predict further frames from
            draw_label(planes_of(frame.shown), *texts)
            labelled.write(frame.shown, frame.time)

    def write_peaks(self, folder: Path) -> tuple[Peak, ...]:
        """Peak frames of the classes asked for, and their heatmaps; the peaks that the timeline marks."""
        assert self.scores is not None
        if not self._asked_classes:
            return (self.scores.peak(self.scores.shown.most_common(1)[0][0]),)
        for index, kept in self.peaks.items():
            peak = self.scores.peak(index)
            stem = "peak-" + re.sub(r"[^\w-]+", "-", peak.name)
            save_png(kept.picture, folder / f"{stem}.png")
            one = Labels(np.array([index]), np.array([peak.score]))
            relevance = self._explain_peak(kept.input, one)
            shown = np.zeros(self.size[::-1], np.float32)
            there, box = place_on_frame(relevance.astype(np.float32), self._prepare.placement, self.size)
            shown[box] = there
            item = SheetItem(
                [kept.picture, overlay(kept.picture, shown)],
                [f"frame {peak.frame}, at {peak.time:.2f} s of {self.clip.path.name}"],
            )
            title = f"{peak.name}: highest score {peak.score:.3g}"
            about = f"what speaks for and against '{peak.name}' in that frame"
            sheet = contact_sheet([item], title=title, subtitle=about, cell=_PEAK_HEIGHT)
            save_png(sheet, folder / f"{stem}-heatmap.png")
        return tuple(self.scores.peak(index) for index in self._asked_classes)

    def _explain_peak(self, values: np.ndarray, label: Labels) -> np.ndarray:
        return self._explain(self.feed.batch_of(values[None]), self._target(label), [0])[0]

    def timeline_classes(self) -> list[int]:
        """Those asked for, and those that most frames are labelled with."""
        assert self.scores is not None
        frequent = [index for index, _ in self.scores.shown.most_common(_MOST_LINES)]
        return list(dict.fromkeys([*self._asked_classes, *frequent]))[: len(COLOURS)]


def _write_timeline(path: Path, run: _Run, scores: FrameScores, peaks: Sequence[Peak]) -> None:
    lines = [(scores.names[index], scores.history.of_class(index)) for index in run.timeline_classes()]
    about = f"{scores.frames} frames; lowest to highest score where a column stands for several; red: a peak"
    save_png(timeline_chart(lines, peaks, title=f"Class scores over {run.clip.path.name}", subtitle=about), path)


def _advance(
    clip: Clip, every: int, start: float, end: float, progress: Callable[[int, int], None] | None
) -> Callable[[int], None]:
    last = min(clip.expected, end * clip.rate)
    total = max(0, round((last - start * clip.rate) / every))

    def advance(done: int) -> None:
        if progress is not None:
            progress(done, max(done, total))

    return advance


def read_span(text: str | None) -> tuple[float, float]:
    """Start and end in seconds from "A:B"; what is left out is the start, or no end.

    Raises
    ------
    DataError
        It is of another form.
    """
    first, colon, last = (text or ":").partition(":")
    try:
        start, end = float(first or 0), float(last or "inf")
    except ValueError:
        start, end = 1.0, 0.0
    if not colon or not 0 <= start < end:
        raise DataError(f"seconds '{text}': expected A:B, such as 10:20, 10: or :20, with A before B")
    return start, end
