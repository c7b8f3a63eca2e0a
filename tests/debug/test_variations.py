"""Variations are deterministic, do what their names say, and say where points go."""

from __future__ import annotations

import numpy as np
import pytest

from lrp_onnx.debug import variations
from lrp_onnx.debug.variations import FILL, VARIATIONS, Chosen, Scene, changes, choose, moves
from lrp_onnx.errors import DataError

WIDTH, HEIGHT = 90, 60
MOVES = [str(one) for one in choose() if one.variation.move]


def photograph(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Smooth colours with a bright box, so that every variation has something to change."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9) + np.cos(y / 7), np.sin((x + y) / 11) + 0.3, np.cos(x / 5) - 0.2]
    picture = np.clip(np.stack(waves, axis=2) * 55 + 110, 0, 255).astype(np.uint8)
    picture[height // 4 : height // 2, width // 3 : width // 2] = (240, 200, 30)
    return picture


def scene(seed: int = 0, *, background: bool = False) -> Scene:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[20:50, 20:60] = True
    behind = np.full((10, 20, 3), (1, 2, 250), np.uint8) if background else None
    return Scene(np.random.default_rng(seed), mask, behind)


def one(text: str) -> Chosen:
    (chosen,) = choose([text])
    return chosen


@pytest.mark.parametrize("text", [str(chosen) for chosen in choose()])
def test_every_variation_changes_the_picture_and_gives_the_same_again(text):
    picture = photograph()
    before = picture.copy()
    varied = one(text)(picture, scene())
    np.testing.assert_array_equal(picture, before)
    assert varied.dtype == np.uint8
    assert varied.shape == (*one(text).geometry(WIDTH, HEIGHT)[1][::-1], 3)
    assert varied.shape != picture.shape or (varied != picture).any()
    np.testing.assert_array_equal(varied, one(text)(picture, scene()))


@pytest.mark.parametrize("text", ["noise=20", "occlusion=0.1", "cluttered-background"])
def test_another_seed_gives_another_picture(text):
    assert (one(text)(photograph(), scene(0)) != one(text)(photograph(), scene(1))).any()


def test_the_second_default_value_is_the_stronger_one():
    for variation in VARIATIONS.values():
        if variation.change is not None and len(variation.values) == 2:
            weak, strong = (
                np.abs(Chosen(variation, value)(photograph(), scene()) - photograph().astype(float)).mean()
                for value in variation.values
            )
            assert strong > 1.2 * weak > 0, variation.name


def test_values_that_ask_for_nothing_change_nothing():
    for text in ("dark=1", "bright=1", "low-contrast=1", "noise=0", "rotation=0", "perspective=0", "tilt=0", "crop=1"):
        np.testing.assert_array_equal(one(text)(photograph(), scene()), photograph(), err_msg=text)


def test_mirror_twice_is_the_identity():
    mirror = one("mirror")
    once = mirror(photograph(91, 60), scene())
    np.testing.assert_array_equal(once, photograph(91, 60)[:, ::-1])
    np.testing.assert_array_equal(mirror(once, scene()), photograph(91, 60))
    matrix, _ = mirror.geometry(91, 60)
    np.testing.assert_array_equal(matrix @ matrix, np.eye(3))


def test_rotation_is_anticlockwise_about_the_centre():
    square = photograph(60, 60)
    turned = one("rotation=90")(square, scene())
    np.testing.assert_allclose(turned.astype(int), np.rot90(square), atol=1)  # cos 90° is not quite 0
    there, back = one("rotation=35"), one("rotation=-35")
    again = back(there(photograph(), scene()), scene())[20:40, 35:55]  # what stays in the frame both times
    assert np.abs(again.astype(float) - photograph()[20:40, 35:55]).mean() < 4


def test_crop_keeps_the_middle_untouched():
    np.testing.assert_array_equal(one("crop=0.5")(photograph(), scene()), photograph()[15:45, 22:67])


@pytest.mark.parametrize(("text", "axis"), [("perspective=40", 1), ("tilt=40", 0)])
def test_the_first_side_comes_nearer_when_the_angle_is_positive(text, axis):
    picture = np.zeros((60, 60, 3), np.uint8)
    lines = np.swapaxes(picture, 0, 1) if axis == 0 else picture
    lines[20:40] = 255  # a band from side to side, in the middle
    varied = one(text)(picture, scene())
    width = (varied[..., 0] > 200).sum(axis=1 - axis)
    assert width[6] > 22 > 18 > width[46] > 0
    opposite = one(text.replace("=", "=-"))(picture, scene())
    np.testing.assert_allclose(opposite.astype(int), np.flip(varied, axis), atol=1)


@pytest.mark.parametrize("text", MOVES)
def test_the_homography_says_where_a_spot_goes(text):
    for x, y in ((40, 25), (52, 33)):
        picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        picture[y - 2 : y + 3, x - 2 : x + 3] = 255
        matrix, (width, height) = one(text).geometry(WIDTH, HEIGHT)
        place = matrix @ [x + 0.5, y + 0.5, 1]
        varied = one(text)(picture, scene())[..., 0].astype(float)
        bright = np.where(varied > FILL[0] + 20, varied, 0)
        rows, columns = np.mgrid[:height, :width] + 0.5
        centre = [(bright * columns).sum() / bright.sum(), (bright * rows).sum() / bright.sum()]
        np.testing.assert_allclose(centre, place[:2] / place[2], atol=0.3)


def test_frames_are_filled_with_the_stated_grey():
    varied = one("rotation=45")(np.zeros((60, 60, 3), np.uint8), scene())
    assert (varied[0, 0] == FILL).all()
    assert (varied[30, 30] == 0).all()


def test_light_and_colour_are_exact():
    picture = np.full((4, 4, 3), (200, 100, 10), np.uint8)
    assert (one("dark=0.5")(picture, scene()) == (100, 50, 5)).all()
    assert (one("bright=2")(picture, scene()) == (255, 200, 20)).all()
    assert (one("greyscale")(picture, scene()) == round(0.299 * 200 + 0.587 * 100 + 0.114 * 10)).all()
    grey = np.repeat(np.array([[[50], [150]]], np.uint8), 3, axis=2)
    assert one("low-contrast=0.2")(grey, scene())[0, :, 0].tolist() == [90, 110]


def test_sketch_is_paper_with_dark_lines_at_edges():
    picture = np.zeros((60, 60, 3), np.uint8)
    picture[:, 30:] = 200
    drawn = one("sketch")(picture, scene())
    assert (drawn[:, :20] == 255).all()
    assert (drawn[:, 29:31] < 60).all()
    assert (one("sketch")(np.zeros_like(picture), scene()) == 255).all()


def test_cartoon_has_few_levels():
    flat = np.repeat(np.repeat(np.arange(0, 256, 2, dtype=np.uint8)[None, :, None], 40, axis=0), 3, axis=2)
    assert len(np.unique(one("cartoon=4")(flat, scene())[20])) < 40 < len(np.unique(flat[20]))


@pytest.mark.parametrize("text", ["blur=3", "noise=40"])
def test_blur_and_noise_mean_the_same_on_a_picture_of_any_size(text):
    small = np.full((256, 260, 3), 120, np.uint8)
    small[:, 100:150] = 90
    large = small.repeat(3, axis=0).repeat(3, axis=1)
    left, right = ((one(text)(picture, scene()).astype(float) - picture).std() for picture in (small, large))
    reduced = one(text)(large, scene()).reshape(256, 3, 260, 3, 3).mean(axis=(1, 3)) - small
    assert left == pytest.approx(right, rel=0.1)
    assert left == pytest.approx(reduced.std(), rel=0.1)


def test_occlusion_covers_the_stated_share():
    for share in (0.1, 0.3, 1):
        covered = one(f"occlusion={share}")(photograph(), scene())
        assert (covered == FILL).all(axis=2).mean() == pytest.approx(share, rel=0.05)


@pytest.mark.parametrize("text", ["clear-background", "cluttered-background"])
def test_backgrounds_leave_the_object_alone(text):
    for given in (False, True):
        around = scene(background=given)
        varied = one(text)(photograph(), around)
        np.testing.assert_array_equal(varied[around.mask], photograph()[around.mask])
        outside = varied[~around.mask]
        if text == "clear-background":
            assert (outside == 255).all()
        elif given:
            assert (outside == (1, 2, 250)).all()
        else:
            assert len(np.unique(outside, axis=0)) > 10


@pytest.mark.parametrize("mask", [None, np.ones((5, 5), bool)])
def test_a_variation_without_its_mask_is_refused(mask):
    with pytest.raises(DataError, match=r"clear-background needs a mask of shape \(60, 90\)"):
        one("clear-background")(photograph(), Scene(np.random.default_rng(0), mask))


def test_choose_takes_names_values_and_each_once():
    assert [str(chosen) for chosen in choose(["rotation=45", "dark", "mirror", "rotation=45.0"])] == [
        "rotation=45",
        *(f"dark={value:g}" for value in VARIATIONS["dark"].values),
        "mirror",
    ]
    assert {chosen.variation.name for chosen in choose()} == set(VARIATIONS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("darkness", "no variation 'darkness'; there are dark, bright"),
        ("dark=much", "dark=much: expected a number from 0 to 1"),
        ("dark=nan", "expected a number from 0 to 1"),
        ("rotation=200", "from -180 to 180"),
        ("mirror=1", "mirror takes no value"),
        ("dark=", "dark=: expected a number"),
    ],
)
def test_wrong_choices_are_named(text, said):
    with pytest.raises(DataError, match=said):
        choose([text])


def test_a_new_variation_is_one_function(monkeypatch):
    monkeypatch.setattr(variations, "VARIATIONS", dict(VARIATIONS))

    @changes("negative", "colours the other way round")
    def negative(picture, value, scene):
        return 255 - picture

    @moves("shift", "pixels to the right", (5,))
    def shift(width, height, value):
        return np.array([[1.0, 0, value], [0, 1, 0], [0, 0, 1]]), (width, height)

    np.testing.assert_array_equal(one("negative")(photograph(), scene()), 255 - photograph())
    np.testing.assert_array_equal(one("shift")(photograph(), scene())[:, 5:], photograph()[:, :-5])
