"""Models whose batch is not the first dimension are explained sample by sample, or refused by name."""

from __future__ import annotations

import csv
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lrp_onnx
from lrp_onnx.batch_axis import batch_first
from lrp_onnx.cli.app import run
from lrp_onnx.graph import load
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
