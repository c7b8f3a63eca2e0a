"""`inspect` says why each node has its rule, and writes the canonical model and a drawing of the relevance path."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_model import Program

import lrp_onnx
from lrp_onnx.inspection import CANONICAL_KEY, flow_of, inspect_model
from lrp_onnx.rules import composite

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def residual(tmp_path: Path) -> Path:
    """Conv and BatchNormalization, an activation in pieces, x + f(x), Softmax."""
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 18]>
    g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
        c = Conv <pads = [1, 1, 1, 1]> (x, w)
        b = BatchNormalization (c, g, o, o, g)
        s = Sigmoid (b)  m = Mul (s, b)
        k = Conv <pads = [1, 1, 1, 1]> (m, v)
        a = Add (k, m)
        p = GlobalAveragePool (a)  f = Flatten (p)
        h = MatMul (f, d)  i = Add (h, e)
        y = Softmax (i)
    }""")
    random = np.random.default_rng(0)
    shapes = {"w": (4, 3, 3, 3), "v": (4, 4, 3, 3), "d": (4, 5), "e": (5,)}
    arrays = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    arrays |= {"g": np.ones(4, np.float32), "o": np.zeros(4, np.float32)}
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    path = tmp_path / "residual.onnx"
    onnx.save(proto, path)
    return path


def test_every_node_says_why_it_has_its_rule(program: Program, residual: Path) -> None:
    options = ("--composite", "epsilon-gamma-box", "--low=-1", "--high", "1", "--rule", "Swish=gradient")
    assert program("inspect", residual, *options, "--json") == 0, program.err
    found = json.loads(program.out)
    assert {node["output"]: (node["rule"], node["why"]) for node in found["nodes"]} == {
        "b": ("z-box", "composite: first convolution; BatchNormalization 'BatchNormalization_b' fused into it"),
        "m": ("gradient", "composite: Swish; recognised in 2 nodes"),
        "k": ("gamma", "composite: convolution"),
        "a": ("norm", "default of family sum"),
        "p": ("norm", "default of family mean"),
        "f": ("route", "default of family route"),
        "i": ("epsilon", "composite: dense; Add 'Add_i' fused into it"),
    }
    assert (found["cut"], found["nodes_before"]) == ("Softmax", 11)


def test_the_canonical_model_is_written_with_what_was_done_to_it(
    program: Program, residual: Path, tmp_path: Path
) -> None:
    out = tmp_path / "canonical.onnx"
    assert program("inspect", residual, "--graph", out) == 0, program.err
    written = onnx.load(out)
    onnx.checker.check_model(written, full_check=True)
    record = json.loads({entry.key: entry.value for entry in written.metadata_props}[CANONICAL_KEY])
    assert record["cut"] == {"i": "Softmax"}
    assert record["nodes"]["Conv_c"] == ["BatchNormalization 'BatchNormalization_b' fused into it"]
    assert [node.op_type for node in lrp_onnx.load(out).nodes] == [
        node.op_type for node in lrp_onnx.load(residual).nodes
    ]
    assert program("inspect", residual, "--graph", out) == 2
    assert "--overwrite" in program.err


def test_the_drawing_has_a_box_for_each_node_and_a_line_for_each_edge(
    program: Program, residual: Path, tmp_path: Path
) -> None:
    out = tmp_path / "path.svg"
    assert program("inspect", residual, "--svg", out) == 0, program.err
    drawing = ElementTree.parse(out).getroot()
    texts = ["".join(text.itertext()) for text in drawing.iter(f"{SVG}text")]
    assert {"Conv flat", "Swish pass", "Conv z-plus", "Add norm", "Gemm epsilon"} <= set(texts)
    assert len(drawing.findall(f"{SVG}g")) == 8  # the input and seven nodes
    assert len(drawing.findall(f"{SVG}path")) == 8
    boxes = [tuple(float(box.get(key, 0)) for key in ("x", "y")) for box in drawing.iter(f"{SVG}rect") if box.get("rx")]
    assert len(set(boxes)) == 8


def test_lines_are_as_wide_as_the_relevance_of_the_sample(program: Program, residual: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32))
    inspection = inspect_model(lrp_onnx.load(residual), composite("epsilon"))
    flow = flow_of(inspection, tmp_path / "x.npy")
    assert flow.tensors["i"] == pytest.approx(1)
    assert flow.edges["Add_a", "k"] + flow.edges["Add_a", "m"] == pytest.approx(flow.tensors["a"], abs=1e-4)
    assert flow.tensors["m"] == pytest.approx(flow.edges["Add_a", "m"] + flow.edges["Conv_k", "m"], abs=1e-4)
    options = ("--composite", "epsilon", "--svg", tmp_path / "path.svg", "--on", tmp_path / "x.npy")
    assert program("inspect", residual, *options) == 0, program.err
    text = (tmp_path / "path.svg").read_text(encoding="utf-8")
    widths = {
        title: float(width)
        for width, title in re.findall(r'stroke-width="([\d.]+)" stroke-opacity.*?<title>(.*?):', text)
    }
    ratio = (widths["k to Add_a"] - 0.8) / (widths["m to Add_a"] - 0.8)
    assert ratio == pytest.approx(abs(flow.edges["Add_a", "k"] / flow.edges["Add_a", "m"]), rel=0.2)


def test_a_sample_needs_a_drawing(program: Program, residual: Path, tmp_path: Path) -> None:
    assert program("inspect", residual, "--on", tmp_path / "x.npy") == 2
    assert "--svg" in program.err
