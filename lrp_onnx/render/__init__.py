"""Pictures of relevance: colours, overlays, figures, contact sheets, and a whole store as a folder of them."""

from lrp_onnx.render.album import Rendered, render_store
from lrp_onnx.render.colours import COLOUR_MAPS, overlay, reduce_channels, robust_max, to_rgb
from lrp_onnx.render.figures import SheetItem, bar_strip, colour_bar, contact_sheet, heatmap_figure, png_bytes, save_png

__all__ = [
    "COLOUR_MAPS",
    "Rendered",
    "SheetItem",
    "bar_strip",
    "colour_bar",
    "contact_sheet",
    "heatmap_figure",
    "overlay",
    "png_bytes",
    "reduce_channels",
    "render_store",
    "robust_max",
    "save_png",
    "to_rgb",
]
