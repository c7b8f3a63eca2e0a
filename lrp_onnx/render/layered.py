"""Place the nodes of a directed graph in rows, from top to bottom, so that few edges cross (Sugiyama et al. 1981)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

_SWEEPS = 12
_EDGE = 0.35  # room that an edge takes in a row that it passes, in nodes


@dataclass(frozen=True)
class Layout:
    """Where nodes and edges are; one row is 1 high, one node 1 wide.

    Attributes
    ----------
    places : dict of str to (float, int)
        By node: horizontal position of its middle, and its row.
    routes : dict of (str, str) to list of (float, int)
        By edge: the places that it passes, both ends included.
    width : float
    rows : int
    """

    places: Mapping[str, tuple[float, int]]
    routes: Mapping[tuple[str, str], list[tuple[float, int]]]
    width: float
    rows: int


def layered(nodes: Sequence[str], edges: Sequence[tuple[str, str]]) -> Layout:
    """Lay out an acyclic graph.

    Parameters
    ----------
    nodes : sequence of str
        In topological order.
    edges : sequence of (str, str)
        From, to.
    """
    edges = list(dict.fromkeys(edges))
    row: dict[str, int] = {}
    sources: dict[str, list[str]] = {node: [] for node in nodes}
    for start, end in edges:
        sources[end].append(start)
    for node in nodes:
        row[node] = max((row[source] + 1 for source in sources[node]), default=0)
    routes = {edge: _chain(edge, row) for edge in edges}
    rows: list[list[str]] = [[] for _ in range(max(row.values(), default=0) + 1)]
    for node in nodes:
        rows[row[node]].append(node)
    above: dict[str, list[str]] = {}
    below: dict[str, list[str]] = {}
    for chain in routes.values():
        for number, (first, second) in enumerate(pairwise(chain)):
            below.setdefault(first, []).append(second)
            above.setdefault(second, []).append(first)
            if number:
                rows[row[chain[0]] + number].append(first)
    room = {name: 1.0 if name in row else _EDGE for names in rows for name in names}
    x: dict[str, float] = {}
    for names in rows:
        _spread(names, {name: float(i) for i, name in enumerate(names)}, room, x)
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        neighbours = above if down else below
        for names in rows if down else rows[::-1]:
            wanted = {
                n: sum(map(x.__getitem__, near)) / len(near) if (near := neighbours.get(n)) else x[n] for n in names
            }
            names.sort(key=wanted.__getitem__)
            _spread(names, wanted, room, x)
    left = min((x[name] - room[name] / 2 for name in x), default=0.0)
    right = max((x[name] + room[name] / 2 for name in x), default=0.0)
    return Layout(
        {node: (x[node] - left, row[node]) for node in nodes},
        {edge: [(x[name] - left, row[edge[0]] + i) for i, name in enumerate(chain)] for edge, chain in routes.items()},
        right - left,
        len(rows),
    )


def _chain(edge: tuple[str, str], row: Mapping[str, int]) -> list[str]:
    """The edge's ends, and a stand-in for each row in between."""
    start, end = edge
    return [start, *(f"{start}\n{end}\n{i}" for i in range(row[start] + 1, row[end])), end]


def _spread(names: Sequence[str], wanted: Mapping[str, float], room: Mapping[str, float], x: dict[str, float]) -> None:
    """Put `names`, in their order, as near as they can to where they are wanted without overlap.

    Neighbours that would overlap form a block, which takes the mean of where its members want it to be.
    """
    blocks: list[tuple[list[str], float, float]] = []  # members, sum of the wanted left ends, room
    for name in names:
        members, total, size = [name], wanted[name] - room[name] / 2, room[name]
        while blocks and blocks[-1][1] / len(blocks[-1][0]) + blocks[-1][2] > total / len(members):
            before, earlier, taken = blocks.pop()
            members, total, size = before + members, earlier + total - taken * len(members), taken + size
        blocks.append((members, total, size))
    for members, total, _ in blocks:
        left = total / len(members)
        for name in members:
            x[name] = left + room[name] / 2
            left += room[name]
