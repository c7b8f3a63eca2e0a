"""From test to assign on data that hardly is any: a clear result, or one clear line."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from colour_model import save_model, save_picture

from lrp_onnx.cli.app import run

Pictures = Sequence[tuple[str, str, int | None]]  # expected class ("" for none), colour, seed


class Loop:
    """The commands of one case, run in this process in one folder."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.model = save_model(folder / "m.onnx")
        self.out = ""

    def __call__(self, *arguments: object) -> str:
        """Run a command that must work."""
        self._capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        self.out, error = self._capsys.readouterr()
        assert code == 0, error
        return self.out

    def refused(self, *arguments: object) -> str:
        """Run a command that must refuse with one line."""
        self._capsys.readouterr()
        assert run([str(argument) for argument in arguments]) == 2
        out, error = self._capsys.readouterr()
        assert out == ""
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    def pictures(self, name: str, pictures: Pictures) -> Path:
        for row, (expected, colour, seed) in enumerate(pictures):
            save_picture(self.folder / name / expected / f"{row:02d}.png", colour, seed)
        return self.folder / name

    def explain(self, pictures: Pictures) -> Path:
        """Heatmaps of the errors among some pictures."""
        data = self.pictures("TestSet", pictures)
        self("test", self.model, data, "-o", self.folder / "r.csv")
        return self._heatmaps(data, "errors.h5", "--errors", self.folder / "r.csv")

    def improvement(self, pictures: Pictures) -> Path:
        return self._heatmaps(self.pictures("ImprovementSet", pictures), "improvement.h5")

    def _heatmaps(self, data: Path, name: str, *options: object) -> Path:
        self("heatmaps", self.model, data, "-o", self.folder / name, "--layers", "all", *options)
        return self.folder / name

    def cluster(self, pictures: Pictures, *options: object) -> list[dict[str, str]]:
        """Cluster the errors among some pictures; the table of clusters."""
        self("cluster", self.explain(pictures), "-o", self.folder / "T", *options)
        return table(self.folder / "T" / "LayerX" / "clusters.csv")

    def assign(self, pictures: Pictures) -> list[dict[str, str]]:
        """Assign some pictures to the clusters; the unsafe set."""
        unsafe = self.folder / "UnsafeSet"
        self("assign", self.improvement(pictures), "--clusters", self.folder / "T", "-o", unsafe)
        return table(unsafe / "unsafe.csv")


@pytest.fixture
def loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Loop:
    return Loop(tmp_path, capsys)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def of(expected: str, colour: str, *seeds: int) -> Pictures:
    return [(expected, colour, seed) for seed in seeds]


RIGHT = [*of("red", "red", 1, 2, 3), *of("green", "green", 4, 5), *of("blue", "blue", 6)]
# what a red picture is taken for a green one for, and the like, is the colour that it has
TWO_CAUSES = [*of("red", "green", *range(6)), *of("green", "blue", *range(10, 15))]


def test_no_errors_are_nothing_to_explain(loop: Loop) -> None:
    data = loop.pictures("TestSet", RIGHT)
    assert "accuracy 100.00% (6 of 6)" in loop("test", loop.model, data, "-o", loop.folder / "r.csv")
    options = ("--errors", loop.folder / "r.csv", "-o", loop.folder / "errors.h5")
    assert "no prediction is wrong; nothing to explain" in loop.refused("heatmaps", loop.model, data, *options)
    assert not (loop.folder / "errors.h5").exists()


def test_a_store_of_correct_images_has_no_errors(loop: Loop) -> None:
    loop("heatmaps", loop.model, loop.pictures("TestSet", RIGHT), "-o", loop.folder / "all.h5", "--layers", "all")
    said = loop.refused("cluster", loop.folder / "all.h5", "-o", loop.folder / "T")
    assert "no errors among its 6 images" in said
    assert not (loop.folder / "T").exists()


@pytest.mark.parametrize("profile", [(), ("--profile", "hudd"), ("--profile", "features", "--model", "m.onnx")])
def test_one_error_is_to_be_looked_at(loop: Loop, profile: tuple[str, ...]) -> None:
    store = loop.explain([*RIGHT, *of("blue", "red", 9)])
    said = loop.refused("cluster", store, "-o", loop.folder / "T", *profile)
    assert "one error only, so nothing to cluster; look at " in said
    assert said.rstrip().endswith("blue/06.png")


def test_two_errors_with_different_causes_are_no_cluster(loop: Loop) -> None:
    rows = loop.cluster([*RIGHT, *of("blue", "red", 9), *of("blue", "green", 9)])
    assert [row["cluster"] for row in rows] == ["-1", "-1"]
    assert loop.assign(RIGHT) == []
    assert loop.out.startswith("nothing selected: there is no cluster of two or more images")


def test_two_errors_that_are_alike_are_a_cluster(loop: Loop) -> None:
    rows = loop.cluster([*RIGHT, ("blue", "red", 9), ("green", "red", 9)])
    assert [row["cluster"] for row in rows] == ["1", "1"]
    unsafe = loop.assign([*RIGHT, ("", "red", 9)])
    assert [Path(row["image"]).name for row in unsafe] == ["06.png"]


def test_a_model_that_is_always_wrong_has_clusters_too(loop: Loop) -> None:
    rows = loop.cluster(TWO_CAUSES)
    assert len(rows) == len(TWO_CAUSES)
    assert {(row["cluster"], row["expected"], row["predicted"]) for row in rows} == {
        ("1", "red", "green"),
        ("2", "green", "blue"),
    }
    assert "instead of 11 failures" in loop.out


def test_errors_of_one_class_are_clustered_and_assigned(loop: Loop) -> None:
    rows = loop.cluster(of("red", "green", *range(8)))
    assert {(row["expected"], row["predicted"]) for row in rows} == {("red", "green")}
    unsafe = loop.assign([("red", "green", 3), *of("red", "blue", 1, 2)])
    assert all(Path(row["image"]).name == "00.png" for row in unsafe)


@pytest.mark.parametrize("profile", [(), ("--profile", "hudd"), ("--profile", "features", "--model", "m.onnx")])
def test_identical_images_are_one_cluster(
    loop: Loop, profile: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(loop.folder)
    rows = loop.cluster([("red", "green", None)] * 20, *profile)
    assert {row["cluster"] for row in rows} == {"1"}
    assert {float(row["distance_to_medoid"]) for row in rows} == {0}
    assert "1 cluster (all " in loop.out
    if "features" not in profile:
        unsafe = loop.assign([("", "green", None), ("", "red", 1)])
        assert {row["distance"] for row in unsafe if row["image"].endswith("00.png")} == {"0"}


def test_heatmaps_that_are_all_zero_are_one_cluster(loop: Loop) -> None:
    rows = loop.cluster([("green", "black", None)] * 5)  # nothing is seen, nothing is relevant
    assert {row["cluster"] for row in rows} == {"1"}
    unsafe = loop.assign([("", "black", None), ("", "red", 1)])
    assert [Path(row["image"]).name for row in unsafe] == ["00.png"]


def test_a_class_may_be_missing_from_the_improvement_set(loop: Loop) -> None:
    loop.cluster(TWO_CAUSES)
    unsafe = loop.assign([*of("green", "blue", *range(10, 14)), *of("blue", "blue", 30)])
    assert unsafe
    assert {row["cluster"] for row in unsafe} == {"2"}
    assert "cluster 1: 0 images of at most 12" in loop.out


def test_nothing_similar_is_a_result_that_says_how_near_it_was(loop: Loop) -> None:
    loop.cluster(TWO_CAUSES)
    assert loop.assign(of("", "red", *range(4))) == []
    assert loop.out.startswith("nothing selected: none of 4 images is as close to a cluster")
    assert "the nearest miss is" in loop.out
    assert (loop.folder / "UnsafeSet" / "unsafe.csv").read_text(encoding="utf-8").count("\n") == 1


@pytest.mark.parametrize(
    "encoding, separator, comma", [("utf-8-sig", ";", ","), ("utf-8-sig", "\t", ","), ("utf-8", ",", ".")]
)
def test_results_that_a_spreadsheet_saved_are_read(loop: Loop, encoding: str, separator: str, comma: str) -> None:
    data, results = loop.pictures("TestSet", [*RIGHT, *TWO_CAUSES]), loop.folder / "r.csv"
    loop("test", loop.model, data, "-o", results)
    with results.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    with results.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=separator, lineterminator="\r\n")
        writer.writerows([cell if cell.endswith(".png") else cell.replace(".", comma) for cell in row] for row in rows)
    loop("heatmaps", loop.model, data, "-o", loop.folder / "errors.h5", "--errors", results, "--json")
    assert json.loads(loop.out)["samples"] == len(TWO_CAUSES)


@pytest.mark.parametrize(
    "count, clusters", [(2, 0), (3, 0), (8, 2), (15, 2), pytest.param(16, 2, marks=pytest.mark.slow)]
)
def test_few_images_have_clusters_by_their_features(loop: Loop, count: int, clusters: int) -> None:
    half = count // 2
    pictures = [*of("red", "green", *[1] * half), *of("green", "blue", *[2] * (half - 1), *[3] * (count % 2 + 1))]
    rows = loop.cluster(pictures, "--profile", "features", "--model", loop.model)
    assert len(rows) == count
    groups = {(row["cluster"], row["predicted"]) for row in rows if row["cluster"] != "-1"}
    assert len(groups) == len({cluster for cluster, _ in groups}) == clusters
    assert f"{clusters} clusters (" in loop.out
    assert ("too few for UMAP" in loop.out) == (count < 16)


def test_clusters_of_features_have_no_unsafe_set(loop: Loop) -> None:
    loop.cluster(TWO_CAUSES, "--profile", "features", "--model", loop.model)
    improvement = loop.improvement(RIGHT)
    options = ("--clusters", loop.folder / "T", "-o", loop.folder / "UnsafeSet")
    assert "clusters of profile features are for comparison" in loop.refused("assign", improvement, *options)
    assert not (loop.folder / "UnsafeSet").exists()
