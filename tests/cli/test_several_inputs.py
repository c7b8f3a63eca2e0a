"""Models with several inputs, and several outputs, from files to stores and tables."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from small_model import Program

from lrp_onnx import Explainer, HeatmapStore, compute_heatmaps, load, open_dataset
from lrp_onnx.debug.evaluation import evaluate_store
from lrp_onnx.errors import DataError, TargetError
from lrp_onnx.rules import composite
from lrp_onnx.targets import TARGETS

RNG = np.random.default_rng(0)
LEFT, RIGHT = RNG.normal(size=(5, 1, 6, 6)), RNG.normal(size=(5, 3))
EPSILON = composite("epsilon", bias="ignore", eps=1e-9)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A picture and three numbers to two classes, and to a map; the numbers come first in the file."""
    text = """<ir_version: 8, opset_import: ["" : 19]>
        g (float[N,3] numbers, float[N,1,6,6] picture) => (float[N,2] scores, float[N,2,6,6] map) {
        map = Conv<pads=[1,1,1,1]>(picture, k) r = Relu(map) m = GlobalAveragePool(r) f = Flatten(m)
        d = MatMul(numbers, w) both = Add(d, f) scores = Softmax(both) }"""
    proto = onnx.parser.parse_model(text)
    for name, shape in {"k": (2, 1, 3, 3), "w": (3, 2)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(RNG.normal(size=shape).astype(np.float32), name))
    path = tmp_path / "two.onnx"
    onnx.save_model(proto, path)
    return path


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    path = tmp_path / "two.npz"
    np.savez(path, picture=LEFT, numbers=RIGHT, labels=np.array([0, 1, 0, 1, 0]))
    return path


def test_every_input_has_its_relevance_in_the_store(model: Path, arrays: Path, tmp_path: Path) -> None:
    found = compute_heatmaps(model, arrays, tmp_path / "h.h5", target="label", composite=EPSILON, batch_size=2)
    assert found.layers == ["picture"]
    assert found.shares is not None
    assert found.shares.input == pytest.approx(1, abs=1e-5)
    inputs = {"picture": LEFT.astype(np.float32), "numbers": RIGHT.astype(np.float32)}
    wanted = Explainer(str(model), EPSILON).explain(inputs, [0, 1, 0, 1, 0]).relevance
    with HeatmapStore(tmp_path / "h.h5") as store:
        np.testing.assert_allclose(store.attribution[:], wanted["numbers"], atol=1e-5)
        np.testing.assert_allclose(store.layer("picture")[:], wanted["picture"], atol=1e-5)
        assert store.layer("picture").attrs["op_type"] == "Input"


def test_a_table_has_a_column_for_each_input(model: Path, arrays: Path, tmp_path: Path) -> None:
    """Numbers in cells, and arrays and pictures in files beside the table."""
    table = tmp_path / "data.csv"
    lines = ["picture,numbers,label"]
    for row in range(5):
        np.save(tmp_path / f"{row}.npy", LEFT[row].astype(np.float32))
        lines.append(f"{row}.npy,{' '.join(map(str, RIGHT[row]))},{row % 2}")
    table.write_text("\n".join(lines), encoding="utf-8")
    compute_heatmaps(model, table, tmp_path / "table.h5", target="label", composite=EPSILON)
    compute_heatmaps(model, arrays, tmp_path / "arrays.h5", target="label", composite=EPSILON)
    with HeatmapStore(tmp_path / "table.h5") as one, HeatmapStore(tmp_path / "arrays.h5") as other:
        np.testing.assert_allclose(one.attribution[:], other.attribution[:], atol=1e-6)
        np.testing.assert_allclose(one.layer("picture")[:], other.layer("picture")[:], atol=1e-6)
        assert one.labels.tolist() == other.labels.tolist()


def test_pictures_of_further_inputs_are_preprocessed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.fromarray(RNG.integers(0, 255, (9, 7, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "pairs.csv").write_text("left,right,distance\na.png,b.png,0.5\nb.png,b.png,0\n")
    text = """<ir_version: 8, opset_import: ["" : 19]> g (float[N,3,5,5] left, float[N,3,5,5] right) => (float[N,1] y)
        { d = Sub(left, right) s = Mul(d, d) m = GlobalAveragePool(s) f = Flatten(m) y = ReduceSum(f, one) }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "one"))
    found = compute_heatmaps(proto, tmp_path / "pairs.csv", tmp_path / "h.h5", composite="epsilon")
    assert found.layers == ["right"]
    with HeatmapStore(tmp_path / "h.h5") as store:
        assert store.attribution.shape == store.layer("right").shape == (2, 3, 5, 5)
        assert store.attribution[0].any()
        assert store.prediction[1] == 0  # the same picture on both sides
        assert store.target_values is not None
        assert store.target_values.tolist() == [[0.5], [0.0]]
    with pytest.raises(
        DataError, match=r"has 2 inputs \(left, right\), and one picture is evaluated; `lrp-onnx verify`"
    ):
        evaluate_store(tmp_path / "h.h5", load(proto), tmp_path / "evaluation")


def test_an_interrupted_run_goes_on(model: Path, arrays: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 2:
            raise KeyboardInterrupt

    path = tmp_path / "h.h5"
    with pytest.raises(KeyboardInterrupt):
        compute_heatmaps(model, arrays, path, batch_size=2, progress=stop)
    assert compute_heatmaps(model, arrays, path, batch_size=2, resume=True).computed < 5
    compute_heatmaps(model, arrays, tmp_path / "whole.h5", batch_size=2)
    with HeatmapStore(path) as one, HeatmapStore(tmp_path / "whole.h5") as other:
        np.testing.assert_array_equal(one.layer("picture")[:], other.layer("picture")[:])


def test_commands_take_an_output_by_its_name(program: Program, model: Path, arrays: Path, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "h.h5", "--overwrite")
    assert program("heatmaps", model, arrays, *out, "--output-name", "map", "--target", "segmentation:1") == 0
    with HeatmapStore(tmp_path / "h.h5") as store:
        assert store.attribution.shape == (5, 1, 6, 6)  # the numbers do not reach the map
        assert store.layer_names == []
        prediction, sums = store.prediction[:], store.conservation
        assert sums is not None
        wins = prediction[:, 1] > prediction[:, 0]
        np.testing.assert_allclose(sums[1][:, -1], (prediction[:, 1] * wins).sum(axis=(1, 2)), rtol=1e-4)
        assert store.attrs["target"] == "segmentation:1"
    np.save(tmp_path / "map.npy", np.eye(3))
    target = f"segmentation:1,mask={tmp_path / 'map.npy'}"
    assert program("heatmaps", model, arrays, *out, "--output-name", "map", "--target", target) == 0
    with HeatmapStore(tmp_path / "h.h5") as store:
        sums, kept = store.conservation, np.kron(np.eye(3), np.ones((2, 2)))
        assert sums is not None
        np.testing.assert_allclose(sums[1][:, -1], (store.prediction[:, 1] * kept).sum(axis=(1, 2)), rtol=1e-4)
    assert program("render", tmp_path / "h.h5", "-o", tmp_path / "pictures") == 0
    sheets = sorted(path.name for path in (tmp_path / "pictures" / "sheets").iterdir())
    assert sheets == ["0000-class_0.png", "0001-class_1.png"]  # by label; the largest pixel is no class
    assert program("test", model, arrays, "-o", tmp_path / "r.csv", "--output-name", "scores") == 0
    rows = list(csv.DictReader((tmp_path / "r.csv").open(encoding="utf-8")))
    assert [row["label"] for row in rows] == ["0", "1", "0", "1", "0"]
    assert float(rows[0]["score_0"]) + float(rows[0]["score_1"]) == pytest.approx(1)
    assert program("heatmaps", model, arrays, *out, "--target", "segmentation") == 2
    assert "target 'segmentation': expected segmentation:CLASS" in program.err


def test_the_help_names_every_target(program: Program) -> None:
    assert program("heatmaps", "--help") == 0
    shown = "".join(re.findall(r"[\w:]", program.out))  # whatever the width of the terminal
    assert all(f"{name}:" in shown for name in TARGETS)


def test_a_class_is_explained_by_its_name(program: Program, model: Path, arrays: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    options = ("--classes", tmp_path / "classes.txt", "--target", "dog")
    assert program("heatmaps", model, arrays, "-o", tmp_path / "h.h5", *options) == 0
    with HeatmapStore(tmp_path / "h.h5") as store:
        assert store.samples["target"].tolist() == [1] * 5


def test_an_input_with_a_value_of_its_own_need_not_be_given(model: Path, arrays: Path, tmp_path: Path) -> None:
    """Old models list their weights as inputs too."""
    proto = onnx.load(model)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, weights["w"].dims))
    compute_heatmaps(proto, arrays, tmp_path / "h.h5")
    with HeatmapStore(tmp_path / "h.h5") as store:
        assert store.layer_names == ["picture"]
        assert store.attribution.shape == (5, 3)


def test_what_does_not_fit_is_said(model: Path, arrays: Path, tmp_path: Path) -> None:
    out = tmp_path / "h.h5"
    np.savez(tmp_path / "one.npz", numbers=RIGHT)
    with pytest.raises(DataError, match=r"has 2 inputs \(numbers, picture\), .*one\.npz nothing for 'picture'"):
        compute_heatmaps(model, tmp_path / "one.npz", out)
    np.savez(tmp_path / "short.npz", numbers=RIGHT, picture=LEFT[:2])
    with pytest.raises(DataError, match=r"5 inputs, but 'picture' is float64 \(2, 1, 6, 6\)"):
        compute_heatmaps(model, tmp_path / "short.npz", out)
    (tmp_path / "half.csv").write_text("numbers\n1 2 3\n")
    with pytest.raises(DataError, match="expected a header with a column 'picture'"):
        compute_heatmaps(model, tmp_path / "half.csv", out)
    (tmp_path / "ragged.csv").write_text("numbers\n1 2 3\n1 2\n")
    with pytest.raises(DataError, match="column 'numbers' holds numbers, and not as many in every row"):
        open_dataset(tmp_path / "ragged.csv", inputs=["numbers"])
    with pytest.raises(TargetError, match="is for boxes"):
        compute_heatmaps(model, arrays, out, output="map", target="box:best")
    assert not out.exists()
