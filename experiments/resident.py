"""Resident memory of this process, as Linux tells it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def resident(which: Literal["VmRSS", "VmHWM"]) -> int:
    """Bytes that are resident, or were at most.

    `resource.getrusage` would count the most that the process which started this one had, too.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{which}:"))
