"""HUDD: from errors to root-cause clusters to an unsafe set worth labelling; one module a step, none needs a case."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrp_onnx.hudd.assign import Assignment, Selected, assign_images, assign_stores, nearest_members, thresholds
    from lrp_onnx.hudd.balance import Balanced, bootstrap
    from lrp_onnx.hudd.blocks import pairwise
    from lrp_onnx.hudd.clusters import Clustering, LayerScores, cluster
    from lrp_onnx.hudd.comparison import ClusterVerdict, Verdict, verdict
    from lrp_onnx.hudd.curves import Curves
    from lrp_onnx.hudd.distances import Distances, compute_distances
    from lrp_onnx.hudd.outputs import Clustered, ClusterSummary, cluster_store, eligible_layers, write_clusters
    from lrp_onnx.hudd.records import SavedClusters, read_clusters
    from lrp_onnx.hudd.retrain import Retrained
    from lrp_onnx.hudd.spreadsheet import export_xlsx
    from lrp_onnx.hudd.training import Epoch
    from lrp_onnx.hudd.unsafe import UnsafeSet, assign_store

__all__ = [
    "Assignment",
    "Balanced",
    "ClusterSummary",
    "ClusterVerdict",
    "Clustered",
    "Clustering",
    "Curves",
    "Distances",
    "Epoch",
    "LayerScores",
    "Retrained",
    "SavedClusters",
    "Selected",
    "UnsafeSet",
    "Verdict",
    "assign_images",
    "assign_store",
    "assign_stores",
    "bootstrap",
    "cluster",
    "cluster_store",
    "compute_distances",
    "eligible_layers",
    "export_xlsx",
    "nearest_members",
    "pairwise",
    "read_clusters",
    "thresholds",
    "verdict",
    "write_clusters",
]

# Torch, SciPy and HDF5 take seconds to import, so each name brings in its own module when it is first used.
_HOMES = {
    "assign": ("Assignment", "Selected", "assign_images", "assign_stores", "nearest_members", "thresholds"),
    "balance": ("Balanced", "bootstrap"),
    "blocks": ("pairwise",),
    "clusters": ("Clustering", "LayerScores", "cluster"),
    "comparison": ("ClusterVerdict", "Verdict", "verdict"),
    "curves": ("Curves",),
    "distances": ("Distances", "compute_distances"),
    "outputs": ("ClusterSummary", "Clustered", "cluster_store", "eligible_layers", "write_clusters"),
    "records": ("SavedClusters", "read_clusters"),
    "retrain": ("Retrained",),  # its function is not here: the module has that name
    "spreadsheet": ("export_xlsx",),
    "training": ("Epoch",),
    "unsafe": ("UnsafeSet", "assign_store"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lrp_onnx.hudd' has no attribute '{name}'")
    value = getattr(import_module(f"lrp_onnx.hudd.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
