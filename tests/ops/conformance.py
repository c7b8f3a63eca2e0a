"""ONNX's backend node tests, run by the ops here; `python tests/ops/conformance.py` writes docs/coverage.md."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test.case.node as published
import torch
from onnx.backend.test.case.test_case import TestCase

from lrp_onnx.forward import TorchForward, to_tensor
from lrp_onnx.graph import Graph, load
from lrp_onnx.graph.blocked import BLOCKED
from lrp_onnx.graph.bodies import CONTRIB
from lrp_onnx.graph.quantised import QUANTISED
from lrp_onnx.ops import OPS
from lrp_onnx.rules import BASE

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"

# Operators without a meaning here, and why; a node on the relevance path is refused by name.
REFUSED = {
    "Adagrad, Adam, Momentum": "a step of training",
    "ArrayFeatureExtractor, Binarizer, LabelEncoder, TreeEnsemble": "classic machine learning, without a gradient",
    "Bernoulli, Multinomial, RandomNormal, RandomNormalLike, RandomUniform, RandomUniformLike": "random: no one result",
    "BitCast": "bits, not numbers",
    "ConvInteger, MatMulInteger": "integers; with constant weights written out on dequantised ones",
    "If, Loop, Scan": "control flow that data decides; what constants decide is resolved in the graph",
    "ImageDecoder": "reads an image file",
    "MelWeightMatrix": "of constants; folded in the graph",
    "Optional, OptionalGetElement, OptionalHasElement": "optional values",
    "RegexFullMatch, StringConcat, StringNormalizer, StringSplit, TfIdfVectorizer": "text",
    "ConcatFromSequence, SequenceAt, SequenceConstruct, SequenceEmpty, SequenceErase, SequenceInsert, SequenceLength, "
    "SequenceMap, SplitToSequence": "sequences of tensors; what constants decide is resolved in the graph",
}
WHY_REFUSED = {op: why for ops, why in REFUSED.items() for op in ops.split(", ")}

RESOLVED = ("If", "Loop", "Scan")

# Cases that do not apply, by a pattern on their name, and why.
EXCLUDED = {
    r"_uint(16|32|64)(_expanded)?$|^test_bitwise_not_3d$": "torch has no arithmetic for these integers",
    r"_string|STRING": "text",
    r"FLOAT8|FLOAT4|INT4|INT2|E8M0|_e8m0_|linear_(e4m3|e5m2|float4|u?int[24])": "types that torch lacks",
    r"^test_(de)?quantizelinear_blocked": "quantisation in blocks",
    r"softmax_precision": "rounds to a shorter float inside; a run keeps its own precision",
    r"^test_dynamicquantizelinear(_expanded)?$": "a tie that float64 does not round to",
    r"^test_affine_grid_3d_align_corners|^test_range_.*_expanded": "a branch or a loop that data decides",
    r"_training_mode|^test_training_dropout(?!_zero_ratio)": "training mode",
    r"^test_resize_downsample_scales_(linear|cubic)_align_corners$": "ONNX Runtime differs here, and it is the forward",
    r"^test_reduce_(max|min)_empty_set": "a maximum of nothing has no element to send relevance to",
    r"^test_flexattention_(score_mod|prob_mod|causal_mask|soft_cap|relative)(?!.*expanded)": "a function of the user's",
}

# Outputs beyond the first that the torch forward leaves out: statistics that only training reads.
LEFT_OUT = {"LayerNormalization"}

# Expected values published with four digits.
FOUR_DIGITS = {
    *("test_averagepool_2d_ceil_last_window_starts_on_pad", "test_gridsample_bicubic"),
    *("test_roialign_aligned_false", "test_roialign_aligned_true", "test_roialign_mode_max"),
}

MODULES = [m.name for m in pkgutil.walk_packages(published.__path__, f"{published.__name__}.") if not m.ispkg]


@cache
def cases_of(module: str) -> list[TestCase]:
    """The test cases that importing one module of onnx's backend tests registers; some take seconds to compute."""
    before = len(published._NodeTestCases)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        if module in sys.modules:  # by other tests: register its cases again, under the same names
            published._existing_names.clear()
            importlib.reload(sys.modules[module])
        else:
            importlib.import_module(module)
    return published._NodeTestCases[before:]


@cache
def cases_by_op() -> dict[str, list[TestCase]]:
    """Every case under the operator that it is for, also where the case has that operator written out."""
    result: dict[str, list[TestCase]] = defaultdict(list)
    for module in MODULES:
        cases = cases_of(module)
        alone = Counter(_label(c.model.graph.node[0]) for c in cases if len(c.model.graph.node) == 1)
        for case in cases:
            nodes = case.model.graph.node
            written_out = case.name.endswith("_expanded") or len(nodes) > 1
            result[alone.most_common(1)[0][0] if written_out and alone else _label(nodes[0])].append(case)
    return dict(sorted(result.items()))


def _label(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def reason_to_exclude(case: TestCase) -> str | None:
    """Why a case is not run; None if it is, and has to pass."""
    for pattern, why in EXCLUDED.items():
        if re.search(pattern, case.name):
            return why
    if not all(v.type.HasField("tensor_type") for v in (*case.model.graph.input, *case.model.graph.output)):
        return "sequences and optional values"
    ops = [node.op_type for node in case.model.graph.node]
    resolved = RESOLVED if len(ops) > 1 else ()  # alone, they have nothing constant about them
    return next((WHY_REFUSED[op] for op in ops if op in WHY_REFUSED and op not in resolved), None)


def _graph(case: TestCase) -> Graph:
    """The model as it is where its ops are known here; what it becomes in canonical form otherwise."""
    if all((node.domain, node.op_type) in OPS for node in case.model.graph.node):
        return Graph.from_proto(case.model)
    return _canonical(case.name, case.model.SerializeToString())


@cache
def _canonical(name: str, model: bytes) -> Graph:
    return load(model)


def as_array(value: np.ndarray | np.generic | onnx.TensorProto) -> np.ndarray:
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _tolerance(case: TestCase) -> float:
    floats = [v.type.tensor_type.elem_type for v in (*case.model.graph.input, *case.model.graph.output)]
    short = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}.intersection(floats)
    return max(case.rtol, 1e-2) if short else 1e-3 if case.name in FOUR_DIGITS else 1e-5


def check(case: TestCase, dtype: torch.dtype) -> None:
    """Run a case; AssertionError, or whatever an op raises, where it does not give what was published."""
    graph, cpu = _graph(case), torch.device("cpu")
    given = [v.name for v in case.model.graph.input]
    names = [v.name for v in case.model.graph.output]
    names = names[:1] if case.model.graph.node[0].op_type in LEFT_OUT else names
    assert names == list(graph.outputs)[: len(names)]
    stored = {n: graph.initializers[n] for n in names if n in graph.initializers}
    forward = TorchForward(graph, [n for n in names if n not in stored], dtype, cpu)
    for inputs, outputs in case.data_sets:
        tensors = {n: to_tensor(as_array(a), dtype, cpu) for n, a in zip(given, inputs, strict=False)}
        got = {n: v.numpy() for n, v in forward(tensors).items()} | stored
        for name, published_value in zip(names, outputs, strict=False):
            expected, actual = as_array(published_value), got[name]
            assert actual.shape == expected.shape
            if expected.dtype.kind in "biu":
                assert actual.dtype == expected.dtype
            allowed = _tolerance(case)
            np.testing.assert_allclose(
                actual.astype(np.float64), expected.astype(np.float64), rtol=allowed, atol=min(allowed, 1e-6)
            )


def failures(cases: Sequence[TestCase]) -> Iterator[str]:
    """One line for each of the cases, in each precision, that does not pass."""
    for case in cases:
        for dtype in (torch.float32, torch.float64):
            try:
                check(case, dtype)
            except Exception as error:
                yield f"{case.name} in {dtype}: {type(error).__name__} {' '.join(str(error).split())[:200]}"


# ---- the page

_HEAD = """# What each ONNX operator is here

Made by `python tests/ops/conformance.py` and checked by the tests. **In torch**: computed by an op in `lrp_onnx/ops`
("yes"), written out in such ops when the model is loaded ("written out"), or not at all; float32 on the CPU runs in
ONNX Runtime, which knows them all. **Rule**: what relevance goes by where no composite says otherwise
([rules.md](rules.md)); "none": an error asks for one. "–": nothing flows through it. **Passed**: of onnx's backend node
tests for the operator, each run in float32 and in float64; all that are run pass.

"""


def rule_of(op_type: str) -> str:
    """Name of the default rule of an op with its weights constant, as the page has it."""
    op = OPS.get(("", op_type))
    if op is None:
        return "of its parts"
    if op.inputs == ():
        return "–"
    if op.family == "linear":
        return "epsilon; of two activations bilinear"
    return BASE.get(op.family, "none")


def page() -> str:
    """docs/coverage.md."""
    rows, reasons, total = [], Counter[str](), Counter[str]()
    seen = cases_by_op()
    schemas = {s.name for s in onnx.defs.get_all_schemas() if s.domain == "" and not s.deprecated}
    for name in sorted(schemas | set(seen)):
        why = Counter(w for w in map(reason_to_exclude, seen.get(name, [])) if w)
        count, excluded = len(seen.get(name, [])), sum(why.values())
        total.update(cases=count, excluded=excluded)
        reasons.update(why)
        elsewhere = "no" if name in WHY_REFUSED or count == excluded else "written out"
        torch_form = "yes" if ("", name) in OPS else elsewhere
        rule = rule_of(name) if torch_form != "no" else "refused"
        notes = "; ".join(f"{n} {w}" for w, n in why.items()) or (WHY_REFUSED.get(name, "") if not count else "")
        rows.append(f"| {name} | {torch_form} | {rule} | {count - excluded} | {excluded or ''} | {notes} |")
    left = total["cases"] - total["excluded"]
    summary = f"{len(rows)} operators of onnx {onnx.__version__}; of {total['cases']} cases {left} are run and pass.\n"
    head = "| operator | in torch | rule | passed | excluded | why |\n| --- | --- | --- | --- | --- | --- |\n"
    return _HEAD + summary + "\n" + head + "\n".join(rows) + "\n" + _contrib()


def _contrib() -> str:
    """The operators of other domains that are written out."""
    domains = sorted({domain for domain, _ in CONTRIB})
    known = {*CONTRIB, (BLOCKED, "Conv")}
    lines = [f"- `{domain}`: {', '.join(sorted(op for d, op in known if d == domain))}" for domain in domains]
    fused = "\nOperators of ONNX Runtime's optimiser that are written out in these:\n\n" + "\n".join(lines) + "\n"
    quantised = ", ".join(sorted({op for domain, op in QUANTISED if domain}))
    return f"{fused}\nOperators of its quantisers that are explained on dequantised weights: {quantised}\n"


if __name__ == "__main__":
    to_run = [case for cases in cases_by_op().values() for case in cases if reason_to_exclude(case) is None]
    if wrong := list(failures(to_run)):
        sys.exit("\n".join(wrong))
    PAGE.write_text(page(), encoding="utf-8")
