"""The heatmap store: one self-describing HDF5 file that other tools open too."""

from lrp_onnx.store.heatmaps import HeatmapStore, Row
from lrp_onnx.store.layout import LayerInfo, StoreSpec, layer_key
from lrp_onnx.store.shards import join_stores

__all__ = ["HeatmapStore", "LayerInfo", "Row", "StoreSpec", "join_stores", "layer_key"]
