"""Every cluster ends up with the same number of images, each of its own at least once, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from lrp_onnx.errors import DataError
from lrp_onnx.hudd import Selected, bootstrap


def unsafe(**distances: list[float]) -> list[Selected]:
    """Clusters c1, c2, … with images 100·c, 100·c + 1, …"""
    return [
        Selected(100 * int(name[1:]) + place, int(name[1:]), distance, place + 1, 1)
        for name, values in distances.items()
        for place, distance in enumerate(values)
    ]


@pytest.mark.parametrize(("profile", "size"), [("default", None), ("default", 11), ("hudd", 11)])
def test_every_cluster_is_filled_up_with_its_own_images(profile, size):
    selected = unsafe(c1=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], c2=[0.3], c4=[0.2, 0.1])
    found = bootstrap(selected, profile=profile, size=size)
    assert found.size == (size or 6)
    assert {c: int((found.clusters == c).sum()) for c in (1, 2, 4)} == dict.fromkeys((1, 2, 4), found.size)
    for cluster in (1, 2, 4):
        own = {one.image for one in selected if one.cluster == cluster}
        assert set(found.images[found.clusters == cluster].tolist()) == own


@pytest.mark.parametrize("profile", ["default", "hudd"])
def test_the_seed_decides_and_other_clusters_do_not(profile):
    selected = unsafe(c1=[0.1, 0.4, 0.3], c2=[0.3, 0.9, 0.5])
    one, again, other = (bootstrap(selected, profile=profile, size=60, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.images, again.images)
    assert (one.images != other.images).any()
    alone = bootstrap(unsafe(c2=[0.3, 0.9, 0.5]), profile=profile, size=60, seed=3)
    np.testing.assert_array_equal(one.images[one.clusters == 2], alone.images)
    assert (one.images[one.clusters == 1] - 100 != one.images[one.clusters == 2] - 200).any()


def test_profile_hudd_takes_images_in_proportion_to_their_acceptance():
    distances = np.array([0.1, 0.3, 0.8, 0.8])
    found = bootstrap(unsafe(c1=distances.tolist()), profile="hudd", size=40_000)
    counts = np.bincount(found.images - 100)
    acceptance = 1 - distances / distances.sum()
    np.testing.assert_allclose(counts / counts.sum(), acceptance / acceptance.sum(), atol=0.01)
    even = bootstrap(unsafe(c1=distances.tolist()), size=40_000)
    np.testing.assert_allclose(np.bincount(even.images - 100) / 40_000, 0.25, atol=0.01)


def test_images_without_a_distance_between_them_are_repeated_in_turn():
    found = bootstrap(unsafe(c1=[0, 0, 0], c2=[0.7]), profile="hudd", size=7)
    assert found.images.tolist() == [100, 101, 102, 100, 101, 102, 100] + [200] * 7


def test_two_images_of_which_one_is_at_distance_zero_end():
    found = bootstrap(unsafe(c1=[0, 0.5]), profile="hudd", size=9)  # acceptances 1 and 0
    assert found.images.tolist() == [100, 101] + [100] * 7


@pytest.mark.parametrize("profile", ["default", "hudd"])
def test_nothing_selected_balances_to_nothing(profile):
    found = bootstrap([], profile=profile, size=4)
    assert (len(found.images), len(found.clusters)) == (0, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"profile": "best"}, "profile 'best'"),
        ({"profile": "hudd"}, "needs the size of the balanced clusters"),
        ({"size": 2}, "clusters of 2 images, but the largest has 3"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words):
    with pytest.raises(DataError, match=words):
        bootstrap(unsafe(c1=[0.1, 0.2, 0.3]), **options)
