"""Every op computes what ONNX's own backend tests expect of it."""

from __future__ import annotations

import re

import onnx
import pytest
from conformance import EXCLUDED, PAGE, cases_by_op, failures, page, reason_to_exclude

SLOW = ("AffineGrid", "Attention", "LinearAttention", "SoftmaxCrossEntropyLoss")  # many cases of many nodes


@pytest.mark.parametrize("op", [pytest.param(op, marks=[pytest.mark.slow] * (op in SLOW)) for op in cases_by_op()])
def test_op_computes_what_onnx_expects(op: str) -> None:
    assert not list(failures([case for case in cases_by_op()[op] if reason_to_exclude(case) is None]))


def test_every_exclusion_still_excludes_something() -> None:
    names = [case.name for cases in cases_by_op().values() for case in cases]
    assert not [pattern for pattern in EXCLUDED if not any(re.search(pattern, name) for name in names)]


def test_coverage_page_is_up_to_date() -> None:
    written = PAGE.read_text(encoding="utf-8")
    if f"onnx {onnx.__version__};" not in written:
        pytest.skip("the page is for the operators of another version of onnx")
    assert written == page(), "run python tests/ops/conformance.py"
