"""ONNX sources pass through; the registry, the comparison and the quiet imports."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from lrp_onnx.converters import CONVERTERS, Converter, InputSpec, Loaded, Request, Route, convert
from lrp_onnx.converters.verify import draw
from lrp_onnx.errors import ConversionError, DataError
from lrp_onnx.preprocess import Preprocess


def double(factor: float = 2.0) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        double (float[N, 3] x) => (float[N, 3] y) {{
            factor = Constant<value = float[1] {{{factor}}}>()
            y = Mul(x, factor)
        }}"""
    )


def double_source(request: Request) -> Loaded:
    """A source form of our own: the number to multiply by, as a string object with a marker class."""
    spec = InputSpec("x", (3,), np.dtype(np.float32))
    routes = (Route("wrong", lambda: double(2.1)), Route("right", lambda: double(2.0)))
    return Loaded("numbers", "1", (spec,), routes, lambda inputs: [inputs[0] * np.float32(2)])


class Doubler:
    """Stands for a model object of a framework that is not among the known ones."""


def test_onnx_file_passes_through_unchanged_but_for_metadata(tmp_path: Path) -> None:
    onnx.save(double(), tmp_path / "double.onnx")
    before = (tmp_path / "double.onnx").read_bytes()
    conversion = convert(tmp_path / "double.onnx", classes=["a", "b", "c"])
    assert (conversion.framework, conversion.difference, conversion.relative) == ("onnx", 0.0, 0.0)
    stripped = onnx.ModelProto()
    stripped.CopyFrom(conversion.model)
    del stripped.metadata_props[:]
    assert stripped == double()
    assert {entry.key for entry in conversion.model.metadata_props} == {"lrp_onnx.classes", "lrp_onnx.source"}
    assert (tmp_path / "double.onnx").read_bytes() == before


def test_model_proto_of_the_caller_is_not_modified() -> None:
    model = double()
    convert(model, classes=["a", "b", "c"])
    assert model == double()


def test_invalid_onnx_says_what_is_wrong(tmp_path: Path) -> None:
    model = double()
    model.graph.node[1].input[0] = "nowhere"
    with pytest.raises(ConversionError, match=r"not valid ONNX.*nowhere"):
        convert(model)
    (tmp_path / "half.onnx").write_bytes(double().SerializeToString()[:40])
    with pytest.raises(ConversionError, match=r"half.onnx"):
        convert(tmp_path / "half.onnx")


def test_missing_external_data_names_the_file(tmp_path: Path) -> None:
    model = double()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3000, np.float32), "w"))
    model.graph.node.append(onnx.helper.make_node("Identity", ["w"], ["unused"]))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ConversionError, match=r"weights.bin") as caught:
        convert(tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)


def test_no_such_file_and_unknown_forms_are_clear(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"missing.onnx: there is no such file"):
        convert(tmp_path / "missing.onnx")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ConversionError, match=r"notes.txt is of no form .*Keras.*PyTorch"):
        convert(tmp_path / "notes.txt")
    with pytest.raises(ConversionError, match=r"object of type builtins.dict"):
        convert({})


def test_one_registry_line_adds_a_source_form_and_a_disagreeing_route_is_passed_over() -> None:
    CONVERTERS.append(Converter("doubler", lambda request: isinstance(request.source, Doubler), double_source))
    try:
        conversion = convert(Doubler())
    finally:
        CONVERTERS.pop()
    assert conversion.how == "right"
    assert conversion.relative == 0.0
    assert any("wrong: outputs differ by" in note and "relative 0.05" in note for note in conversion.notes)


def test_difference_and_tolerance_are_relative_to_the_largest_reference_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def source(request: Request) -> Loaded:
        loaded = double_source(request)
        return replace(loaded, routes=loaded.routes[:1])

    monkeypatch.setattr(
        "lrp_onnx.converters.conversion.CONVERTERS", [Converter("doubler", lambda request: True, source)]
    )
    with pytest.raises(ConversionError, match=r"relative 0.05, allowed 0.001"):
        convert(Doubler())
    conversion = convert(Doubler(), tolerance=0.06)
    assert conversion.relative == pytest.approx(0.05, rel=1e-3)
    assert conversion.difference > conversion.relative


def test_random_inputs_fit_dtype_example_and_preprocessing() -> None:
    random = np.random.default_rng(0)
    pixels = draw(InputSpec("x", (8, 8), np.dtype(np.uint8)), 2, random)
    assert pixels.dtype == np.uint8 and pixels.max() > 200
    rows = np.array([[1, 1, 0, 0, 0], [5, 6, 7, 8, 9]])
    index = draw(InputSpec("i", (5,), np.dtype(np.int64)), 20, random, rows)
    assert set(map(tuple, np.sort(index))) == {(0, 0, 0, 1, 1), (5, 6, 7, 8, 9)} and len(np.unique(index, axis=0)) > 5
    pictures = Preprocess(size=(5, 6), layout="NHWC", range=(0, 255), mean=(100, 0, 0), std=(1, 1, 100))
    floats = draw(InputSpec("x", (None, None, 3), np.dtype(np.float32)), 40, random, None, pictures)
    assert floats.shape == (40, 5, 6, 3) and floats.dtype == np.float32
    low, high = floats.min((0, 1, 2)), floats.max((0, 1, 2))
    np.testing.assert_allclose(low, [-100, 0, 0], atol=3)
    np.testing.assert_allclose(high, [155, 255, 2.55], atol=3)


def test_unknown_preprocess_field_is_an_error() -> None:
    with pytest.raises(DataError, match=r"colour_space"):
        convert(double(), preprocess={"colour_space": "RGB"})


def test_importing_converters_imports_no_framework() -> None:
    code = (
        "import sys, lrp_onnx.converters\n"
        "heavy = 'torch', 'tensorflow', 'keras', 'onnxruntime', 'onnxscript', 'tf2onnx'\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_missing_framework_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "m.keras").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setitem(sys.modules, "keras", None)  # which other tests may have imported
    with pytest.raises(ConversionError, match=r'keras.*pip install "lrp-onnx\[tensorflow\]"'):
        convert(tmp_path / "m.keras")
    (tmp_path / "w.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ConversionError, match=r'safetensors.*pip install "lrp-onnx\[pytorch\]"'):
        convert("torch.nn:Identity", weights=tmp_path / "w.safetensors", input_shape=(3,))
