"""What a person gets of a clustering: images, sheets, animations, tables and charts, whole or not at all."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pytest
from PIL import Image

from lrp_onnx.errors import DataError, OutputError, StoreError
from lrp_onnx.folders import folder_written_whole
from lrp_onnx.hudd import (
    Distances,
    assign_store,
    cluster_store,
    compute_distances,
    eligible_layers,
    read_clusters,
)
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.render.charts import WIDTH
from lrp_onnx.store import HeatmapStore, LayerInfo, StoreSpec

CLASSES = ["cat", "dog", "élan"]
SIZE = 16
LAYERS = {"/conv/out": LayerInfo((6, 2, 2), "conv", "Conv", 1), "logits": LayerInfo((3,), "fc", "Gemm", 2)}
Make = Callable[..., Path]


@pytest.fixture
def make_errors(tmp_path: Path) -> Make:
    """A store of errors with real pictures; the heatmaps of `causes[i]` are alike, and say nothing of the class."""

    def make(causes: Any, name: str = "h.h5", correct: Any = 0, scatter: float = 0.05, **changes: Any) -> Path:
        causes = np.asarray(causes)
        random, count = np.random.default_rng(len(causes)), len(causes)
        images = [tmp_path / "images" / f"{row % 2}" / f"{Path(name).stem} {row // 2}.png" for row in range(count)]
        for image in images:  # the same names in two folders
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(image)
        centres = np.random.default_rng(7).normal(size=(9, 6, 2, 2))
        predicted = np.arange(count) % 3
        fields: dict[str, Any] = {
            "paths": [str(image) for image in images],
            "index": np.arange(count),
            "labels": (predicted + 1) % 3,
            "input_shape": (3, SIZE, SIZE),
            "outputs": 3,
            "layers": LAYERS,
            "conservation": ["x", *LAYERS],
            "model": "net.onnx",
            "model_sha256": "0" * 64,
            "composite": "{}",
            "target": "predicted",
            "seed": "logit",
            "preprocess": Preprocess(size=(SIZE, SIZE)).to_json(),
            "classes": CLASSES,
        }
        fields |= changes
        logits = np.eye(3)[predicted] * 4
        start = logits if changes.get("seed") != "all" else random.normal(size=(count, 3))
        relevance = {"/conv/out": centres[causes] + scatter * random.normal(size=(count, 6, 2, 2)), "logits": start}
        with HeatmapStore.create(tmp_path / name, StoreSpec(**fields)) as store:
            store.write(
                np.arange(count),
                attribution=random.normal(size=(count, *fields["input_shape"])),
                prediction=logits,
                predicted=predicted,
                correct=np.broadcast_to(correct, count),
                target=predicted,
                layers={layer: relevance[layer] for layer in fields["layers"]},
                conservation=np.zeros((count, len(fields["conservation"]))) if fields["conservation"] else None,
            )
            store.finish()
        return tmp_path / name

    return make


CAUSES = [0] * 8 + [1] * 6 + [2] * 4


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_cluster_gets_its_images_the_medoid_first_as_hard_links(make_errors: Make, tmp_path: Path) -> None:
    found = cluster_store(make_errors(CAUSES), tmp_path / "T")
    assert [one.size for one in found.clusters] == [8, 6, 4]
    assert found.folder == tmp_path / "T" / "ClusterAnalysis" / "Layer1-conv_out"
    for label, one in enumerate(found.clusters, start=1):
        files = sorted((found.folder / str(label)).iterdir())
        assert len(files) == one.size
        assert files[0].samefile(one.medoid or "")
        members = {row["image"] for row in table(found.folder / "clusters.csv") if row["cluster"] == str(label)}
        assert all(any(file.samefile(member) for member in members) for file in files)
    assert (found.inspected, found.images, found.without_image) == (14, 18, 0)


def test_images_are_copied_where_links_are_impossible(
    make_errors: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    found = cluster_store(make_errors(CAUSES), tmp_path / "T")
    first = min((found.chosen / "1").iterdir())
    medoid = Path(found.clusters[0].medoid or "")
    assert first.read_bytes() == medoid.read_bytes()
    assert not first.samefile(medoid)


def test_an_animation_shows_every_image_for_0_6_seconds(make_errors: Make, tmp_path: Path) -> None:
    found = cluster_store(make_errors(CAUSES), tmp_path / "T")
    for one in found.clusters:
        with Image.open(found.folder / f"{one.cluster}.gif") as gif:
            assert gif.n_frames == one.size  # type: ignore[attr-defined]
            assert gif.info["loop"] == 0
            for frame in range(one.size):
                gif.seek(frame)
                assert gif.info["duration"] == 600


def test_heatmaps_stand_beside_the_images_unless_they_are_not_wanted(make_errors: Make, tmp_path: Path) -> None:
    store = make_errors(CAUSES)

    def coloured(heatmaps: bool) -> tuple[int, int]:
        found = cluster_store(store, tmp_path / "T", heatmaps=heatmaps, overwrite=True)
        with Image.open(found.folder / "1.png") as sheet, Image.open(found.folder / "1.gif") as gif:
            return sheet.width * sheet.height, np.count_nonzero((np.asarray(gif.convert("RGB")) != 255).any(axis=2))

    with_heatmaps, without = coloured(True), coloured(False)
    assert with_heatmaps[0] > 1.3 * without[0]
    assert with_heatmaps[1] > 1.7 * without[1]


def test_the_table_has_a_row_for_every_image_and_the_scores_for_every_layer_and_k(
    make_errors: Make, tmp_path: Path
) -> None:
    store = make_errors(CAUSES)
    found = cluster_store(store, tmp_path / "T")
    rows = table(found.folder / "clusters.csv")
    with HeatmapStore(store) as opened:
        assert [row["image"] for row in rows] == opened.samples["path"].tolist()
    assert [int(row["cluster"]) for row in rows] == [cause + 1 for cause in CAUSES]
    assert (rows[0]["expected"], rows[0]["predicted"]) == ("dog", "cat")
    assert (rows[1]["expected"], rows[1]["predicted"]) == ("élan", "dog")
    medoid = next(row for row in rows if row["image"] == found.clusters[0].medoid)
    assert float(medoid["distance_to_medoid"]) == 0
    silhouettes = [float(row["silhouette"]) for row in rows]
    np.testing.assert_allclose(silhouettes, found.clustering.silhouettes, rtol=1e-5)
    scores = table(found.folder / "scores.csv")
    assert [int(row["k"]) for row in scores] == list(range(1, 10))
    assert {row["layer"] for row in scores} == {"/conv/out"}
    assert [row["k"] for row in scores if row["chosen_k"] == row["chosen_layer"] == "1"] == ["3"]


@pytest.mark.parametrize("profile", ["default", "hudd"])
def test_charts_mark_the_chosen_number_of_clusters(make_errors: Make, tmp_path: Path, profile: str) -> None:
    found = cluster_store(make_errors(CAUSES), tmp_path / "T", profile=profile)
    red = (198, 40, 40)
    for name in ("curve.png", "dendrogram.png"):
        with Image.open(found.folder / name) as chart:
            assert chart.width == WIDTH
            marked = (np.asarray(chart) == red).all(axis=2)
            assert marked.sum() > 300, name


def test_layer_x_is_a_copy_whose_tables_can_be_edited_alone(make_errors: Make, tmp_path: Path) -> None:
    found = cluster_store(make_errors(CAUSES), tmp_path / "T")
    assert tree(found.chosen) == tree(found.folder)
    with (found.chosen / "clusters.csv").open("a") as file:
        file.write("mine")
    assert "mine" not in (found.folder / "clusters.csv").read_text(encoding="utf-8")


def test_the_tensor_that_relevance_starts_from_does_not_compete(make_errors: Make) -> None:
    with HeatmapStore(make_errors(CAUSES, seed="all")) as store:  # known by its name
        assert eligible_layers(store) == ["/conv/out"]
    with HeatmapStore(make_errors(CAUSES, name="other.h5", conservation=())) as store:  # known by its values
        assert eligible_layers(store) == ["/conv/out"]
    only = {"logits": LAYERS["logits"]}
    with HeatmapStore(make_errors(CAUSES, name="only.h5", layers=only, conservation=())) as store:
        assert eligible_layers(store) == ["input"]


def test_layers_that_repeat_an_earlier_one_in_every_row_do_not_compete(tmp_path: Path, make_store: Make) -> None:
    values = np.random.default_rng(0).normal(size=(40, 3, 2, 2)).astype(np.float32)
    late = values.copy()
    late[37, 2, 1, 1] += 1e-6
    layers = {"conv": values, "relu": values, "other": late, "again": late, "flat": values.reshape(40, 12)}
    with HeatmapStore(make_store(layers)) as store:
        assert eligible_layers(store, "hudd") == ["conv", "other", "flat"]
        assert eligible_layers(store) == ["conv", "other"]  # dense layers follow the predicted class
    unfinished = make_store(layers, "unfinished.h5", done=[*range(37), 38])
    with HeatmapStore(unfinished) as store:  # what is not there makes no difference
        assert eligible_layers(store, "hudd") == ["conv", "flat"]
        compute_distances(store, tmp_path / "d.h5")
        with Distances(tmp_path / "d.h5") as distances:
            assert list(distances) == ["conv"]


def test_a_layer_can_be_named_even_the_input(make_errors: Make, tmp_path: Path) -> None:
    store = make_errors(CAUSES)
    found = cluster_store(store, tmp_path / "T", layer="input", k=4)
    assert found.folder.name == "Layer0-input"
    assert found.clustering.k == 4
    again = cluster_store(store, tmp_path / "T", overwrite=True)
    assert again.clustering.layer == "/conv/out"
    assert sorted(path.name for path in found.folder.parent.iterdir()) == ["Layer0-input", "Layer1-conv_out"]
    assert read_clusters(tmp_path / "T").clustering.layer == "/conv/out"
    assert read_clusters(found.folder).clustering.layer == "input"


def test_correctly_handled_images_are_left_out_and_counted(make_errors: Make, tmp_path: Path) -> None:
    found = cluster_store(make_errors(CAUSES, correct=[0] * 14 + [1] * 4), tmp_path / "T")
    assert [one.size for one in found.clusters] == [8, 6]
    assert found.notes == ("4 correctly handled images are left out",)


def test_too_few_errors_are_one_clear_line(make_errors: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no errors among its 3 images"):
        cluster_store(make_errors([0, 0, 1], correct=1), tmp_path / "T")
    with pytest.raises(DataError, match=r"one error only, so nothing to cluster; look at .*b 0\.png"):
        cluster_store(make_errors([0, 0, 1], name="b.h5", correct=[0, 1, 1]), tmp_path / "T")
    assert not (tmp_path / "T").exists()


def test_two_errors_and_identical_heatmaps_have_a_result(make_errors: Make, tmp_path: Path) -> None:
    two = cluster_store(make_errors([0, 1]), tmp_path / "two")
    assert sum(one.size for one in two.clusters) == 2
    same = cluster_store(make_errors([0] * 5, name="same.h5", scatter=0), tmp_path / "same")
    assert [one.size for one in same.clusters] == [5]
    for found in (two, same):
        assert (found.chosen / "curve.png").is_file()


def test_noise_is_kept_to_be_looked_at(make_errors: Make, tmp_path: Path) -> None:
    found = cluster_store(make_errors([*CAUSES, 5]), tmp_path / "T", k=4)
    noise = found.clusters[-1]
    assert (noise.cluster, noise.size, noise.medoid) == (-1, 1, None)
    assert len(list((found.chosen / "noise").iterdir())) == 1
    assert table(found.chosen / "clusters.csv")[-1]["distance_to_medoid"] == ""
    assert found.inspected == 14


def test_images_that_are_gone_are_counted_and_the_rest_is_there(make_errors: Make, tmp_path: Path) -> None:
    store = make_errors(CAUSES)
    shutil.rmtree(tmp_path / "images" / "1")
    found = cluster_store(store, tmp_path / "T")
    assert found.without_image == 9
    with Image.open(found.chosen / "1.gif") as gif:
        assert gif.n_frames == 8  # type: ignore[attr-defined]


def test_rows_of_an_array_file_become_pictures(make_errors: Make, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (18, SIZE, SIZE, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    found = cluster_store(
        make_errors(CAUSES, paths=[f"{tmp_path / 'x.npy'}[{row}]" for row in range(18)]), tmp_path / "T"
    )
    assert found.without_image == 0
    medoid = found.clustering.medoids[1]
    with Image.open(min((found.chosen / "1").iterdir())) as picture:
        np.testing.assert_array_equal(np.asarray(picture), pixels[medoid])


def test_vectors_and_regression_have_results_too(make_errors: Make, tmp_path: Path) -> None:
    targets = np.linspace(0, 1, 36, dtype=np.float32).reshape(18, 2)
    store = make_errors(CAUSES, preprocess=None, input_shape=(7, 1, 1), labels=None, target_values=targets, correct=-1)
    found = cluster_store(store, tmp_path / "T")
    assert found.clusters[0].confusions == ()
    assert table(found.chosen / "clusters.csv")[1]["expected"] == "0.05714 0.08571"
    assert (found.chosen / "1.png").is_file()


def test_two_runs_write_the_same_bytes(make_errors: Make, tmp_path: Path) -> None:
    store = make_errors(CAUSES)
    one, other = (cluster_store(store, tmp_path / name) for name in ("A", "B"))
    assert tree(one.chosen) == tree(other.chosen)


def test_a_folder_that_cannot_be_finished_leaves_the_earlier_one(
    make_errors: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_errors(CAUSES)
    before = tree(cluster_store(store, tmp_path / "T").chosen)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lrp_onnx.hudd.outputs.write_tables", refuse)
    with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\); what was there stays"):
        cluster_store(store, tmp_path / "T", k=2, overwrite=True)
    assert tree(tmp_path / "T" / "LayerX") == tree(tmp_path / "T" / "ClusterAnalysis" / "Layer1-conv_out") == before
    assert not list((tmp_path / "T").rglob(".*"))


def test_a_folder_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename = tmp_path / "F", Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == ".F.new" and target.name == "F" and (tmp_path / ".F.old").exists():
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with folder_written_whole(folder, "mark") as new:
        (new / "mark").write_text("first")
    with pytest.raises(OutputError, match="what was there stays"), folder_written_whole(folder, "mark", overwrite=True):
        pass
    assert tree(tmp_path) == {"F/mark": b"first"}


def test_nothing_is_replaced_unasked_and_nothing_foreign_at_all(make_errors: Make, tmp_path: Path) -> None:
    store, out = make_errors(CAUSES), tmp_path / "T"
    cluster_store(store, out)
    before = tree(out)
    with pytest.raises(OutputError, match="LayerX exists already; use --overwrite"):
        cluster_store(store, out, k=2)
    assert tree(out) == before
    assert len(cluster_store(store, out, k=2, overwrite=True).clusters) == 2
    with pytest.raises(StoreError, match="metric differs"):
        shutil.rmtree(out / "LayerX")
        cluster_store(store, out, metric="cosine")
    assert len(cluster_store(store, out, metric="cosine", overwrite=True).clusters) == 3
    foreign = tmp_path / "mine" / "LayerX"
    foreign.mkdir(parents=True)
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds files of another kind"):
        cluster_store(store, tmp_path / "mine", overwrite=True)
    assert tree(tmp_path / "mine") == {"LayerX/thesis.txt": b"mine"}


@pytest.mark.parametrize("step", ["Clustering", "Drawing"])
def test_after_a_kill_the_same_call_ends_as_if_there_had_been_none(
    make_errors: Make, tmp_path: Path, step: str
) -> None:
    store = make_errors(CAUSES)

    def stop(now: str, done: int, total: int) -> None:
        if now == step and done:
            (tmp_path / "killed").mkdir()
            # What a kill leaves: everything as it is at this moment, without any clean-up.
            shutil.copytree(tmp_path / "T", tmp_path / "killed" / "T", dirs_exist_ok=True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cluster_store(store, tmp_path / "T", progress=stop)
    assert not (tmp_path / "T" / "LayerX").exists()
    killed = cluster_store(store, tmp_path / "killed" / "T")
    assert not list((tmp_path / "killed" / "T").rglob(".*"))
    whole = cluster_store(store, tmp_path / "whole" / "T")
    one, other = tree(killed.chosen), tree(whole.chosen)
    assert one == other


def test_clusters_are_read_back_as_they_were(make_errors: Make, tmp_path: Path) -> None:
    found = cluster_store(make_errors([*CAUSES, 5]), tmp_path / "T", k=4)
    saved = read_clusters(tmp_path / "T")
    for name in ("labels", "distance_to_medoid", "silhouettes"):
        np.testing.assert_array_equal(getattr(saved.clustering, name), getattr(found.clustering, name))
    for name in ("profile", "layer", "linkage", "k", "how_k", "how_layer", "medoids", "noise", "sizes"):
        assert getattr(saved.clustering, name) == getattr(found.clustering, name)


def test_clusters_move_with_their_store_and_notice_another_one(make_errors: Make, tmp_path: Path) -> None:
    store, other = make_errors(CAUSES), make_errors(CAUSES, name="other.h5")
    cluster_store(store, tmp_path / "T")
    (tmp_path / "moved").mkdir()
    (tmp_path / "T").rename(tmp_path / "moved" / "T")
    with pytest.raises(DataError, match=r"not at .*h\.h5; say where they are with --store"):
        read_clusters(tmp_path / "moved" / "T")
    with pytest.raises(DataError, match=r"other\.h5 is not the store that the clusters in"):
        read_clusters(tmp_path / "moved" / "T", other)
    store.rename(tmp_path / "moved" / "h.h5")
    assert read_clusters(tmp_path / "moved" / "T").store.samefile(tmp_path / "moved" / "h.h5")
    saved = tmp_path / "moved" / "T" / "LayerX" / "clustering.json"
    saved.write_text(json.dumps({"format": "something"}), encoding="utf-8")
    with pytest.raises(DataError, match="cannot be used"):
        read_clusters(tmp_path / "moved" / "T")
    with pytest.raises(DataError, match="holds no clusters"):
        read_clusters(tmp_path)


def test_the_unsafe_set_has_a_folder_a_cluster_and_a_row_an_image(make_errors: Make, tmp_path: Path) -> None:
    improvement = make_errors([0, 0, 1, 2, 8, 8], name="i.h5", scatter=0.03)
    cluster_store(make_errors(CAUSES), tmp_path / "T")
    found = assign_store(improvement, tmp_path / "T", tmp_path / "UnsafeSet")
    assert found.selected == {1: 2, 2: 1, 3: 1}
    rows = table(found.table)
    assert list(rows[0]) == ["image", "cluster", "distance", "rank", "label", "reason"]
    assert [row["cluster"] for row in rows] == ["1", "1", "2", "3"]
    assert [row["rank"] for row in rows] == ["1", "2", "1", "1"]
    assert {row["label"] for row in rows} == {""}
    for row in rows:
        image = next((found.folder / row["cluster"]).glob(f"{int(row['rank']):04d}-*"))
        assert image.samefile(row["image"])
        limit = found.assignment.thresholds[int(row["cluster"])]  # type: ignore[index]
        assert float(row["distance"]) <= limit
        assert row["reason"].startswith(f"nearest cluster; within its threshold {limit:.4g}; place {row['rank']} of")


def test_nothing_selected_is_a_result_that_says_why(make_errors: Make, tmp_path: Path) -> None:
    cluster_store(make_errors(CAUSES), tmp_path / "T")
    found = assign_store(make_errors([7, 8], name="i.h5"), tmp_path / "T", tmp_path / "UnsafeSet")
    assert found.table.read_text() == "image,cluster,distance,rank,label,reason\n"
    assert found.assignment.explanation.startswith("nothing selected: none of 2 images")


def test_errors_without_a_cluster_select_nothing(make_errors: Make, tmp_path: Path) -> None:
    assert [one.cluster for one in cluster_store(make_errors([0, 1]), tmp_path / "T").clusters] == [-1]
    found = assign_store(make_errors([0, 1, 2], name="i.h5"), tmp_path / "T", tmp_path / "UnsafeSet")
    assert (found.images, found.selected) == (3, {})
    assert found.assignment.explanation == "nothing selected: there is no cluster of two or more images"


def test_an_improvement_set_without_the_layer_says_which_one_to_make(make_errors: Make, tmp_path: Path) -> None:
    cluster_store(make_errors(CAUSES), tmp_path / "T")
    improvement = make_errors([0, 1], name="i.h5", layers={}, conservation=["x"])
    with pytest.raises(DataError, match="--layers '/conv/out'"):
        assign_store(improvement, tmp_path / "T", tmp_path / "UnsafeSet")
    assert not (tmp_path / "UnsafeSet").exists()


def test_where_some_errors_stand_for_all_every_image_is_in_the_folders_and_tables(
    make_errors: Make, tmp_path: Path
) -> None:
    causes = [0] * 40 + [1] * 30 + [2] * 20
    steps: list[str] = []
    found = cluster_store(
        make_errors(causes),
        tmp_path / "T",
        micro=24,
        k=3,
        layer="/conv/out",
        xlsx=True,
        progress=lambda step, done, total: steps.append(step),
    )
    assert list(dict.fromkeys(steps)) == ["Choosing", "Comparing", "Clustering", "Joining", "Drawing"]
    assert [one.size for one in found.clusters] == [40, 30, 20]
    assert found.notes == ()
    rows = table(found.chosen / "clusters.csv")
    assert [int(row["cluster"]) - 1 for row in rows] == causes
    assert all(row["distance_to_medoid"] and row["silhouette"] for row in rows)
    assert [len(list((found.chosen / str(label)).iterdir())) for label in (1, 2, 3)] == [40, 30, 20]
    assert {"curve.png", "dendrogram.png"} <= {path.name for path in found.chosen.iterdir()}
    saved = read_clusters(tmp_path / "T")
    assert saved.clustering.thresholds == found.clustering.thresholds
    assert sorted(saved.clustering.thresholds or {}) == [1, 2, 3]
    with Distances(tmp_path / "T" / "distances.h5") as distances:
        compared = len(distances.representatives)
    assert compared < 25
    sheet = openpyxl.load_workbook(found.spreadsheet or "").active
    assert sheet.max_row == compared + 1
    unsafe = assign_store(make_errors(causes[::9], "improvement.h5"), tmp_path / "T", tmp_path / "unsafe")
    assert [one.cluster - 1 for one in sorted(unsafe.assignment.selected, key=lambda one: one.image)] == causes[::9]


def test_many_errors_are_clustered_by_some_of_them_and_a_note_says_so(
    make_errors: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrp_onnx.hudd.micro.EXACT", 17)
    monkeypatch.setattr("lrp_onnx.hudd.micro.MICRO", 12)
    store = make_errors(CAUSES)
    found = cluster_store(store, tmp_path / "some")
    assert found.images == 18
    assert "18 errors" in found.notes[0]
    assert "12 stand for all" in found.notes[0]
    assert cluster_store(store, tmp_path / "all", micro=0).notes == ()
    with pytest.raises(DataError, match="profile features has no --micro"):
        cluster_store(store, tmp_path / "f", profile="features", model="net.onnx", micro=12)
