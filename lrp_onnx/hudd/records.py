"""A clustering on disk: tables for people, and a JSON file from which later steps have it back."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrp_onnx.errors import DataError
from lrp_onnx.hudd.clusters import Clustering
from lrp_onnx.hudd.distances import Distances, store_hash
from lrp_onnx.hudd.samples import Samples
from lrp_onnx.store import HeatmapStore

CLUSTERING, CLUSTERS, SCORES, DISTANCES = "clustering.json", "clusters.csv", "scores.csv", "distances.h5"
CHOSEN = "LayerX"
FORMAT, FORMAT_VERSION = "lrp-onnx-clusters", 1
_PLAIN = ("profile", "layer", "how_layer", "linkage", "k", "how_k")
_LAYER = ("layer", "k", "how_k", "score", "silhouette", "weighted_distance", "mean_distance", "wicd")
_CURVES = ("k", "clusters", "weighted_distance", "wicd", "gradient", "silhouette")
_DISTANCES = ("store_sha256", "metric", "scaling", "reduce", "dtype", "representatives")


@dataclass(frozen=True, eq=False)
class SavedClusters:
    """Clusters read back from a folder.

    Attributes
    ----------
    folder : pathlib.Path
        Where `clusters.csv` is.
    clustering : Clustering
        Without its `layers`: trees and curves are not kept.
    store, distances : pathlib.Path
        What the clusters were made from.
    """

    folder: Path
    clustering: Clustering
    store: Path
    distances: Path


def write_tables(samples: Samples, distances: Distances, clustering: Clustering, folder: Path, root: Path) -> None:
    """Write clusters.csv, scores.csv and clustering.json; paths in the last are relative to `root`."""
    of_image = zip(
        distances.rows.tolist(),
        clustering.labels.tolist(),
        clustering.distance_to_medoid.tolist(),
        clustering.silhouettes.tolist(),
        strict=True,
    )
    write_csv(
        folder / CLUSTERS,
        ("image", "cluster", "distance_to_medoid", "silhouette", "expected", "predicted"),
        (
            (
                samples.path(row),
                label,
                _number(distance),
                _number(silhouette),
                samples.expected(row),
                samples.predicted(row),
            )
            for row, label, distance, silhouette in of_image
        ),
    )
    write_csv(
        folder / SCORES,
        ("layer", *_CURVES, "chosen_k", "chosen_layer"),
        (
            (name, k, made, *map(_number, values), int(k == scores.k), int(name == clustering.layer))
            for name, scores in clustering.layers.items()
            for k, made, *values in zip(*(getattr(scores.curves, column).tolist() for column in _CURVES), strict=True)
        ),
    )
    values = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "store": Path(os.path.relpath(samples.store.path.resolve(), root.resolve())).as_posix(),
        "distances": {name: str(distances.attrs.get(name, "")) for name in _DISTANCES},
        **{name: getattr(clustering, name) for name in _PLAIN},
        "noise": list(clustering.noise),
        "layers": [{name: _json(getattr(scores, name)) for name in _LAYER} for scores in clustering.layers.values()],
        "medoids": {str(label): medoid for label, medoid in clustering.medoids.items()},
        "thresholds": clustering.thresholds,
        "labels": clustering.labels.tolist(),
        "distance_to_medoid": [_json(value) for value in clustering.distance_to_medoid.tolist()],
        "silhouettes": clustering.silhouettes.tolist(),
    }
    (folder / CLUSTERING).write_text(json.dumps(values, ensure_ascii=False, indent=1), encoding="utf-8")


def read_clusters(folder: str | os.PathLike[str], store: str | os.PathLike[str] | None = None) -> SavedClusters:
    """Read the clusters that `cluster_store` wrote.

    Parameters
    ----------
    folder : path-like
        The folder given to `cluster_store`, for the layer it chose; or the folder of one layer in it.
    store : path-like, optional
        The heatmap store of the errors, when it is no longer where it was.

    Raises
    ------
    DataError
        When there are no clusters, or the files that they were made from are gone or others.
    """
    given = Path(folder)
    here = next((path for path in (given, given / CHOSEN) if (path / CLUSTERING).is_file()), None)
    if here is None:
        raise DataError(f"{given}: holds no clusters ({CHOSEN}/{CLUSTERING}); make them with `lrp-onnx cluster`")
    root = next((path for path in here.resolve().parents[:2] if (path / DISTANCES).is_file()), None)
    if root is None:
        raise DataError(f"{here}: there is no {DISTANCES} above it; make the clusters again with `lrp-onnx cluster`")
    try:
        values = json.loads((here / CLUSTERING).read_text(encoding="utf-8"))
        if values["format"] != FORMAT or values["format_version"] > FORMAT_VERSION:
            raise ValueError(f"format {values['format']} {values['format_version']}")
        clustering = _clustering(values)
        where = root / values["store"] if store is None else Path(store)
        made_from = values["distances"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{here / CLUSTERING}: cannot be used ({error}); make the clusters again") from error
    if not where.is_file():
        raise DataError(f"{here}: the heatmaps of the errors are not at {where}; say where they are with --store")
    _check_origin(here, root / DISTANCES, where, made_from, len(clustering.labels))
    return SavedClusters(here, clustering, where, root / DISTANCES)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)


def _clustering(values: dict[str, Any]) -> Clustering:
    limits = values.get("thresholds")
    return Clustering(
        **{name: values[name] for name in _PLAIN},
        labels=np.array(values["labels"], dtype=np.int64),
        medoids={int(label): int(medoid) for label, medoid in values["medoids"].items()},
        distance_to_medoid=np.array(values["distance_to_medoid"], dtype=np.float64),
        silhouettes=np.array(values["silhouettes"], dtype=np.float64),
        noise=tuple(values["noise"]),
        layers={},
        thresholds=None if limits is None else {int(label): float(limit) for label, limit in limits.items()},
    )


def _check_origin(here: Path, distances: Path, store: Path, made_from: dict[str, str], count: int) -> None:
    with Distances(distances) as there, HeatmapStore(store) as errors:
        differs = [name for name in _DISTANCES if made_from.get(name, "") != str(there.attrs.get(name, ""))]
        if differs or len(there.rows) != count:
            raise DataError(
                f"{here}: {distances} was made anew since, its {', '.join(differs) or 'number of images'} differs; "
                "make the clusters again with --overwrite"
            )
        if there.rows[-1] >= len(errors) or store_hash(errors, there.rows) != made_from["store_sha256"]:
            raise DataError(f"{store} is not the store that the clusters in {here} were made from")


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6g}"


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
