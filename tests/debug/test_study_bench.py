"""The study's own tools: masks move with their pictures, and marked parts become masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from experiments.deepbug.bench import make_bench
from experiments.deepbug.boards import CLASSES, PARTS, write_names
from lrp_onnx.debug.stability import read_manifest


def test_masks_move_with_the_pictures(tmp_path: Path) -> None:
    picture = np.full((60, 80, 3), 40, np.uint8)
    mask = np.zeros((60, 80), np.uint8)
    mask[15:35, 20:50] = 1
    mask[35:45, 20:50] = 2
    picture[mask > 0] = 250
    for kind, pixels in (("pictures", picture), ("masks", mask)):
        (tmp_path / kind / CLASSES[0]).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / kind / CLASSES[0] / "a.png")
    write_names(tmp_path / "masks", PARTS)
    places = (tmp_path / "pictures", tmp_path / "masks")
    bench = make_bench(*places, *places, tmp_path / "bench")
    moved = {picture.variation: picture for picture in read_manifest(bench.varied)}
    for name in ("original", "rotation=15", "mirror", "perspective=-50", "tilt=30", "crop=0.75"):
        with Image.open(moved[name].path) as varied, Image.open(bench.varied_masks / moved[name].image) as there:
            bright, marked = np.asarray(varied)[..., 0] > 190, np.asarray(there)
        assert marked.shape == bright.shape
        assert ((marked > 0) == bright).mean() > 0.98, name
        assert set(np.unique(marked)) == {0, 1, 2}
