"""Load, check and canonicalise ONNX models; nothing here knows torch."""

from lrp_onnx.graph.check import verify_canonical
from lrp_onnx.graph.loading import load
from lrp_onnx.graph.model import Graph, Node, TensorInfo

__all__ = ["Graph", "Node", "TensorInfo", "load", "verify_canonical"]
