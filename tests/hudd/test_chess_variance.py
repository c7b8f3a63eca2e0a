"""The arithmetic of the chess study: how much less a parameter varies inside a cluster."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.hudd_chess.variance import reductions, share_by_chance, share_explained, share_shifted, spread

LABELS = np.array([1, 1, 1, 2, 2, 2, -1, -1])


def test_spread_of_numbers_is_their_unbiased_variance_and_of_categories_that_of_their_one_hot_form() -> None:
    numbers, words = np.array([1.0, 2.0, 4.0]), np.array(["a", "b", "b", "c"])
    assert spread(numbers) == pytest.approx(7 / 3)
    one_hot = (words[:, None] == np.unique(words)).astype(float)
    assert spread(words) == pytest.approx(one_hot.var(axis=0, ddof=1).sum())


def test_spread_of_a_single_value_is_unknown() -> None:
    assert np.isnan(spread(np.array([3.0])))
    assert np.isnan(spread(np.array(["a"])))


def test_reductions_compare_each_cluster_with_all_images_noise_included() -> None:
    shift = np.array([0.0, 0.0, 0.0, -1.0, 0.0, 1.0, -3.0, 3.0])
    found = reductions({"shift": shift}, LABELS)
    assert sorted(found) == [1, 2]
    assert found[1]["shift"] == 1
    assert found[2]["shift"] == pytest.approx(1 - 1 / (20 / 7))


def test_a_parameter_that_varies_more_inside_has_a_negative_reduction() -> None:
    found = reductions({"shift": np.array([-3.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0])}, LABELS)
    assert found[1]["shift"] < 0


def test_a_cluster_is_explained_by_any_parameter_and_an_image_alone_by_none() -> None:
    theme = np.array(["a", "a", "a", "a", "b", "c", "b", "c"])
    even = np.array([0.0, 1.0, 0.5, 0.0, 1.0, 0.5, 0.0, 1.0])
    assert share_explained({"theme": theme, "shift": even}, LABELS) == 0.5
    assert share_explained({"shift": even}, LABELS) == 0
    assert share_explained({"theme": theme}, np.array([1, 1, 1, 2, -1, -1, -1, -1])) == 0.5
    assert np.isnan(share_explained({"theme": theme}, np.full(8, -1)))


def test_only_a_cluster_far_from_the_mean_is_shifted() -> None:
    blur = np.array([5.0, 5.1, 4.9, 0.0, 0.1, 0.2, -5.0, -5.0])
    assert share_explained({"blur": blur}, LABELS) == 1
    assert share_shifted({"blur": blur}, LABELS) == 0.5


def test_chance_is_low_for_clusters_that_a_parameter_really_makes_and_follows_its_seed() -> None:
    labels = np.repeat([1, 2, 3, 4], 50)
    columns = {"shift": labels + np.random.default_rng(0).normal(0, 0.1, 200)}
    assert share_explained(columns, labels) == 1
    assert share_by_chance(columns, labels, seed=1) < 0.05
    small = np.repeat(np.arange(1, 67), 3)
    of_three = {"shift": np.random.default_rng(0).normal(size=198)}
    assert share_by_chance(of_three, small, seed=1) == share_by_chance(of_three, small, seed=1)
    assert share_by_chance(of_three, small, seed=1) != share_by_chance(of_three, small, seed=2)
