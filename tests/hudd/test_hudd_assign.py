"""The unsafe set holds the images nearest to the clusters, within threshold and quota, each with its reason."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist, squareform

from lrp_onnx.errors import DataError
from lrp_onnx.hudd import (
    Distances,
    assign_images,
    assign_stores,
    cluster,
    compute_distances,
    nearest_members,
    thresholds,
)
from lrp_onnx.store import HeatmapStore


def unit(values: np.ndarray) -> np.ndarray:
    rows = values.reshape(len(values), -1).astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1)[:, None]


@pytest.mark.parametrize("memory", [1 << 30, 3 * 7 * 24 * 8])
def test_an_image_is_as_far_from_a_cluster_as_from_its_nearest_member(memory):
    random = np.random.default_rng(0)
    improvement, members = random.normal(size=(50, 4, 3, 2)), random.normal(size=(33, 4, 3, 2))
    labels = random.integers(-1, 4, 33)
    found = nearest_members(improvement, members, labels, dtype="float64", memory=memory)
    assert list(found) == [1, 2, 3]
    for label, nearest in found.items():
        expected = cdist(unit(improvement), unit(members[labels == label])).min(axis=1)
        np.testing.assert_allclose(nearest, expected, rtol=1e-9)
    rows, member_rows = np.array([4, 5, 40]), np.arange(10, 33)
    some = nearest_members(
        improvement, members, labels[10:], rows=rows, member_rows=member_rows, scaling="none", memory=memory
    )
    expected = cdist(improvement[rows].reshape(3, -1), members[10:][labels[10:] == 2].reshape(-1, 24)).min(axis=1)
    np.testing.assert_allclose(some[2], expected, rtol=1e-5)


def test_heatmaps_of_different_layers_are_not_compared():
    with pytest.raises(DataError, match="have the shape \\(3,\\), the heatmaps of the clusters \\(4,\\)"):
        nearest_members(np.ones((2, 3)), np.ones((2, 4)), np.array([1, 1]))
    with pytest.raises(DataError, match="3 labels for 2 clustered images"):
        nearest_members(np.ones((2, 4)), np.ones((2, 4)), np.array([1, 1, 2]))


def test_a_threshold_is_the_largest_distance_of_a_member_to_its_fellows():
    values = np.random.default_rng(1).normal(size=(30, 5))
    labels = np.random.default_rng(2).integers(1, 4, 30)
    labels[[3, 8]], labels[11] = -1, 9
    square = squareform(pdist(values))
    expected = {}
    for label in (1, 2, 3):
        members = [i for i in range(30) if labels[i] == label]
        expected[label] = max(min(square[i, j] for j in members if j != i) for i in members)
    assert thresholds(pdist(values), labels) == pytest.approx(expected)  # none for cluster 9, an image alone


def naive_hudd(nearest: np.ndarray, sizes: list[int], factor: float) -> set[tuple[int, int]]:
    """HUDD's greedy quota: image to nearest, then second nearest, … cluster, nearest images first."""
    quota = [math.ceil(factor * size) for size in sizes]
    got: set[tuple[int, int]] = set()
    for turn in range(len(sizes)):
        offers = []
        for image, distances in enumerate(nearest):
            by_distance = sorted(range(len(sizes)), key=lambda c: distances[c])
            offers.append((distances[by_distance[turn]], image, by_distance[turn]))
        for _, image, place in sorted(offers):
            free = all(image != other for other, _ in got)
            if free and sum(c == place for _, c in got) < quota[place]:
                got.add((image, place))
    return got


@pytest.mark.parametrize("factor", [0.3, 1, 2, 50])
def test_profile_hudd_fills_quotas_greedily_and_skips_single_images(factor):
    nearest = np.random.default_rng(3).random((120, 5))
    sizes = {1: 21, 2: 9, 3: 4, 4: 2, 5: 1}
    found = assign_images({c: nearest[:, c - 1] for c in sizes}, sizes, profile="hudd", factor=factor)
    expected = naive_hudd(nearest[:, :4], [21, 9, 4, 2], factor)
    assert {(one.image, one.cluster - 1) for one in found.selected} == expected
    assert found.quotas == {c: math.ceil(factor * size) for c, size in sizes.items() if size > 1}
    assert found.thresholds is None
    assert found.too_far == 0
    assert found.over_quota == 120 - len(expected)


def test_every_selected_image_carries_its_reason():
    nearest = {1: np.array([0.1, 0.2, 0.3, 0.9, 0.4]), 2: np.array([0.5, 0.3, 0.6, 0.8, 0.45])}
    found = assign_images(nearest, {1: 2, 2: 2}, {1: 0.5, 2: 0.5}, factor=1)
    reasons = [(one.image, one.cluster, one.distance, one.rank, one.choice) for one in found.selected]
    # 0 and 1 are nearest to cluster 1 and fill it; 2 is too far from 2; 4 finds room in its second choice; 3 is far off
    assert reasons == [(0, 1, 0.1, 1, 1), (1, 1, 0.2, 2, 1), (4, 2, 0.45, 1, 2)]
    assert (found.too_far, found.over_quota) == (1, 1)
    assert found.explanation == "3 of 5 images selected, 1 too far from every cluster, 1 left over by full quotas"
    assert found.nearest_cluster.tolist() == [1, 1, 1, 2, 1]
    assert found.nearest_distance.tolist() == [0.1, 0.2, 0.3, 0.8, 0.4]


def test_nothing_selected_is_a_result_that_says_why():
    far = assign_images({1: np.array([0.9, 0.7]), 2: np.array([2.0, 3.0])}, {1: 3, 2: 4}, {1: 0.5, 2: 0.6})
    assert far.selected == ()
    assert far.too_far == 2
    assert far.explanation.startswith("nothing selected: none of 2 images")
    assert far.explanation.endswith("the nearest miss is 0.7 away from cluster 1, whose threshold is 0.5")
    empty = assign_images({1: np.zeros(0)}, {1: 3}, {1: 0.5})
    assert empty.explanation == "nothing selected: the improvement set is empty"
    for sizes in ({}, {1: 1}):
        alone = assign_images({c: np.ones(4) for c in sizes}, sizes, {})
        assert alone.explanation == "nothing selected: there is no cluster of two or more images"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"profile": "best"}, "profile 'best'"),
        ({"factor": 0}, "quota factor 0; expected a number above 0"),
        ({"factor": math.nan}, "quota factor nan"),
        ({"limits": None}, "needs the thresholds of the clusters"),
        ({"limits": {2: 1.0}}, "cluster 1 has no distances or no threshold"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words):
    arguments = {"nearest": {1: np.ones(3)}, "sizes": {1: 2}, "limits": {1: 1.0}} | options
    with pytest.raises(DataError, match=words):
        assign_images(**arguments)


@pytest.mark.parametrize("profile", ["default", "hudd"])
def test_images_with_the_same_cause_are_found_in_another_store(tmp_path, make_store, plant, profile):
    planted = plant(6, seed=4, noise_neurons=300)
    causes, layers = planted.causes, {"fc": unit(planted.layers["true"]).astype(np.float32)}
    is_error = np.arange(len(causes)) % 2 == 0
    strange = np.random.default_rng(5).normal(size=(20, 128)).astype(np.float32) / 11
    new = np.concatenate([layers["fc"][~is_error], strange])
    errors = make_store({"fc": layers["fc"][is_error]}, done=np.arange(3, is_error.sum()))
    improvement = make_store({"fc": new}, "improvement.h5", done=np.arange(2, len(new)))
    with HeatmapStore(errors) as store, HeatmapStore(improvement) as other:
        compute_distances(store, tmp_path / "d.h5", profile=profile)
        with Distances(tmp_path / "d.h5") as distances:
            clusters = cluster(distances, profile, k=6, layer="fc")
            found = assign_stores(other, store, clusters, distances)
            with pytest.raises(DataError, match="no heatmaps of the clusters' layer"):
                assign_stores(HeatmapStore(make_store({"x": new}, "x.h5")), store, clusters, distances)
            other_model = HeatmapStore(make_store({"fc": new}, "m.h5", model_sha256="1e" * 32))
            with pytest.raises(DataError, match="differ in model_sha256"):
                assign_stores(other_model, store, clusters, distances)
    cause_of = {c: causes[is_error][3:][clusters.labels == c][0] for c in clusters.medoids}
    truth = np.concatenate([causes[~is_error], np.full(20, -1)])
    assert min(one.image for one in found.selected) >= 2
    first = [one for one in found.selected if one.choice == 1 and truth[one.image] >= 0]
    assert len(first) > 0.5 * (~is_error).sum()
    assert all(truth[one.image] == cause_of[one.cluster] for one in first)
    if profile == "default":
        assert not any(truth[one.image] == -1 for one in found.selected)
        assert found.too_far >= 20
    else:
        assert any(truth[one.image] == -1 for one in found.selected)  # no threshold, and quotas are wide
