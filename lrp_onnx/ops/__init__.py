"""What each ONNX op means in torch: forward, and for linear ops the transpose; one small function an op, by family."""

from lrp_onnx.ops import (
    activations,
    arithmetic,
    indexing,
    linear,
    normalisation,
    pooling,
    quantisation,
    reduce,
    resize,
    shape,
)
from lrp_onnx.ops.registry import OPS, Family, Linear, Op, Site, find, label, op, pullback, run, unbroadcast

__all__ = [
    "OPS",
    "Family",
    "Linear",
    "Op",
    "Site",
    "activations",
    "arithmetic",
    "find",
    "indexing",
    "label",
    "linear",
    "normalisation",
    "op",
    "pooling",
    "pullback",
    "quantisation",
    "reduce",
    "resize",
    "run",
    "shape",
    "unbroadcast",
]
