"""Rows of a layered drawing go with the edges, nothing overlaps, and chains are straight."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from lrp_onnx.render.layered import layered


def test_a_chain_is_one_straight_column() -> None:
    layout = layered("abcd", [("a", "b"), ("b", "c"), ("c", "d")])
    assert [layout.places[node] for node in "abcd"] == [(0.5, row) for row in range(4)]
    assert (layout.width, layout.rows) == (1, 4)


def test_an_edge_that_passes_rows_goes_around_what_is_in_them() -> None:
    layout = layered("abcd", [("a", "b"), ("b", "c"), ("c", "d"), ("a", "d")])
    (_, (x1, r1), (x2, r2), _) = layout.routes["a", "d"]
    assert (r1, r2) == (1, 2)
    assert x1 == x2
    assert abs(x1 - layout.places["b"][0]) >= 0.67


@pytest.mark.parametrize("seed", range(20))
def test_edges_go_down_and_nodes_of_a_row_keep_their_distance(seed: int) -> None:
    chance = random.Random(seed)
    nodes = [str(i) for i in range(30)]
    edges = [(nodes[chance.randrange(i)], nodes[i]) for i in range(1, 30) for _ in range(chance.choice([1, 1, 2]))]
    layout = layered(nodes, edges)
    for (start, end), route in layout.routes.items():
        assert layout.places[start] == route[0]
        assert layout.places[end] == route[-1]
        assert [row for _, row in route] == list(range(route[0][1], route[-1][1] + 1))
    for row in range(layout.rows):
        xs = sorted(x for x, r in layout.places.values() if r == row)
        assert all(b - a >= 1 - 1e-9 for a, b in pairwise(xs))
    assert all(0.5 - 1e-9 <= x <= layout.width - 0.5 + 1e-9 for x, _ in layout.places.values())
