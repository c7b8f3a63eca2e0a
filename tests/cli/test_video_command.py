"""`lrp-onnx video` from the command line: what it prints, and its errors in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_model import CLASSES, Program

av = pytest.importorskip("av")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path, random = tmp_path / "clip.mp4", np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(12):
            pixels = random.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_a_clip_becomes_a_folder(program: Program, model: Path, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--class", "dog", "--seconds", "0.1:", "--smooth", "0.2", "--heatmaps", "--heatmap-every", "4")
    assert program("video", clip, model, "-o", out, *options) == 0
    lines = program.out.splitlines()
    assert lines[0].startswith("9 frames, 3 explained, ")
    assert lines[0].endswith(f" a second -> {out}")
    assert lines[-1].startswith("dog: highest score 0.")
    assert {file.name for file in out.iterdir()} == {
        "frames.csv",
        "heatmaps.mp4",
        "labelled.mp4",
        "peak-dog-heatmap.png",
        "peak-dog.png",
        "summary.json",
        "timeline.png",
    }
    assert program("video", clip, model, "-o", out) == 2
    assert "exists already; use --overwrite" in program.err
    assert program("video", clip, model, "-o", out, "--overwrite", "--every", "5", "--json") == 0
    found = json.loads(program.out)
    assert (found["frames"], found["explained"]) == (3, 0)
    assert set(found["labels"]) <= set(CLASSES)


def test_mistakes_are_one_line(program: Program, model: Path, clip: Path, tmp_path: Path) -> None:
    for arguments, said in (
        ((model, model), "not a video"),
        ((clip, model, "--seconds", "3"), "expected A:B"),
        ((clip, model, "--class", "cow"), "no class 'cow'; there are 3"),
        ((clip, model, "--seconds", "9:"), "has no frame between 9 and inf s"),
    ):
        assert program("video", *arguments, "-o", tmp_path / "out") == 2
        assert said in program.err
        assert len(program.err.strip().splitlines()) == 1
        assert not (tmp_path / "out").exists()


def test_a_model_for_both_classes_in_one_number_and_a_fixed_batch(program: Program, clip: Path, tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["seen"]),
        helper.make_node("GlobalAveragePool", ["seen"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["score"]),
    ]
    graph = helper.make_graph(
        nodes,
        "bright",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 3, 16, 16])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [5, 1])],
        [weights],
    )
    path = tmp_path / "bright.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    (tmp_path / "classes.txt").write_text("dark\nbright\n", encoding="utf-8")
    options = ("--classes", tmp_path / "classes.txt", "--class", "bright", "--heatmaps", "--json")
    assert program("video", clip, path, "-o", tmp_path / "out", *options) == 0
    found = json.loads(program.out)
    assert found["labels"] == {"bright": 12}
    assert found["explained"] == 12
    assert 0.8 < found["peaks"][0]["score"] < 0.9  # the mean of noise is a half, of three channels
    assert "does not say how pictures become its input" in found["notes"][0]
