"""Distances between heatmaps by many processes: each compares a block of rows with all that follow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from lrp_onnx.distributed.scheduler import Report, run_parts
from lrp_onnx.hudd.blocks import HeatmapRows, segments

if TYPE_CHECKING:
    from distributed import Client


def segments_on(client: Client, reader: HeatmapRows, memory: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """`segments` on the workers of a scheduler, in the same order; `memory` bytes for the blocks of each.

    Raises
    ------
    LrpOnnxError
        As `segments`; DataError also when the scheduler is lost.
    """
    return run_parts(client, _strip, (reader, memory), range(len(reader.blocks(memory))))


def _strip(common: tuple[HeatmapRows, int], strip: int, report: Report) -> tuple[int, NDArray[Any]]:
    reader, memory = common
    return next(segments(reader, memory, [strip]))
