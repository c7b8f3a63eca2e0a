"""Faithfulness, sensitivity and randomisation give known numbers, those of quantus, and tell good from bad heatmaps."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lrp_onnx.debug.evaluation_verdicts import randomisation_verdict, removal_verdict
from lrp_onnx.debug.faithfulness import (
    ROAD_FRACTIONS,
    Classifier,
    Curve,
    deletion,
    insertion,
    pixel_flipping,
    random_ranks,
    relevance_ranks,
    removal_curve,
    road,
)
from lrp_onnx.debug.heatmap_statistics import gini
from lrp_onnx.debug.imputation import impute
from lrp_onnx.debug.randomisation import Randomised, randomisation, shuffled, weights_of
from lrp_onnx.debug.sensitivity import max_sensitivity
from lrp_onnx.engine import Explainer
from lrp_onnx.errors import DataError
from lrp_onnx.graph import Graph, load

# Of quantus 0.6.0 on `small_network`: Sparseness and PixelFlipping(features_in_step=6, perturb_baseline=0.0,
# abs=False, normalise=False, softmax=True), and noisy_linear_imputation(noise=0) of half of the pixels.
TARGETS = [0, 2, 2, 2]
SPARSENESS = [0.40747, 0.372132, 0.407377, 0.346116]
FLIPPING = [
    [0.858732, 0.787151, 0.429766, 0.291279, 0.479691, 0.112931],
    [0.847316, 0.966844, 0.840984, 0.623321, 0.9207, 0.765115],
    [0.996432, 0.998496, 0.992668, 0.94838, 0.700965, 0.765115],
    [0.970567, 0.98208, 0.99054, 0.889535, 0.986624, 0.765115],
]
IMPUTED = [-0.344999, -0.24916, -0.566835, -0.588778, -0.646714, -0.800301]  # third row of the first picture
HALF_IMPUTED = [0.918486, 0.612132, 0.97552, 0.995406]


def network(weights: dict[str, np.ndarray], nodes: list[onnx.NodeProto], size: int, **options: object) -> Graph:
    batch = options.get("batch", "n")
    shape = [batch, size, size, 1] if options.get("last") else [batch, 1, size, size]
    outputs = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, None])
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def small_network(**options: object) -> tuple[Graph, np.ndarray, np.ndarray]:
    """A convolution and a dense layer on 6 x 6 pixels, four pictures, and four heatmaps of noise."""
    random = np.random.default_rng(0)
    w1, b1, w2, b2 = (random.normal(size=s).astype(np.float32) for s in ((4, 1, 3, 3), (4,), (3, 144), (3,)))
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Flatten", ["r"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["y"], "dense", transB=1),
    ]
    if options.get("last"):
        nodes[0].input[0] = "first"
        nodes.insert(0, helper.make_node("Transpose", ["x"], ["first"], "to_first", perm=[0, 3, 1, 2]))
    graph = network({"w1": w1, "b1": b1, "w2": w2 * np.float32(0.2), "b2": b2}, nodes, 6, **options)
    x, a = (random.normal(size=(4, 1, 6, 6)).astype(np.float32) for _ in range(2))
    return graph, x, a


def test_pixel_flipping_and_sparseness_are_those_of_quantus() -> None:
    graph, x, a = small_network()
    classifier = Classifier(graph)
    assert classifier.logits(x).argmax(axis=1).tolist() == TARGETS
    assert [gini(heatmap) for heatmap in a] == pytest.approx(SPARSENESS, abs=2e-6)
    for image, heatmap, target, expected in zip(x, a[:, 0], TARGETS, FLIPPING, strict=True):
        curve = removal_curve(
            classifier.score(target), image, relevance_ranks(heatmap), np.zeros_like(image), np.linspace(0, 1, 7)
        )
        assert curve.scores[1:] == pytest.approx(expected, abs=2e-6)


def test_imputation_is_that_of_quantus() -> None:
    graph, x, a = small_network()
    missing = [relevance_ranks(heatmap) < 18 for heatmap in a[:, 0]]
    pictures = [impute(image, gone, noise=0) for image, gone in zip(x, missing, strict=True)]
    assert pictures[0][0, 2] == pytest.approx(IMPUTED, abs=2e-6)
    scores = [Classifier(graph).score(t)(p[None])[0] for p, t in zip(pictures, TARGETS, strict=True)]
    assert scores == pytest.approx(HALF_IMPUTED, abs=2e-6)


def test_imputed_pixels_are_the_weighted_mean_of_their_neighbours() -> None:
    image = np.random.default_rng(0).normal(size=(2, 5, 7))
    missing = np.zeros((5, 7), dtype=bool)
    missing[2, 3] = missing[0, 0] = True
    around = image[:, 1:4, 2:5] * np.array([[1, 2, 1], [2, 0, 2], [1, 2, 1]]) / 12
    filled = impute(image, missing, noise=0)
    assert filled[:, 2, 3] == pytest.approx(around.sum(axis=(1, 2)))
    corner = (2 * image[:, 0, 1] + 2 * image[:, 1, 0] + image[:, 1, 1]) / 5
    assert filled[:, 0, 0] == pytest.approx(corner)
    assert (filled[:, ~missing] == image[:, ~missing]).all()
    noisy = impute(image, missing, noise=0.5)
    assert (noisy[:, ~missing] == image[:, ~missing]).all()
    assert (noisy[:, missing] != filled[:, missing]).all()
    assert (impute(image, ~np.ones_like(missing)) == image).all()
    with pytest.raises(DataError, match="leaves some pixels"):
        impute(image, np.ones_like(missing))


def test_ranks_go_by_relevance_in_squares_with_ties_at_random() -> None:
    heatmap = np.array([[5.0, 1.0], [3.0, -2.0]])
    assert relevance_ranks(heatmap).tolist() == [[0, 2], [1, 3]]
    assert relevance_ranks(heatmap, first="least").tolist() == [[3, 1], [2, 0]]
    squares = relevance_ranks(np.pad(heatmap, 1, mode="edge"), region=2)  # means of squares: as before
    assert squares.tolist() == [[0, 0, 2, 2], [0, 0, 2, 2], [1, 1, 3, 3], [1, 1, 3, 3]]
    ragged = relevance_ranks(np.arange(15.0).reshape(3, 5), region=2)
    assert ragged[2, 4] == 0 and ragged[0, 0] == ragged[1, 1] == 5
    one, other = (random_ranks((8, 8), np.random.default_rng(seed)) for seed in (0, 1))
    assert sorted(one.ravel().tolist()) == list(range(64))
    assert (one != other).any()
    assert (one == random_ranks((8, 8), np.random.default_rng(0))).all()


def test_areas_and_losses_of_curves_that_are_known() -> None:
    curve = Curve(np.array([0, 0.5, 1]), np.array([0.8, 0.4, 0.0]))
    assert curve.area == pytest.approx(0.4)
    assert curve.aopc == pytest.approx((0 + 0.4 + 0.8) / 3)
    assert curve.loss_at(0.25) == pytest.approx(0.25)


def bright_corner() -> tuple[Graph, np.ndarray, np.ndarray]:
    """A model whose class 0 is the sum of one corner, a picture with it, and the heatmap that says so."""
    weights = np.zeros((64, 2), dtype=np.float32)
    corner = np.zeros((8, 8), dtype=bool)
    corner[:3, :3] = True
    weights[corner.ravel(), 0] = 0.4
    nodes = [helper.make_node("Flatten", ["x"], ["f"], "flat"), helper.make_node("MatMul", ["f", "w"], ["y"], "dense")]
    image = 0.1 * np.random.default_rng(0).random((1, 8, 8)) + corner[None]
    return network({"w": weights}, nodes, 8), image.astype(np.float32), corner.astype(np.float64)


def test_the_right_heatmap_beats_chance_and_the_reversed_one_does_not() -> None:
    graph, image, heatmap = bright_corner()
    score = Classifier(graph).score(0)
    random = np.random.default_rng(5)
    right, wrong = (relevance_ranks(h, random=random) for h in (heatmap, -heatmap))
    chance = random_ranks((8, 8), random)
    for metric in (deletion, road):
        areas = [metric(score, image, ranks).area for ranks in (right, chance, wrong)]
        assert areas[0] < areas[1] - 0.02 < areas[2] - 0.04
    areas = [insertion(score, image, ranks).area for ranks in (right, chance, wrong)]
    assert areas[0] > areas[1] > areas[2]
    bounds = np.array([[0.0], [1.0]])
    curves = [
        pixel_flipping(score, image, ranks, np.random.default_rng(1), bounds=bounds) for ranks in (right, chance, wrong)
    ]
    assert curves[0].aopc > curves[1].aopc > curves[2].aopc
    assert curves[0].scores[-1] == curves[2].scores[-1]  # the same noise in the end
    assert road(score, image, right).fractions.tolist() == list(ROAD_FRACTIONS)


def test_verdicts_need_enough_images_and_the_right_sign() -> None:
    good, flat = Curve(np.array([0.0, 1.0]), np.array([1.0, 0.0])), Curve(np.array([0.0, 1.0]), np.array([1.0, 0.8]))
    verdict = removal_verdict("deletion", {"most": [good] * 8, "random": [flat] * 8})
    assert verdict.judgement == "good"
    assert verdict.sentence.startswith(
        "deleting the most relevant 20 % costs 20 % of the score; random order costs 4 %"
    )
    for few in (1, 3):
        assert removal_verdict("deletion", {"most": [good] * few, "random": [flat] * few}).judgement == "undecided"
    assert removal_verdict("deletion", {"most": [flat] * 8, "random": [good] * 8}).judgement == "bad"
    assert removal_verdict("deletion", {"most": [flat] * 8, "random": [flat] * 8}).judgement == "bad"


@pytest.mark.parametrize(
    ("first", "last", "judgement"),
    [(0.4, 0.1, "good"), (0.95, 0.1, "bad"), (0.9, 0.7, "bad"), (0.1, np.nan, "undecided")],
)
def test_heatmaps_must_change_with_the_weights(first: float, last: float, judgement: str) -> None:
    stages = [Randomised(n, "", np.array([rank]), np.array([rank])) for n, rank in ((1, first), (9, last))]
    assert randomisation_verdict(stages).judgement == judgement


def test_layouts_and_fixed_batches_change_no_number() -> None:
    graph, x, _ = small_network()
    expected = Classifier(graph, batch_size=3).score(1)(x)
    for options in ({"last": True}, {"batch": 3}, {"last": True, "batch": 3}):
        other = Classifier(small_network(**options)[0], channels_last=bool(options.get("last")))
        assert other.score(1)(x) == pytest.approx(expected, rel=1e-5)
    logits = Classifier(graph).logits(x)
    assert expected == pytest.approx(np.exp(logits)[:, 1] / np.exp(logits).sum(axis=1))


def test_a_sigmoid_gives_each_output_its_own_probability() -> None:
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "w"], ["z"], "dense"),
        helper.make_node("Sigmoid", ["z"], ["y"], "sigmoid"),
    ]
    graph = network({"w": np.array([[2.0, -1.0]] * 4, dtype=np.float32)}, nodes, 2)
    x = np.full((1, 1, 2, 2), 0.5, dtype=np.float32)
    classifier = Classifier(graph)
    assert [classifier.score(k)(x)[0] for k in (0, 1)] == pytest.approx([1 / (1 + np.exp(-4)), 1 / (1 + np.exp(2))])
    assert classifier.score(0, against=True)(x)[0] == pytest.approx(1 / (1 + np.exp(4)))


def test_max_sensitivity_is_the_worst_relative_change() -> None:
    image = np.full((2, 3, 3), 2.0, dtype=np.float32)

    def run(explain: object, radius: object) -> float:
        return max_sensitivity(explain, image, np.random.default_rng(0), radius=radius, samples=50)  # type: ignore[arg-type]

    assert run(np.ones_like, 1.0) == 0
    assert np.isnan(run(lambda x: x - 2.0, 1.0))
    # of a heatmap of 4 per pixel, the sum of two values: noise of at most 0.1 each is at most 0.2
    assert 0.02 < run(lambda x: x, 0.1) < 0.05
    assert run(lambda x: x, [0.1, 0.0]) < run(lambda x: x, 0.1)
    assert run(lambda x: x, 0.1) == run(lambda x: x, 0.1)


def test_shuffling_goes_from_the_output_down_and_leaves_the_model_alone() -> None:
    graph, x, _ = small_network()
    explainer = Explainer(graph, "epsilon")
    weights = weights_of(explainer.plan)
    assert list(weights) == ["dense", "conv"]
    before = {name: array.copy() for name, array in graph.initializers.items()}
    other = shuffled(graph, weights["dense"], seed=3)
    assert all((graph.initializers[name] == array).all() for name, array in before.items())
    assert sorted(other.initializers["w2"].ravel().tolist()) == sorted(before["w2"].ravel().tolist())
    assert (other.initializers["w2"] != before["w2"]).mean() > 0.9
    assert (other.initializers["w1"] == before["w1"]).all()
    in_model = {t.name: numpy_helper.to_array(t) for t in other.model.graph.initializer}
    assert (in_model["w2"] == other.initializers["w2"]).all()
    assert np.abs(Classifier(other).logits(x) - Classifier(graph).logits(x)).max() > 0.1
    assert (shuffled(graph, weights["dense"], seed=3).initializers["w2"] == other.initializers["w2"]).all()


def test_relevance_follows_the_weights_and_what_ignores_them_is_seen() -> None:
    graph, x, _ = small_network()
    steps: list[tuple[int, int]] = []
    stages = randomisation(Explainer(graph, "epsilon"), x, TARGETS, batch_size=3, progress=lambda *at: steps.append(at))
    assert [(stage.layers, stage.node) for stage in stages] == [(1, "dense"), (2, "conv")]
    assert steps == [(1, 2), (2, 2)]
    assert all(stage.rank.shape == (4,) for stage in stages)
    assert np.abs(stages[-1].rank.mean()) < 0.3
    same = randomisation(
        Explainer(small_network(last=True)[0], "epsilon"), np.moveaxis(x, 1, -1), TARGETS, channels_last=True
    )
    assert same[0].rank == pytest.approx(stages[0].rank, abs=1e-6)
    # Deep below a flat rule for every layer relevance is only spread evenly, whatever the weights.
    deaf = Explainer(graph, "epsilon")
    flat = Explainer(graph, deaf.composite.override({"Conv": "flat", "Gemm": "flat"}))
    assert randomisation(flat, x, TARGETS)[-1].rank_abs.min() > 0.99


def test_stages_are_spread_over_the_layers() -> None:
    graph, x, _ = small_network()
    stages = randomisation(Explainer(graph, "epsilon"), x, TARGETS, stages=2)
    assert [stage.layers for stage in stages] == [1, 2]
