"""A HUDD case: a directory with a model, its data sets and settings, on which all steps run."""

from lrp_onnx.hudd.case.run import CaseRun, StepStatus, case_status, run_case
from lrp_onnx.hudd.case.settings import Case, Settings, init_case

__all__ = ["Case", "CaseRun", "Settings", "StepStatus", "case_status", "init_case", "run_case"]
