"""A clip goes through a model frame by frame: times, labels, peaks and heatmaps are those of the frames."""

from __future__ import annotations

import csv
import itertools
import json
import struct
import threading
import tracemalloc
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from lrp_onnx.debug.timeline import MOST_BINS, Peak, ScoreHistory, timeline_chart
from lrp_onnx.debug.video import analyse_video, read_span
from lrp_onnx.debug.video_frames import Clip, read_ahead
from lrp_onnx.debug.video_output import _heat_table, draw_heatmap, place_on_frame, planes_of, size_of_output
from lrp_onnx.engine import Explainer
from lrp_onnx.errors import DataError, OutputError, TargetError
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.render import overlay

av = pytest.importorskip("av")

RED, GREEN, BLUE = (220, 20, 20), (20, 200, 20), (20, 20, 220)
NAMES = ("red", "green", "blue")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Scores are how red, green and blue a picture is: the means of its channels, through Softmax."""
    weights = (4 * np.eye(3, dtype=np.float32))[:, :, None, None]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["seen"], "look"),
        helper.make_node("GlobalAveragePool", ["seen"], ["mean"], "mean"),
        helper.make_node("Flatten", ["mean"], ["logits"], "flatten"),
        helper.make_node("Softmax", ["logits"], ["scores"], "softmax"),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    preprocess = Preprocess(size=(32, 32), resize="shortest-edge")
    entries = {"lrp_onnx.preprocess": preprocess.to_json(), "lrp_onnx.classes": json.dumps(NAMES)}
    helper.set_model_props(made, entries)
    path = tmp_path / "colours.onnx"
    onnx.save_model(made, path)
    return path


def write_clip(
    path: Path,
    pictures: Sequence[np.ndarray],
    times: Sequence[float] | None = None,
    *,
    codec: str = "libx264",
    turn: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """A clip of pictures (h, w, 3), 10 a second or at times of their own."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 5
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if turn:
            stream.set_display_rotation(turn)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = i if times is None else round(times[i] * 1000)
            frame.time_base = Fraction(1, 10) if times is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def plain(colour: tuple[int, int, int], height: int = 48, width: int = 64) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (height, width, 3))


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "frames.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def seen(path: Path) -> list[tuple[float, np.ndarray]]:
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def test_labels_times_and_the_peak_are_those_of_the_frames(model: Path, tmp_path: Path) -> None:
    pictures = [plain(RED)] * 5 + [plain(GREEN)] * 4 + [plain((100, 120, 200))] + [plain(BLUE)] + [plain(RED)] * 3
    clip = write_clip(tmp_path / "clip.mp4", pictures)
    result = analyse_video(clip, model, tmp_path / "out", classes=["blue"], batch_size=4)
    assert (result.frames, result.notes) == (14, ())
    assert result.labels == {"red": 8, "green": 4, "blue": 2}
    (peak,) = result.peaks
    assert (peak.name, peak.frame, peak.time) == ("blue", 10, pytest.approx(1.0))
    rows = table(tmp_path / "out")
    assert [row["predicted"] for row in rows] == ["red"] * 5 + ["green"] * 4 + ["blue"] * 2 + ["red"] * 3
    assert [float(row["time"]) for row in rows] == pytest.approx([i / 10 for i in range(14)])
    assert float(rows[10]["score_blue"]) == pytest.approx(peak.score, abs=1e-5)
    with Image.open(tmp_path / "out" / "peak-blue.png") as picture:
        assert np.asarray(picture)[5, 5] == pytest.approx(BLUE, abs=12)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["labels"] == result.labels
    assert set(summary["files"]) == {file.name for file in (tmp_path / "out").iterdir()}


def test_the_output_video_keeps_times_and_shows_a_label(model: Path, tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.5, 0.55, 2.0]
    clip = write_clip(tmp_path / "clip.mkv", [plain(RED), plain(GREEN), plain(BLUE), plain(RED), plain(GREEN)], times)
    analyse_video(clip, model, tmp_path / "out", batch_size=2)
    assert [float(row["time"]) for row in table(tmp_path / "out")] == pytest.approx(times, abs=2e-3)
    frames = seen(tmp_path / "out" / "labelled.mp4")
    assert [time for time, _ in frames] == pytest.approx(times, abs=2e-3)
    picture = frames[2][1]
    assert picture.shape == (240, 320, 3)
    assert picture[40, 160] == pytest.approx(BLUE, abs=25)
    band = picture[-16:]
    assert band.min() < 20
    assert band.max() > 200
    with av.open(str(tmp_path / "out" / "labelled.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    content = (tmp_path / "out" / "labelled.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # plays before it is read to the end


def test_batches_side_by_side_give_what_one_after_the_other_gives(model: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pictures = [plain(tuple(random.integers(0, 256, 3).tolist())) for _ in range(23)]
    clip = write_clip(tmp_path / "clip.mp4", pictures)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out = tmp_path / str(threads)
            result = analyse_video(clip, model, out, classes=["blue"], smooth=0.45, heatmaps=True, batch_size=2)
            assert (result.frames, result.explained, torch.get_num_threads()) == (23, 23, threads)
    finally:
        torch.set_num_threads(before)
    one, three = tmp_path / "1", tmp_path / "3"
    assert (one / "frames.csv").read_text() == (three / "frames.csv").read_text()
    assert (one / "peak-blue.png").read_bytes() == (three / "peak-blue.png").read_bytes()
    for (time, picture), (other_time, other) in zip(
        seen(one / "heatmaps.mp4"), seen(three / "heatmaps.mp4"), strict=True
    ):
        assert time == other_time
        np.testing.assert_array_equal(picture, other)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DataError("the engine stopped"), "the engine stopped"),
        (RuntimeError("could not create a primitive"), "no memory to explain 2 frames at a time .* smaller batch size"),
    ],
)
def test_an_error_in_a_batch_ends_the_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [plain(RED)] * 12)
    explain, calls = Explainer.explain, itertools.count()

    def stop(self: Explainer, x: np.ndarray, *arguments: Any, **options: Any) -> Any:
        if next(calls) == 2:  # the third of six batches, others wait for its labels
            raise error
        return explain(self, x, *arguments, **options)

    monkeypatch.setattr(Explainer, "explain", stop)
    with pytest.raises(DataError, match=said):
        analyse_video(clip, model, tmp_path / "out", heatmaps=True, batch_size=2)
    assert not (tmp_path / "out").exists()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("work")]


def test_every_and_seconds_choose_frames(model: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [plain(RED)] * 30)
    analyse_video(clip, model, tmp_path / "out", every=4, start=0.95, end=2.05)
    assert [int(row["frame"]) for row in table(tmp_path / "out")] == [10, 14, 18]
    with pytest.raises(DataError, match=r"no frame between 5 and inf s; its last frame is at 2\.90 s"):
        analyse_video(clip, model, tmp_path / "late", start=5.0)
    assert not (tmp_path / "late").exists()


def test_smoothing_outvotes_a_single_frame(model: Path, tmp_path: Path) -> None:
    pictures = [plain(RED)] * 6 + [plain(GREEN)] + [plain(RED)] * 3 + [plain(GREEN)] * 6
    clip = write_clip(tmp_path / "clip.mp4", pictures)
    analyse_video(clip, model, tmp_path / "out", smooth=0.35, batch_size=5)
    rows = table(tmp_path / "out")
    assert rows[6]["predicted"] == "green"
    assert [row["smoothed"] for row in rows] == ["red"] * 12 + ["green"] * 4  # 2 of 4 frames do not suffice, 3 do
    mean = np.mean([float(row["score_red"]) for row in rows[4:8]])
    assert float(rows[7]["smoothed_score"]) == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize(("turn", "corner"), [(90, (0, 0)), (-90, (1, 1)), (180, (1, 0))])
def test_a_turned_clip_is_seen_upright(model: Path, tmp_path: Path, turn: int, corner: tuple[int, int]) -> None:
    picture = plain(RED).copy()
    picture[:24, 32:] = BLUE  # top right as stored
    clip = write_clip(tmp_path / "clip.mp4", [picture] * 3, turn=turn)
    analyse_video(clip, model, tmp_path / "out", classes=["blue"])
    with Image.open(tmp_path / "out" / "peak-blue.png") as upright:
        pixels = np.asarray(upright)
    assert pixels.shape == ((240, 320, 3) if turn == 180 else (320, 240, 3))
    rows, columns = pixels.shape[0] // 4, pixels.shape[1] // 4
    found = {
        (down, right): tuple(pixels[rows + 2 * rows * down, columns + 2 * columns * right])
        for down in (0, 1)
        for right in (0, 1)
    }
    blue = [place for place, colour in found.items() if colour[2] > 150]
    assert blue == [corner]


def show_by(path: Path, a: float, b: float, c: float, d: float) -> Path:
    """Write x' = a x + c y and y' = b x + d y into the track header of an MP4."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44  # after version, times, number, duration, layer, group and volume
    for place, value in zip((0, 4, 12, 16), (a, b, c, d), strict=True):
        content[at + place : at + place + 4] = struct.pack(">i", round(value * 65536))
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        ((-1, 0, 0, 1), (0, 0)),  # mirrored
        ((1, 0, 0, -1), (1, 1)),  # upside down, but not turned
        ((0, 1, 1, 0), (1, 0)),  # rows become columns
        ((0, -1, -1, 0), (0, 1)),  # the same about the other diagonal
    ],
)
def test_a_mirrored_clip_is_seen_as_players_show_it(
    model: Path, tmp_path: Path, matrix: tuple[int, int, int, int], corner: tuple[int, int]
) -> None:
    picture = plain(RED).copy()
    picture[:24, 32:] = BLUE  # top right as stored
    clip = show_by(write_clip(tmp_path / "clip.mp4", [picture] * 3), *matrix)
    result = analyse_video(clip, model, tmp_path / "out", classes=["blue"])
    assert result.notes == ()
    with Image.open(tmp_path / "out" / "peak-blue.png") as shown:
        pixels = np.asarray(shown)
    assert pixels.shape == ((320, 240, 3) if matrix[0] == 0 else (240, 320, 3))
    height, width = pixels.shape[:2]
    places = [(down, right) for down in (0, 1) for right in (0, 1)]
    assert [(d, r) for d, r in places if pixels[height // 4 * (1 + 2 * d), width // 4 * (1 + 2 * r), 2] > 150] == [
        corner
    ]


def test_a_turn_that_is_no_quarter_is_named(model: Path, tmp_path: Path) -> None:
    turned = show_by(write_clip(tmp_path / "clip.mp4", [plain(RED)] * 3), 0.866, 0.5, -0.5, 0.866)
    (note,) = analyse_video(turned, model, tmp_path / "out").notes
    assert "turned by 30 degrees; its frames are turned by the nearest quarter, 0" in note


def test_the_model_sees_what_a_picture_of_the_frame_would_give(model: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(small).resize((180, 120), Image.Resampling.BICUBIC))
    clip = write_clip(tmp_path / "clip.mp4", [picture] * 2)
    analyse_video(clip, model, tmp_path / "out")
    ((_, decoded), *_) = seen(clip)
    values = Preprocess(size=(32, 32), resize="shortest-edge")(Image.fromarray(decoded))
    logits = 4 * values.mean(axis=(1, 2))
    expected = np.exp(logits) / np.exp(logits).sum()
    row = table(tmp_path / "out")[0]
    assert [float(row[f"score_{name}"]) for name in NAMES] == pytest.approx(expected.tolist(), abs=5e-3)


def test_a_cut_off_clip_gives_what_there_is_and_says_so(model: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    noisy = [random.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(40)]
    whole = write_clip(tmp_path / "whole.mp4", noisy, options={"movflags": "+faststart"})
    content = whole.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(content[: len(content) * 6 // 10])
    result = analyse_video(cut, model, tmp_path / "out")
    assert 15 < result.frames < 30
    assert "of 40 frames could be decoded; the rest is lost" in " ".join(result.notes)
    assert len(seen(tmp_path / "out" / "labelled.mp4")) == result.frames
    headless = tmp_path / "headless.mp4"
    headless.write_bytes(content[:100])
    with pytest.raises(DataError, match=r"holds no video, or its head is missing|cannot be read"):
        analyse_video(headless, model, tmp_path / "none")


def test_what_is_no_video_is_named(model: Path, tmp_path: Path) -> None:
    text, sound = tmp_path / "notes.txt", tmp_path / "sound.wav"
    text.write_text("hello " * 100, encoding="utf-8")
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for path, said in (
        (model, "not a video"),
        (text, "holds no video|not a video"),
        (sound, r"holds no video \(but audio\)"),
        (tmp_path / "missing.mp4", "no such file"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(DataError, match=said):
            analyse_video(path, model, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_odd_sizes_are_made_even(model: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.avi", [plain(GREEN, 51, 77)] * 3, codec="ffv1")
    result = analyse_video(clip, model, tmp_path / "out", longest=75)
    assert result.labels == {"green": 3}
    assert seen(tmp_path / "out" / "labelled.mp4")[0][1].shape == (50, 76, 3)
    assert size_of_output((1, 3000), 640) == (2, 640)


def test_heatmaps_explain_the_label_on_every_so_many_th_frame(model: Path, tmp_path: Path) -> None:
    picture = plain((20, 20, 20)).copy()
    picture[:, 32:] = RED  # the red half speaks for red
    clip = write_clip(tmp_path / "clip.mp4", [picture] * 7)
    result = analyse_video(
        clip, model, tmp_path / "out", heatmaps=True, heatmap_every=3, composite="epsilon", batch_size=2
    )
    assert (result.frames, result.explained) == (7, 3)
    frames = seen(tmp_path / "out" / "heatmaps.mp4")
    assert [time for time, _ in frames] == pytest.approx([0, 0.3, 0.6], abs=2e-3)
    pixels = frames[1][1].astype(int)
    redness = pixels[..., 0] - pixels[..., 2]
    assert redness[100, 170:270].mean() > 140
    assert redness[100, 50:140].mean() < 80
    assert abs(redness[100, :30]).max() < 12  # the model does not see the sides of the frame
    every = analyse_video(clip, model, tmp_path / "all", heatmaps=True, composite="epsilon", batch_size=2)
    assert every.explained == 7
    assert table(tmp_path / "all") == table(tmp_path / "out")  # scores from the explanation's own forward pass


def test_heatmaps_have_the_colours_of_an_overlay() -> None:
    random = np.random.default_rng(1)
    relevance = random.normal(size=(64, 64))
    grey = np.asarray(Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).resize((64, 64)))
    picture = np.repeat(grey[..., None], 3, axis=2)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
    draw_heatmap(planes_of(frame), relevance, np.eye(3))
    drawn = np.asarray(planes_of(frame)[0], dtype=float)
    wanted = av.VideoFrame.from_ndarray(overlay(picture, relevance), format="rgb24").reformat(format="yuv420p")
    assert np.abs(drawn - planes_of(wanted)[0]).max() <= 4
    assert _heat_table().shape == (3, 65536)


@pytest.mark.parametrize("resize", ["stretch", "shortest-edge", "letterbox"])
@pytest.mark.parametrize("size", [(320, 240), (240, 320), (90, 50)])
def test_a_heatmap_lies_where_the_model_looked(resize: str, size: tuple[int, int]) -> None:
    preprocess = Preprocess(size=(64, 64), resize=resize, crop=0.875 if resize == "shortest-edge" else 1.0)
    width, height = size
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    placement = preprocess.geometry(width, height)
    to_x, to_y = placement[0, 0] * x + placement[0, 2], placement[1, 1] * y + placement[1, 2]
    columns, rows = np.meshgrid(np.arange(64) + 0.5, np.arange(64) + 0.5)
    shown, box = place_on_frame((columns + 100 * rows).astype(np.float32), placement, size)
    inside = (slice(2, -2), slice(2, -2))  # at its edges a resized picture repeats itself
    enlarged = placement[0, 0] <= 1 and placement[1, 1] <= 1  # else several pixels become one
    assert shown[inside] == pytest.approx((to_x + 100 * to_y)[box][inside], abs=0.1 if enlarged else 60)
    seen = (to_x >= 0) & (to_x <= 64) & (to_y >= 0) & (to_y <= 64)
    missed = seen.copy()
    missed[box] = False
    assert seen[box].all()
    assert missed.sum() <= 4 * sum(size)  # less than two pixels along each edge
    frame = av.VideoFrame.from_ndarray(np.full((height * 3 // 2, width), 128, np.uint8), format="yuv420p")
    draw_heatmap(planes_of(frame), np.ones((64, 64)), placement)
    red = planes_of(frame)[2] > 160
    assert red[box[0].start // 2 : box[0].stop // 2, box[1].start // 2 : box[1].stop // 2].all()
    assert red.sum() == shown.size // 4


def test_an_interrupt_leaves_nothing_behind(model: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [plain(RED)] * 30)

    def interrupt(done: int, total: int) -> None:
        assert total == 30
        if done >= 10:
            raise KeyboardInterrupt

    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        analyse_video(clip, model, tmp_path / "out", batch_size=5, progress=interrupt)
    assert {path.name for path in tmp_path.iterdir()} == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("read", "work", "prepare"))]


def test_a_folder_is_replaced_only_when_asked(model: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [plain(RED)] * 3)
    analyse_video(clip, model, tmp_path / "out")
    with pytest.raises(OutputError, match="exists already"):
        analyse_video(clip, model, tmp_path / "out")
    assert analyse_video(clip, model, tmp_path / "out", overwrite=True).frames == 3
    with pytest.raises(TargetError, match="no class 'bleu'; there are 3, near: blue"):
        analyse_video(clip, model, tmp_path / "out", classes=["bleu"], overwrite=True)
    assert len(table(tmp_path / "out")) == 3


def test_frames_are_read_only_so_far_ahead(tmp_path: Path) -> None:
    made: list[int] = []

    def items() -> Any:
        for i in range(100):
            made.append(i)
            yield [i]

    for item in read_ahead(items(), 2):
        assert len(made) <= item[0] + 4
    assert len(made) == 100


def test_the_history_keeps_every_peak_in_memory_that_does_not_grow() -> None:
    history = ScoreHistory(2)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for i in range(10 * MOST_BINS):
        history.add(i / 25, np.array([float(i == 7777), -float(i == 3333)]))
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 100_000
    line = history.of_class(0)
    assert MOST_BINS / 2 <= len(line) <= MOST_BINS
    assert line[line[:, 2].argmax(), 0] == pytest.approx(7777 / 25, abs=0.5)
    assert (line[:, 2].max(), history.of_class(1)[:, 1].min()) == (1, -1)
    assert (np.diff(line[:, 0]) > 0).all()


def test_the_timeline_marks_the_peak_in_red() -> None:
    line = np.stack([np.linspace(0, 60, 200), np.full(200, 0.1), np.full(200, 0.2)], axis=1)
    bare = timeline_chart([("cat", line)], [], title="t")
    marked = timeline_chart([("cat", line)], [Peak("cat", 9, 30.0, 0.9)], title="t")
    assert bare.shape == marked.shape == (520, 1200, 3)
    rows, columns = np.nonzero((marked != bare).any(axis=2))
    assert abs(columns.mean() - (84 + 1080 / 2)) < 40
    assert rows.size


def test_times_come_from_text() -> None:
    assert read_span(None) == (0, float("inf"))
    assert read_span("1.5:") == (1.5, float("inf"))
    assert read_span(":20") == (0, 20)
    for text in ("20:10", "5", "a:b", "-1:3"):
        with pytest.raises(DataError, match="expected A:B"):
            read_span(text)


def test_a_clip_says_its_size_with_square_pixels(tmp_path: Path) -> None:
    path = tmp_path / "wide.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(plain(RED), format="rgb24")))
        container.mux(stream.encode(None))
    with Clip(path) as clip:
        assert clip.size == (96, 48)
