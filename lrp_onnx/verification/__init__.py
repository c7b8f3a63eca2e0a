"""Is my heatmap right: every check of a model and a composite that a user can run herself."""

from lrp_onnx.verification.report import Check, Verification
from lrp_onnx.verification.run import SAMPLES, verify

__all__ = ["SAMPLES", "Check", "Verification", "verify"]
