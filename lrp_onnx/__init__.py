"""Layer-wise relevance propagation on any ONNX graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lrp_onnx.lazy import lazy_names

if TYPE_CHECKING:
    from lrp_onnx.converters import Conversion, convert
    from lrp_onnx.data import Dataset, open_dataset
    from lrp_onnx.embedding import embed
    from lrp_onnx.engine import Explainer, Explanation
    from lrp_onnx.errors import LrpOnnxError
    from lrp_onnx.graph import Graph, load
    from lrp_onnx.heatmaps import Heatmaps, compute_heatmaps
    from lrp_onnx.predictions import Predictions, predict, write_predictions
    from lrp_onnx.preprocess import Preprocess
    from lrp_onnx.render import Rendered, overlay, render_store, to_rgb
    from lrp_onnx.rules import Composite, composite
    from lrp_onnx.store import HeatmapStore
    from lrp_onnx.verification import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "Composite",
    "Conversion",
    "Dataset",
    "Explainer",
    "Explanation",
    "Graph",
    "HeatmapStore",
    "Heatmaps",
    "LrpOnnxError",
    "Predictions",
    "Preprocess",
    "Rendered",
    "Verification",
    "__version__",
    "composite",
    "compute_heatmaps",
    "convert",
    "embed",
    "load",
    "open_dataset",
    "overlay",
    "predict",
    "render_store",
    "to_rgb",
    "verify",
    "write_predictions",
]

_HOMES = {
    "converters": ("Conversion", "convert"),
    "data": ("Dataset", "open_dataset"),
    "embedding": ("embed",),
    "engine": ("Explainer", "Explanation"),
    "errors": ("LrpOnnxError",),
    "graph": ("Graph", "load"),
    "heatmaps": ("Heatmaps", "compute_heatmaps"),
    "predictions": ("Predictions", "predict", "write_predictions"),
    "preprocess": ("Preprocess",),
    "render": ("Rendered", "overlay", "render_store", "to_rgb"),
    "rules": ("Composite", "composite"),
    "store": ("HeatmapStore",),
    "verification": ("Verification", "verify"),
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
