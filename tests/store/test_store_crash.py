"""Nothing that is done is lost: not by a kill, not by a full disk, not by a second writer."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from lrp_onnx.errors import StoreError
from lrp_onnx.store import HeatmapStore, LayerInfo, StoreSpec

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked process; its id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    finally:
        os._exit(0)


def row_values(spec: StoreSpec, row: int) -> dict[str, object]:
    """A sample whose every number tells its row."""
    return {
        "attribution": np.full((1, *spec.input_shape), row + 1, np.float32),
        "prediction": np.full((1, *spec.output_shape), row + 1),
        "predicted": np.array([row]),
        "correct": np.array([1]),
        "loss": np.array([row + 1]),
        "target": np.array([row]),
        "layers": {name: np.full((1, *info.shape), row + 1) for name, info in spec.layers.items()},
        "conservation": np.full((1, len(spec.conservation)), row + 1),
    }


def kill_at_random_moments(path: Path, spec: StoreSpec, kills: int) -> int:
    """Write and compress `path` in processes that are killed; check after each; number of kills that hit a writer."""

    def write_all() -> None:
        with HeatmapStore.resume(path, spec) as store:
            for row in store.pending().tolist():
                store.write(np.array([row]), **row_values(spec, row))
            store.finish()

    chance, hits = random.Random(0), 0
    for _ in range(kills):
        child = in_child(write_all)
        time.sleep(chance.random() ** 2 * 0.3)
        os.kill(child, signal.SIGKILL)
        hits += os.waitpid(child, 0)[1] == signal.SIGKILL
        if not path.exists():  # killed before the store was laid out
            continue
        with HeatmapStore(path) as store:
            assert len(store) == len(spec)
            done = store.done
            big = [store.attribution, store.prediction, *(store.layer(name) for name in spec.layers)]
            columns = [store.samples["loss"], store.conservation[1], *big]
            for column in columns:
                values = column[:].reshape(len(spec), -1)[done]
                assert (values == (done + 1)[:, None]).all()
            if store.complete:
                assert not store.pending().size
                store.close()
                path.unlink()
    write_all()
    with HeatmapStore(path) as store:
        assert store.complete
        assert (store.attribution[:, 0, 0, 0] == np.arange(len(spec)) + 1).all()
    return hits


@needs_fork
@pytest.mark.parametrize("compress", [None, "gzip"])
def test_a_killed_writer_leaves_a_store_that_opens_and_resumes(tmp_path, make_spec, compress):
    spec = make_spec(200, input_shape=(3, 32, 32), compress=compress)
    assert kill_at_random_moments(tmp_path / "h.h5", spec, kills=8) > 2


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("compress", [None, "gzip"])
def test_many_kills_lose_nothing(tmp_path, make_spec, compress):
    layers = {f"layer/{order}": LayerInfo((16, 16, 16), "n", "Relu", order) for order in range(10)}
    spec = make_spec(200, input_shape=(3, 64, 64), layers=layers, compress=compress)
    assert kill_at_random_moments(tmp_path / "h.h5", spec, kills=60) > 20


def test_writing_rows_changes_no_hdf5_metadata(tmp_path, make_spec, fill):
    """The reason why a kill is harmless: every byte that `write` changes is raw data with a place since `create`."""
    path, spec = tmp_path / "h.h5", make_spec(40, input_shape=(3, 100, 100))

    def metadata() -> bytes:
        content = bytearray(path.read_bytes())
        with h5py.File(path) as file:
            datasets: list[h5py.Dataset] = []
            file.visititems(lambda _, item: datasets.append(item) if isinstance(item, h5py.Dataset) else None)
            for dataset in datasets:
                if dataset.chunks:
                    chunks = [dataset.id.get_chunk_info(number) for number in range(dataset.id.get_num_chunks())]
                    places = [(chunk.byte_offset, chunk.size) for chunk in chunks]
                    assert places
                else:
                    places = [(dataset.id.get_offset() or 0, dataset.id.get_storage_size())]
                for offset, size in places:
                    content[offset : offset + size] = bytes(size)
        return bytes(content)

    with HeatmapStore.create(path, spec):
        pass
    before = metadata()
    assert len(before.strip(b"\0")) > 10_000
    with HeatmapStore.resume(path, spec) as store:
        fill(store, spec, range(40))
    assert metadata() == before


def test_a_finished_store_is_never_half_compressed(tmp_path, make_spec, fill, monkeypatch):
    spec = make_spec(compress="gzip")
    with HeatmapStore.create(tmp_path / "h.h5", spec) as store:
        fill(store, spec, range(10))

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("lrp_onnx.store.heatmaps.copy_chunks", interrupted)
            with pytest.raises(KeyboardInterrupt):
                store.finish()
    assert [entry.name for entry in tmp_path.iterdir()] == ["h.h5"]
    with HeatmapStore.resume(tmp_path / "h.h5", spec) as store:
        assert not store.complete
        assert not store.pending().size
        store.finish()
        assert store.complete
        assert store.attribution.compression == "gzip"


def test_a_second_writer_and_readers_meanwhile_are_told_to_wait(tmp_path, make_spec):
    path = tmp_path / "h.h5"
    program = (
        "import sys; from lrp_onnx.store import HeatmapStore; from lrp_onnx.errors import StoreError\n"
        "try: HeatmapStore(sys.argv[1])\n"
        "except StoreError as error: print(error)"
    )
    with HeatmapStore.create(path, make_spec()):
        said = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    assert "is open for writing in another process" in said.stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB; needs the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True).returncode
    ):
        pytest.skip("may not mount a tmpfs here")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("compress", [None, "gzip"])
def test_a_full_disk_is_one_clear_error_and_earlier_rows_stay(small_disk, make_spec, fill, values_of, compress):
    path, spec = small_disk / "h.h5", make_spec(20, input_shape=(3, 100, 100), compress=compress)
    store = HeatmapStore.create(path, spec)
    free = shutil.disk_usage(small_disk).free
    (small_disk / "other").write_bytes(bytes(free - 700_000))
    with pytest.raises(StoreError, match=r"h\.h5: cannot be written \(No space left on device\)") as caught:
        fill(store, spec, range(20))
    assert "\n" not in str(caught.value)
    store.close()
    with HeatmapStore(path) as reader:
        done = reader.done
        assert 2 <= done.size < 20
        np.testing.assert_array_equal(reader.attribution[: done.size], values_of(spec, done)["attribution"])
    (small_disk / "other").unlink()
    with HeatmapStore.resume(path, spec) as store:
        fill(store, spec, store.pending().tolist())
        assert not store.pending().size


def test_a_disk_too_small_for_the_run_is_refused_at_once(small_disk, make_spec):
    with pytest.raises(StoreError, match=r"GB of heatmaps do not fit"):
        HeatmapStore.create(small_disk / "h.h5", make_spec(100, input_shape=(3, 100, 100)))
    assert not list(small_disk.iterdir())


def test_a_disk_that_fills_during_compression_keeps_the_rows(small_disk, make_spec, fill):
    path, spec = small_disk / "h.h5", make_spec(20, input_shape=(3, 100, 100), compress="gzip")
    with HeatmapStore.create(path, spec) as store:
        fill(store, spec, range(20))
        with pytest.raises(StoreError, match="No space left on device"):
            store.finish()
    assert [entry.name for entry in small_disk.iterdir()] == ["h.h5"]
    with HeatmapStore(path) as reader:
        assert reader.done.size == 20
