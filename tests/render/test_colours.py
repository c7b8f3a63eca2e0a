"""Colours mean relevance: zero is neutral, red speaks for, outliers do not fade the rest, broken input is refused."""

from __future__ import annotations

import numpy as np
import pytest

from lrp_onnx.errors import DataError
from lrp_onnx.render import COLOUR_MAPS, overlay, reduce_channels, robust_max, to_rgb


def test_seismic_shows_zero_white_positive_red_negative_blue() -> None:
    red, white, blue = to_rgb(np.array([[2.0, 0.0, -2.0]]), percentile=100)[0].tolist()
    assert red == [128, 0, 0]
    assert white == [255, 255, 255]
    assert blue == [0, 0, 76]


def test_seismic_is_symmetric_about_zero_even_when_relevance_is_not() -> None:
    weak_for, weak_against = to_rgb(np.array([[1.0, -1.0, 4.0]]), percentile=100)[0, :2].astype(int)
    assert weak_for.tolist() == weak_against[::-1].tolist()


@pytest.mark.parametrize("cmap", COLOUR_MAPS)
def test_every_map_draws_zero_relevance_in_its_colour_of_zero(cmap: str) -> None:
    zero = {"seismic": [255, 255, 255], "bwr": [255, 255, 255], "viridis": [68, 1, 84]}.get(cmap, [0, 0, 0])
    assert np.unique(to_rgb(np.zeros((3, 5)), cmap=cmap).reshape(-1, 3), axis=0).tolist() == [zero]


@pytest.mark.parametrize("cmap", [name for name, each in COLOUR_MAPS.items() if not each.signed])
def test_maps_without_sign_show_magnitude(cmap: str) -> None:
    for_, against, nothing = to_rgb(np.array([[1.0, -1.0, 0.0]]), cmap=cmap)[0].tolist()
    assert for_ == against != nothing


def test_one_outlier_does_not_fade_the_rest() -> None:
    relevance = np.ones((100, 100))
    relevance[0, 0] = 1e6
    assert to_rgb(relevance)[50, 50].tolist() == [128, 0, 0]
    assert to_rgb(relevance, percentile=100)[50, 50].tolist() == [255, 255, 255]


def test_sparse_relevance_is_scaled_by_its_largest_value_instead_of_a_percentile_of_zero() -> None:
    relevance = np.zeros((100, 100))
    relevance[3, 4] = -5.0
    assert robust_max(relevance) == 5.0
    assert to_rgb(relevance)[3, 4].tolist() == [0, 0, 76]


def test_scale_does_not_change_the_picture() -> None:
    relevance = np.random.default_rng(0).normal(size=(16, 16))
    assert np.array_equal(to_rgb(relevance), to_rgb(relevance * 1e-30))


def test_vmax_gives_two_heatmaps_one_scale() -> None:
    assert np.array_equal(to_rgb(np.full((2, 2), 1.0), vmax=4.0)[0, 0], to_rgb(np.array([[1.0, 4.0]]), vmax=4.0)[0, 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_relevance_that_is_no_number_is_an_error_that_counts_it(bad: float) -> None:
    with pytest.raises(DataError, match="1 of 4 relevance values are NaN or infinite"):
        to_rgb(np.array([[0.0, bad], [1.0, 2.0]]))


def test_wrong_requests_say_what_was_expected() -> None:
    with pytest.raises(DataError, match=r"\(H, W\), got \(3, 2, 2\)"):
        to_rgb(np.zeros((3, 2, 2)))
    with pytest.raises(DataError, match="'jet' is unknown; choose one of seismic"):
        to_rgb(np.zeros((2, 2)), cmap="jet")
    with pytest.raises(DataError, match="percentile"):
        to_rgb(np.zeros((2, 2)), percentile=0)
    with pytest.raises(DataError, match="vmax"):
        to_rgb(np.zeros((2, 2)), vmax=-1.0)


def test_channels_are_reduced_as_asked() -> None:
    relevance = np.array([[[1.0, -4.0]], [[2.0, 3.0]]])  # (C, H, W) = (2, 1, 2)
    assert reduce_channels(relevance).tolist() == [[3.0, -1.0]]
    assert reduce_channels(relevance, "mean").tolist() == [[1.5, -0.5]]
    assert reduce_channels(relevance, "max-abs").tolist() == [[2.0, -4.0]]
    assert reduce_channels(relevance, "norm").tolist() == [[5.0**0.5, 5.0]]
    with pytest.raises(DataError, match="got 'median'"):
        reduce_channels(relevance, "median")
    with pytest.raises(DataError, match="got \\(3,\\)"):
        reduce_channels(np.zeros(3))


def test_overlay_leaves_a_grey_image_where_there_is_no_relevance_and_colours_the_rest() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    relevance = np.zeros((20, 30))
    relevance[:10] = 1.0
    picture = overlay(image, relevance).astype(int)
    assert picture.dtype == int
    assert picture.shape == (20, 30, 3)
    assert np.ptp(picture[10:], axis=2).max() == 0  # no colour below
    assert (picture[:10, :, 0] > picture[:10, :, 2] + 50).all()  # red above
    assert np.ptp(picture[10:, :, 0]) > 100  # and the image still shows


def test_overlay_stretches_a_small_heatmap_over_the_image() -> None:
    image = np.full((40, 60, 3), 200, dtype=np.uint8)
    picture = overlay(image, np.array([[1.0, -1.0]])).astype(int)
    assert picture.shape == (40, 60, 3)
    assert (picture[:, :10, 0] > picture[:, :10, 2]).all()
    assert (picture[:, -10:, 2] > picture[:, -10:, 0]).all()


def test_more_relevance_hides_more_of_the_image() -> None:
    image = np.full((1, 3, 3), 200, dtype=np.uint8)
    none, some, most = overlay(image, np.array([[0.0, 0.25, 1.0]]), percentile=100).astype(int)[0]
    backdrop = none
    assert np.abs(most - backdrop).sum() > np.abs(some - backdrop).sum() > 0


def test_overlay_refuses_what_is_no_picture() -> None:
    with pytest.raises(DataError, match="uint8 image of shape"):
        overlay(np.zeros((4, 4, 3)), np.zeros((4, 4)))
    with pytest.raises(DataError, match="alpha"):
        overlay(np.zeros((4, 4, 3), dtype=np.uint8), np.zeros((4, 4)), alpha=2.0)
