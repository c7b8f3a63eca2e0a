"""Losses of regressed numbers are what plain arithmetic says, and targets that are not known stay out of them."""

from __future__ import annotations

import numpy as np
import pytest

from lrp_onnx.errors import DataError
from lrp_onnx.losses import judge, part_names, worst_outputs

NONE = np.full(4, -1)


@pytest.fixture
def numbers() -> tuple[np.ndarray, np.ndarray]:
    """Outputs and targets (4, 6): one target of the second sample is missing, all of the third."""
    rng = np.random.default_rng(0)
    output, targets = rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
    targets[1, 2] = targets[2] = np.nan
    return output, targets


@pytest.mark.parametrize(("loss", "power"), [("mse", 2), ("mae", 1), (None, 2)])
def test_mean_errors_are_over_the_known_targets(numbers, loss, power):
    output, targets = numbers
    verdict = judge(output, NONE, targets, loss=loss)
    for row in (0, 1, 3):
        known = [t for t in range(6) if (row, t) != (1, 2)]
        errors = np.abs(output[row, known] - targets[row, known])
        assert verdict.loss[row] == pytest.approx((errors**power).mean())
        assert verdict.worst[row] == known[errors.argmax()]
    assert np.isnan(verdict.loss[2])
    assert verdict.worst[2] == -1
    assert np.isnan(verdict.errors[1, 2])
    assert verdict.correct.tolist() == [-1] * 4  # no threshold


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 2)])
def test_landmarks_are_as_far_off_as_a_ruler_says(numbers, shape):
    output, targets = numbers
    verdict = judge(output.reshape(shape), NONE, targets, loss="landmarks")
    distances = np.sqrt(((output - targets).reshape(4, 3, 2) ** 2).sum(axis=2))
    np.testing.assert_allclose(verdict.errors[[0, 3]], distances[[0, 3]])
    assert verdict.loss[1] == pytest.approx(distances[1, [0, 2]].mean())  # the second has no x, so no distance
    assert verdict.worst[[0, 2, 3]].tolist() == [distances[0].argmax(), -1, distances[3].argmax()]


def test_a_loss_at_the_threshold_is_correct_and_nothing_expected_is_not_judged(numbers):
    output, targets = numbers
    losses = judge(output, NONE, targets, loss="mae").loss
    verdict = judge(output, NONE, targets, loss="mae", threshold=float(losses[3]))
    assert losses[0] < losses[3] < losses[1]
    assert verdict.correct.tolist() == [1, 0, -1, 1]


def test_an_output_that_is_no_number_is_wrong_and_the_worst(numbers):
    output, targets = numbers
    output[0, 4] = np.nan
    verdict = judge(output, NONE, targets, threshold=1e9)
    assert verdict.correct.tolist() == [0, 1, -1, 1]
    assert verdict.worst[0] == 4


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("size", "places"), [((8, 12), [[5, 2], [0, 7]]), ((16, 36), [[16, 4.5], [1, 14.5]])])
def test_a_peak_is_where_it_is_in_the_model_s_input(size, places, channels_last):
    maps = np.zeros((1, 2, 8, 12))
    maps[0, 0, 2, 5] = maps[0, 1, 7, 0] = 1
    output = np.moveaxis(maps, 1, -1) if channels_last else maps
    targets = np.array([[*places[0], places[1][0] + 3, places[1][1] - 4]])
    verdict = judge(output, NONE[:1], targets, loss="landmarks", size=size)
    np.testing.assert_allclose(verdict.values, [np.ravel(places)])
    np.testing.assert_allclose(verdict.errors, [[0, 5]])
    (place,) = worst_outputs(output, verdict.worst, 4, "landmarks")
    row, column, landmark = 7, 0, 1
    index = (0, row, column, landmark) if channels_last else (0, landmark, row, column)
    assert place.tolist() == [np.ravel_multi_index(index, output.shape)]


def test_the_worst_part_is_one_output_or_two_coordinates(numbers):
    worst = np.array([0, 1, 2, 1])
    assert worst_outputs(numbers[0], worst, 6, "mae").tolist() == [[0], [1], [2], [1]]
    assert worst_outputs(numbers[0], worst, 6, "landmarks").tolist() == [[0, 1], [2, 3], [4, 5], [2, 3]]


@pytest.mark.parametrize(
    ("shape", "targets", "loss", "said"),
    [
        ((4, 5), 6, "mse", r"6 targets a sample.*\(5,\).*expected 6 numbers"),
        ((4, 3, 8, 8), 6, "mae", "the loss 'landmarks'"),
        ((4, 5), 5, "landmarks", "5 targets.*x and y"),
        ((4, 5), 6, "landmarks", "6 numbers, or 3 maps"),
        ((4, 3, 8, 8), 6, "landmarks", "input is a picture"),
    ],
)
def test_what_does_not_fit_is_said(shape, targets, loss, said):
    with pytest.raises(DataError, match=said):
        judge(np.zeros(shape), NONE, np.zeros((4, targets)), loss=loss)


def test_without_a_choice_what_does_not_fit_has_no_loss():
    verdict = judge(np.zeros((4, 5)), NONE, np.zeros((4, 6)))
    assert np.isnan(verdict.loss).all()
    assert verdict.values is None


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["nose_x", "nose_y", "x1", "y1"], ("nose", "1")),
        (["left eye x", "left eye y", "X", "Y"], ("left eye", "1")),
        (["a", "b", "c.x", "d.y"], ("0", "1")),
        (None, ("0", "1")),
    ],
)
def test_landmarks_are_called_by_what_x_and_y_share(names, found):
    assert part_names("landmarks", names, 2) == found


def test_y_before_x_is_refused():
    with pytest.raises(DataError, match="'y1' and 'x1' are in the order y, x"):
        part_names("landmarks", ["y1", "x1"], 1)
