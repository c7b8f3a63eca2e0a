"""Memory: how many samples at a time it has room for, which errors mean that it is short, and how it is reused."""

from __future__ import annotations

import ctypes
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from lrp_onnx.engine import Explainer
from lrp_onnx.engine.shapes import numbers_of_sample
from lrp_onnx.side_by_side import MOST_WORKERS

MOST_AT_A_TIME = 8  # larger batches are no faster for an image: layers leave the cores' caches
_WORKSPACE = 2  # what an explanation holds at its worst, in sizes of the activations it reads; 1.2 to 2.0 were measured
_SHARE = 0.5  # of the free memory
_SHORT = re.compile(
    r"out of memory|can(no|')t allocate memory|failed to allocate|bad_?alloc|DefaultCPUAllocator"
    r"|could not create a (primitive|memory)",  # oneDNN's words, which have no others for it
    re.IGNORECASE,
)


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process may still take, on the device; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [_available(Path("/proc/meminfo")), _left_to_group(Path("/sys/fs/cgroup"))]
    known = [free for free in found if free is not None]
    if known:
        return min(known)
    try:  # all there is, where nothing says what is free
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _available(meminfo: Path) -> int | None:
    try:
        kibibytes = re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text(encoding="ascii"))
    except OSError:
        return None
    return int(kibibytes[1]) * 1024 if kibibytes else None


def _left_to_group(group: Path) -> int | None:
    """What a container's limit leaves."""
    try:
        limit, used = ((group / f"memory.{name}").read_text(encoding="ascii").strip() for name in ("max", "current"))
    except OSError:
        return None
    return max(0, int(limit) - int(used)) if limit.isdecimal() else None


def bytes_of_sample(
    explainer: Explainer, inputs: Mapping[str, Sequence[int]], recorded: Iterable[str] = (), itemsize: int = 4
) -> int:
    """Memory that each sample of a batch takes while it is explained, about.

    Parameters
    ----------
    explainer : Explainer
    inputs : mapping of str to shape
        The shapes of the model's inputs, without batch.
    recorded : iterable of str
        Tensors whose relevance is recorded; each is held twice, while it is computed and until it is written.
    itemsize : int
        Bytes of a recorded number.
    """
    activations = numbers_of_sample(explainer.shapes, explainer.plan.reads, inputs)
    return _WORKSPACE * explainer.dtype.itemsize * activations + 2 * itemsize * numbers_of_sample(
        explainer.shapes, recorded, inputs
    )


def batch_that_fits(sample_bytes: int, device: torch.device, workers: int = 1) -> int:
    """How many samples at a time: 8, or of 4, 2 and 1 the most that each of the workers has room for.

    Together they may take half of the memory that is free.
    """
    free = free_memory(device)
    if free is None or not sample_bytes:
        return MOST_AT_A_TIME
    fits = int(_SHARE * free / (workers * sample_bytes))
    return 1 << max(0, min(fits, MOST_AT_A_TIME).bit_length() - 1)


def workers_that_fit(workers: int, batch: int, sample_bytes: int, device: torch.device) -> int:
    """How many of so many workers have room for a batch each, at least one; on an accelerator always one."""
    if device.type != "cpu":
        return 1
    free = free_memory(device)
    return workers if free is None else max(1, min(workers, int(_SHARE * free / max(1, batch * sample_bytes))))


def division(
    explainer: Explainer,
    inputs: Mapping[str, Sequence[int]],
    samples: int,
    batch_size: int | None = None,
    *,
    recorded: Iterable[str] = (),
    itemsize: int = 4,
) -> tuple[int, int]:
    """How many samples at a time, `batch_size` if that is given, and how many such batches side by side.

    Parameters
    ----------
    samples : int
        How many there are; the other parameters are those of `bytes_of_sample`.
    """
    needed, device = bytes_of_sample(explainer, inputs, recorded, itemsize), explainer.device
    workers = min(torch.get_num_threads(), MOST_WORKERS, math.ceil(samples / MOST_AT_A_TIME))
    batch = batch_size or batch_that_fits(needed, device, workers)
    return batch, workers_that_fit(min(workers, math.ceil(samples / batch)), batch, needed, device)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, numpy or ONNX Runtime says that memory is short."""
    return isinstance(error, MemoryError) or (isinstance(error, Exception) and bool(_SHORT.search(str(error))))


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for its next batch: fresh pages cost an explanation a tenth of its time.

    It is a setting of the GNU C library, for programs that do one thing; elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    trim_threshold, top_pad, mmap_threshold, arena_max = -1, -2, -3, -8  # malloc.h
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, (1 << 31) - 1)
    mallopt(top_pad, 64 << 20)
    mallopt(arena_max, 1)  # a thread's own arena could hold no large block
