"""Layer-wise relevance propagation on any ONNX graph."""

__version__ = "0.1.0"
