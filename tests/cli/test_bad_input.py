"""Whatever is wrong with what a user gives: one clear line, exit code 2, and earlier results as they were."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_model import SIZE, Program, build_model, save_picture

Make = Callable[..., Path]


@pytest.fixture
def refused(program: Program, tmp_path: Path) -> Callable[..., str]:
    """Run a command that must be refused, over an earlier result that must stay; what it said."""

    def run(command: str, *arguments: object, overwrite: bool = True) -> str:
        earlier = tmp_path / "results" / "earlier"
        earlier.parent.mkdir(exist_ok=True)
        earlier.write_bytes(b"an earlier result")
        options = ["--overwrite"] if overwrite else []
        code = program(command, *arguments, "-o", earlier, *options)
        assert code == 2, program.err
        assert program.out == ""
        assert program.err.startswith("error: ")
        assert program.err.count("\n") == 1
        assert earlier.read_bytes() == b"an earlier result"
        assert [path.name for path in earlier.parent.iterdir()] == ["earlier"]
        return program.err

    return run


Refused = Callable[..., str]
COMMANDS = ("heatmaps", "test")


@pytest.mark.parametrize("command", COMMANDS)
def test_truncated_model(refused: Refused, command: str, model: Path, pictures: Path) -> None:
    model.write_bytes(model.read_bytes()[:-100])
    assert "small.onnx" in (said := refused(command, model, pictures))
    assert "cut short" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_no_onnx_file(refused: Refused, command: str, tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "notes.onnx").write_text("These are my notes.")
    assert "not an ONNX model" in refused(command, tmp_path / "notes.onnx", pictures)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_such_model(refused: Refused, command: str, tmp_path: Path, pictures: Path) -> None:
    assert "No such file" in refused(command, tmp_path / "nowhere.onnx", pictures)


@pytest.mark.parametrize("command", COMMANDS)
def test_missing_external_data(refused: Refused, command: str, tmp_path: Path, pictures: Path) -> None:
    path = tmp_path / "split.onnx"
    onnx.save_model(build_model(), path, save_as_external_data=True, location="split.data", size_threshold=0)
    (tmp_path / "split.data").unlink()
    assert "split.data" in refused(command, path, pictures)


def test_an_op_without_a_rule(refused: Refused, make_model: Make, pictures: Path) -> None:
    said = refused("heatmaps", make_model(extra="Bernoulli"), pictures)
    assert "Bernoulli node 'strange'" in said
    assert "--rule Bernoulli=pass" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_arrays_of_another_shape(refused: Refused, command: str, model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3, SIZE, SIZE + 1), np.float32))
    assert str(SIZE + 1) in refused(command, model, tmp_path / "x.npy")


@pytest.mark.parametrize("command", COMMANDS)
def test_preprocessing_of_another_shape(refused: Refused, command: str, model: Path, pictures: Path) -> None:
    said = refused(command, model, pictures, "--preprocess", '{"preset": "imagenet", "size": 224}')
    assert "(3, 224, 224)" in said
    assert f"(3, {SIZE}, {SIZE})" in said


@pytest.mark.parametrize("text", ["nowhere", '{"size": ', '{"sise": 3}', '{"preset": "imaginet"}', '{"std": 0}'])
def test_bad_preprocessing(refused: Refused, model: Path, pictures: Path, text: str) -> None:
    assert "preprocess" in refused("heatmaps", model, pictures, "--preprocess", text)


@pytest.mark.parametrize("command", COMMANDS)
def test_nan_weights(refused: Refused, command: str, make_model: Make, pictures: Path) -> None:
    said = refused(command, make_model(poison=True), pictures)
    assert "'w1'" in said
    assert "NaN" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_folder(refused: Refused, command: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no pictures" in refused(command, model, tmp_path / "empty")


@pytest.mark.parametrize("command", COMMANDS)
def test_only_broken_pictures(refused: Refused, command: str, model: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg"):
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / name).write_bytes(b"no picture")
    assert "none of the 2 samples could be read" in refused(command, model, tmp_path / "broken")


@pytest.mark.parametrize("command", COMMANDS)
def test_no_data(refused: Refused, command: str, model: Path, tmp_path: Path) -> None:
    assert "no such file or folder" in refused(command, model, tmp_path / "nowhere")


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_class_folder(refused: Refused, command: str, model: Path, pictures: Path) -> None:
    save_picture(pictures / "zebra" / "1.png", 1)
    said = refused(command, model, pictures)
    assert "'zebra'" in said
    assert "unlabelled" in said


def test_an_unknown_class_folder_can_be_read_as_unlabelled(program: Program, model: Path, pictures: Path) -> None:
    save_picture(pictures / "zebra" / "1.png", 1)
    assert program("heatmaps", model, pictures, "-o", pictures.parent / "h.h5", "--unlabelled") == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_class_folders_of_another_model(refused: Refused, command: str, tmp_path: Path) -> None:
    bare = build_model()
    del bare.metadata_props[:]
    onnx.save_model(bare, tmp_path / "bare.onnx")
    for name in ("a", "b"):
        save_picture(tmp_path / "two" / name / "1.png", 1)
    said = refused(command, tmp_path / "bare.onnx", tmp_path / "two")
    assert "2 classes" in said
    assert "3 outputs" in said


def test_class_names_of_another_model(refused: Refused, model: Path, pictures: Path) -> None:
    (pictures.parent / "names.txt").write_text("a\nb\n")
    said = refused("heatmaps", model, pictures, "--classes", pictures.parent / "names.txt")
    assert "3 outputs" in said


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--composite", "epsilonn"], "epsilonn"),
        (["--composite", "nowhere.toml"], "nowhere.toml"),
        (["--rule", "Conv"], "OP=RULE"),
        (["--rule", "Conv=magic"], "magic"),
        (["--low", "dark"], "dark"),
        (["--gamma", "0.1"], "gamma"),
        (["--layers", "conv9"], "conv9"),
        (["--target", "best"], "best"),
        (["--target", "3"], "3"),
        (["--seed", "two"], "two"),
        (["--dtype", "int8"], "int8"),
        (["--layer-dtype", "float8"], "float8"),
        (["--compress", "zip"], "zip"),
        (["--device", "abacus"], "abacus"),
        (["--batch-size", "0"], "batch size"),
        (["--limit", "0"], "limit"),
        (["--resume"], "--resume"),
    ],
)
def test_options_that_do_not_fit(refused: Refused, model: Path, pictures: Path, options: list[str], named: str) -> None:
    assert named in refused("heatmaps", model, pictures, *options)


def test_labels_are_needed_to_explain_them(refused: Refused, model: Path, tmp_path: Path) -> None:
    save_picture(tmp_path / "flat" / "1.png", 1)
    assert "label" in refused("heatmaps", model, tmp_path / "flat", "--target", "label")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("image,label,correct\nelsewhere/7.png,cat,0\n", "elsewhere/7.png"),
        ("image,label,correct\ncat/0.png,dog,0\n", "label 'dog'"),
        ("image,label,correct\ncat/0.png,cat,1\n", "no prediction is wrong"),
        ("image,score\ncat/0.png,1\n", "no column 'label'"),
        ("", "no column 'image'"),
        (None, "results.csv"),
    ],
)
def test_results_of_another_data_set(
    refused: Refused, model: Path, pictures: Path, tmp_path: Path, text: str | None, named: str
) -> None:
    if text is not None:
        (tmp_path / "results.csv").write_text(text)
    assert named in refused("heatmaps", model, pictures, "--errors", tmp_path / "results.csv")


@pytest.mark.parametrize("command", [*COMMANDS, "convert"])
def test_an_existing_file_is_not_replaced_unasked(refused: Refused, command: str, model: Path, pictures: Path) -> None:
    arguments = [model] if command == "convert" else [model, pictures]
    assert "--overwrite" in refused(command, *arguments, overwrite=False)


def test_an_existing_folder_of_pictures_is_not_filled_unasked(
    program: Program, model: Path, pictures: Path, tmp_path: Path
) -> None:
    assert program("heatmaps", model, pictures, "-o", tmp_path / "h.h5") == 0
    assert program("render", tmp_path / "h.h5", "-o", pictures) == 2
    assert "--overwrite" in program.err
    assert sorted(path.name for path in pictures.iterdir()) == ["cat", "dog", "élan"]


@pytest.mark.parametrize("name", ["nowhere.h5", "small.onnx"])
def test_render_of_no_store(program: Program, model: Path, tmp_path: Path, name: str) -> None:
    assert program("render", tmp_path / name, "-o", tmp_path / "drawn") == 2
    assert name in program.err
    assert program.err.count("\n") == 1


@pytest.mark.parametrize("source", ["nowhere.keras", "nowhere:net", "notes.txt"])
def test_convert_of_nothing_known(refused: Refused, tmp_path: Path, source: str) -> None:
    (tmp_path / "notes.txt").write_text("These are my notes.")
    assert source.split(":")[0] in refused("convert", tmp_path / source if ":" not in source else source)


@pytest.mark.parametrize("command", [*COMMANDS, "convert"])
def test_a_place_that_cannot_be_written(
    program: Program, command: str, model: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")  # root may write to any folder, but not into a file
    arguments = [model] if command == "convert" else [model, pictures]
    assert program(command, *arguments, "-o", tmp_path / "file" / "out") == 2
    assert str(tmp_path / "file") in program.err
    assert program.err.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_without_permission(
    program: Program, command: str, model: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert program(command, model, pictures, "-o", tmp_path / "locked" / "out") == 2
    assert "Permission denied" in program.err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(program: Program, model: Path, pictures: Path, small_disk: Path) -> None:
    (small_disk / "earlier.h5").write_bytes(b"an earlier result")
    (small_disk / "filler").write_bytes(bytes(240 * 1024))
    for arguments in (
        ["heatmaps", model, pictures, "-o", small_disk / "earlier.h5", "--layers", "all", "--overwrite"],
        ["convert", model, "-o", small_disk / "deep" / "earlier.onnx"],
    ):
        (small_disk / "rest").unlink(missing_ok=True)
        with (small_disk / "rest").open("wb", buffering=0) as rest, pytest.raises(OSError, match="No space"):
            while True:
                rest.write(bytes(512))
        assert program(*arguments) == 2
        assert program.err.count("\n") == 1
        assert "earlier" in program.err
    assert (small_disk / "earlier.h5").read_bytes() == b"an earlier result"


@pytest.mark.parametrize("command", [*COMMANDS, "convert"])
def test_a_file_that_may_not_grow(command: str, model: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [model] if command == "convert" else [model, pictures]
    done = subprocess.run(
        [sys.executable, "-m", "lrp_onnx", command, *map(str, arguments), "-o", str(out)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (256, 256)),
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(out) in done.stderr
    assert not out.exists()
