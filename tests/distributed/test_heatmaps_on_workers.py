"""Heatmaps by several processes are those of one process, also when one of them is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from pathlib import Path

import h5py
import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from lrp_onnx import HeatmapStore, compute_heatmaps, write_predictions
from lrp_onnx.converters import convert
from lrp_onnx.distributed import scheduler
from lrp_onnx.distributed.parts import split
from lrp_onnx.errors import DataError, StoreError

COUNT = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network, pictures that it takes, among them two that cannot be read, and the store of one process."""
    folder = tmp_path_factory.mktemp("workers")
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 14 * 14, 3)
    ).eval()
    preprocess = {"size": [16, 16], "layout": "NCHW", "range": [0, 1]}
    onnx.save(convert(net, example=torch.randn(1, 3, 16, 16), preprocess=preprocess).model, folder / "model.onnx")
    random = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for number in range(COUNT):
        picture = Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8))
        picture.save(folder / "pictures" / f"{number:02d}.png")
    for number in (6, 7):  # all of a part
        (folder / "pictures" / f"{number:02d}.png").write_bytes(b"no picture")
    compute_heatmaps(folder / "model.onnx", folder / "pictures", folder / "one.h5", layers="all", batch_size=2)
    return folder


def same(one: Path, other: Path) -> None:
    with h5py.File(one) as a, h5py.File(other) as b:
        names: list[str] = []
        b.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        done = b["samples/done"][:] == 1
        assert sorted(set(names)) == sorted(name for name in names if name in a)
        for name in names:
            mine, theirs = a[name][...], b[name][...]
            if name in ("attribution", "prediction", "conservation") or name.startswith("layers/"):
                mine, theirs = mine[done], theirs[done]  # what was never written may hold anything
            np.testing.assert_array_equal(mine, theirs, err_msg=name)


def test_a_killed_worker_costs_nothing_but_time(folder: Path, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_one(done: int, total: int) -> None:
        if 0 < done < total and not killed:
            worker = multiprocessing.active_children()[0]
            killed.append(worker.pid or 0)
            os.kill(killed[0], signal.SIGKILL)

    found = compute_heatmaps(
        folder / "model.onnx",
        folder / "pictures",
        tmp_path / "many.h5",
        layers="all",
        batch_size=2,
        scheduler="local:2",
        progress=kill_one,
    )
    assert killed
    assert found.samples == COUNT
    assert sorted(Path(path).name for path in found.failures) == ["06.png", "07.png"]
    same(tmp_path / "many.h5", folder / "one.h5")
    with HeatmapStore(tmp_path / "many.h5") as store:
        assert store.complete
        assert store.pending().tolist() == [6, 7]


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_other_workers(folder: Path, tmp_path: Path) -> None:
    place = folder / "model.onnx", folder / "pictures", tmp_path / "h.h5"

    def interrupt(done: int, total: int) -> None:
        if done >= COUNT // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_heatmaps(*place, batch_size=2, layers="all", scheduler="local:1", progress=interrupt)
    assert not (tmp_path / "h.h5").exists()
    with pytest.raises(StoreError, match=r"h\.h5\.shards exists already; use --resume"):
        compute_heatmaps(*place, batch_size=2, layers="all", scheduler="local:2")
    found = compute_heatmaps(*place, batch_size=2, layers="all", scheduler="local:2", resume=True)
    assert 0 < found.computed < COUNT - 2
    same(tmp_path / "h.h5", folder / "one.h5")


@pytest.mark.parametrize("count", [1, 15, 100, 10_000, 1_000_000, 100_000_000])
def test_parts_are_whole_batches_and_not_too_many(count: int) -> None:
    parts = split(count, 8)
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == count
    assert all(len(part) % 8 == 0 for part in parts[:-1])
    assert len(parts) <= 4096


def test_predictions_of_an_array_are_those_of_one_process(folder: Path, tmp_path: Path) -> None:
    inputs = np.random.default_rng(1).random((COUNT, 3, 16, 16), np.float32)
    inputs[[4, 5, 9]] = np.nan  # cannot be read
    np.save(tmp_path / "x.npy", inputs)
    one = write_predictions(folder / "model.onnx", tmp_path / "x.npy", tmp_path / "one.csv", batch_size=2)
    many = write_predictions(
        folder / "model.onnx", tmp_path / "x.npy", tmp_path / "many.csv", batch_size=2, scheduler="local:2"
    )
    assert (tmp_path / "many.csv").read_text() == (tmp_path / "one.csv").read_text()
    assert many.failures == one.failures
    assert len(many.failures) == 3


def test_what_is_no_scheduler_is_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scheduler, "_PATIENCE", "1s")
    monkeypatch.setattr(scheduler, "_SILENCE", 0.1)
    silent = socket.create_server(("127.0.0.1", 0))
    port = silent.getsockname()[1]
    for text, message in (
        ("4", "expected local:N"),
        ("tcp://127.0.0.1:9", "nobody answers"),
        (f"tcp://127.0.0.1:{port}", "nobody answers"),  # whoever it is, it is no scheduler
        ("tcp://127.0.0.1", "missing port number.*expected tcp://HOST:PORT"),
        ("http://127.0.0.1:8786", "no address of a Dask scheduler"),
    ):
        with pytest.raises(DataError, match=message):
            compute_heatmaps(folder / "model.onnx", folder / "pictures", tmp_path / "h.h5", scheduler=text)
    silent.close()
    for number in (9, port):
        assert f"waiting for tcp://127.0.0.1:{number} to answer, at most 1s" in caplog.messages


def test_a_scheduler_without_workers_and_one_whose_workers_see_no_files_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Client, LocalCluster

    monkeypatch.setattr(scheduler, "_PATIENCE", "1s")
    options = {"processes": False, "dashboard_address": None, "threads_per_worker": 1}
    with LocalCluster(n_workers=0, **options) as cluster, Client(cluster) as client:
        with pytest.raises(DataError, match="has no workers; start some"):
            scheduler.check_shared(client, [tmp_path])
        cluster.scale(1)
        scheduler.check_shared(client, [tmp_path])
        with pytest.raises(DataError, match=r"does not see .*/elsewhere; data and output must lie"):
            scheduler.check_shared(client, [tmp_path, tmp_path / "elsewhere"])
