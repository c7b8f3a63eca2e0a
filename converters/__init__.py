"""Models of other frameworks to ONNX, checked against their source."""

from lrp_onnx.converters.base import Converter, InputSpec, Loaded, Request, Route
from lrp_onnx.converters.conversion import CONVERTERS, Conversion, convert

__all__ = ["CONVERTERS", "Conversion", "Converter", "InputSpec", "Loaded", "Request", "Route", "convert"]
