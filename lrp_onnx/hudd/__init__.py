"""HUDD: from errors to root-cause clusters to an unsafe set worth labelling; one module a step, none needs a case."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lrp_onnx.lazy import lazy_names

if TYPE_CHECKING:
    from lrp_onnx.hudd.assign import Assignment, Selected, assign_images, assign_stores, nearest_members
    from lrp_onnx.hudd.balance import Balanced, bootstrap
    from lrp_onnx.hudd.before_after import TestVerdict
    from lrp_onnx.hudd.blocks import pairwise
    from lrp_onnx.hudd.clusters import Clustering, LayerScores, cluster, thresholds
    from lrp_onnx.hudd.comparison import ClusterVerdict, Verdict, verdict
    from lrp_onnx.hudd.curves import Curves
    from lrp_onnx.hudd.density import DenseClusters, cluster_features
    from lrp_onnx.hudd.distances import Distances, compute_distances, compute_feature_distances
    from lrp_onnx.hudd.features import Features, compute_features, default_layer
    from lrp_onnx.hudd.improve import Improved, retrain_unsafe
    from lrp_onnx.hudd.labels import Filled, Labels, fill_labels, read_labels
    from lrp_onnx.hudd.layers import eligible_layers
    from lrp_onnx.hudd.micro import choose_representatives, join_representatives
    from lrp_onnx.hudd.outputs import Clustered, ClusterSummary, cluster_store, write_clusters
    from lrp_onnx.hudd.records import SavedClusters, read_clusters
    from lrp_onnx.hudd.retrain import Retrained
    from lrp_onnx.hudd.spreadsheet import export_xlsx
    from lrp_onnx.hudd.training import Epoch
    from lrp_onnx.hudd.unsafe import SavedUnsafeSet, UnsafeSet, assign_store, read_unsafe

__all__ = [
    "Assignment",
    "Balanced",
    "ClusterSummary",
    "ClusterVerdict",
    "Clustered",
    "Clustering",
    "Curves",
    "DenseClusters",
    "Distances",
    "Epoch",
    "Features",
    "Filled",
    "Improved",
    "Labels",
    "LayerScores",
    "Retrained",
    "SavedClusters",
    "SavedUnsafeSet",
    "Selected",
    "TestVerdict",
    "UnsafeSet",
    "Verdict",
    "assign_images",
    "assign_store",
    "assign_stores",
    "bootstrap",
    "choose_representatives",
    "cluster",
    "cluster_features",
    "cluster_store",
    "compute_distances",
    "compute_feature_distances",
    "compute_features",
    "default_layer",
    "eligible_layers",
    "export_xlsx",
    "fill_labels",
    "join_representatives",
    "nearest_members",
    "pairwise",
    "read_clusters",
    "read_labels",
    "read_unsafe",
    "retrain_unsafe",
    "thresholds",
    "verdict",
    "write_clusters",
]

_HOMES = {
    "assign": ("Assignment", "Selected", "assign_images", "assign_stores", "nearest_members"),
    "balance": ("Balanced", "bootstrap"),
    "before_after": ("TestVerdict",),
    "blocks": ("pairwise",),
    "clusters": ("Clustering", "LayerScores", "cluster", "thresholds"),
    "comparison": ("ClusterVerdict", "Verdict", "verdict"),
    "curves": ("Curves",),
    "density": ("DenseClusters", "cluster_features"),
    "distances": ("Distances", "compute_distances", "compute_feature_distances"),
    "features": ("Features", "compute_features", "default_layer"),
    "improve": ("Improved", "retrain_unsafe"),
    "labels": ("Filled", "Labels", "fill_labels", "read_labels"),
    "layers": ("eligible_layers",),
    "micro": ("choose_representatives", "join_representatives"),
    "outputs": ("ClusterSummary", "Clustered", "cluster_store", "write_clusters"),
    "records": ("SavedClusters", "read_clusters"),
    "retrain": ("Retrained",),  # its function is not here: the module has that name
    "spreadsheet": ("export_xlsx",),
    "training": ("Epoch",),
    "unsafe": ("SavedUnsafeSet", "UnsafeSet", "assign_store", "read_unsafe"),
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
