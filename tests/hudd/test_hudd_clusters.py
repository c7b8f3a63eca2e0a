"""Profile default finds planted causes; profile hudd is HUDD's formulas; odd inputs give a clear result or an error."""

from __future__ import annotations

import math

import numpy as np
import pytest
from kneed import KneeLocator
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform

from lrp_onnx.errors import DataError
from lrp_onnx.hudd import Distances, cluster, compute_distances, pairwise
from lrp_onnx.hudd.tree import cuts
from lrp_onnx.store import HeatmapStore


def rand_index(one: np.ndarray, other: np.ndarray) -> float:
    """Adjusted Rand index (Hubert and Arabie 1985)."""
    _, one = np.unique(one, return_inverse=True)
    _, other = np.unique(other, return_inverse=True)
    table = np.zeros((one.max() + 1, other.max() + 1))
    np.add.at(table, (one, other), 1)
    together, first, second = ((t * (t - 1) / 2).sum() for t in (table, table.sum(1), table.sum(0)))
    expected = first * second / (len(one) * (len(one) - 1) / 2)
    return (together - expected) / ((first + second) / 2 - expected)


def same_groups(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(((one[:, None] == one) == (other[:, None] == other)).all())


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("causes", [5, 8, 16])
def test_planted_causes_are_found_in_the_right_layer(tmp_path, make_store, plant, causes, seed):
    planted = plant(causes, seed)
    with HeatmapStore(make_store(planted.layers)) as store:
        compute_distances(store, tmp_path / "distances.h5", layers=["input", "noise", "true"])
    with Distances(tmp_path / "distances.h5") as distances:
        found = cluster(distances)
    assert found.layer == "true"
    assert found.k == causes
    assert len(found.medoids) == causes
    assert rand_index(planted.causes, found.labels) >= 0.95
    assert found.how_k.startswith("knee")
    assert list(found.layers) == ["input", "noise", "true"]


# --- HUDD's formulas, written down a second time with plain loops -----------------------------------------------------


def naive_ward(points: np.ndarray) -> list[list[list[int]]]:
    """Partitions of the rows after 0, 1, … merges, the pair merged whose union adds the least variance."""
    groups = [[row] for row in range(len(points))]
    history = [[list(group) for group in groups]]
    while len(groups) > 1:
        best, pair = math.inf, (0, 1)
        for a in range(len(groups)):
            for b in range(a + 1, len(groups)):
                gap = points[groups[a]].mean(0) - points[groups[b]].mean(0)
                cost = len(groups[a]) * len(groups[b]) / (len(groups[a]) + len(groups[b])) * float(gap @ gap)
                if cost < best:
                    best, pair = cost, (a, b)
        groups[pair[0]] += groups.pop(pair[1])
        history.append([list(group) for group in groups])
    return history


def naive_wicd(matrix: np.ndarray, groups: list[list[int]]) -> float:
    total = 0.0
    for group in groups:
        pairs = [matrix[i, j] for i in sorted(group) for j in sorted(group) if i < j]
        if pairs:
            total += len(group) / len(matrix) * sum(pairs) / len(pairs)
    return total / len(groups)


def naive_gradient(values: list[float]) -> list[float]:
    last = len(values) - 1
    out = []
    for i in range(last + 1):
        if i in (last - 1, last):
            slope = values[i] - values[i - 1]
        elif i in (0, 1):
            slope = values[i + 1] - values[i]
        else:
            slope = (values[i - 2] - 8 * values[i - 1] + 8 * values[i + 1] - values[i + 2]) / 12
        out.append(slope / 4)
    return out


def naive_silhouette(matrix: np.ndarray, groups: list[list[int]]) -> float:
    values = []
    for group in groups:
        for i in group:
            if len(group) == 1:
                values.append(0.0)
                continue
            a = sum(matrix[i, j] for j in group) / (len(group) - 1)
            b = min(sum(matrix[i, j] for j in other) / len(other) for other in groups if other is not group)
            values.append((b - a) / max(a, b))
    return sum(values) / len(values)


def test_profile_hudd_is_the_published_formulas(plant):
    planted = plant(4, seed=7, noise_neurons=40)
    raw = {name: values[:50].astype(np.float64) for name, values in planted.layers.items()}
    count = len(raw["true"])
    found = cluster({name: pairwise(values, scaling="none", dtype="float64") for name, values in raw.items()}, "hudd")
    scores = {}
    for name, values in raw.items():
        d = np.array([[math.sqrt(((a - b) ** 2).sum()) for b in values] for a in values])
        s = np.array([[d[i, j] / max(d[i]) for j in range(count)] for i in range(count)])
        between_rows = np.array([[math.sqrt(((a - b) ** 2).sum()) for b in s] for a in s])
        history = naive_ward(s)
        ks = list(range(2, min(max(count // 2, 2), 500) + 1))
        partitions = {k: history[count - k] for k in ks}
        wicd = [naive_wicd(s, partitions[k]) for k in ks]
        gradient = naive_gradient(wicd)
        knee = KneeLocator(ks, gradient, curve="concave", direction="increasing").knee
        layer = found.layers[name]
        assert layer.curves.k.tolist() == ks
        np.testing.assert_allclose(layer.curves.wicd, wicd, rtol=1e-9)
        np.testing.assert_allclose(layer.curves.gradient, gradient, rtol=0, atol=1e-9 * max(wicd))
        silhouettes = [naive_silhouette(between_rows, partitions[k]) for k in ks]
        np.testing.assert_allclose(layer.curves.silhouette, silhouettes, rtol=0, atol=1e-9)
        assert layer.k == knee
        scores[name] = naive_wicd(d, partitions[knee])
        assert layer.wicd == pytest.approx(scores[name], rel=1e-9)
        if name == found.layer:
            named = np.empty(count, dtype=int)
            for label, group in enumerate(partitions[knee]):
                named[group] = label
            assert same_groups(found.labels, named)
    assert found.layer == min(scores, key=scores.__getitem__)
    assert not (found.labels < 1).any()


def test_profile_hudd_without_a_knee_takes_the_best_silhouette_and_says_so():
    values = np.concatenate([np.random.default_rng(0).normal(scale=0.1, size=(3, 4)) + 9 * side for side in (0, 1)])
    found = cluster({"fc": pdist(values)}, "hudd", k=None)
    curves = found.layers["fc"].curves
    assert curves.k.tolist() == [2, 3]  # two points have no knee
    assert found.how_k == "the curve has no knee: best mean silhouette"
    assert found.k == curves.k[np.argmax(curves.silhouette)] == 2
    assert same_groups(found.labels, np.repeat([0, 1], 3))


# --- the tree ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ward", "average", "complete", "single"])
@pytest.mark.parametrize("ties", [False, True])
def test_all_cuts_of_a_tree_agree_with_scipy_and_plain_sums(method, ties):
    random = np.random.default_rng(5)
    points = random.integers(0, 4, (40, 3)) if ties else random.normal(size=(40, 5))
    condensed = pdist(points)
    square, tree = squareform(condensed), linkage(condensed, method)
    seen = []
    for k, partition in cuts(condensed, tree, 25):
        expected = fcluster(tree, k, "maxclust")
        assert same_groups(partition.labels, expected)
        assert partition.count == expected.max()
        groups = [np.flatnonzero(partition.labels == label).tolist() for label in range(partition.count)]
        assert partition.weighted_distance == pytest.approx(naive_wicd(square, groups) * len(groups), rel=1e-12)
        if partition.count > 1 and not ties:
            assert partition.silhouettes().mean() == pytest.approx(naive_silhouette(square, groups), abs=1e-12)
        seen.append(k)
    assert seen == list(range(25, 1, -1))


# --- what comes with the clusters -------------------------------------------------------------------------------------


def blobs(sizes: list[int], seed: int = 0, spread: float = 0.2, features: int = 12) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(len(sizes), features))
    return np.concatenate(
        [centre + spread * random.normal(size=(size, features)) for centre, size in zip(centres, sizes, strict=True)]
    )


def test_each_cluster_has_its_medoid_and_each_image_its_distance_and_silhouette():
    condensed = pairwise(blobs([20, 9, 14]), dtype="float64")
    square = squareform(condensed)
    found = cluster({"fc": condensed})
    assert found.sizes == {1: 20, 2: 14, 3: 9}  # numbered by size
    groups = [np.flatnonzero(found.labels == label).tolist() for label in (1, 2, 3)]
    for label, group in enumerate(groups, start=1):
        assert found.medoids[label] == min(group, key=lambda i: sum(square[i, j] for j in group))
        np.testing.assert_allclose(found.distance_to_medoid[group], square[found.medoids[label], group])
    assert found.silhouettes.mean() == pytest.approx(naive_silhouette(square, groups), abs=1e-12)
    scores = found.layers["fc"]
    weighted = naive_wicd(square, groups) * 3
    assert scores.weighted_distance == pytest.approx(weighted)
    assert scores.score == pytest.approx(weighted / condensed.mean())
    assert scores.silhouette == pytest.approx(found.silhouettes.mean())
    assert scores.tree.shape == (42, 4)


def test_clusters_too_loose_to_mean_anything_are_noise():
    random = np.random.default_rng(1)
    stray = random.normal(size=(9, 60))
    values = np.concatenate([blobs([25, 25, 25], spread=0.15, features=60), stray])
    condensed = pairwise(values, dtype="float64")
    found = cluster({"fc": condensed}, k=4)
    assert found.k == 4
    assert found.sizes == {1: 25, 2: 25, 3: 25}
    assert (found.labels[75:] == -1).all()
    assert np.isnan(found.distance_to_medoid[75:]).all()
    within, limit = squareform(condensed)[75:, 75:].sum() / 72, 0.95 * condensed.mean()
    assert found.noise == (f"9 images, mean distance {within:.3g}, not below {limit:.3g}: nothing in common",)
    faithful = cluster({"fc": pairwise(values, scaling="none", dtype="float64")}, "hudd", k=4)
    assert faithful.noise == ()
    assert faithful.labels.min() == 1


def test_clusters_of_few_images_are_noise_by_size():
    condensed = pairwise(blobs([12, 8, 3, 1]), dtype="float64")
    assert cluster({"fc": condensed}, k=4).sizes == {1: 12, 2: 8, 3: 3}
    small = cluster({"fc": condensed}, k=4, min_size=5)
    assert small.sizes == {1: 12, 2: 8}
    assert small.noise == ("3 image(s), fewer than 5", "1 image(s), fewer than 5")
    assert cluster({"fc": condensed}, k=4, min_size=1).sizes == {1: 12, 2: 8, 3: 3, 4: 1}


def test_number_of_clusters_layer_and_linkage_can_be_given():
    layers = {"a": pairwise(blobs([9, 9, 9])), "b": pairwise(blobs([9, 9, 9], seed=1, spread=0.8))}
    assert cluster(layers).layer == "a"
    given = cluster(layers, k=6, layer="b", linkage="average", min_size=1)
    assert (given.layer, given.k, given.linkage, given.how_k, given.how_layer) == ("b", 6, "average", "given", "given")
    assert same_groups(given.labels, fcluster(linkage(layers["b"], "average"), 6, "maxclust"))
    assert cluster(layers, k=1).sizes == {1: 27}


def test_the_input_is_chosen_only_when_named_or_alone():
    good, poor = pairwise(blobs([9, 9, 9])), pairwise(blobs([9, 9, 9], spread=0.6))
    assert cluster({"input": good, "fc": poor}).layer == "fc"
    assert cluster({"input": good, "fc": poor}, layer="input").layer == "input"
    assert cluster({"input": good}).layer == "input"


def test_order_of_the_images_does_not_matter_and_runs_repeat():
    condensed = pairwise(blobs([15, 11, 6]), dtype="float64")
    shuffled = np.random.default_rng(2).permutation(32)
    one, again = cluster({"fc": condensed}), cluster({"fc": condensed})
    other = cluster({"fc": squareform(squareform(condensed)[np.ix_(shuffled, shuffled)])})
    np.testing.assert_array_equal(one.labels, again.labels)
    np.testing.assert_array_equal(one.labels[shuffled], other.labels)


# --- few, equal or wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["default", "hudd"])
def test_no_or_one_image_is_one_clear_error(profile):
    with pytest.raises(DataError, match="fewer than two images, so there is nothing to cluster"):
        cluster({"fc": pairwise(np.ones((1, 4)))}, profile)
    with pytest.raises(DataError, match="fewer than two images"):
        cluster({"fc": pairwise(np.ones((0, 4)))}, profile)


@pytest.mark.parametrize("profile", ["default", "hudd"])
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_a_handful_of_images_gives_a_result(profile, count):
    found = cluster({"fc": pairwise(blobs([count]), scaling="none")}, profile)
    assert len(found.labels) == count
    assert 1 <= found.k <= count
    assert sum(found.sizes.values()) + (found.labels == -1).sum() == count


@pytest.mark.parametrize("profile", ["default", "hudd"])
@pytest.mark.parametrize("count", [2, 7, 60])
def test_identical_images_are_one_cluster(profile, count):
    found = cluster({"fc": np.zeros(count * (count - 1) // 2)}, profile)
    assert found.labels.tolist() == [1] * count
    assert found.how_k == "all heatmaps are identical"
    assert not found.distance_to_medoid.any()


def test_images_alone_do_not_make_a_layer_look_good():
    noise = pairwise(np.random.default_rng(0).normal(size=(40, 3000)), dtype="float64")
    scores = cluster({"noise": noise}, k=20, linkage="single").layers["noise"]  # a heap, and the others one by one
    assert scores.weighted_distance / scores.mean_distance < 0.7
    assert scores.score == pytest.approx(1, abs=0.02)


def test_a_layer_that_says_nothing_is_not_chosen():
    assert cluster({"dead": np.zeros(45), "fc": pairwise(blobs([5, 5]))}).layer == "fc"


@pytest.mark.parametrize(("profile", "copies"), [("default", 6), ("default", 2), ("hudd", 2)])
def test_images_that_come_in_identical_copies_group_by_copy(profile, copies):
    values = np.repeat(np.random.default_rng(0).normal(size=(copies, 30)), 5, axis=0)
    found = cluster({"fc": pairwise(values)}, profile)
    assert found.k == copies
    assert same_groups(found.labels, np.repeat(np.arange(copies), 5))


@pytest.mark.parametrize(
    ("distances", "options", "words"),
    [
        ({}, {}, "no layer to cluster"),
        ({"fc": np.ones(10)}, {"profile": "best"}, "profile 'best'; expected one of default, hudd"),
        ({"fc": np.ones(10)}, {"linkage": "centroid"}, "linkage 'centroid'"),
        ({"fc": np.ones(10)}, {"layer": "conv"}, "no distances of layer 'conv'; there are those of fc"),
        ({"fc": np.ones(10)}, {"k": 6}, "6 clusters of 5 images; expected 1 to 5"),
        ({"fc": np.ones(10)}, {"k": 0}, "0 clusters of 5 images"),
        ({"fc": np.ones(10)}, {"min_size": 0}, "smallest cluster 0"),
        ({"fc": np.ones(11)}, {}, "layer 'fc': an array of shape \\(11,\\) holds no condensed distances"),
        ({"fc": np.ones((5, 5))}, {}, "layer 'fc': an array of shape \\(5, 5\\)"),
        ({"fc": np.full(10, np.nan)}, {}, "layer 'fc': distances must be finite"),
        ({"fc": -np.ones(10)}, {}, "not negative"),
        ({"fc": np.ones(10), "conv": np.ones(15)}, {}, "layer 'conv' has distances between 6 images"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(distances, options, words):
    with pytest.raises(DataError, match=words):
        cluster(distances, **options)


def test_distances_of_the_other_profile_are_refused(tmp_path, make_store):
    with HeatmapStore(make_store({"fc": blobs([6, 6])})) as store:
        compute_distances(store, tmp_path / "d.h5")
    with (
        Distances(tmp_path / "d.h5") as distances,
        pytest.raises(DataError, match="needs distances of heatmaps scaled"),
    ):
        cluster(distances, "hudd")
