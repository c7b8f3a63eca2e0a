"""Layer-wise relevance propagation on any ONNX graph."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrp_onnx.converters import Conversion, convert
    from lrp_onnx.data import Dataset, open_dataset
    from lrp_onnx.engine import Explainer, Explanation
    from lrp_onnx.errors import LrpOnnxError
    from lrp_onnx.graph import Graph, load
    from lrp_onnx.heatmaps import Heatmaps, compute_heatmaps
    from lrp_onnx.predictions import Predictions, predict, write_predictions
    from lrp_onnx.preprocess import Preprocess
    from lrp_onnx.render import Rendered, overlay, render_store, to_rgb
    from lrp_onnx.rules import Composite, composite
    from lrp_onnx.store import HeatmapStore

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
    "__version__",
    "composite",
    "compute_heatmaps",
    "convert",
    "load",
    "open_dataset",
    "overlay",
    "predict",
    "render_store",
    "to_rgb",
    "write_predictions",
]

# Torch, ONNX and HDF5 take seconds to import, so each name brings in its own module when it is first used.
_HOMES = {
    "converters": ("Conversion", "convert"),
    "data": ("Dataset", "open_dataset"),
    "engine": ("Explainer", "Explanation"),
    "errors": ("LrpOnnxError",),
    "graph": ("Graph", "load"),
    "heatmaps": ("Heatmaps", "compute_heatmaps"),
    "predictions": ("Predictions", "predict", "write_predictions"),
    "preprocess": ("Preprocess",),
    "render": ("Rendered", "overlay", "render_store", "to_rgb"),
    "rules": ("Composite", "composite"),
    "store": ("HeatmapStore",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lrp_onnx' has no attribute '{name}'")
    value = getattr(import_module(f"lrp_onnx.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
