"""Rows of a store are what the engine says, whatever the layout, the batches and the interruptions."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image
from small_model import CLASSES, SIZE, Program, build_model, save_picture

import lrp_onnx
from lrp_onnx.engine import Explainer
from lrp_onnx.errors import StoreError, TargetError
from lrp_onnx.heatmaps import compute_heatmaps, select_layers
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.store import HeatmapStore

Make = Callable[..., Path]


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Every dataset of a store."""
    found: dict[str, np.ndarray] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def assert_same(one: Path, other: Path) -> None:
    a, b = arrays(one), arrays(other)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def inputs_of(pictures: Path, layout: str = "NCHW") -> np.ndarray:
    preprocess = Preprocess(size=(SIZE, SIZE), layout=layout, range=(-1, 1))
    inputs = []
    for path in sorted(pictures.rglob("*.png")):
        with Image.open(path) as image:
            inputs.append(preprocess(image))
    return np.stack(inputs)


def test_rows_are_what_the_explainer_gives(model: Path, pictures: Path, tmp_path: Path) -> None:
    result = compute_heatmaps(model, pictures, tmp_path / "h.h5", layers="all", batch_size=4)
    expected = Explainer(model).explain(inputs_of(pictures), layers=result.layers)
    with HeatmapStore(tmp_path / "h.h5") as store:
        np.testing.assert_allclose(store.attribution[:], expected.relevance["x"].numpy(), rtol=1e-4, atol=1e-6)
        for name in result.layers:
            np.testing.assert_allclose(store.layer(name)[:], expected.relevance[name].numpy(), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(store.prediction[:], expected.output.numpy(), rtol=1e-5, atol=1e-6)
        samples = store.samples
        assert samples["predicted"].tolist() == expected.output.argmax(1).tolist()
        assert samples["target"].tolist() == samples["predicted"].tolist()
        assert store.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        names, sums = store.conservation or ([], np.empty(0))
        assert names == ["x", *result.layers]
        np.testing.assert_allclose(sums[:, 0], store.attribution[:].sum((1, 2, 3)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(sums[:, -1], store.prediction[:].max(1), rtol=1e-5)
    assert result.shares is not None
    assert result.shares.lost == pytest.approx(0, abs=1e-4)


def test_all_layers_are_in_execution_order_without_mere_reshapes(model: Path) -> None:
    plan = Explainer(model).plan
    layers = select_layers(plan, "all")
    assert layers == ["conv1", "relu1", "pool", "conv2", "relu2", "mean", *list(plan.graph.outputs)]
    assert "flat" in plan.tensors


def test_layers_by_name_and_pattern_keep_execution_order(model: Path) -> None:
    plan = Explainer(model).plan
    assert select_layers(plan, "pool,conv*") == ["conv1", "pool", "conv2"]
    assert select_layers(plan, ["flat", "conv1"]) == ["conv1", "flat"]
    assert select_layers(plan, "input") == []
    with pytest.raises(TargetError, match="convx"):
        select_layers(plan, "conv1,convx*")


def test_channels_last_input_is_stored_channels_first(make_model: Make, pictures: Path, tmp_path: Path) -> None:
    first, last = make_model("first.onnx"), make_model("last.onnx", layout="NHWC")
    compute_heatmaps(first, pictures, tmp_path / "first.h5")
    compute_heatmaps(last, pictures, tmp_path / "last.h5")
    with HeatmapStore(tmp_path / "first.h5") as a, HeatmapStore(tmp_path / "last.h5") as b:
        assert b.attribution.shape == (9, 3, SIZE, SIZE)
        assert np.abs(a.attribution[:]).max() > 0
        np.testing.assert_allclose(a.attribution[:], b.attribution[:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_size_gives_the_same_rows(make_model: Make, pictures: Path, tmp_path: Path, batch: int) -> None:
    compute_heatmaps(make_model(), pictures, tmp_path / "free.h5", layers="all")
    fixed = compute_heatmaps(make_model("fixed.onnx", batch=batch), pictures, tmp_path / "fixed.h5", layers="all")
    assert fixed.notes == ()
    free, other = arrays(tmp_path / "free.h5"), arrays(tmp_path / "fixed.h5")
    for name in ("attribution", "prediction", "layers/conv2", "conservation"):
        np.testing.assert_allclose(free[name], other[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_tensor_whose_first_dimension_is_not_the_batch_is_left_out(pictures: Path, tmp_path: Path) -> None:
    model = build_model()
    nodes = model.graph.node
    nodes[1].input[0] = "back"  # in front of the first Relu: the channels to the front and back again
    there = helper.make_node("Transpose", ["conv1"], ["turned"], "there", perm=[1, 0, 2, 3])
    clip = helper.make_node("LeakyRelu", ["turned"], ["bent"], "bend")
    back = helper.make_node("Transpose", ["bent"], ["back"], "back_again", perm=[1, 0, 2, 3])
    for position, node in enumerate((there, clip, back), start=1):
        nodes.insert(position, node)
    onnx.save_model(model, tmp_path / "turned.onnx")
    result = compute_heatmaps(tmp_path / "turned.onnx", pictures, tmp_path / "h.h5", layers="conv1,bent,back")
    assert result.layers == ["conv1", "back"]
    assert len(result.notes) == 1
    assert "'bent'" in result.notes[0]


def test_labels_and_a_class_can_be_the_target(model: Path, pictures: Path, tmp_path: Path) -> None:
    compute_heatmaps(model, pictures, tmp_path / "label.h5", target="label")
    compute_heatmaps(model, pictures, tmp_path / "two.h5", target=2)
    with HeatmapStore(tmp_path / "label.h5") as a, HeatmapStore(tmp_path / "two.h5") as b:
        assert a.samples["target"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert set(b.samples["target"].tolist()) == {2}
        np.testing.assert_allclose(a.attribution[6:], b.attribution[6:], rtol=1e-4, atol=1e-6)


def test_regression_targets_are_kept(model: Path, pictures: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=inputs_of(pictures)[:4], y=values)
    compute_heatmaps(model, tmp_path / "data.npz", tmp_path / "h.h5")
    with HeatmapStore(tmp_path / "h.h5") as store:
        assert store.target_values is not None
        np.testing.assert_array_equal(store.target_values, values)
        odds = np.exp(store.prediction[:])  # the model ends in a Softmax, and that is what is compared
        errors = ((odds / odds.sum(1, keepdims=True) - values) ** 2).mean(1)
        np.testing.assert_allclose(store.samples["loss"], errors, rtol=1e-5)


def test_half_precision_layers(model: Path, pictures: Path, tmp_path: Path) -> None:
    compute_heatmaps(model, pictures, tmp_path / "h.h5", layers="conv1", layer_dtype="float16", compress="gzip")
    with HeatmapStore(tmp_path / "h.h5") as store:
        assert store.layer("conv1").dtype == np.float16
        assert store.attribution.dtype == np.float32
        assert store.layer("conv1").compression == "gzip"


def test_a_large_composite_fits_into_the_store(pictures: Path, tmp_path: Path) -> None:
    model = build_model()
    for node in model.graph.node:  # their rules, in JSON, take more than HDF5's 64 KiB for an attribute
        node.name += "_" * 10_000
    onnx.save_model(model, tmp_path / "long.onnx")
    compute_heatmaps(tmp_path / "long.onnx", pictures, tmp_path / "h.h5", limit=1)
    with HeatmapStore(tmp_path / "h.h5") as store:
        assert len(store.attrs["composite"]) > 1 << 16


class Stop(Exception):
    """Stands for whatever interrupts a run."""


def interrupted(model: Path, data: Path, store: Path, after: int, **options: object) -> None:
    def progress(done: int, _: int) -> None:
        if done >= after:
            raise Stop

    with pytest.raises(Stop):
        compute_heatmaps(model, data, store, progress=progress, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("broken", [False, True])
def test_a_resumed_store_equals_an_uninterrupted_one(model: Path, pictures: Path, tmp_path: Path, broken: bool) -> None:
    if broken:
        (pictures / "cat" / "1.png").write_bytes(b"no picture")
    whole, parts = tmp_path / "whole.h5", tmp_path / "parts.h5"
    compute_heatmaps(model, pictures, whole, layers="all", batch_size=4)
    interrupted(model, pictures, parts, after=4, layers="all", batch_size=4)
    with HeatmapStore(parts) as store:
        assert not store.complete
        assert store.done.tolist() == ([0, 2, 3] if broken else [0, 1, 2, 3])
    result = compute_heatmaps(model, pictures, parts, layers="all", batch_size=4, resume=True)
    assert result.computed == 5
    assert_same(whole, parts)


def test_a_batch_that_was_cut_in_two_gives_the_same_rows(model: Path, pictures: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.h5", tmp_path / "parts.h5"
    compute_heatmaps(model, pictures, whole, layers="all", batch_size=4)
    compute_heatmaps(model, pictures, parts, layers="all", batch_size=4)
    with h5py.File(parts, "r+") as file:  # as a kill between the marks of one batch leaves it
        for row in (1, 2, 8):
            file["samples/done"][row] = 0
            file["attribution"][row] = 0
        file.attrs["complete"] = False
    result = compute_heatmaps(model, pictures, parts, layers="all", batch_size=4, resume=True)
    assert result.computed == 3
    assert_same(whole, parts)


def test_a_repaired_picture_is_filled_in(model: Path, pictures: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.h5", tmp_path / "parts.h5"
    compute_heatmaps(model, pictures, whole)
    (pictures / "cat" / "1.png").write_bytes(b"no picture")
    compute_heatmaps(model, pictures, parts)
    save_picture(pictures / "cat" / "1.png", 1)
    assert compute_heatmaps(model, pictures, parts, resume=True).computed == 1
    assert_same(whole, parts)


def test_resuming_a_finished_store_computes_nothing(model: Path, pictures: Path, tmp_path: Path) -> None:
    compute_heatmaps(model, pictures, tmp_path / "h.h5", compress="gzip")
    before = arrays(tmp_path / "h.h5")
    result = compute_heatmaps(model, pictures, tmp_path / "h.h5", compress="gzip", resume=True)
    assert result.computed == 0
    assert result.shares is None
    assert before.keys() == arrays(tmp_path / "h.h5").keys()


def test_another_run_cannot_be_resumed(model: Path, pictures: Path, tmp_path: Path) -> None:
    compute_heatmaps(model, pictures, tmp_path / "h.h5")
    before = (tmp_path / "h.h5").read_bytes()
    for change in ({"target": 1}, {"layers": "conv1"}, {"composite": "epsilon"}, {"limit": 3}):
        with pytest.raises(StoreError, match="cannot resume"):
            compute_heatmaps(model, pictures, tmp_path / "h.h5", resume=True, **change)
    assert (tmp_path / "h.h5").read_bytes() == before


def test_a_killed_run_resumes_to_the_same_store(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "many"
    for row in range(24):
        save_picture(data / CLASSES[row % 3] / f"{row:02}.png", row)
    whole, parts = tmp_path / "whole.h5", tmp_path / "parts.h5"
    compute_heatmaps(model, data, whole, layers="all", batch_size=2)
    script = (
        "import os, signal\n"
        "from lrp_onnx.heatmaps import compute_heatmaps\n"
        "def progress(done, total):\n"
        "    if done >= 10: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"compute_heatmaps({str(model)!r}, {str(data)!r}, {str(parts)!r}, layers='all', batch_size=2,"
        " progress=progress)"
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    with HeatmapStore(parts) as store:
        assert store.done.tolist() == list(range(10))
    assert compute_heatmaps(model, data, parts, layers="all", batch_size=2, resume=True).computed == 14
    assert_same(whole, parts)


def test_ctrl_c_says_how_to_go_on(
    program: Program, model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explain = Explainer.explain
    calls = itertools.count()

    def stop_at_third(self: Explainer, *arguments: object, **options: object) -> object:
        if next(calls) == 3:  # the first call is the trial before anything is written
            os.kill(os.getpid(), signal.SIGINT)
        return explain(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Explainer, "explain", stop_at_third)
    command = ("heatmaps", model, pictures, "-o", tmp_path / "h.h5", "--batch-size", 2)
    assert program(*command) == 130
    with HeatmapStore(tmp_path / "h.h5") as store:
        done = len(store.done)  # what was worked on when it came is lost: two threads have up to three batches
    assert done in (0, 2, 4)
    assert f"{done} of 9 samples are in" in program.err
    assert "--resume" in program.err
    monkeypatch.undo()
    assert program(*command, "--resume") == 0
    assert f"({9 - done} computed now)" in program.out


def test_the_callers_model_and_data_can_be_objects(model: Path, pictures: Path, tmp_path: Path) -> None:
    graph = lrp_onnx.load(model)
    data = lrp_onnx.open_dataset(pictures, classes=CLASSES)
    assert compute_heatmaps(graph, data, tmp_path / "h.h5").samples == 9
    table = lrp_onnx.write_predictions(graph, data, tmp_path / "r.csv")
    assert table.labelled == 9


def test_one_logit_tells_two_classes_apart(pictures: Path, tmp_path: Path) -> None:
    model = build_model()
    del model.metadata_props[:], model.graph.node[-1]
    model.graph.node.append(helper.make_node("ReduceSum", ["logits"], ["score"], "total", keepdims=1))
    model.graph.node[-1].input.append("axes")
    model.graph.initializer.append(helper.make_tensor("axes", TensorProto.INT64, [1], [1]))
    model.graph.output[0].name = "score"
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    onnx.save_model(model, tmp_path / "one.onnx")
    np.savez(tmp_path / "data.npz", x=inputs_of(pictures), y=np.arange(9) % 2)
    compute_heatmaps(tmp_path / "one.onnx", tmp_path / "data.npz", tmp_path / "h.h5", target="label")
    with HeatmapStore(tmp_path / "h.h5") as store:
        logits, samples = store.prediction[:, 0], store.samples
        assert samples["predicted"].tolist() == (logits > 0).astype(int).tolist()
        assert samples["correct"].tolist() == (samples["predicted"] == np.arange(9) % 2).astype(int).tolist()
        signs = np.where(np.arange(9) % 2 == 1, 1.0, -1.0)
        np.testing.assert_allclose(samples["loss"], np.log1p(np.exp(-signs * logits)), rtol=1e-4, atol=1e-6)
