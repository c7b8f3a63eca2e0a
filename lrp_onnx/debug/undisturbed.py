"""A stretch of code in the middle of somebody's training that leaves no trace in it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def undisturbed() -> Iterator[None]:
    """Give back the random state of Python, NumPy and PyTorch, and be free of PyTorch modes that the caller is in.

    Inside, tensors are ordinary ones on the CPU, whatever inference mode, autocast or default device is on outside.
    TensorFlow's generators are not saved here: nothing that this package does draws from them.
    """
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (the user's)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        with torch.inference_mode(False), torch.autocast("cpu", enabled=False), torch.device("cpu"):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
