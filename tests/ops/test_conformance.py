"""Every op computes what ONNX's own backend tests expect of it."""

from __future__ import annotations

import importlib
import pkgutil
import re
import warnings
from collections.abc import Sequence
from functools import cache

import numpy as np
import onnx
import onnx.backend.test.case.node as published
import pytest
import torch
from onnx.backend.test.case.test_case import TestCase

from lrp_onnx.forward import to_tensor
from lrp_onnx.graph.model import Graph
from lrp_onnx.ops import OPS, find, run

# Cases that do not apply, by a pattern on their name, and why.
EXCLUDED = {
    r"_uint(16|32|64)(_expanded)?$": "torch has no arithmetic for these integers",
    r"_bitcast_|_string|STRING": "strings",
    r"FLOAT8|FLOAT4|INT4|INT2|E8M0|_e8m0_|linear_(e4m3|e5m2|float4|u?int[24])": "types that torch lacks",
    r"^test_(de)?quantizelinear_blocked": "quantisation in blocks; refused by name",
    r"softmax_precision": "rounds to a shorter float inside; a run keeps its own precision",
    r"^test_dynamicquantizelinear_expanded$": "a tie that float64 does not round to",
    r"_training_mode|^test_training_dropout(?!_zero_ratio)": "training mode",
    r"^test_resize_downsample_scales_(linear|cubic)_align_corners$": "ONNX Runtime differs here, and it is the forward",
    r"^test_reduce_(max|min)_empty_set": "a maximum of nothing has no element to send relevance to",
    r"^test_scatter.*_(mul|multiply|max|min)(_|$)": "not a routing of elements; refused by name",
}

# Outputs beyond the first that the torch forward leaves out: statistics that only training reads.
LEFT_OUT = {"LayerNormalization"}

# Expected values published with four digits.
FOUR_DIGITS = {"test_averagepool_2d_ceil_last_window_starts_on_pad", "test_gridsample_bicubic"}

MODULES = [m.name for m in pkgutil.iter_modules(published.__path__) if not m.ispkg]
OWN = [m for m in MODULES if m.replace("_", "") in {op_type.lower() for _, op_type in OPS}]


@cache
def cases_of(module: str) -> list[TestCase]:
    """The test cases that importing one module of onnx's backend tests registers; some take seconds to compute."""
    before = len(published._NodeTestCases)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        importlib.import_module(f"{published.__name__}.{module}")
    return published._NodeTestCases[before:]


def reason_to_exclude(case: TestCase) -> str | None:
    return next((why for pattern, why in EXCLUDED.items() if re.search(pattern, case.name)), None)


def applies(case: TestCase) -> bool:
    nodes = case.model.graph.node
    known = all((n.domain, n.op_type) in OPS for n in nodes)
    tensors = all(v.type.HasField("tensor_type") for v in (*case.model.graph.input, *case.model.graph.output))
    return known and tensors and reason_to_exclude(case) is None


def as_array(value: np.ndarray | np.generic | onnx.TensorProto) -> np.ndarray:
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def compute(
    model: onnx.ModelProto, inputs: Sequence[np.ndarray | onnx.TensorProto], dtype: torch.dtype
) -> dict[str, np.ndarray]:
    graph = Graph.from_proto(model)
    arrays = dict(zip((i.name for i in model.graph.input), inputs, strict=False)) | dict(graph.initializers)
    values = {n: to_tensor(as_array(a), dtype, torch.device("cpu")) for n, a in arrays.items()}
    for node in graph.nodes:
        results = run(node, find(node), [values[n] if n else None for n in node.inputs])
        values.update((n, r) for n, r in zip(node.outputs, results, strict=False) if n)
    return {n: v.numpy() for n, v in values.items()}


def tolerance(case: TestCase) -> float:
    floats = [v.type.tensor_type.elem_type for v in (*case.model.graph.input, *case.model.graph.output)]
    short = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}.intersection(floats)
    return max(case.rtol, 1e-2) if short else 1e-3 if case.name in FOUR_DIGITS else 1e-5


def check(case: TestCase, dtype: torch.dtype) -> None:
    for inputs, outputs in case.data_sets:
        got = compute(case.model, inputs, dtype)
        for k, (info, expected) in enumerate(zip(case.model.graph.output, outputs, strict=True)):
            if k and case.model.graph.node[0].op_type in LEFT_OUT:
                continue
            expected, actual = as_array(expected), got[info.name]
            assert actual.shape == expected.shape
            if expected.dtype.kind in "biu":
                assert actual.dtype == expected.dtype
            allowed = tolerance(case)
            np.testing.assert_allclose(
                actual.astype(np.float64), expected.astype(np.float64), rtol=allowed, atol=min(allowed, 1e-6)
            )


def failures(cases: Sequence[TestCase]) -> list[str]:
    found = []
    for case in cases:
        for dtype in (torch.float32, torch.float64):
            try:
                check(case, dtype)
            except Exception as error:
                found.append(f"{case.name} in {dtype}: {type(error).__name__} {' '.join(str(error).split())[:200]}")
    return found


@pytest.mark.parametrize("module", OWN)
def test_op_computes_what_onnx_expects(module: str) -> None:
    cases = [case for case in cases_of(module) if applies(case)]
    assert cases
    assert not failures(cases)


def test_ops_written_out_in_registered_ones_compute_what_onnx_expects() -> None:
    cases = [case for module in MODULES if module not in OWN for case in cases_of(module) if applies(case)]
    assert cases
    assert not failures(cases)


def test_every_exclusion_still_excludes_something() -> None:
    names = [case.name for module in MODULES for case in cases_of(module)]
    unused = [pattern for pattern in EXCLUDED if not any(re.search(pattern, name) for name in names)]
    assert not unused
