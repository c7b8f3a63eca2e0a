"""Charts of a clustering: how its scores depend on the number of clusters, and the tree that was cut."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from lrp_onnx.hudd.clusters import NOISE, LayerScores
from lrp_onnx.hudd.curves import Curves
from lrp_onnx.hudd.tree import Floats, Labels, merges_for
from lrp_onnx.render.charts import RGB, WIDTH, Page, label, range_of, scale, ticks

if TYPE_CHECKING:
    from lrp_onnx.hudd.density import DenseClusters

MOST_CLUSTERS_DRAWN = 200  # more branches than this nobody can tell apart
_LEAST_LEAVES = 60
_INK, _FAINT, _LINE, _MARK, _GRID = "#1f2328", "#6a737d", "#1f5fa8", "#c62828", "#e4e8ec"
_BRANCHES = (
    "#1f5fa8",
    "#c6622d",
    "#2e7d4f",
    "#8e44ad",
    "#b8860b",
    "#16858f",
    "#c2407c",
    "#5d6d7e",
    "#7a8b1f",
    "#8c564b",
)
_LEFT, _RIGHT, _TOP, _BOTTOM, _BETWEEN = 110, 40, 124, 64, 72
_PANEL = 300


def curve_chart(scores: LayerScores, profile: str) -> RGB:
    """Scores over the number of clusters, the chosen number marked; uint8 (H, 1200, 3)."""
    curves = scores.curves
    panels: list[tuple[str, Floats]] = [("weighted intra-cluster distance", curves.weighted_distance)]
    if profile == "hudd":
        panels = [("WICD", curves.wicd), ("derivative of WICD", curves.gradient)]
    panels.append(("mean silhouette", curves.silhouette))
    height = _TOP + len(panels) * (_PANEL + _BETWEEN) - _BETWEEN + _BOTTOM
    page = Page(height, f"{scores.layer}: {_clusters(scores.k)}", f"chosen: {scores.how_k}")
    for place, (name, values) in enumerate(panels):
        top = _TOP + place * (_PANEL + _BETWEEN)
        _curve(page, top, name, curves, values, scores.k, last=place == len(panels) - 1)
    return page.done()


def dendrogram_chart(scores: LayerScores, labels: Labels, linkage: str, images: int) -> RGB | None:
    """The tree above its last merges, branches coloured by cluster, and where it was cut; uint8 (H, 1200, 3).

    `labels` are of the images in the tree, which may stand for more: `images` in all. None when there are too many
    clusters to tell their branches apart.
    """
    from scipy.cluster.hierarchy import dendrogram

    tree, count = scores.tree, len(scores.tree) + 1
    if scores.k > MOST_CLUSTERS_DRAWN:
        return None
    drawn = dendrogram(tree, p=min(count, max(_LEAST_LEAVES, scores.k)), truncate_mode="lastp", no_plot=True)
    of_leaf = [int(labels[_first_image(tree, leaf)]) for leaf in drawn["leaves"]]
    done = merges_for(tree, scores.k)
    cut = float(tree[done, 2]) if done < len(tree) else np.inf
    how = f"{linkage} linkage" + (f" of {count} that stand for all" if count < images else "")
    page = Page(_TOP + 2 * _PANEL + _BOTTOM, f"{scores.layer}: {_clusters(scores.k)} of {images} images", how)
    bottom, highest = _TOP + 2 * _PANEL, float(tree[-1, 2]) * 1.03 or 1.0
    x_of = scale((0, 10 * len(of_leaf)), (_LEFT, WIDTH - _RIGHT))  # scipy's leaves stand at 5, 15, 25, …
    y_of = scale((0, highest), (bottom, _TOP))
    _axis(page, y_of, (0, highest), "height of the merge", (_TOP, bottom))
    starts = [leaf for leaf in range(len(of_leaf)) if leaf == 0 or of_leaf[leaf] != of_leaf[leaf - 1]]
    colours: list[str] = []  # of each leaf; they change from branch to branch, so that neighbours differ
    for place, (start, end) in enumerate(pairwise([*starts, len(of_leaf)])):
        noise = of_leaf[start] == NOISE
        colours += [_FAINT if noise else _BRANCHES[place % len(_BRANCHES)]] * (end - start)
        name = "noise" if noise else str(of_leaf[start])
        _name_branch(page, name, (x_of(10 * start), x_of(10 * end)), bottom, colours[-1])
    for xs, ys in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        colour = colours[int((xs[0] - 5) // 10)] if ys[1] < cut else _FAINT
        page.line([(x_of(x), y_of(y)) for x, y in zip(xs, ys, strict=True)], colour, 2)
    if np.isfinite(cut) and done:
        height = y_of((float(tree[done - 1, 2]) + cut) / 2)
        page.dashes((_LEFT, height), (WIDTH - _RIGHT, height), _MARK)
    page.text(((_LEFT + WIDTH - _RIGHT) / 2, bottom + 44), "cluster", _FAINT, "mm")
    return page.done()


def neighbour_chart(found: DenseClusters) -> RGB:
    """How far the neighbours of each image are, and how near makes a place dense; uint8 (H, 1200, 3)."""
    values, count = found.neighbours, len(found.neighbours)
    top, bottom = _TOP, _TOP + 2 * _PANEL
    page = Page(bottom + _BOTTOM, f"features: {_clusters(found.clustering.k)}", f"eps: {found.how_eps}")
    y_range = range_of([*values, found.eps])
    x_of, y_of = scale((0, count + 1), (_LEFT, WIDTH - _RIGHT)), scale(y_range, (bottom, top))
    _axis(page, y_of, y_range, f"distance within which an image has {found.least}, itself counted", (top, bottom))
    for image in ticks((1, count), 12, whole=True):
        page.text((x_of(image), bottom + 10), label(image), _FAINT, "mt")
    page.text(((_LEFT + WIDTH - _RIGHT) / 2, bottom + 48), "images, by that distance", _INK, "mm")
    points = [(x_of(place), y_of(value)) for place, value in enumerate(values.tolist(), start=1)]
    page.line(points, _LINE, 3)
    if count <= 60:
        for point in points:
            page.dot(point, 4, _LINE)
    page.dashes((_LEFT, y_of(found.eps)), (WIDTH - _RIGHT, y_of(found.eps)), _MARK)
    page.text((WIDTH - _RIGHT, top - 8), f"eps = {found.eps:.4g}", _MARK, "rb")
    return page.done()


def _curve(page: Page, top: int, name: str, curves: Curves, values: Floats, chosen: int, *, last: bool) -> None:
    bottom, ks = top + _PANEL, curves.k
    known = np.isfinite(values)
    x_range = (float(ks[0]) - 0.5, float(ks[-1]) + 0.5)
    x_of = scale(x_range, (_LEFT, WIDTH - _RIGHT))
    y_range = range_of(values[known])
    y_of = scale(y_range, (bottom, top))
    _axis(page, y_of, y_range, name, (top, bottom))
    for k in ticks(x_range, 12, whole=True):
        page.line([(x_of(k), bottom), (x_of(k), bottom + 6)], _FAINT, 1)
        page.text((x_of(k), bottom + 10), label(k), _FAINT, "mt")
    if last:
        page.text(((_LEFT + WIDTH - _RIGHT) / 2, bottom + 48), "number of clusters k", _INK, "mm")
    points = [(x_of(k), y_of(v)) for k, v in zip(ks[known].tolist(), values[known].tolist(), strict=True)]
    if not points:
        page.text(((_LEFT + WIDTH - _RIGHT) / 2, (top + bottom) / 2), "not defined: one cluster only", _FAINT, "mm")
    page.line(points, _LINE, 3)
    if len(points) <= 60:
        for point in points:
            page.dot(point, 4, _LINE)
    if ks[0] <= chosen <= ks[-1]:
        page.dashes((x_of(chosen), top), (x_of(chosen), bottom), _MARK)
        value = values[np.flatnonzero(ks == chosen)[0]]
        said = f"k = {chosen}" + (f": {value:.4g}" if np.isfinite(value) else "")
        page.text((WIDTH - _RIGHT, top - 8), said, _MARK, "rb")
        if np.isfinite(value):
            page.dot((x_of(chosen), y_of(float(value))), 7, _MARK)


def _axis(page: Page, y_of: Callable[[float], float], values: tuple[float, float], name: str, ends: Any) -> None:
    top, bottom = ends
    for value in ticks(values, 5):
        page.line([(_LEFT, y_of(value)), (WIDTH - _RIGHT, y_of(value))], _GRID, 1)
        page.text((_LEFT - 10, y_of(value)), label(value), _FAINT, "rm")
    page.line([(_LEFT, top), (_LEFT, bottom), (WIDTH - _RIGHT, bottom)], _FAINT, 1)
    page.text((_LEFT, top - 8), name, _INK, "lb")


def _name_branch(page: Page, name: str, ends: tuple[float, float], bottom: float, colour: str) -> None:
    left, right = ends
    page.line([(left + 2, bottom + 6), (right - 2, bottom + 6)], colour, 5)
    if page.width_of(name) <= right - left:
        page.text(((left + right) / 2, bottom + 14), name, colour, "mt")


def _first_image(tree: Floats, node: int) -> int:
    count = len(tree) + 1
    while node >= count:
        node = int(tree[node - count, 0])
    return node


def _clusters(number: int) -> str:
    return f"{number} cluster{'' if number == 1 else 's'}"
