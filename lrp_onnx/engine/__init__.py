"""The reverse walk: from a graph, a composite and an input to relevance by tensor name."""

from lrp_onnx.engine.explainer import DEFAULT_COMPOSITE, Dtype, Explainer
from lrp_onnx.engine.explanation import Explanation, NodeBalance
from lrp_onnx.engine.plan import Plan, Step, build_plan

__all__ = ["DEFAULT_COMPOSITE", "Dtype", "Explainer", "Explanation", "NodeBalance", "Plan", "Step", "build_plan"]
