"""Where one element wins, it takes all that flows back; of equal ones the first does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from lrp_onnx.graph import Node
from lrp_onnx.ops import find, run


def flow(op: str, inputs: Sequence[np.ndarray], attributes: dict[str, Any] | None = None) -> list[list[Any]]:
    """Gradient of the sum of the op's first output, for each input."""
    node = Node("n", op, tuple(f"i{k}" for k in range(len(inputs))), ("o",), attributes or {})
    tensors = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in inputs]
    run(node, find(node), tensors)[0].sum().backward()
    return [t.grad.tolist() for t in tensors]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ({}, [1, 1, 1, 0]),
        ({"strides": [2]}, [1, 0, 1, 0]),
        ({"pads": [1, 0]}, [2, 1, 1, 0]),
        ({"pads": [0, 1]}, [1, 1, 1, 1]),
        ({"strides": [3], "ceil_mode": 1}, [1, 0, 0, 1]),
        ({"dilations": [2]}, [1, 1, 0, 0]),
        ({"auto_pad": "SAME_LOWER"}, [2, 1, 1, 0]),
    ],
)
@pytest.mark.parametrize("level", [0.0, -5.0, np.finfo(float).min])
def test_max_pool_ties_go_to_the_first_element_never_to_the_padding(
    window: dict[str, Any], expected: list[int], level: float
) -> None:
    (gradient,) = flow("MaxPool", [np.full((1, 1, 4), level)], {"kernel_shape": [2], **window})
    assert gradient == [[expected]]


def test_max_pool_ties_in_a_plane_go_to_the_first_in_row_order() -> None:
    x = np.zeros((1, 1, 2, 3))
    x[0, 0, 0, 2] = x[0, 0, 1, 0] = x[0, 0, 1, 2] = 1
    assert flow("MaxPool", [x], {"kernel_shape": [2, 3]}) == [[[[[0, 0, 1], [0, 0, 0]]]]]
    assert flow("GlobalMaxPool", [x]) == [[[[[0, 0, 1], [0, 0, 0]]]]]


@pytest.mark.parametrize(("op", "sign"), [("ReduceMax", 1), ("ReduceMin", -1)])
def test_ties_of_a_reduction_go_to_the_first_element(op: str, sign: int) -> None:
    x = sign * np.array([[1.0, 3.0, 3.0], [3.0, 2.0, 3.0]])
    assert flow(op, [x], {"axes": [1]}) == [[[0, 1, 0], [1, 0, 0]]]
    assert flow(op, [x], {"axes": [0]}) == [[[0, 1, 1], [1, 0, 0]]]
    assert flow(op, [x]) == [[[0, 1, 0], [0, 0, 0]]]
    assert flow(op, [x], {"axes": [1, 0], "keepdims": 0}) == [[[0, 1, 0], [0, 0, 0]]]


@pytest.mark.parametrize(("op", "sign"), [("Max", 1), ("Min", -1)])
def test_ties_between_inputs_go_to_the_first_input(op: str, sign: int) -> None:
    a, b, c = (sign * np.array(v) for v in ([1.0, 2.0, 0.0], [1.0, 3.0, 5.0], [1.0, 3.0, 9.0]))
    assert flow(op, [a, b, c]) == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_equal_elements_of_top_k_are_taken_in_order() -> None:
    x = torch.tensor([2.0, 3.0, 3.0, 3.0], requires_grad=True)
    node = Node("n", "TopK", ("x", "k"), ("values", "indices"))
    run(node, find(node), [x, torch.tensor([2])])[0].sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 0]
