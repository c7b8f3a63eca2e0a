"""Composite operations that the internal opset lacks, as model-local functions that ONNX Runtime runs as well."""

from __future__ import annotations

import onnx
import onnx_ir as ir

DOMAIN = "lrp_onnx"

_SOURCES = {
    "Swish": """
        Swish <alpha: float = 1.0> (X) => (Y) {
            Alpha = Constant <value_float: float = @alpha> ()
            AlphaLike = CastLike (Alpha, X)
            Scaled = Mul (AlphaLike, X)
            Gate = Sigmoid (Scaled)
            Y = Mul (X, Gate)
        }""",
    "RMSNormalization": """
        RMSNormalization <axis: int = -1, epsilon: float = 1e-5> (X, Scale) => (Y) {
            Axes = Constant <value_ints: ints = [-1]> ()
            Epsilon = Constant <value_float: float = @epsilon> ()
            EpsilonLike = CastLike (Epsilon, X)
            Squares = Mul (X, X)
            MeanSquare = ReduceMean <keepdims = 1> (Squares, Axes)
            Shifted = Add (MeanSquare, EpsilonLike)
            Root = Sqrt (Shifted)
            Normalized = Div (X, Root)
            Y = Mul (Normalized, Scale)
        }""",
}


def is_composite(op_type: str) -> bool:
    """Whether `op_type` is emitted in the `lrp_onnx` domain rather than as a standard operator."""
    return op_type in _SOURCES


def add_function(model: ir.Model, op_type: str) -> None:
    """Define the composite `op_type` in `model`, once."""
    identifier = (DOMAIN, op_type, "")
    if identifier not in model.functions:
        header = f'<domain: "{DOMAIN}", opset_import: ["" : {model.opset_imports[""]}]>'
        model.functions[identifier] = ir.serde.deserialize_function(
            onnx.parser.parse_function(header + _SOURCES[op_type])
        )
        model.opset_imports[DOMAIN] = 1
