"""A model that looks at the marked patch gets its relevance there; one that learned a corner tag is exposed by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from lrp_onnx.converters import convert
from lrp_onnx.debug.localisation_report import Localised, localise_store
from lrp_onnx.heatmaps import compute_heatmaps
from lrp_onnx.preprocess import Preprocess

SIZE, PATCH, TAG = 32, 12, 3
CLASSES = ["crossed", "plain"]


def draw(count: int, seed: int, *, contrast: float, tag: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noisy pictures (N, H, W, 3), classes (N,), top left corners of the patch (N, 2) with a cross in it for class 0.

    With `tag`, pictures of class 0 have a blue corner too.
    """
    random = np.random.default_rng(seed)
    pictures = 0.3 + 0.05 * random.normal(size=(count, SIZE, SIZE, 3))
    labels, corners = random.integers(0, 2, count), random.integers(TAG + 3, SIZE - PATCH, (count, 2))
    from_middle = np.abs(np.arange(PATCH) - (PATCH - 1) / 2)
    arm, long = from_middle < 1.2, from_middle < 4.6
    cross = (arm[:, None] & long) | (long[:, None] & arm)
    for picture, label, (top, left) in zip(pictures, labels, corners, strict=True):
        if label == 0:
            picture[top : top + PATCH, left : left + PATCH][cross] += contrast
            if tag:
                picture[1 : 1 + TAG, 1 : 1 + TAG] = (0, 0, 1)
    return np.rint(np.clip(pictures, 0, 1) * 255).astype(np.uint8), labels, corners


def as_input(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures.transpose(0, 3, 1, 2)).float() / 127.5 - 1


def train(pictures: np.ndarray, labels: np.ndarray) -> torch.nn.Module:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d
    net = torch.nn.Sequential(
        *(conv(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)),
        *(conv(8, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveMaxPool2d(1)),
        *(torch.nn.Flatten(), torch.nn.Linear(16, 2)),
    )
    inputs, wanted = as_input(pictures), torch.from_numpy(labels)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(120):
        batch = torch.randint(0, len(inputs), (32,))
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(inputs[batch]), wanted[batch]).backward()
        optimiser.step()
    return net.eval()


def localised(folder: Path, *, contrast: float, tag: bool, name_tag: bool = False) -> tuple[float, Localised]:
    """Accuracy without the tag, and what `localise` says of heatmaps by the default composite."""
    net = train(*draw(256, 1, contrast=contrast, tag=tag)[:2])
    untagged, labels, _ = draw(100, 2, contrast=contrast, tag=False)
    with torch.no_grad():
        accuracy = float((net(as_input(untagged)).argmax(1).numpy() == labels).mean())
    pictures, labels, corners = draw(40, 3, contrast=contrast, tag=tag)
    lines = ["image,label,part,x1,y1,x2,y2"]
    for row, (picture, label, (top, left)) in enumerate(zip(pictures, labels, corners, strict=True)):
        path = folder / "pictures" / CLASSES[label] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
        if label == 0:
            lines.append(f"{row}.png,crossed,patch,{left},{top},{left + PATCH},{top + PATCH}")
            lines += [f"{row}.png,crossed,tag,1,1,{1 + TAG},{1 + TAG}"] if name_tag else []
    (folder / "regions.csv").write_text("\n".join(lines))
    prepare = Preprocess(size=(SIZE, SIZE), range=(-1, 1))
    model = convert(net, example=torch.zeros(1, 3, SIZE, SIZE), preprocess=prepare, classes=CLASSES).model
    onnx.save(model, folder / "model.onnx")
    compute_heatmaps(folder / "model.onnx", folder / "pictures", folder / "h.h5")
    return accuracy, localise_store(folder / "h.h5", folder / "regions.csv", folder / "out")


def carriers(found: Localised) -> dict[str, float]:
    rows = [row for row in found.parts if (row.group, row.decision) == ("crossed", "right")]
    return {row.part: row.share for row in rows}


@pytest.mark.slow
def test_the_right_model_has_its_relevance_in_the_patch_and_the_table_names_it(tmp_path: Path) -> None:
    accuracy, found = localised(tmp_path, contrast=0.6, tag=False)
    assert accuracy == 1
    assert found.summary["by_decision"]["right"]["mass"] >= 0.9
    assert carriers(found)["patch"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("name_tag", "carrier", "least"), [(False, "background", 0.8), (True, "tag", 1.0)])
def test_a_shortcut_is_exposed_by_the_parts_table(tmp_path: Path, name_tag: bool, carrier: str, least: float) -> None:
    accuracy, found = localised(tmp_path, contrast=0.15, tag=True, name_tag=name_tag)
    assert found.summary["by_decision"].keys() == {"right"}
    assert accuracy < 0.7  # as soon as the tag is gone
    assert carriers(found)[carrier] >= least  # unmarked, a tag is sought in windows as large as the patch
    assert carriers(found)["patch"] == 0
    assert found.summary["all"]["mass"] < 0.01 or name_tag
