"""Profile `features`: images are compared by what a network makes of them, and grouped where they lie densely."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openpyxl
import pytest
from colour_model import SIZE, picture, save_model, save_picture
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from scipy.spatial.distance import pdist, squareform
from sklearn.metrics import adjusted_rand_score, silhouette_samples

from lrp_onnx import compute_heatmaps, load
from lrp_onnx.errors import DataError, StoreError
from lrp_onnx.hudd import (
    Distances,
    assign_stores,
    cluster_features,
    cluster_store,
    compute_features,
    default_layer,
    pairwise,
    read_clusters,
)
from lrp_onnx.hudd.clusters import FEATURES
from lrp_onnx.inputs import describe
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.store import HeatmapStore

COLOURS = ["red"] * 5 + ["green"] * 4 + ["blue"] * 3


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "m.onnx")


@pytest.fixture
def errors(model: Path, tmp_path: Path) -> Path:
    """Heatmaps of twelve pictures without labels, so that all count."""
    for row, colour in enumerate(COLOURS):
        save_picture(tmp_path / "images" / f"{row:02d}.png", colour, row)
    compute_heatmaps(model, tmp_path / "images", tmp_path / "h.h5", layers="all")
    return tmp_path / "h.h5"


def mean_of_convolution(model: Path, row: int) -> np.ndarray:
    """The features of a picture, by plain arithmetic."""
    (weights, *_) = (numpy_helper.to_array(t) for t in onnx.load(model).graph.initializer if t.name == "w")
    pixels = np.moveaxis(picture(COLOURS[row], row), -1, 0) / 255
    padded = np.pad(pixels, [(0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))  # (3, 8, 8, 3, 3)
    return np.einsum("cyxij,ocij->oyx", windows, weights).clip(0).mean(axis=(1, 2))


@pytest.mark.parametrize("batch", ["batch", 5])
def test_features_are_the_activations_before_the_dense_layer_averaged_over_positions(
    errors: Path, tmp_path: Path, batch: int | str
) -> None:
    network = save_model(tmp_path / "other.onnx", batch=batch)
    done: list[int] = []
    with HeatmapStore(errors) as store:
        rows = np.array([0, 3, 4, 7, 8, 9, 11])
        options: dict[str, Any] = {"batch_size": 3, "progress": lambda now, total: done.append(now)}
        found = compute_features(network, store, rows, **options)
    expected = [mean_of_convolution(network, row) for row in rows]
    np.testing.assert_allclose(found.values, expected, rtol=1e-5)
    assert (found.rows.tolist(), found.layer, found.network) == (rows.tolist(), "relu", "other.onnx")
    assert done == ([3, 6, 7] if batch == "batch" else [5, 7])


def test_images_that_are_gone_are_left_out_and_counted(model: Path, errors: Path, tmp_path: Path) -> None:
    (tmp_path / "images" / "03.png").unlink()
    with HeatmapStore(errors) as store:
        found = compute_features(model, store, np.arange(12))
        assert found.rows.tolist() == [0, 1, 2, *range(4, 12)]
        assert "1 images could not be read and are left out; the first, " in found.notes[0]
        for image in (tmp_path / "images").iterdir():
            image.unlink()
        with pytest.raises(DataError, match="none of the 12 samples could be read"):
            compute_features(model, store, np.arange(12))
    clusters = tmp_path / "T"
    with pytest.raises(DataError, match="none of the 12 samples could be read"):
        cluster_store(errors, clusters, profile=FEATURES, model=model)
    assert not clusters.exists()


def test_rows_of_an_array_file_have_features_too(model: Path, tmp_path: Path) -> None:
    pixels = np.stack([picture(colour, row) for row, colour in enumerate(COLOURS)])
    np.save(tmp_path / "x.npy", pixels)
    compute_heatmaps(model, tmp_path / "x.npy", tmp_path / "h.h5")
    with HeatmapStore(tmp_path / "h.h5") as store:
        found = compute_features(model, store, np.array([2, 8]))
    np.testing.assert_allclose(found.values, [mean_of_convolution(model, row) for row in (2, 8)], rtol=1e-5)


def test_pictures_become_inputs_as_they_did_for_the_heatmaps(model: Path, errors: Path, tmp_path: Path) -> None:
    silent = onnx.load(model)
    del silent.metadata_props[:]  # the preprocessing was an option
    onnx.save_model(silent, model)
    graph = describe(load(model), Preprocess(size=(SIZE, SIZE), range=(0, 5)))
    compute_heatmaps(graph, tmp_path / "images", errors, overwrite=True)
    with HeatmapStore(errors) as store:
        found = compute_features(model, store, np.array([1]))
    np.testing.assert_allclose(found.values[0], 5 * mean_of_convolution(model, 1), rtol=1e-5)
    assert found.notes == ()


def chain(
    path: Path, nodes: list[tuple[str, dict[str, Any]]], weights: dict[str, np.ndarray], shape: list[int]
) -> Path:
    """A model that is a chain of nodes named after their place: t0, t1, …; dense ones take the weights in order."""
    names, made, before = iter(weights), [], "x"
    rank = 2 if any(op_type == "Flatten" for op_type, _ in nodes) else 4
    for place, (op_type, attributes) in enumerate(nodes):
        takes = [next(names)] if op_type in ("MatMul", "Gemm", "Conv") else []
        made.append(helper.make_node(op_type, [before, *takes], [f"t{place}"], **attributes))
        before = f"t{place}"
    graph = helper.make_graph(
        made,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info(before, TensorProto.FLOAT, ["n", *[None] * (rank - 1)])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


IMAGE = [3, SIZE, SIZE]
CONV = {"w": np.ones((4, 3, 3, 3))}
POOLED = ("GlobalAveragePool", {})


@pytest.mark.parametrize(
    "nodes, weights, layer, size",
    [
        # a hidden dense layer in front of the last
        (
            [("Conv", {}), ("Flatten", {}), ("Gemm", {}), ("Relu", {}), ("Gemm", {})],
            CONV | {"a": np.ones((144, 7)), "b": np.ones((7, 2))},
            "t3",
            7,
        ),
        # flattened positions, through the transpose of a network that was channels last
        (
            [("Conv", {}), ("Relu", {}), ("Transpose", {"perm": [0, 2, 3, 1]}), ("Flatten", {}), ("Gemm", {})],
            CONV | {"a": np.ones((144, 2))},
            "t1",
            4,
        ),
        # pooled already
        ([("Conv", {}), POOLED, ("Flatten", {}), ("Gemm", {})], CONV | {"a": np.ones((4, 2))}, "t1", 4),
        # positions as tokens: the last axis is what a MatMul takes
        ([("Transpose", {"perm": [0, 2, 3, 1]}), ("Relu", {}), ("MatMul", {})], {"a": np.ones((3, 2))}, "t1", 3),
        # a backbone without its classifier
        ([("Conv", {}), ("Relu", {})], CONV, "t1", 4),
    ],
)
def test_by_default_a_network_gives_what_it_has_gathered_before_it_decides(
    errors: Path, tmp_path: Path, nodes: Any, weights: dict[str, np.ndarray], layer: str, size: int
) -> None:
    network = chain(tmp_path / "n.onnx", nodes, weights, IMAGE)
    assert default_layer(load(network)) == layer
    with HeatmapStore(errors) as store:
        found = compute_features(network, store, np.arange(3))
        assert found.values.shape == (3, size)
        assert "n.onnx does not say how pictures become its input" in found.notes[0]
        assert compute_features(network, store, np.arange(3), layer="t0").layer == "t0"
        with pytest.raises(DataError, match=r"n\.onnx: no layer 'nowhere'"):
            compute_features(network, store, np.arange(3), layer="nowhere")


def blobs(sizes: list[int], scatter: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    cause = np.repeat(np.arange(len(sizes)), sizes)
    values = random.normal(size=(len(sizes), 40))[cause] * 3 + scatter * random.normal(size=(len(cause), 40))
    return values.astype(np.float32), cause


def test_medoids_and_silhouettes_are_on_the_distances_of_the_features() -> None:
    values, _ = blobs([5, 4, 1, 3])
    found = cluster_features(values, pdist(values), origin="somewhere").clustering
    assert found.labels.tolist() == [1] * 5 + [2] * 4 + [-1] + [3] * 3
    assert (found.k, found.profile, found.how_layer) == (3, "features", "somewhere")
    square = squareform(pdist(values))
    for label, medoid in found.medoids.items():
        members = np.flatnonzero(found.labels == label)
        assert medoid == members[square[np.ix_(members, members)].sum(axis=0).argmin()]
        np.testing.assert_allclose(found.distance_to_medoid[members], square[medoid, members])
    inside = found.labels > 0
    expected = silhouette_samples(square[np.ix_(inside, inside)], found.labels[inside], metric="precomputed")
    np.testing.assert_allclose(found.silhouettes[inside], expected)
    assert (found.silhouettes[9], np.isnan(found.distance_to_medoid[9])) == (0, True)
    assert found.noise == (f"1 image(s) with no 3 within {_eps(found.how_k)}, nor next to one that has",)


def _eps(how: str) -> str:
    return how.split(" within ")[1].split(":")[0]


def test_features_that_are_all_noise_or_all_alike_are_a_result() -> None:
    values, _ = blobs([1, 1])
    found = cluster_features(values, pdist(values)).clustering
    assert (found.k, found.labels.tolist(), found.medoids) == (0, [-1, -1], {})
    same = np.ones((30, 4), dtype=np.float32)
    found = cluster_features(same, pdist(same)).clustering
    assert (found.k, found.how_k, set(found.labels.tolist())) == (1, "all features are identical", {1})
    with pytest.raises(DataError, match="smallest cluster 0; expected 1 or more"):
        cluster_features(values, pdist(values), min_size=0)


def test_copies_of_a_few_images_are_clusters() -> None:
    values = np.repeat(blobs([1, 1, 1])[0], 4, axis=0)  # nearest neighbours are 0 apart
    found = cluster_features(values, pdist(values)).clustering
    assert found.labels.tolist() == [1] * 4 + [2] * 4 + [3] * 4


@pytest.mark.slow
@pytest.mark.parametrize("causes", [5, 8, 16])
def test_planted_clusters_are_found_again_and_always_the_same(causes: int) -> None:
    for seed in range(3):
        sizes = np.random.default_rng(seed).integers(12, 30, causes).tolist()
        values, cause = blobs(sizes, scatter=2.0, seed=seed)
        found = cluster_features(values, pairwise(values, scaling="none"))
        assert found.clustering.k == causes
        assert adjusted_rand_score(cause, found.clustering.labels) >= 0.95
        assert found.clustering.how_k.startswith("UMAP to 5 dimensions and DBSCAN, at least 5 images within ")
        again = cluster_features(values, pairwise(values, scaling="none"))
        np.testing.assert_array_equal(again.clustering.labels, found.clustering.labels)
        np.testing.assert_array_equal(again.neighbours, found.neighbours)
    assert "umap.parametric_umap" not in sys.modules  # neither loaded, for it brings in TensorFlow, nor left blocked


def test_a_store_is_clustered_by_features_and_written_like_any_other(model: Path, errors: Path, tmp_path: Path) -> None:
    found = cluster_store(errors, tmp_path / "T", profile=FEATURES, model=model, min_size=3)
    assert found.folder == tmp_path / "T" / "ClusterAnalysis" / "Layer0-features"
    assert found.clustering.how_layer == "activations of relu in m.onnx"
    saved = read_clusters(tmp_path / "T").clustering
    np.testing.assert_array_equal(saved.labels, found.clustering.labels)
    groups = {(label, colour) for label, colour in zip(saved.labels.tolist(), COLOURS, strict=True) if label > 0}
    assert len(groups) == len({label for label, _ in groups}) == 3  # no cluster has two colours
    features = [mean_of_convolution(model, row) for row in range(12)]
    with Distances(tmp_path / "T" / "distances.h5") as distances:
        assert (list(distances), distances.scaling) == (["features"], "none")
        np.testing.assert_allclose(distances["features"][:], pdist(features), rtol=1e-4)
    for cluster in found.clusters:
        assert (
            len(list((found.chosen / (str(cluster.cluster) if cluster.medoid else "noise")).iterdir())) == cluster.size
        )
    with Image.open(found.chosen / "curve.png") as chart:
        red = (np.asarray(chart) == (198, 40, 40)).all(axis=2)
        assert red.any(axis=1).sum() > 10  # the height of "eps = …", and its line
    assert not (found.chosen / "dendrogram.png").exists()


def test_another_network_is_named_as_such_and_its_distances_are_not_mixed(
    model: Path, errors: Path, tmp_path: Path
) -> None:
    backbone = chain(tmp_path / "backbone.onnx", [("Conv", {}), ("Relu", {})], CONV, IMAGE)
    with pytest.raises(DataError, match=r"backbone\.onnx is not the model that the heatmaps in .* name it with --back"):
        cluster_store(errors, tmp_path / "T", profile=FEATURES, model=backbone)
    cluster_store(errors, tmp_path / "T", profile=FEATURES, model=model)
    (tmp_path / "T" / "LayerX").rename(tmp_path / "away")
    with pytest.raises(StoreError, match="made otherwise, features differs"):
        cluster_store(errors, tmp_path / "T", profile=FEATURES, backbone=backbone)
    found = cluster_store(errors, tmp_path / "T", profile=FEATURES, model=model, backbone=backbone, overwrite=True)
    assert found.clustering.how_layer == "activations of t1 in backbone.onnx"
    assert any("backbone.onnx does not say how pictures become its input" in note for note in found.notes)
    with pytest.raises(StoreError, match="scaling differs"):
        (tmp_path / "T" / "LayerX").rename(tmp_path / "away too")
        cluster_store(errors, tmp_path / "T")


def test_no_images_are_assigned_to_clusters_of_features(model: Path, errors: Path, tmp_path: Path) -> None:
    clustering = cluster_store(errors, tmp_path / "T", profile=FEATURES, model=model).clustering
    with (
        HeatmapStore(errors) as store,
        Distances(tmp_path / "T" / "distances.h5") as distances,
        pytest.raises(DataError, match="clusters of profile features are for comparison, no images can be assigned"),
    ):
        assign_stores(store, store, clustering, distances)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"profile": FEATURES}, "needs a network to take features from: --model FILE or --backbone FILE"),
        ({"model": "m.onnx"}, "profile default compares heatmaps: --model and --backbone are for profile features"),
        ({"profile": FEATURES, "model": "m.onnx", "k": 3}, "profile features has no --k"),
        ({"profile": FEATURES, "model": "m.onnx", "metric": "cosine"}, "profile features has no --metric"),
        ({"profile": "best"}, "profile 'best'; expected one of default, hudd, features"),
    ],
)
def test_options_that_do_not_fit_the_profile_are_refused(
    errors: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        cluster_store(errors, tmp_path / "T", **options)
    assert not (tmp_path / "T").exists()


@pytest.mark.parametrize("package, images", [("umap", 16), ("sklearn.cluster", 5)])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, package: str, images: int) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    values, _ = blobs([images])
    with pytest.raises(DataError, match=r"pip install 'lrp-onnx\[features\]'"):
        cluster_features(values, pdist(values))


def test_the_distances_of_the_chosen_layer_come_as_a_spreadsheet(
    errors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clusters(**options: Any) -> Any:
        return cluster_store(errors, tmp_path / "T", overwrite=True, **options)

    found = clusters(xlsx=True)
    assert found.spreadsheet == tmp_path / "T" / "LayerX-distances.xlsx"
    sheet = openpyxl.load_workbook(found.spreadsheet).active
    rows = [list(row) for row in sheet.iter_rows(values_only=True)]
    with HeatmapStore(errors) as store:
        assert rows[0][1:] == store.samples["path"].tolist()
        expected = squareform(pairwise(store.layer(found.clustering.layer)[:]))
    np.testing.assert_allclose([row[1:] for row in rows[1:]], expected, rtol=1e-5)
    assert clusters(k=2).spreadsheet is None
    assert not found.spreadsheet.exists()  # it was that of other clusters
    monkeypatch.setattr("lrp_onnx.hudd.outputs.MOST_IMAGES", 11)
    found = clusters(xlsx=True)
    assert found.spreadsheet is None
    assert "no LayerX-distances.xlsx: a sheet holds 11 images, not 12; distances.h5 has the distances" in found.notes
    monkeypatch.setitem(sys.modules, "xlsxwriter", None)
    with pytest.raises(DataError, match=r"pip install 'lrp-onnx\[xlsx\]'"):
        cluster_store(errors, tmp_path / "other", xlsx=True)
    assert not (tmp_path / "other").exists()
