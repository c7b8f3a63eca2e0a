"""The rate of `lrp-onnx video` as a share of the engine's own image rate, what the rest costs, and its memory.

Command: `python -m experiments.benchmarks.video --work FOLDER`. Data: a clip of 1280 x 720 pixels, 30 frames a second,
that pans and zooms over scikit-image's photographs, in H.264; EfficientNet-Lite0 with ImageNet weights. The engine runs
on arrays in memory, in batches as the clip does: forward passes for labels, explanations for heatmaps. Both take turns;
the share is the median over the rounds of the ratio within a round, of CPU time and of time on the clock.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from PIL import Image

from experiments.benchmarks.__main__ import machine, row
from experiments.deepbug.photographs import efficientnet, photograph
from lrp_onnx.debug.video import analyse_video
from lrp_onnx.debug.video_frames import Clip
from lrp_onnx.debug.video_output import draw_label, planes_of, size_of_output, video_writer
from lrp_onnx.debug.video_prepare import FramePreparation
from lrp_onnx.engine import Explainer
from lrp_onnx.forward import make_forward
from lrp_onnx.graph import Graph, load
from lrp_onnx.memory import keep_freed_memory
from lrp_onnx.preprocess import Preprocess

PHOTOGRAPHS = ("coffee.png", "motorcycle_left.png", "chelsea.png", "rocket.jpg", "astronaut.png", "camera.png")
WIDTH, HEIGHT, RATE = 1280, 720, 30
LONGEST = 640  # of what `video` writes, pixels


def write_clip(path: Path, seconds: float) -> None:
    import av

    pictures = [Image.open(photograph(name)).convert("RGB") for name in PHOTOGRAPHS]
    frames = round(seconds * RATE)
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "fast", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(frames):
            which, place = divmod(number * len(pictures) / frames, 1)
            picture = pictures[int(which)]
            share = 0.4 + 0.6 * np.sin(np.pi * place)  # of the picture; all of it half way
            wide = share * min(picture.width, picture.height * WIDTH / HEIGHT)
            tall = wide * HEIGHT / WIDTH
            left, top = (picture.width - wide) * place, (picture.height - tall) * (1 - place)
            view = picture.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR, box=(left, top, left + wide, top + tall))
            frame = av.VideoFrame.from_image(view)
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def engine(graph: Graph, batch: int, heatmaps: bool) -> Callable[[], object]:
    """One batch, of an array in memory."""
    (name,), output = graph.inputs, next(iter(graph.outputs))
    x = torch.rand(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    if heatmaps:
        explainer = Explainer(graph)
        return lambda: explainer.explain(x)
    forward = make_forward(graph, [output], torch.float32, torch.device("cpu"))
    return lambda: forward({name: x})


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of CPU time and on the clock."""
    cpu, clock = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - clock


def compete(graph: Graph, clip: Path, folder: Path, options: argparse.Namespace, heatmaps: bool) -> list[str]:
    """Cells of a row: milliseconds an image of both, and shares."""
    frames, batch = round(options.part * RATE), options.batch
    run, batches = engine(graph, batch, heatmaps), -(-frames // batch)
    run()
    found = []
    for _ in range(options.rounds):
        alone = [one / (batches * batch) for one in timed(lambda: [run() for _ in range(batches)])]
        watched = timed(
            lambda: analyse_video(
                clip, graph, folder / "out", end=options.part, heatmaps=heatmaps, batch_size=batch, longest=LONGEST,
                overwrite=True,
            )
        )  # fmt: skip
        found.append([*alone, *(one / frames for one in watched)])
    cpu, clock, video_cpu, video_clock = (1000 * statistics.median(column) for column in zip(*found, strict=True))
    shares = [statistics.median(one[place] / one[place + 2] for one in found) for place in (0, 1)]
    kind = "heatmap on every frame" if heatmaps else "labels"
    return [
        kind,
        f"{cpu:.1f}",
        f"{video_cpu:.1f}",
        f"{shares[0]:.0%}",
        f"{clock:.1f}",
        f"{video_clock:.1f}",
        f"{shares[1]:.0%}",
    ]


def stages(graph: Graph, clip: Path, folder: Path, count: int = 150) -> list[list[str]]:
    """Milliseconds of CPU time a frame of all that is not the engine."""
    preprocess = Preprocess.from_metadata(graph.metadata)
    assert preprocess is not None
    costs = []

    def step(name: str, run: Callable[[Any], Any], given: Iterable[Any]) -> list[Any]:
        made: list[Any] = []
        cpu, _ = timed(lambda: made.extend(map(run, given)))
        costs.append([name, f"{1000 * cpu / count:.2f}"])
        return made

    with Clip(clip) as opened:
        prepare = FramePreparation(preprocess, opened.size, size_of_output(opened.size, LONGEST))
        frames = step("decode", lambda frame: frame, islice(opened.frames(), count))
        ready = step("resize and convert, for the model and for the output", prepare, frames)
    for one in ready:
        one.shown.make_writable()
    step("draw labels", lambda one: draw_label(planes_of(one.shown), f"cat {one.time:.2f}", "1.00 s"), ready)
    with video_writer(folder / "stage.mp4", size_of_output((WIDTH, HEIGHT), LONGEST), RATE) as writer:
        step("encode", lambda one: writer.write(one.shown, one.time), ready)
    return costs


def peak_memory(model: Path, clip: Path, folder: Path, seconds: float) -> float:
    """MiB of a process that watches so much of a clip."""
    program = (
        "import sys; from experiments.resident import resident; from lrp_onnx.debug.video import analyse_video; "
        "analyse_video(sys.argv[1], sys.argv[2], sys.argv[3], end=float(sys.argv[4]), overwrite=True); "
        "print(resident('VmHWM'))"
    )
    arguments = [sys.executable, "-c", program, str(clip), str(model), str(folder / "memory"), str(seconds)]
    return float(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="length of the clip")
    parser.add_argument("--part", type=float, default=10, help="seconds of it that are timed in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, help="folder for clip and model, made once; a temporary one by default")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the command does
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        clip, model = folder / f"clip-{options.seconds:g}.mp4", folder / "efficientnet-lite0.onnx"
        if not clip.exists():
            write_clip(clip, options.seconds)
        if not model.exists():
            onnx.save(efficientnet(), model)
        graph = load(model)
        print(machine(options.threads), "\n")
        heads = ("engine, ms of CPU", "video", "share", "engine, ms", "video", "share")
        print(row(["of each frame", *heads]), row(["---"] * 7), sep="\n")
        for heatmaps in (False, True):
            print(row(compete(graph, clip, folder, options, heatmaps)), flush=True)
        print("\n" + row(["beside the engine", "ms of CPU a frame"]), row(["---"] * 2), sep="\n")
        print(*map(row, stages(graph, clip, folder)), sep="\n")
        print("\n" + row(["seconds of the clip", "peak memory, MiB"]), row(["---"] * 2), sep="\n")
        for seconds in (options.seconds / 2, options.seconds):
            print(row([f"{seconds:g}", f"{peak_memory(model, clip, folder, seconds):.0f}"]), flush=True)


if __name__ == "__main__":
    main()
