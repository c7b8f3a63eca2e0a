"""Models whose batch is not the first dimension are explained sample by sample, or refused by name."""

from __future__ import annotations

import csv
import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import lrp_onnx
from lrp_onnx.batch_axis import batch_first
from lrp_onnx.cli.app import run
from lrp_onnx.errors import DataError
from lrp_onnx.graph import Graph, load
from lrp_onnx.graph.check import canonical_differences
from lrp_onnx.store import HeatmapStore

STEPS, FEATURES, CLASSES = 7, 5, 4


class Recurrent(nn.Module):
    """Time first throughout, as torch's LSTM has it: (T, N, F) to a class for each step, (T, N, C)."""

    def __init__(self, softmax: bool = False, batch_first: bool = False) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, 6, batch_first=batch_first)
        self.head, self.softmax = nn.Linear(6, CLASSES), softmax

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.head(self.lstm(x)[0])
        return scores.softmax(-1) if self.softmax else scores


class Reader(nn.Module):
    """A text reader: pictures (N, 1, H, W) to a character for each column, (W, N, C), as CTC wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.lstm = nn.Conv2d(1, 3, 3, padding=1), nn.LSTM(3 * 4, 6, bidirectional=True)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        columns = self.convolution(x).relu().flatten(1, 2).permute(2, 0, 1)
        return self.head(self.lstm(columns)[0])


def exported(net: nn.Module, shape: tuple[int, ...], dynamic: dict[str, dict[int, str]] | None = None) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(), torch.randn(shape), file, dynamo=False, opset_version=17, input_names=["x"],
            output_names=["y"], dynamic_axes=dynamic,
        )  # fmt: skip
    return file.getvalue()


TIME_FIRST = {"x": {1: "batch"}, "y": {1: "batch"}}


@pytest.fixture
def recurrent() -> Recurrent:
    torch.manual_seed(0)
    return Recurrent()


def test_a_recurrent_model_is_explained_as_its_twin_with_the_batch_in_front(recurrent: Recurrent) -> None:
    twin = Recurrent(batch_first=True)
    twin.load_state_dict(recurrent.state_dict())
    x = np.random.default_rng(0).standard_normal((3, STEPS, FEATURES)).astype(np.float32)
    moved = batch_first(load(exported(recurrent, (STEPS, 2, FEATURES), TIME_FIRST)))
    plain = load(exported(twin, (2, STEPS, FEATURES), {"x": {0: "batch"}, "y": {0: "batch"}}))
    assert moved.inputs["x"].shape == plain.inputs["x"].shape == ("batch", STEPS, FEATURES)
    one, other = (lrp_onnx.Explainer(g, "epsilon").explain(x, "position:-1") for g in (moved, plain))
    assert one.output.numpy() == pytest.approx(other.output.numpy(), abs=1e-6)
    assert one.relevance["x"].numpy() == pytest.approx(other.relevance["x"].numpy(), abs=1e-6)
    assert float(one.relevance["x"].abs().sum()) > 0
    assert batch_first(plain) is plain and batch_first(moved) is moved


@pytest.mark.parametrize("softmax", [False, True], ids=["logits", "softmax"])
def test_the_moved_model_computes_what_the_file_does(softmax: bool) -> None:
    torch.manual_seed(0)
    net = Recurrent(softmax)
    graph = batch_first(load(exported(net, (STEPS, 2, FEATURES), TIME_FIRST)))
    x = torch.randn(3, STEPS, FEATURES)
    differences = canonical_differences(graph, {"x": x.numpy()}, inner=True)
    assert max(found.relative for found in differences) < 1e-5
    assert bool(graph.cuts) is softmax
    e = lrp_onnx.Explainer(graph, "epsilon", output="y").explain(x.numpy(), "position:0")
    with torch.no_grad():
        logits = net.head(net.lstm(x.transpose(0, 1))[0]).transpose(0, 1)
    assert e.output.numpy() == pytest.approx(logits.numpy(), abs=1e-5)


def test_commands_read_samples_and_write_a_row_each(recurrent: Recurrent, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(exported(recurrent, (STEPS, 2, FEATURES), TIME_FIRST))
    x = np.random.default_rng(0).standard_normal((9, STEPS, FEATURES)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    model, data = str(tmp_path / "m.onnx"), str(tmp_path / "x.npy")
    store = tmp_path / "h.h5"
    assert run(["heatmaps", model, data, "-o", str(store), "--composite", "epsilon", "--target", "position:-1"]) == 0
    with torch.no_grad():
        wanted = recurrent(torch.from_numpy(x).transpose(0, 1)).transpose(0, 1).numpy()
    with HeatmapStore(store) as heatmaps:
        assert heatmaps.attribution.shape == (9, STEPS, FEATURES)
        assert heatmaps.prediction[:] == pytest.approx(wanted, abs=1e-5)
    assert run(["test", model, data, "-o", str(tmp_path / "r.csv"), "--batch-size", "4"]) == 0
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 and float(rows[5]["score_0"]) == pytest.approx(float(wanted[5, 0, 0]), abs=1e-4)
    arguments = ["verify", model, data, "--composite", "epsilon", "--target", "position:-1", "--samples", "9"]
    assert run(arguments) == 0


def test_pictures_read_column_by_column_have_a_row_each() -> None:
    torch.manual_seed(0)
    net = Reader()
    x = torch.randn(3, 1, 4, 6)
    with torch.no_grad():
        wanted = net(x).transpose(0, 1).numpy()
    named = batch_first(load(exported(net, (2, 1, 4, 6), {"x": {0: "batch"}, "y": {1: "batch"}})))
    e = lrp_onnx.Explainer(named, "epsilon").explain(x.numpy(), "position:2")
    assert e.output.numpy() == pytest.approx(wanted, abs=1e-5)
    single = batch_first(load(exported(net, (1, 1, 4, 6))))  # no dimension is named: (6, 1, C) for one picture
    e = lrp_onnx.Explainer(single, "epsilon").explain(x[:1].numpy(), "position:2")
    assert e.output.numpy() == pytest.approx(wanted[:1], abs=1e-5)


def test_an_output_whose_batch_cannot_be_told_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.onnx").write_bytes(exported(Reader(), (2, 1, 4, 6)))  # (6, 2, C), and nothing says what is what
    np.save(tmp_path / "x.npy", np.zeros((4, 1, 4, 6), np.float32))
    files = [str(tmp_path / "m.onnx"), str(tmp_path / "x.npy")]
    for command in (
        ["heatmaps", *files, "-o", str(tmp_path / "h.h5")],
        ["test", *files, "-o", str(tmp_path / "r.csv")],
        ["verify", *files],
    ):
        assert run(command) == 2
        said = capsys.readouterr().err
        assert "output 'y' has shape (6, 2, 4) for a batch of 2; expected a row per sample" in said
        assert "its batch seems to be dimension 1" in said and said.count("error:") == 1


def unnamed(net: nn.Module, shape: tuple[int, ...], path: Path) -> str:
    """A model that says of no dimension what it is."""
    free = {"x": {0: "p", 1: "q"}, "y": {0: "r", 1: "s"}}
    path.write_bytes(exported(net, shape, free))
    return str(path)


@pytest.mark.parametrize("said", [["1"], ["x=1", "y=1"], ["0", "x=1", "y=1"]], ids=["all", "by name", "both"])
def test_the_user_says_where_the_batch_is(said: list[str], recurrent: Recurrent, tmp_path: Path) -> None:
    model = unnamed(recurrent, (STEPS, 2, FEATURES), tmp_path / "m.onnx")
    x = np.random.default_rng(0).standard_normal((9, STEPS, FEATURES)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    files, batch = [model, str(tmp_path / "x.npy")], [part for text in said for part in ("--batch-axis", text)]
    with torch.no_grad():
        wanted = recurrent(torch.from_numpy(x).transpose(0, 1)).transpose(0, 1).numpy()
    store, target = tmp_path / "h.h5", ["--composite", "epsilon", "--target", "position:-1"]
    assert run(["heatmaps", *files, *batch, "-o", str(store), *target]) == 0
    with HeatmapStore(store) as heatmaps:
        assert heatmaps.prediction[:] == pytest.approx(wanted, abs=1e-5)
        assert heatmaps.batch_axis == {name or "": int(axis) for name, _, axis in (s.rpartition("=") for s in said)}
    assert run(["heatmaps", *files, *batch, "-o", str(store), *target, "--resume"]) == 0
    assert run(["heatmaps", *files, "-o", str(store), *target, "--resume"]) == 2  # another layout of the same file
    assert run(["test", *files, *batch, "-o", str(tmp_path / "r.csv"), "--batch-size", "4"]) == 0
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 10
    assert run(["verify", *files, *batch, *target, "--samples", "9"]) == 0
    assert run(["inspect", model, *batch, "--svg", str(tmp_path / "m.svg"), "--on", files[1]]) == 0


def test_what_was_said_travels_in_the_file(
    recurrent: Recurrent, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, told = unnamed(recurrent, (STEPS, 2, FEATURES), tmp_path / "m.onnx"), str(tmp_path / "told.onnx")
    assert run(["convert", model, "-o", told, "--batch-axis", "1"]) == 0
    graph = load(told)
    moved = batch_first(graph)
    assert moved.inputs["x"].shape == ("q", "p", FEATURES) and moved.moved and batch_first(moved) is moved
    assert load(model).metadata.keys() < graph.metadata.keys()  # the model itself stays as it is
    stays = batch_first(graph, {"x": 0, "y": 0})
    assert stays.inputs["x"].shape == ("p", "q", FEATURES)
    assert run(["convert", model, "-o", str(tmp_path / "no.onnx"), "--batch-axis", "z=1"]) == 2
    assert "no input or output is named 'z'; the model has x and y" in capsys.readouterr().err


class Layout(nn.Module):
    """Pictures with the samples last, (C, H, W, N), to two classes (N, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 64, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.convolution(x.permute(3, 0, 1, 2)).relu().flatten(1)).softmax(-1)


def test_evaluate_follows_what_the_store_says(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Layout(), np.random.default_rng(0).standard_normal((6, 1, 8, 8)).astype(np.float32)
    model = tmp_path / "m.onnx"
    model.write_bytes(exported(net, (1, 8, 8, 2), {"x": {3: "how_many"}, "y": {0: "rows"}}))
    np.save(tmp_path / "x.npy", x)
    store = str(tmp_path / "h.h5")
    said = ["--batch-axis", "x=3", "--composite", "epsilon"]
    assert run(["heatmaps", str(model), str(tmp_path / "x.npy"), "-o", store, *said]) == 0
    with HeatmapStore(store) as heatmaps:
        assert heatmaps.attribution.shape == (6, 1, 8, 8)
    assert run(["evaluate", store, str(model), "-o", str(tmp_path / "e"), "--steps", "3"]) == 0


@pytest.mark.parametrize(
    ("said", "because"),
    [
        (["front"], "--batch-axis front: expected AXIS, or NAME=AXIS"),
        (["-1"], "--batch-axis -1: expected AXIS"),
        (["x="], "--batch-axis x=: expected AXIS"),
        (["x=1", "x=2"], "--batch-axis x=2: x was 1 before"),
        (["z=1"], "no input or output is named 'z'; the model has x and y"),
        (["x=4"], "batch axis 4: 'x' is (1, 8, 8, how_many); say it by name, x=AXIS"),
        (["3"], "'y' is (how_many, 2); say it by name"),
        (["1"], "'y' is (how_many, 2), 2 samples, and 'x' has 8"),
    ],
)
def test_nonsense_is_said_in_one_line(
    said: list[str], because: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.onnx").write_bytes(exported(Layout(), (1, 8, 8, 2), {"x": {3: "how_many"}, "y": {0: "rows"}}))
    np.save(tmp_path / "x.npy", np.zeros((2, 1, 8, 8), np.float32))
    batch = [f"--batch-axis={text}" for text in said]
    for command in (["verify"], ["heatmaps", "-o", str(tmp_path / "h.h5")], ["test", "-o", str(tmp_path / "r.csv")]):
        assert run([command[0], str(tmp_path / "m.onnx"), str(tmp_path / "x.npy"), *command[1:], *batch]) == 2
        printed = capsys.readouterr().err
        assert because in " ".join(printed.split()) and printed.count("error:") == 1


def test_a_number_for_all_is_refused_where_an_output_has_classes_there(recurrent: Recurrent) -> None:
    last = nn.Sequential(recurrent, Last())
    graph = load(exported(last, (STEPS, 2, FEATURES), {"x": {0: "p", 1: "q"}, "y": {0: "r"}}))
    with pytest.raises(DataError, match=r"'y' is \(r, 4\), 4 samples, and 'x' has any number; say it by name, y=AXIS"):
        batch_first(graph, 1)
    x = torch.randn(3, STEPS, FEATURES)
    with torch.no_grad():
        wanted = last(x.transpose(0, 1)).numpy()
    for axis in ({"x": 1}, {"x": 1, "y": 0}, {"": 1, "y": 0}):
        e = lrp_onnx.Explainer(batch_first(graph, axis), "epsilon").explain(x.numpy())
        assert e.output.numpy() == pytest.approx(wanted, abs=1e-5)


class Last(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[-1]


def baked(declared: str = "N") -> Graph:
    """The batch is called free, and a Reshape holds the 1 of the exporter's example."""
    text = f"""
    <ir_version: 9, opset_import: ["" : 20]> net (float[{declared},6] x) => (float[N,4] y) {{
        parts = Reshape(x, to)
        h = MatMul(parts, w)
        y = ReduceSum<keepdims=0>(h, one)
    }}
    """
    model = onnx.parser.parse_model(text)
    arrays = {"to": np.array([1, 2, 3]), "w": np.arange(12, dtype=np.float32).reshape(3, 4), "one": np.array([1])}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    return load(model)


def test_a_batch_that_is_free_in_name_alone_is_found_out(tmp_path: Path) -> None:
    assert baked().batch == baked("1").batch == 1
    head = '<ir_version: 9, opset_import: ["" : 20]> net (float[N,6] x, float[6,4] w) => (float[1,4] y)'
    free = load(onnx.parser.parse_model(head + " { y = MatMul(x, w) }"))
    assert free.batch is None  # whatever is declared of the output
    x = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    found = lrp_onnx.compute_heatmaps(baked(), tmp_path / "x.npy", tmp_path / "h.h5", composite="epsilon")
    assert any("calls its batch free" in note for note in found.notes)
    with HeatmapStore(tmp_path / "h.h5") as store:
        each = [lrp_onnx.Explainer(baked(), "epsilon").explain(row[None]).relevance["x"][0] for row in x]
        assert store.attribution[:] == pytest.approx(np.stack(each), abs=1e-5)
    assert lrp_onnx.verify(baked(), tmp_path / "x.npy", composite="epsilon")["forward"].judgement == "pass"
