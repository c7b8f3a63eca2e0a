"""Peak memory of one contender, in a process of its own.

Command: `python -m experiments.benchmarks.memory CONTENDER NETWORK ONNX-FILE BATCH THREADS`. It prints how many MiB the
resident memory rises, over two runs, above what the loaded model takes (Linux alone tells it).
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import torch

from experiments.benchmarks.contenders import contender, quiet
from experiments.resident import resident


def growth(name: str, network: str, path: Path, batch: int, threads: int) -> float | None:
    """MiB, measured in a fresh process; None where the contender cannot run, or the system does not tell."""
    arguments = [name, network, str(path), str(batch), str(threads)]
    command = [sys.executable, "-m", "experiments.benchmarks.memory", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(result.stdout.split()[-1]) if result.returncode == 0 else None


def main() -> None:
    name, network, path, batch, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    x = torch.randn(int(batch), 3, 224, 224)
    with quiet():
        run = contender(name, network, Path(path), x)
        ctypes.CDLL(None).malloc_trim(0)  # what the statistics of normalisations took
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to what is resident now
        run()
        run()
    print((resident("VmHWM") - before) / 2**20)


if __name__ == "__main__":
    main()
