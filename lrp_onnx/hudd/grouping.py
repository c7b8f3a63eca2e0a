"""From errors to clusters: by the distances of their heatmaps, or by what a network makes of the images themselves."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.errors import DataError, StoreError
from lrp_onnx.hudd.clusters import FEATURES, INPUT, PROFILES, Clustering, cluster
from lrp_onnx.hudd.distances import Distances, compute_distances, compute_feature_distances, heatmaps_of
from lrp_onnx.hudd.layers import eligible_layers
from lrp_onnx.hudd.micro import EXACT, join_representatives, micro_count
from lrp_onnx.store import HeatmapStore

if TYPE_CHECKING:
    from lrp_onnx.graph import Graph
    from lrp_onnx.hudd.density import DenseClusters

Progress = Callable[[str, int, int], None]
File = str | os.PathLike[str]


def check_profile(profile: str, changed: Sequence[str], *, has_network: bool) -> None:
    """Raise DataError when options do not fit the profile; `changed` names those that only heatmaps have."""
    profiles = (*PROFILES, FEATURES)
    if profile not in profiles:
        raise DataError(f"profile {profile!r}; expected one of {', '.join(profiles)}")
    if profile != FEATURES and has_network:
        raise DataError(f"profile {profile} compares heatmaps: --model and --backbone are for profile {FEATURES}")
    if profile == FEATURES and not has_network:
        raise DataError(f"profile {FEATURES} needs a network to take features from: --model FILE or --backbone FILE")
    if profile == FEATURES and changed:
        raise DataError(f"profile {FEATURES} has no --{changed[0]}: it takes Euclidean distances, UMAP and DBSCAN")


def by_heatmaps(
    store: HeatmapStore,
    rows: NDArray[np.int64],
    path: Path,
    *,
    profile: str,
    layer: str | None,
    min_size: int | None,
    metric: str,
    reduce: str,
    micro: int | None,
    device: str,
    scheduler: str | None,
    overwrite: bool,
    progress: Progress,
    **options: Any,
) -> tuple[Clustering, list[str]]:
    """Write the distances of the layers to `path` and cluster them; options as in `cluster_store`, with notes."""
    layers = eligible_layers(store, profile) if layer is None else [layer]
    notes = []
    if layers == [INPUT] and layer is None:
        notes.append("no inner layer in the store: images are compared by the heatmaps of the input")
    count = micro_count(len(rows), micro)
    if count and micro is None:
        notes.append(
            f"{len(rows)} errors, and no more than {EXACT} are compared pair by pair: {count} stand for all and are "
            "clustered, each of the others joins the nearest; --micro says how many, --micro 0 compares all"
        )
    how: dict[str, Any] = {"profile": profile, "layers": layers, "rows": rows, "metric": metric, "reduce": reduce}
    how |= {"micro": count, "device": device, "scheduler": scheduler}
    _compare(partial(compute_distances, store, path, **how, progress=_over(layers, progress)), overwrite)
    with Distances(path) as distances:
        progress("Clustering", 0, 1)
        # one error that stands for many is no small cluster
        least = 1 if count else min_size
        found = cluster({name: distances[name] for name in layers}, profile, layer=layer, min_size=least, **options)
        progress("Clustering", 1, 1)
        if count:
            heatmaps = heatmaps_of(store, found.layer)
            join = partial(progress, "Joining")
            found = join_representatives(found, distances, heatmaps, min_size=min_size, device=device, progress=join)
    return found, notes


def by_features(
    store: HeatmapStore,
    rows: NDArray[np.int64],
    path: Path,
    *,
    model: File | None,
    backbone: File | None,
    layer: str | None,
    min_size: int | None,
    overwrite: bool,
    progress: Progress,
) -> tuple[DenseClusters, list[str]]:
    """Write the distances of the features to `path` and cluster these; options as in `cluster_store`, with notes."""
    from lrp_onnx.hudd.density import cluster_features
    from lrp_onnx.hudd.features import compute_features

    network = _network(store, model, backbone)
    features = compute_features(network, store, rows, layer=layer, progress=partial(progress, "Looking"))
    _compare(partial(compute_feature_distances, store, path, features, progress=_over([FEATURES], progress)), overwrite)
    with Distances(path) as distances:
        progress("Clustering", 0, 1)
        origin = f"activations of {features.layer} in {features.network}"
        found = cluster_features(features.values, distances[FEATURES], min_size=min_size, origin=origin)
        progress("Clustering", 1, 1)
    return found, list(features.notes)


def _network(store: HeatmapStore, model: File | None, backbone: File | None) -> Graph:
    from lrp_onnx.graph import load

    graph = load(model if backbone is None else backbone)  # type: ignore[arg-type]
    if backbone is None and graph.sha256 != store.attrs["model_sha256"]:
        raise DataError(
            f"{graph.name} is not the model that the heatmaps in {store.path} are of; to take features from another "
            "network, name it with --backbone"
        )
    return graph


def _compare(compute: Callable[..., None], overwrite: bool) -> None:
    """Go on with the distances that are there; where that is impossible and `overwrite` allows it, replace them."""
    try:
        compute()
    except StoreError:
        if not overwrite:
            raise
        compute(overwrite=True)


def _over(layers: Sequence[str], progress: Progress) -> Progress:
    """Progress over the pairs of all layers, from progress layer by layer."""

    def advance(layer: str, done: int, total: int) -> None:
        if layer:
            progress("Comparing", layers.index(layer) * total + done, len(layers) * total)
        else:
            progress("Choosing", done, total)

    return advance
