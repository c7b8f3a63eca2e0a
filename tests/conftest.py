"""What holds for all tests."""

import os

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before anything imports torch
if "PYTEST_XDIST_WORKER" in os.environ:  # a worker for each core
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, default=1000, metavar="N", help="random models to try; new ones unless 1000")
