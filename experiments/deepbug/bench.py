"""One model on one bench: its heatmaps on pictures with known parts and on variations of them, and all verdicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lrp_onnx.debug.class_mean import write_class_means
from lrp_onnx.debug.comparison import compare_stores
from lrp_onnx.debug.evaluation import evaluate_store
from lrp_onnx.debug.localisation_report import localise_store
from lrp_onnx.debug.stability import read_manifest, write_stability
from lrp_onnx.debug.variation_images import write_variations
from lrp_onnx.engine import DEFAULT_COMPOSITE
from lrp_onnx.heatmaps import compute_heatmaps

COMPOSITE = "epsilon-gamma-box"  # see the table of faithfulness
_EVALUATED = 16  # images
_METRICS = ("flipping", "road", "sparseness", "randomisation")


@dataclass(frozen=True)
class Bench:
    """Pictures in class folders, masks of their parts, and the same of variations.

    `pictures` and `masks` are folders, and so is `varied_masks`; `varied` is the manifest of the variations.
    """

    pictures: Path
    masks: Path
    varied: Path
    varied_masks: Path


def make_bench(pictures: Path, masks: Path, varied_from: Path, varied_masks: Path, folder: Path) -> Bench:
    """Vary the pictures in one folder, whose masks are in another, and their masks with them."""
    varied = write_variations(varied_from, folder / "varied", masks=varied_masks)
    moved = folder / "varied-masks"
    if not moved.exists():
        _move_masks(varied.manifest, varied_masks, moved)
    return Bench(pictures, masks, varied.manifest, moved)


def _move_masks(manifest: Path, masks: Path, out: Path) -> None:
    """Masks of varied pictures: those of the originals, moved as the manifest says."""
    for picture in read_manifest(manifest):
        back = np.linalg.inv(picture.homography)
        coefficients = tuple((back / back[2, 2]).ravel()[:8].tolist())
        file = (out / picture.image).with_suffix(".png")
        file.parent.mkdir(parents=True, exist_ok=True)
        with Image.open((masks / picture.source).with_suffix(".png")) as mask:
            mask.transform(picture.size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.NEAREST).save(file)
    (out / "names.csv").write_bytes((masks / "names.csv").read_bytes())


def judge(model: Path, bench: Bench, folder: Path, steps: int, say: Callable[[str], None]) -> None:
    """Fill a folder with all that the bench says of a model; what is there from an earlier call stays.

    `steps` are those of `evaluate`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain, varied, default = folder / "plain.h5", folder / "varied.h5", folder / "default.h5"
    _once(plain, lambda: compute_heatmaps(model, bench.pictures, plain, composite=COMPOSITE, batch_size=32), say)
    _once(varied, lambda: compute_heatmaps(model, bench.varied, varied, composite=COMPOSITE, batch_size=32), say)
    _once(default, lambda: compute_heatmaps(model, bench.pictures, default, composite=DEFAULT_COMPOSITE), say)
    for store, masks, out in (
        (plain, bench.masks, folder / "localisation"),
        (default, bench.masks, folder / "localisation-default"),
        (varied, bench.varied_masks, folder / "varied-localisation"),
    ):
        _once(out, lambda: localise_store(store, masks, out), say)  # noqa: B023 (called at once)
    _once(folder / "stability", lambda: write_stability(varied, bench.varied, folder / "stability"), say)
    _once(folder / "class-means", lambda: write_class_means(plain, folder / "class-means", regions=bench.masks), say)
    for store, out in ((plain, folder / "evaluation"), (default, folder / "evaluation-default")):
        _once(out, lambda: evaluate_store(store, model, out, metrics=_METRICS, limit=_EVALUATED, steps=steps), say)  # noqa: B023


def compare(one: Path, other: Path, bench: Bench, folder: Path, say: Callable[[str], None]) -> None:
    """Compare two folders that `judge` filled, on the variations."""
    out = folder / f"{one.name}-{other.name}"
    _once(
        out,
        lambda: compare_stores(
            one / "varied.h5", other / "varied.h5", out, regions=bench.varied_masks, manifest=bench.varied
        ),
        say,
    )


def _once(path: Path, make: Callable[[], object], say: Callable[[str], None]) -> None:
    if not path.exists():
        make()
        say(f"{path.parent.name}/{path.name}")
