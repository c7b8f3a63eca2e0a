"""Relevance rules and composites. A rule is one function and one registry line; a composite is data."""

from lrp_onnx.rules import gradients, linear, structure
from lrp_onnx.rules.composites import BASE, COMPOSITES, KINDS, Composite, Entry, Place, composite
from lrp_onnx.rules.registry import RULES, Backward, Call, Rule, Shares, find, linear_rule, rule

__all__ = [
    "BASE",
    "COMPOSITES",
    "KINDS",
    "RULES",
    "Backward",
    "Call",
    "Composite",
    "Entry",
    "Place",
    "Rule",
    "Shares",
    "composite",
    "find",
    "gradients",
    "linear",
    "linear_rule",
    "rule",
    "structure",
]
