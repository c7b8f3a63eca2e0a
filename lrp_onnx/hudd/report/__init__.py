"""The report of a case as one HTML file: what fails, in which clusters, and what retraining changed."""

from lrp_onnx.hudd.report.page import write_report

__all__ = ["write_report"]
