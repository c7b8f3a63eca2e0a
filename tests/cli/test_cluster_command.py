"""`cluster` and `assign` take a store to folders of images, tables and a short account of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from small_model import Program, save_picture

from lrp_onnx.store import HeatmapStore


@pytest.fixture
def errors(program: Program, model: Path, tmp_path: Path) -> Path:
    """Heatmaps of what the small model gets wrong among 36 pictures."""
    for row in range(36):
        save_picture(tmp_path / "TestSet" / ("cat", "dog", "élan")[row % 3] / f"{row}.png", row)
    assert program("test", model, tmp_path / "TestSet", "-o", tmp_path / "r.csv") == 0
    options = ("--errors", tmp_path / "r.csv", "--layers", "all", "-o", tmp_path / "h.h5")
    assert program("heatmaps", model, tmp_path / "TestSet", *options) == 0
    return tmp_path / "h.h5"


@pytest.fixture
def improvement(program: Program, model: Path, tmp_path: Path) -> Path:
    for row in range(20):
        save_picture(tmp_path / "ImprovementSet" / f"{row}.png", 100 + row)
    options = ("--layers", "all", "-o", tmp_path / "i.h5")
    assert program("heatmaps", model, tmp_path / "ImprovementSet", *options) == 0
    return tmp_path / "i.h5"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_cluster_shows_the_clusters_and_what_inspection_saves(program: Program, errors: Path, tmp_path: Path) -> None:
    assert program("cluster", errors, "-o", tmp_path / "T", "--k", 2, "--layer", "conv2", "--min-size", 1) == 0
    with HeatmapStore(errors) as store:
        count = len(store)
    lines = program.out.splitlines()
    assert lines[:2] == ["layer conv2 (given)", "2 clusters (given)"]
    assert lines[2].split() == ["cluster", "images", "silhouette", "medoid", "expected", "->", "predicted"]
    sizes = [int(line.split()[1]) for line in lines[3:5]]
    assert sum(sizes) == count
    inspected = sum(min(5, size) for size in sizes)
    saved = f"to inspect: {inspected} images (5 a cluster) instead of {count} failures, {inspected / count:.1%}"
    assert saved in lines
    rows = read(tmp_path / "T" / "LayerX" / "clusters.csv")
    largest = {(row["expected"], row["predicted"]) for row in rows if row["cluster"] == "1"}
    assert any(f"{expected} -> {predicted} (" in lines[3] for expected, predicted in largest)
    assert all(expected != predicted for expected, predicted in largest)


def test_cluster_as_json_says_the_same(program: Program, errors: Path, tmp_path: Path) -> None:
    assert program("cluster", errors, "-o", tmp_path / "T", "--json", "--profile", "hudd") == 0
    found = json.loads(program.out)
    rows = read(Path(found["chosen"]) / "clusters.csv")
    for one in found["clusters"]:
        members = [row for row in rows if row["cluster"] == str(one["cluster"])]
        assert len(members) == one["size"]
        assert one["medoid"] in {row["image"] for row in members}
        assert sum(count for _, _, count in one["confusions"]) == one["size"]
    assert found["images"] == len(rows)
    assert found["profile"] == "hudd"
    assert found["layer"] in found["layers"]


def test_the_layer_that_relevance_starts_from_does_not_compete(program: Program, errors: Path, tmp_path: Path) -> None:
    with HeatmapStore(errors) as store:
        start = store.layer_names[-1]
        assert (np.count_nonzero(store.layer(start)[:], axis=1) == 1).all()
    assert program("cluster", errors, "-o", tmp_path / "T", "--json") == 0
    # nor do the ReLUs, which repeat their convolutions, nor layers without positions
    assert list(json.loads(program.out)["layers"]) == ["conv1", "pool", "conv2"]


def test_without_inner_layers_the_input_is_compared_and_a_note_says_so(
    program: Program, model: Path, errors: Path, tmp_path: Path
) -> None:
    options = ("--errors", tmp_path / "r.csv", "-o", tmp_path / "input.h5")
    assert program("heatmaps", model, tmp_path / "TestSet", *options) == 0
    assert program("cluster", tmp_path / "input.h5", "-o", tmp_path / "T") == 0
    assert "note: no inner layer in the store" in program.err
    assert program.out.startswith("layer input")


def test_assign_writes_the_images_to_label(program: Program, errors: Path, improvement: Path, tmp_path: Path) -> None:
    assert program("cluster", errors, "-o", tmp_path / "T", "--k", 3, "--layer", "mean") == 0
    arguments = ("assign", improvement, "--clusters", tmp_path / "T", "-o", tmp_path / "UnsafeSet", "--factor", 0.5)
    assert program(*arguments) == 0
    rows = read(tmp_path / "UnsafeSet" / "unsafe.csv")
    assert rows
    assert program.out.startswith(f"{len(rows)} of 20 images selected, ")
    assert f"fill in the column label of {tmp_path / 'UnsafeSet' / 'unsafe.csv'}" in program.out
    assert len(list((tmp_path / "UnsafeSet").glob("*/*.png"))) == len(rows)
    assert program(*arguments, "--overwrite", "--json") == 0
    found = json.loads(program.out)
    assert [str(one["cluster"]) for one in found["selected"]] == [row["cluster"] for row in rows]
    for cluster, quota in found["quotas"].items():
        assert sum(row["cluster"] == cluster for row in rows) <= quota


@pytest.mark.parametrize(
    "options, said",
    [
        (["--layer", "nowhere"], "no layer 'nowhere'"),
        (["--profile", "best"], "profile 'best'; expected one of default, hudd"),
        (["--linkage", "weird"], "linkage 'weird'; expected one of ward"),
        (["--metric", "weird"], "metric 'weird'"),
        (["--reduce", "weird"], "reduce 'weird'"),
        (["--k", "99"], "99 clusters of"),
    ],
)
def test_wrong_options_are_one_line(
    program: Program, errors: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    assert program("cluster", errors, "-o", tmp_path / "T", *options) == 2
    assert said in program.err
    assert program.err.count("\n") == 1
    assert program.out == ""
    assert not (tmp_path / "T" / "LayerX").exists()


def test_what_cannot_be_done_is_one_line(
    program: Program, model: Path, errors: Path, improvement: Path, tmp_path: Path
) -> None:
    def refused(*arguments: object) -> str:
        assert program(*arguments) == 2
        assert program.err.startswith("error: ")
        assert program.err.count("\n") == 1
        return program.err

    out = tmp_path / "T"
    assert "no such heatmap store" in refused("cluster", tmp_path / "nowhere.h5", "-o", out)
    assert "holds no clusters" in refused("assign", improvement, "--clusters", out)
    assert (
        program("heatmaps", model, tmp_path / "TestSet", "--layers", "all", "-o", tmp_path / "one.h5", "--limit", 1)
        == 0
    )
    with HeatmapStore(tmp_path / "one.h5") as store:
        expected = "one error only" if store.samples["correct"][0] == 0 else "no errors among its 1 images"
    assert expected in refused("cluster", tmp_path / "one.h5", "-o", out)
    out.write_text("a file")
    refused("cluster", errors, "-o", out)
    assert out.read_text() == "a file"
    out.unlink()
    assert program("cluster", errors, "-o", out, "--k", 2) == 0
    assert "use --overwrite" in refused("cluster", errors, "-o", out)
    options = ("--seed", "one", "--layers", "all", "-o", tmp_path / "other.h5")
    assert program("heatmaps", model, tmp_path / "ImprovementSet", *options) == 0
    assert "differ in seed" in refused("assign", tmp_path / "other.h5", "--clusters", out, "-o", tmp_path / "UnsafeSet")
