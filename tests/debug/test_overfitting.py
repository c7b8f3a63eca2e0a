"""The comparison of training with held-out heatmaps flags shortcuts and memorised noise, and not a healthy model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import mannwhitneyu

from lrp_onnx.converters import convert
from lrp_onnx.debug.heatmap_statistics import centre_and_spread, entropy, gini
from lrp_onnx.debug.overfitting import ALL, MEASURES, Comparison, Seen, compare_seen, compare_stores
from lrp_onnx.debug.overfitting_report import write_overfitting
from lrp_onnx.debug.regions import Box, Region, Regions
from lrp_onnx.debug.two_samples import holm, mean_likeness, rank_test
from lrp_onnx.errors import OutputError, StoreError
from lrp_onnx.files import save_model
from lrp_onnx.heatmaps import compute_heatmaps

SIZE, BAR, TAG = 16, 7, 3
CLASSES = ["upright", "level"]
Data = tuple[np.ndarray, np.ndarray, np.ndarray]


def bars(count: int, seed: int, *, contrast: float = 1.0, tag: bool = False) -> Data:
    """Noise with an upright or a level bar, (N, 1, 16, 16); classes; corners (row, column) of a square around the bar.

    With `tag`, class 0 has a bright corner too.
    """
    random = np.random.default_rng(seed)
    x = 0.1 * random.normal(size=(count, 1, SIZE, SIZE)).astype(np.float32)
    y, corners = random.integers(0, 2, count), random.integers(TAG + 1, SIZE - BAR + 1, (count, 2))
    for picture, label, (top, left) in zip(x[:, 0], y, corners, strict=True):
        middle = BAR // 2
        rows, columns = (
            (slice(0, BAR), slice(middle, middle + 1)) if label == 0 else (slice(middle, middle + 1), slice(0, BAR))
        )
        picture[top : top + BAR, left : left + BAR][rows, columns] += contrast
        if tag and label == 0:
            picture[:TAG, :TAG] += 2
    return x, y, corners


def train(data: Data, *, steps: int = 150, wide: bool = False) -> torch.nn.Module:
    torch.manual_seed(0)
    conv, relu = torch.nn.Conv2d, torch.nn.ReLU
    head = (torch.nn.AdaptiveMaxPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 2))
    if wide:  # room to learn every picture by heart
        head = (torch.nn.Flatten(), torch.nn.Linear(16 * 64, 64), relu(), torch.nn.Linear(64, 2))  # type: ignore[assignment]
    net = torch.nn.Sequential(
        conv(1, 8, 3, padding=1), relu(), torch.nn.MaxPool2d(2), conv(8, 16, 3, padding=1), relu(), *head
    )
    x, y = torch.from_numpy(data[0]), torch.from_numpy(data[1])
    optimiser = torch.optim.Adam(net.parameters(), 1e-2 if not wide else 2e-3)
    for _ in range(steps):
        batch = torch.randint(0, len(x), (32,))
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
        optimiser.step()
    return net.eval()


def regions_of(name: str, data: Data) -> list[Region]:
    return [
        Region(f"{name}.npz[{row}]", "", "", Box(left, top, left + BAR, top + BAR), "marked here")
        for row, (top, left) in enumerate(data[2].tolist())
    ]


def stores(folder: Path, net: torch.nn.Module, training: Data, heldout: Data) -> tuple[Path, Path]:
    model = convert(net, example=torch.zeros(1, 1, SIZE, SIZE), classes=CLASSES).model
    save_model(model, folder / "model.onnx", overwrite=True)
    for name, (x, y, _) in {"training": training, "heldout": heldout}.items():
        np.savez(folder / f"{name}.npz", x=x, y=y)
        compute_heatmaps(folder / "model.onnx", folder / f"{name}.npz", folder / f"{name}.h5", batch_size=50)
    return folder / "training.h5", folder / "heldout.h5"


def compared(folder: Path, net: torch.nn.Module, training: Data, heldout: Data) -> Comparison:
    """With the bars marked."""
    pair = stores(folder, net, training, heldout)
    marked = [*regions_of("training", training), *regions_of("heldout", heldout)]
    return write_overfitting(*pair, folder / "out", regions=Regions(folder / "regions", marked))


def test_a_healthy_model_is_not_flagged(tmp_path: Path) -> None:
    training, heldout = bars(160, 1), bars(120, 2)
    found = compared(tmp_path, train(training), training, heldout)
    accuracy = next(row for row in found.rows if (row.measure, row.group) == ("correct", ALL))
    assert accuracy.heldout_mean >= 0.95
    assert not found.finding.suspicious, found.finding.reasons
    assert not any(row.differs for row in found.rows)
    assert found.p_mean > 0.01


def test_a_shortcut_that_held_out_images_lack_is_flagged_and_located(tmp_path: Path) -> None:
    training = bars(160, 1, contrast=0.1, tag=True)
    found = compared(tmp_path, train(training), training, bars(120, 2, contrast=0.1))
    assert found.finding.decides_worse and found.finding.looks_elsewhere
    upright = {row.measure: row for row in found.rows if row.group == "upright"}
    assert upright["x"].differs and upright["x"].training_mean < 0.25 < upright["x"].heldout_mean
    assert upright["typical"].a12 < 0.2
    assert found.p_mean <= 0.01
    assert "held out" in "".join(found.finding.reasons)


def test_a_shortcut_in_both_sets_is_flagged_by_the_regions_alone(tmp_path: Path) -> None:
    training, heldout = bars(160, 1, contrast=0.1, tag=True), bars(120, 2, contrast=0.1, tag=True)
    found = compared(tmp_path, train(training), training, heldout)
    assert found.finding.beside_object
    assert not found.finding.decides_worse
    unmarked = compare_stores(tmp_path / "training.h5", tmp_path / "heldout.h5")[2]
    assert not unmarked.finding.beside_object
    assert not any(row.measure == "mass" for row in unmarked.rows)


def test_memorised_noise_is_flagged(tmp_path: Path) -> None:
    training, heldout = bars(96, 1, contrast=0), bars(120, 2, contrast=0)
    found = compared(tmp_path, train(training, steps=400, wide=True), training, heldout)
    accuracy = next(row for row in found.rows if (row.measure, row.group) == ("correct", ALL))
    assert accuracy.training_mean == 1
    assert accuracy.heldout_mean < 0.7
    assert found.finding.decides_worse and found.finding.looks_elsewhere
    assert found.finding.verdict == "the model decides worse and looks at other things on held-out images"


def test_the_folder_holds_tables_pictures_and_the_verdict(tmp_path: Path) -> None:
    training, heldout = bars(60, 1, contrast=0.1, tag=True), bars(50, 2, contrast=0.1)
    pair = stores(tmp_path, train(training, steps=60), training, heldout)
    done: list[tuple[int, int]] = []
    found = write_overfitting(*pair, tmp_path / "out", progress=lambda *at: done.append(at))
    assert done[0] == (1, 110) and done[-1] == (110, 110)
    said = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert said["finding"]["verdict"] == found.finding.verdict
    assert said["images"] == {"training": 60, "held-out": 50}
    with (tmp_path / "out" / "images.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["set"] for row in rows].count("held-out") == 50
    assert all(row["mass"] == "" and 0 <= float(row["entropy"]) <= 1 for row in rows)
    with Image.open(tmp_path / "out" / "effects.png") as picture:
        assert picture.width == 1200
    with pytest.raises(OutputError, match="--overwrite"):
        write_overfitting(*pair, tmp_path / "out")


def test_heatmaps_that_were_made_otherwise_are_refused(tmp_path: Path) -> None:
    data = bars(8, 1)
    pair = stores(tmp_path, train(data, steps=1), data, data)
    compute_heatmaps(tmp_path / "model.onnx", tmp_path / "heldout.npz", pair[1], composite="gradient", overwrite=True)
    with pytest.raises(StoreError, match="differ in composite"):
        compare_stores(*pair)


def test_the_rank_test_is_mann_whitney_with_strata() -> None:
    random = np.random.default_rng(0)
    a, b = random.integers(0, 9, 30), random.integers(2, 11, 40)  # with ties
    for first, second in ((a, b), (a[:5], b[:7])):
        theirs = mannwhitneyu(second, first, use_continuity=False, method="asymptotic")
        a12, p = rank_test([(first, second)])
        assert p == pytest.approx(theirs.pvalue)
        assert a12 == pytest.approx(theirs.statistic / (len(first) * len(second)))
    # classes of other levels, in other shares: no difference within, though there is one in all
    low, high = np.arange(40.0), np.arange(40.0) + 100
    assert rank_test([(low, low[:4]), (high[:4], high)])[1] > 0.01
    assert rank_test([(np.concatenate([low, high[:4]]), np.concatenate([low[:4], high]))])[1] < 1e-6
    assert np.isnan(rank_test([([], [1.0])])).all()


def test_holm_multiplies_by_how_many_are_left() -> None:
    assert holm([0.01, 0.04, np.nan, 0.03]).tolist() == pytest.approx([0.03, 0.06, np.nan, 0.06], nan_ok=True)
    assert holm([0.9, 0.8]).max() == 1


def test_mean_heatmaps_differ_where_sets_do() -> None:
    random = np.random.default_rng(0)
    left, right = np.eye(2)[0], np.eye(2)[1]

    def noisy(mean: np.ndarray) -> np.ndarray:
        return mean + np.abs(0.1 * random.normal(size=(30, 2)))

    cosines, expected, p = mean_likeness([(noisy(left), noisy(right))], permutations=99)
    assert cosines[0] < 0.3 < 0.9 < expected[0]
    assert p == 0.01
    by_chance = [mean_likeness([(noisy(left), noisy(left))], permutations=99)[2] for _ in range(40)]
    assert 0.35 < np.mean(by_chance) < 0.65  # uniform
    assert np.mean(np.array(by_chance) <= 0.1) < 0.25


def test_statistics_of_heatmaps_that_are_known() -> None:
    one, even = np.zeros((4, 8)), np.full((4, 8), -2.0)
    one[1, 6] = 5
    assert (gini(even), entropy(even)) == pytest.approx((0, 1))
    assert (gini(one), entropy(one)) == pytest.approx((1 - 1 / 32, 0))
    assert gini([1, 3]) == 0.25  # (−1·1 + 1·3) / (2·4)
    assert centre_and_spread(one) == pytest.approx((6.5 / 8, 1.5 / 4, 0))
    one[1, 2] = 5
    assert centre_and_spread(one) == pytest.approx((4.5 / 8, 1.5 / 4, 2 / np.hypot(4, 8)))
    assert np.isnan([gini(0 * one), entropy(0 * one), *centre_and_spread(even)]).all()


def test_a_training_image_is_not_compared_with_itself() -> None:
    random = np.random.default_rng(0)

    def seen(count: int) -> Seen:
        coarse = random.random((count, 4, 4)) ** 8
        coarse /= np.linalg.norm(coarse, axis=(1, 2), keepdims=True)
        values = {name: np.zeros(count) for name in MEASURES}
        return Seen(tuple("x" * count), np.array(["a"] * count), values, np.zeros(count), np.float32(coarse))

    pairs = [compare_seen(seen(5), seen(40)) for _ in range(20)]
    typical = [next(row for row in one.rows if (row.measure, row.group) == ("typical", "a")) for one in pairs]
    assert np.mean([row.a12 for row in typical]) == pytest.approx(0.5, abs=0.15)
