"""Let TensorFlow and PyTorch live in one process."""

from __future__ import annotations

import contextlib
import importlib
import sys


def order_imports() -> None:
    """
    Keep TensorFlow and triton (which PyTorch's exporter and optimizers import) from aborting the process.

    Both bring their own LLVM, and triton's aborts the process when TensorFlow's is there before it. The other order is
    fine, so triton is imported first; where TensorFlow came first already, triton is hidden and PyTorch does without.
    """
    if "triton" in sys.modules:
        return
    if "tensorflow" in sys.modules:
        sys.modules["triton"] = None  # type: ignore[assignment]  # the import system's way to say "not there"
    else:
        with contextlib.suppress(Exception):
            importlib.import_module("triton")
