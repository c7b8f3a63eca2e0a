"""What targets by name promise: which elements of an output are explained, how much each counts, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from lrp_onnx import targets
from lrp_onnx.engine import Explainer
from lrp_onnx.engine.seed import make_seed, output_name
from lrp_onnx.errors import DataError, TargetError
from lrp_onnx.graph import load

RNG = np.random.default_rng(0)


def weights(chosen: object, output: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    assert isinstance(chosen, targets.Chosen)
    return chosen.weights(output, valid)


def test_an_element_is_named_by_its_place_and_seeds_say_how_it_counts() -> None:
    output = torch.arange(24.0).reshape(2, 3, 4)
    logit, index = make_seed(output, targets.element(1, -1), None, "logit")
    assert logit.nonzero().tolist() == [[0, 1, 3], [1, 1, 3]]
    assert logit[:, 1, 3].tolist() == [7.0, 19.0]
    assert index is not None
    assert index.tolist() == [7, 7]
    one, _ = make_seed(output, "index:1,-1", None, "one")
    assert one[:, 1, 3].tolist() == [1.0, 1.0]
    assert one.sum() == 2


def test_the_last_position_of_a_sequence_is_the_last_that_is_no_padding() -> None:
    output = torch.tensor(RNG.normal(size=(2, 4, 5)))
    valid = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])
    found = weights(targets.parse("position:-1"), output, valid).nonzero().tolist()
    assert found == [[0, 1, int(output[0, 1].argmax())], [1, 3, int(output[1, 3].argmax())]]
    first = weights(targets.parse("position:0,3"), output, valid).nonzero().tolist()
    assert first == [[0, 0, 3], [1, 1, 3]]
    assert weights(targets.position(-1, 2), output).nonzero().tolist() == [[0, 3, 2], [1, 3, 2]]
    with pytest.raises(TargetError, match="a sample has 2 positions"):
        weights(targets.position(2), output, valid)


@pytest.mark.parametrize("last", [False, True])
def test_a_class_of_a_map_counts_where_it_is_predicted(last: bool) -> None:
    output = torch.tensor(RNG.normal(size=(2, 3, 6, 5)))
    given = output.movedim(1, -1).contiguous() if last else output
    found = weights(targets.segmentation(2), given)
    found = found.movedim(-1, 1) if last else found
    assert torch.equal(found[:, 2] > 0, output.argmax(dim=1) == 2)
    assert not found[:, :2].any()


def test_a_map_with_one_channel_counts_where_it_is_positive() -> None:
    output = torch.tensor(RNG.normal(size=(2, 1, 6, 5)))
    assert torch.equal(weights(targets.segmentation(0), output) > 0, output > 0)


@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_a_mask_is_read_from_a_file_and_stretched_over_the_map(tmp_path: Path, suffix: str) -> None:
    mask = np.zeros((3, 2), np.uint8)
    mask[0, 1] = 255
    path = tmp_path / f"mask{suffix}"
    np.save(path, mask) if suffix == ".npy" else Image.fromarray(mask).save(path)
    found = weights(targets.parse(f"segmentation:street,mask={path}", ["sky", "street"]), torch.zeros(2, 2, 6, 4))
    assert found[0, 1].nonzero().tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    assert not found[:, 0].any()


def test_a_box_is_the_best_scoring_or_by_number_in_either_layout() -> None:
    boxes = torch.tensor(RNG.normal(size=(2, 9, 6)))  # 4 coordinates, 2 scores
    boxes[:, :, :4] += 100
    best = weights(targets.box(skip=4), boxes).nonzero().tolist()
    for row, (_, box, column) in enumerate(best):
        assert boxes[row, box, column] == boxes[row, :, 4:].max()
    assert torch.equal(weights(targets.box(skip=4), boxes.mT), weights(targets.box(skip=4), boxes).mT)
    assert weights(targets.parse("box:7,class=1,skip=4"), boxes).nonzero().tolist() == [[0, 7, 5], [1, 7, 5]]
    of_class = weights(targets.parse("box:best,class=0,skip=4"), boxes).nonzero()[:, 2].tolist()
    assert of_class == [4, 4]
    assert weights(targets.box(3), boxes[:, :, 5]).nonzero().tolist() == [[0, 3], [1, 3]]
    with pytest.raises(TargetError, match="box 9 is outside of 0 to 8"):
        weights(targets.box(9), boxes)


@pytest.mark.parametrize("measure", ["cosine", "dot"])
def test_relevance_adds_up_to_the_similarity(measure: str) -> None:
    output, reference = torch.tensor(RNG.normal(size=(3, 4, 5))), RNG.normal(size=5)
    valid = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    initial, index = make_seed(output, targets.similarity(reference, measure), None, "logit", valid)  # type: ignore[arg-type]
    mean = np.stack([output[i, : int(valid[i].sum())].mean(dim=0).numpy() for i in range(3)])
    np.testing.assert_allclose(targets.pooled(output, valid), mean)
    wanted = mean @ reference
    if measure == "cosine":
        wanted /= np.linalg.norm(mean, axis=1) * np.linalg.norm(reference)
    np.testing.assert_allclose(initial.sum(dim=(1, 2)), wanted)
    assert not initial[1, 2:].any()
    assert index is not None
    assert index.tolist() == [-1] * 3


def test_a_bool_array_names_the_elements_and_a_float_array_is_the_initial_relevance() -> None:
    output, mask = torch.tensor(RNG.normal(size=(2, 4))), np.array([[1, 1, 0, 0], [0, 0, 1, 1]], bool)
    assert torch.equal(make_seed(output, mask, None, "logit")[0], output * torch.tensor(mask))
    assert torch.equal(make_seed(output, mask, None, "one")[0], torch.tensor(mask).to(output))
    assert torch.equal(make_seed(output, mask.astype(float), None, "logit")[0], torch.tensor(mask).to(output))


def test_texts_are_parsed() -> None:
    assert [targets.parse(t, ["cat", "dog"]) for t in ("predicted", "worst", "dog", "7", "-1")] == [
        "predicted", "worst", 1, 7, -1,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sheep", "target 'sheep' is not known; expected predicted, label, worst, a number, index:I"),
        ("position", "expected position:P"),
        ("position:x", "expected position:P"),
        ("position:1,2,3", "expected position:P"),
        ("box:best,colour=1", "expected box:best"),
        ("segmentation:cow", "expected segmentation:CLASS"),
        ("similarity:nowhere.npy", "reference nowhere.npy: no such file"),
    ],
)
def test_a_wrong_text_is_refused_with_what_was_expected(text: str, message: str) -> None:
    with pytest.raises((TargetError, DataError), match=message.replace("|", r"\|")):
        targets.parse(text)


@pytest.mark.parametrize(
    ("chosen", "shape", "message"),
    [
        (targets.element(5), (2, 4), "the output of a sample has shape"),
        (targets.position(0), (2, 4), "is for outputs"),
        (targets.segmentation(9), (2, 3, 4, 4), "class 9 is outside of 0 to 2"),
        (targets.segmentation(0), (2, 3), "is for maps"),
        (targets.box(), (2, 3, 4, 4), "is for boxes"),
        (targets.box(skip=3), (2, 9, 3), "none behind the first 3"),
        (targets.similarity(np.ones(3)), (2, 4), "the reference has 3 numbers, the model's embeddings 4"),
    ],
)
def test_a_target_that_does_not_fit_the_output_is_refused(
    chosen: targets.Chosen, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(TargetError, match=message):
        make_seed(torch.ones(shape), chosen, None, "logit")


def two_outputs() -> onnx.ModelProto:
    text = """<ir_version: 8, opset_import: ["" : 19]> g (float[N,3] x) => (float[N,4] scores, float[N,2] size)
        <float[3,4] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[3,2] v = {1,-1,2,-2,3,-3}>
        { logits = MatMul(x, w) scores = Softmax(logits) size = MatMul(x, v) }"""
    return onnx.parser.parse_model(text)


def test_an_output_is_named_as_in_the_file_or_in_the_canonical_graph() -> None:
    graph = load(two_outputs())
    assert output_name(graph) == output_name(graph, "scores") == output_name(graph, "logits") == "logits"
    x = RNG.normal(size=(2, 3)).astype(np.float32)
    found = Explainer(graph, "epsilon", output="size").explain(x, "index:1")
    torch.testing.assert_close(found.relevance["x"], torch.tensor(x * [-1, -2, -3]), check_dtype=False)
    with pytest.raises(TargetError, match="no output is named 'boxes'; the model has logits, size"):
        Explainer(graph, "epsilon", output="boxes")
