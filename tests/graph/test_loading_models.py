"""`load` takes every form of model file, leaves it untouched, and says in one line what is wrong with a bad one."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from lrp_onnx.errors import ModelError
from lrp_onnx.graph import Graph, load
from lrp_onnx.graph.check import verify_canonical
from lrp_onnx.runtime import open_session

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def small_model(weight: np.ndarray | None = None, opset: int = 18, ir_version: int = 8) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>'
        "g (float[N, 4] x) => (float[N, 6] y)"
        "{ h = MatMul (x, w)  n = BatchNormalization (h, s, s, s, s)  y = Relu (n) }"
    )
    weight = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32) if weight is None else weight
    for name, array in {"w": weight, "s": np.ones(6, np.float32)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    proto.metadata_props.add(key="lrp_onnx.classes", value='["cat"]')
    return proto


def assert_loaded(graph: Graph) -> None:
    assert [node.op_type for node in graph.nodes] == ["Gemm", "Relu"]
    assert graph.metadata == {"lrp_onnx.classes": '["cat"]'}
    assert verify_canonical(graph) < 1e-6


def test_path_bytes_and_proto_give_the_same_graph(tmp_path: Path) -> None:
    data = small_model().SerializeToString()
    path = tmp_path / "small.onnx"
    path.write_bytes(data)
    from_path, from_bytes, from_proto = load(path), load(data), load(onnx.load_from_string(data))
    for graph in (from_path, from_bytes, from_proto):
        assert_loaded(graph)
        assert graph.sha256 == hashlib.sha256(data).hexdigest()
    assert (from_path.name, from_bytes.name) == ("small.onnx", "model")
    assert load(str(path)).sha256 == from_path.sha256
    assert path.read_bytes() == data


def test_the_callers_model_is_not_modified() -> None:
    proto = small_model()
    proto.graph.node.add(op_type="Constant", output=["k"]).attribute.append(
        onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(np.ones(6, np.float32), "inner"))
    )
    proto.graph.node.add(op_type="Add", input=["y", "k"], output=["z"])
    proto.graph.output[0].name = "z"
    before = proto.SerializeToString(deterministic=True)
    graph = load(proto)
    assert proto.SerializeToString(deterministic=True) == before
    assert graph.original is proto


def test_a_model_that_is_not_canonicalised_stays_as_it_is() -> None:
    proto = small_model()
    graph = load(proto, canonical=False)
    assert [node.op_type for node in graph.nodes] == ["MatMul", "BatchNormalization", "Relu"]
    assert graph.model == proto
    assert graph.opset == 18


def test_a_canonical_model_loads_again_unchanged() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>'
        "g (float[N, 4] x) => (float[N, 4] y) { s = Sigmoid (x)  y = Mul (x, s) }"
    )
    once = load(proto)
    twice = load(once.model)
    assert [node.op_type for node in twice.nodes] == [node.op_type for node in once.nodes] == ["Swish"]


def external_model(folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save_model(small_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_external_data_is_read_and_counts_in_the_hash(tmp_path: Path) -> None:
    path = external_model(tmp_path)
    graph = load(path)
    assert_loaded(graph)
    data = tmp_path / "weights.bin"
    assert graph.sha256 == hashlib.sha256(path.read_bytes() + data.read_bytes()).hexdigest()
    changed = bytearray(data.read_bytes())
    changed[0] ^= 1
    data.write_bytes(changed)
    assert load(path).sha256 != graph.sha256


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    path = external_model(tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"weights\.bin"):
        load(path)


def test_external_data_cut_short_is_an_error(tmp_path: Path) -> None:
    path = external_model(tmp_path)
    data = tmp_path / "weights.bin"
    data.write_bytes(data.read_bytes()[:10])
    with pytest.raises(ModelError, match=r"model\.onnx"):
        load(path)


def test_external_data_needs_a_path(tmp_path: Path) -> None:
    path = external_model(tmp_path)
    with pytest.raises(ModelError, match=r"weights\.bin.*path"):
        load(path.read_bytes())
    with pytest.raises(ModelError, match=r"weights\.bin.*path"):
        load(onnx.load(path, load_external_data=False))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"this is no model at all", "not an ONNX model"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not an ONNX model"),
        (small_model().SerializeToString()[:-40], "cut short"),
        (onnx.ModelProto().SerializeToString() or b"\x08\x08", "no graph"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=message) as caught:
        load(path)
    assert "bad.onnx" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.onnx"):
        load(tmp_path / "absent.onnx")
    with pytest.raises(ModelError, match="cannot be read"):
        load(tmp_path)


def test_invalid_graph_is_refused_with_the_reason() -> None:
    proto = small_model()
    proto.graph.node[2].input[0] = "nowhere"
    with pytest.raises(ModelError, match="nowhere") as caught:
        load(proto)
    assert "\n" not in str(caught.value)


def test_model_without_an_opset_is_refused() -> None:
    proto = small_model()
    del proto.opset_import[:]
    with pytest.raises(ModelError, match="opset"):
        load(proto)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    weight = np.ones((4, 6), np.float32)
    weight[2, 3] = value
    with pytest.raises(ModelError, match="'w'"):
        load(small_model(weight))
    assert load(small_model(weight), check=False, canonical=False).initializers["w"].shape == (4, 6)


def test_infinite_bounds_are_no_weights() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[N, 4] x) => (float[N, 6] y) { y = Pad (x, p, c) }'
    )
    for name, array in {"p": np.array([0, 1, 0, 1]), "c": np.float32(-np.inf)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    assert [node.op_type for node in load(proto).nodes] == ["Pad"]


def test_old_opset_is_brought_up_and_newer_is_left() -> None:
    assert load(small_model(opset=9, ir_version=4)).opset == 20
    newer = load(small_model(opset=22, ir_version=10))
    assert newer.opset == 22
    assert_loaded(newer)


def test_initializers_that_are_listed_as_inputs_are_constants() -> None:
    proto = small_model(opset=9, ir_version=3)
    for tensor in proto.graph.initializer:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    graph = load(proto)
    assert_loaded(graph)
    assert list(graph.inputs) == ["x"]


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(LIGHT.glob("*.onnx")), ids=lambda path: path.stem)
def test_light_models_load_and_compute_the_same(path: Path) -> None:
    graph = load(path)
    found = {node.op_type for node in graph.nodes}
    assert graph.opset == 20
    assert not found & {"ConstantOfShape", "Dropout", "Constant", "Identity", "Unsqueeze"}
    for node in graph.nodes:
        if node.op_type == "BatchNormalization":
            assert graph.producer[node.inputs[0]].op_type not in {"Conv", "Gemm"}
    assert verify_canonical(graph) < 1e-5


def test_a_model_newer_than_onnx_runtime_is_read() -> None:
    """Only the number in its head is: onnx.helper writes the newest that it knows."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 3] y) { y = Neg (x) }'
    )
    proto.ir_version = onnx.IR_VERSION
    graph = load(proto)
    assert graph.model.ir_version <= 10
    assert open_session(graph.model).run(None, {"x": np.ones((1, 3), np.float32)})[0].tolist() == [[-1, -1, -1]]
    assert proto.ir_version == onnx.IR_VERSION


def test_long_chains_are_read_in_time_that_grows_with_their_length() -> None:
    """A factor behind another, a thousand times: neither too deep for Python nor for patience."""
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["t0"])]
    nodes += [onnx.helper.make_node("Mul", [f"t{k}", "f"], [f"t{k + 1}"]) for k in range(1200)]
    nodes += [onnx.helper.make_node("Add", ["t1200", "b"], ["y"])]
    arrays = {"w": np.eye(8), "f": np.full(8, 1.001), "b": np.ones(8)}
    tensors = [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 8]) for name in "xy"]
    graph = onnx.helper.make_graph(nodes, "chain", ends[:1], ends[1:], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    start = time.process_time()
    canonical = load(model)
    assert time.process_time() - start < 20  # about one second; minutes where each factor looks through all behind it
    assert [node.op_type for node in canonical.nodes] == ["Gemm"]
    factor = float(np.float32(1.001)) ** 1200
    np.testing.assert_allclose(canonical.initializers["w"], factor * np.eye(8), rtol=1e-6)
