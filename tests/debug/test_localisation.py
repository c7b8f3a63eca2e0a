"""Measures of localisation agree with what is worked out by hand, and a uniform heatmap gets exactly chance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lrp_onnx.debug.confusion import Confusion, confusion, grade, shown, shows
from lrp_onnx.debug.localisation import EVERYTHING, FITS, LARGE, NOTHING, SMALL, Localisation, localise
from lrp_onnx.debug.parts import BACKGROUND, NONE, OBJECT, REST, Carried, PartShare, carried, parts_table
from lrp_onnx.debug.placed_regions import Marked
from lrp_onnx.errors import DataError

# Positive relevance 20, of which 12 in the 2 x 2 region; |relevance| 24, of which 13 in it.
HEATMAP = np.array(
    [
        [0, 0, 0, 0],
        [0, 8, 4, 0],
        [0, 0, -1, 6],
        [0, -3, 0, 2],
    ],
    dtype=float,
)
REGION = np.zeros((4, 4), dtype=bool)
REGION[1:3, 1:3] = True


def measured(heatmap: np.ndarray, region: np.ndarray = REGION) -> Localisation:
    return localise(heatmap, region, smoothing=0)


def test_measures_of_a_heatmap_by_hand() -> None:
    found = measured(HEATMAP)
    assert found.area == 4 / 16
    assert found.mass == 12 / 20
    assert found.mass_abs == 13 / 24
    assert found.rank == 2 / 4  # of 8, 6, 4 and 2
    assert found.pointing == 1
    assert found.iou_best == 2 / 5  # 8, 6 and 4 are red: two of the region's four, and one beside it
    assert found.threshold_best == pytest.approx(4 / np.percentile(np.maximum(HEATMAP, 0), 99.5))
    assert found.iou == 2 / 6  # 2 is red too: 0.25 of the highest
    assert found.covered == 2 / 4
    assert found.precise == 2 / 4
    assert found.size_ratio == 4 / 4
    assert found.size == FITS


def test_channels_are_summed_first() -> None:
    channels = np.stack([HEATMAP + 5, np.full((4, 4), -5.0)])
    assert measured(channels) == measured(HEATMAP)


def test_a_uniform_heatmap_gets_chance_and_is_everything_red() -> None:
    for smoothing in (0, 0.02, 0.3):
        found = localise(
            np.full((30, 40), 0.3), np.pad(np.ones((6, 10), bool), ((4, 20), (7, 23))), smoothing=smoothing
        )
        chances = (found.mass, found.mass_abs, found.rank, found.pointing, found.iou_best, found.precise)
        assert chances == pytest.approx([found.area] * 6)
        assert found.size == EVERYTHING
        assert (shown(found), shows(found), grade(found)) == (0, 0, 0)


def test_a_heatmap_without_positive_relevance_shows_nothing() -> None:
    found = measured(-np.abs(HEATMAP))
    assert found.size == NOTHING
    assert all(math.isnan(value) for value in (found.mass, found.rank, found.pointing, found.iou_best, found.precise))
    assert found.mass_abs == 13 / 24
    assert (found.covered, shows(found), grade(found)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("red", "size", "score"),
    [
        ((slice(1, 3), slice(1, 3)), FITS, 3),
        ((slice(1, 2), slice(1, 2)), SMALL, 1),
        ((slice(1, 3), slice(0, 4)), FITS, 3),
        ((slice(0, 3), slice(0, 3)), LARGE, 2),
        ((slice(0, 4), slice(0, 4)), EVERYTHING, 0),
        ((slice(0, 1), slice(0, 4)), FITS, 0),
        ((slice(0, 2), slice(1, 2)), FITS, 1),
        ((slice(0, 2), slice(0, 2)), FITS, 0),  # no more of it is in the region than by chance
    ],
)
def test_red_area_is_judged_by_size_and_scored(red: tuple[slice, slice], size: str, score: int) -> None:
    heatmap = np.zeros((4, 4))
    heatmap[red] = 1
    found = measured(heatmap)
    assert (found.size, grade(found)) == (size, score)
    assert shows(found) == (score >= 2)


def test_a_region_that_fills_the_picture_is_not_everything_red() -> None:
    assert measured(np.ones((4, 4)), np.ones((4, 4), bool)).size == FITS


def test_a_hot_spot_does_not_hide_the_rest_of_the_object() -> None:
    heatmap = np.zeros((100, 100))
    heatmap[20:60, 20:60] = 1
    heatmap[30, 30] = 1000
    region = heatmap > 0
    assert localise(heatmap, region, smoothing=0).covered == 1


def test_what_cannot_be_measured_is_an_error() -> None:
    with pytest.raises(DataError, match="same shape"):
        measured(HEATMAP, np.ones((3, 4), bool))
    with pytest.raises(DataError, match="at least one pixel"):
        measured(HEATMAP, np.zeros((4, 4), bool))
    with pytest.raises(DataError, match="NaN"):
        measured(np.full((4, 4), np.nan))


def test_matrices_count_images_or_the_shares_of_their_regions() -> None:
    right = [True, True, True, False, False]
    assert confusion(right, [1, 0, 1, 1, 0]) == Confusion(tp=2, fn=1, fp=1, tn=1)
    micro = confusion(right, [0.75, 0.25, 1.0, 0.5, 0.0])
    assert micro == Confusion(tp=2, fn=1, fp=0.5, tn=1.5)
    assert micro.agreement == 3.5 / 5


# ---- parts


def square(top: int, left: int, edge: int = 4) -> np.ndarray:
    mask = np.zeros((32, 32), dtype=bool)
    mask[top : top + edge, left : left + edge] = True
    return mask


WHEEL, LAMP, CAR = square(10, 10), square(10, 20), square(8, 8, 18)
MARKED = Marked(CAR, {"wheel": WHEEL, "lamp": LAMP}, 1.0)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (WHEEL, "wheel"),
        (LAMP, "lamp"),
        (CAR & ~WHEEL & ~LAMP, REST),
        (square(1, 1, 3), BACKGROUND),
        (np.ones((32, 32), bool), NONE),
    ],
)
def test_the_part_with_the_relevance_is_named(where: np.ndarray, expected: str) -> None:
    random = np.random.default_rng(0)
    assert carried(where + random.uniform(0, 0.1, (32, 32)), MARKED).part == expected


def test_a_small_shortcut_is_found_beside_a_part_that_has_relevance_too() -> None:
    heatmap = 0.3 * WHEEL / WHEEL.sum() + 0.7 * square(1, 1, 3) / 9
    found = carried(heatmap, MARKED)
    assert found.part == BACKGROUND
    assert found.shares["wheel"].mass == pytest.approx(0.3)
    assert found.shares[BACKGROUND].mass == pytest.approx(0.7)
    assert found.shares[BACKGROUND].area == pytest.approx(1 - 18 * 18 / 1024)


def test_no_spot_of_the_background_reaches_into_a_part() -> None:
    strip, wheel = square(0, 0) & False, square(16, 8)
    strip[14:16, 8:16] = True
    heatmap = 0.3 * wheel + strip
    heatmap[14:16, 12:16] = 0  # a square over strip and wheel is denser than the strip
    assert carried(heatmap, Marked(strip | wheel, {"strip": strip, "wheel": wheel}, 1.0)).part == "strip"


def test_without_named_parts_the_object_is_the_part() -> None:
    whole = Marked(CAR, {}, 1.0)
    assert carried(CAR + 0.01, whole).part == OBJECT
    assert carried(square(0, 28) + 0.01, whole).part == BACKGROUND
    assert carried(-np.ones((32, 32)), whole).part == NONE


@pytest.mark.parametrize("pixels", [32, 96])
def test_noise_names_no_part(pixels: int) -> None:
    random = np.random.default_rng(0)
    parts = {name: np.kron(mask, np.ones((pixels // 32,) * 2)) > 0 for name, mask in MARKED.parts.items()}
    region = np.kron(CAR, np.ones((pixels // 32,) * 2)) > 0
    names = [carried(random.exponential(size=region.shape), Marked(region, parts, 1.0)).part for _ in range(50)]
    assert names == [NONE] * 50


def test_the_table_counts_decisions_by_part() -> None:
    def image(part: str, *marked: str) -> Carried:
        return Carried(part, {name: PartShare(0.1, 0.4) for name in (*marked, BACKGROUND)})

    images = [image("lamp", "wheel", "lamp"), image("lamp", "lamp"), image(BACKGROUND, "wheel")]
    rows = {row.part: row for row in parts_table({("car", "right"): images})}
    assert list(rows) == ["lamp", "wheel", BACKGROUND, NONE]
    assert [(row.images, row.carried) for row in rows.values()] == [(2, 2), (2, 0), (3, 1), (3, 0)]
    assert rows["lamp"].share == pytest.approx(2 / 3)
    assert (rows["lamp"].area, rows["lamp"].mass) == pytest.approx((0.1, 0.4))
