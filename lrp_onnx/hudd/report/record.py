"""What makes a report traceable: parameters, sizes and hashes of files, versions."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lrp_onnx import __version__
from lrp_onnx.errors import DataError
from lrp_onnx.hudd.records import CLUSTERING, SavedClusters
from lrp_onnx.hudd.report.steps import read_json
from lrp_onnx.store import HeatmapStore

_LIBRARIES = ("onnx", "onnxruntime", "torch", "onnx2torch", "numpy", "scipy", "kneed", "h5py", "pillow")


@dataclass(frozen=True)
class Hashed:
    """A file by the name that it has in the report, and its size in bytes."""

    name: str
    size: int
    sha256: str


def hashed(name: str, path: str | os.PathLike[str]) -> Hashed:
    """Size and SHA-256 of a file.

    Raises
    ------
    DataError
        When it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return Hashed(name, file.tell(), digest)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def run_parameters(store: HeatmapStore, saved: SavedClusters) -> dict[str, Any]:
    """How the heatmaps, the distances and the clusters were made, by name, as far as the files tell."""
    attrs, clustering = store.attrs, saved.clustering
    distances = read_json(saved.folder / CLUSTERING)["distances"]
    return {
        "heatmaps: composite of rules": json.loads(attrs["composite"]).get("name", "see below"),
        "heatmaps: explained output": attrs["target"],
        "heatmaps: initial relevance": attrs["seed"],
        "heatmaps: preprocessing": store.preprocess or "none",
        "heatmaps: made on": attrs["created"],
        **{f"distances: {name}": distances[name] for name in ("metric", "scaling", "reduce", "dtype")},
        "distances: SHA-256 of what the heatmaps were made from": distances["store_sha256"],
        "clusters: profile": clustering.profile,
        "clusters: linkage": clustering.linkage,
        "clusters: layer": f"{clustering.layer} ({clustering.how_layer})",
        "clusters: number": f"{clustering.k} ({clustering.how_k})",
    }


def versions(of_heatmaps: str) -> dict[str, str]:
    """Versions of what the report was made with; `of_heatmaps` is the one that made the heatmaps."""
    found = {"lrp-onnx (heatmaps)": of_heatmaps, "lrp-onnx (report)": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # some are optional
            continue
    return found | {"Python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
