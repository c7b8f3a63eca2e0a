"""Batches that are worked on side by side give the store of one after the other, in memory that there is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_compute_heatmaps import assert_same

from lrp_onnx import memory
from lrp_onnx.engine import Explainer
from lrp_onnx.errors import DataError
from lrp_onnx.heatmaps import compute_heatmaps
from lrp_onnx.side_by_side import Turns, in_order, sharing_cores
from lrp_onnx.store import HeatmapStore

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def batch_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each call of the engine gets."""
    sizes: list[int] = []
    explain = Explainer.explain

    def watched(self: Explainer, x: dict[str, np.ndarray], *arguments: object, **options: object) -> object:
        sizes.append(len(next(iter(x.values()))))
        return explain(self, x, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Explainer, "explain", watched)
    return sizes


def test_results_come_in_order_and_few_wait(two_threads: None) -> None:
    begun: list[int] = []
    lock = threading.Lock()

    def work(item: int) -> tuple[int, int]:
        with lock:
            begun.append(item)
        time.sleep(0.02 if item % 2 == 0 else 0)  # the second one of two is done first
        return item, torch.get_num_threads()

    with sharing_cores(2):
        for place, (item, threads) in enumerate(in_order(work, iter(range(12)), 2)):
            assert (place, threads) == (item, 1)
            assert len(begun) <= item + 3  # two at a time, and one result that waits
    assert torch.get_num_threads() == 2


def test_an_error_ends_the_threads(two_threads: None) -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda item: 1 // (3 - item), range(100), 2))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("work")]
    assert torch.get_num_threads() == 2


def test_turns_come_in_order_also_after_an_item_that_failed() -> None:
    turns, seen = Turns(), []

    def work(number: int) -> None:
        with turns.passing(number):
            time.sleep(0.02 * (3 - number))
            if number == 1:
                raise ValueError
            with turns.of(number):
                seen.append(number)

    threads = [threading.Thread(target=lambda n=n: suppressed(work, n)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in threads)
    assert seen == [0, 2, 3]


def suppressed(work, number: int) -> None:
    try:
        work(number)
    except ValueError:
        return


def test_a_store_is_the_same_whatever_the_number_of_threads(model: Path, pictures: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):  # one batch at a time, and two: each on one thread
            torch.set_num_threads(threads)
            compute_heatmaps(model, pictures, tmp_path / f"{threads}.h5", layers="all", batch_size=2)
    finally:
        torch.set_num_threads(before)
    assert_same(tmp_path / "1.h5", tmp_path / "2.h5")


def test_the_batch_is_what_half_of_the_free_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 1600)
    assert [memory.batch_that_fits(size, CPU) for size in (1, 100, 101, 200, 400, 5000)] == [8, 8, 4, 4, 2, 1]
    assert memory.batch_that_fits(100, CPU, workers=2) == 4
    assert [memory.workers_that_fit(4, 2, size, CPU) for size in (100, 200, 5000)] == [4, 2, 1]
    assert memory.workers_that_fit(4, 1, 1, torch.device("cuda")) == 1
    monkeypatch.setattr(memory, "free_memory", lambda device: None)
    assert memory.batch_that_fits(10**12, CPU) == 8


def test_free_memory_is_what_system_and_container_leave(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:     500 kB\n")
    assert memory._available(tmp_path / "meminfo") == 500 * 1024
    assert memory._available(tmp_path / "none") is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("3000\n")
    assert memory._left_to_group(tmp_path) is None
    (tmp_path / "memory.max").write_text("5000\n")
    assert memory._left_to_group(tmp_path) == 2000
    assert memory._left_to_group(tmp_path / "none") is None


def test_a_sample_takes_more_the_more_is_recorded(model: Path) -> None:
    explainer = Explainer(model)
    size = int(explainer.graph.inputs["x"].shape[-1])  # type: ignore[index, arg-type]
    plain = memory.bytes_of_sample(explainer, {"x": (3, size, size)})
    assert plain >= 2 * 4 * 3 * size * size
    recorded = memory.bytes_of_sample(explainer, {"x": (3, size, size)}, ["conv1"], 2)
    assert recorded > plain


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (DataError("ONNX Runtime stopped: Failed to allocate memory for requested buffer of size 8"), True),
        (DataError("output 'y' has 3 rows"), False),
        (KeyboardInterrupt("out of memory"), False),
    ],
)
def test_errors_that_mean_that_memory_is_short(error: BaseException, said: bool) -> None:
    assert memory.out_of_memory(error) is said


def scarce(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Let the engine run out of memory with more samples than that."""
    explain = Explainer.explain

    def short(self: Explainer, x: dict[str, np.ndarray], *arguments: object, **options: object) -> object:
        if len(next(iter(x.values()))) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return explain(self, x, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Explainer, "explain", short)


def test_batches_are_halved_where_memory_is_short(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_heatmaps(model, pictures, tmp_path / "whole.h5", layers="all")
    scarce(monkeypatch, 3)
    result = compute_heatmaps(model, pictures, tmp_path / "halves.h5", layers="all")
    assert (result.computed, result.failures) == (9, {})
    with HeatmapStore(tmp_path / "whole.h5") as whole, HeatmapStore(tmp_path / "halves.h5") as halves:
        assert halves.done.tolist() == list(range(9))
        for name in whole.layer_names:
            np.testing.assert_allclose(halves.layer(name)[:], whole.layer(name)[:], rtol=1e-4, atol=1e-6)


def test_no_memory_at_all_is_one_clear_line(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scarce(monkeypatch, 0)
    with pytest.raises(DataError, match=r"there is no memory to explain 2 samples at a time"):
        compute_heatmaps(model, pictures, tmp_path / "h.h5")
    assert not (tmp_path / "h.h5").exists()


def test_a_resumed_run_takes_the_batches_of_the_interrupted_one(
    model: Path, pictures: Path, tmp_path: Path, batch_sizes: list[int]
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_heatmaps(model, pictures, tmp_path / "h.h5", batch_size=3, progress=interrupt)
    batch_sizes.clear()
    assert compute_heatmaps(model, pictures, tmp_path / "h.h5", resume=True).computed == 6
    assert sorted(batch_sizes) == [2, 3, 3]  # the first is the trial
    compute_heatmaps(model, pictures, tmp_path / "whole.h5", batch_size=3)
    assert_same(tmp_path / "h.h5", tmp_path / "whole.h5")
    batch_sizes.clear()
    compute_heatmaps(model, pictures, tmp_path / "new.h5")
    assert sorted(batch_sizes) == [1, 2, 8]
    with HeatmapStore(tmp_path / "new.h5") as store:
        assert store.batch_size == 8


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of the GNU C library")
def test_freed_memory_is_kept_for_the_next_batch() -> None:
    program = (
        "import resource\n"
        "import numpy as np\n"
        "from lrp_onnx.memory import keep_freed_memory\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(2): np.empty(40_000_000, np.uint8).fill(1)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "fresh = faults()\n"
        "keep_freed_memory()\n"
        "faults()\n"
        "print(fresh, faults())\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    # numpy asks for huge pages otherwise, of which there are few
    environment["NUMPY_MADVISE_HUGEPAGE"] = "0"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    fresh, kept = map(int, done.stdout.split())
    assert kept < fresh / 10
