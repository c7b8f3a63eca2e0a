"""Where some errors stand for all, the clusters are those of all: true sizes, exact distances, resumable, useful."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from lrp_onnx.errors import DataError, StoreError
from lrp_onnx.hudd import (
    Clustering,
    Distances,
    assign_stores,
    choose_representatives,
    cluster,
    compute_distances,
    join_representatives,
    pairwise,
)
from lrp_onnx.hudd.blocks import HeatmapRows
from lrp_onnx.hudd.micro import EXACT, MICRO, micro_count
from lrp_onnx.store import HeatmapStore

Make = Callable[..., Path]


def planted(count: int = 600, causes: int = 6, spread: float = 0.6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Causes (count,) and heatmaps (count, 3, 4, 5), each with a scale of its own."""
    random = np.random.default_rng(seed)
    cause = random.integers(causes, size=count)
    centres = np.random.default_rng(99).normal(size=(causes, 3, 4, 5))
    values = centres[cause] + spread * random.normal(size=(count, 3, 4, 5))
    return cause, (values * random.lognormal(0, 1, (count, 1, 1, 1))).astype(np.float32)


def joined(store: Path, path: Path, micro: int, profile: str = "default", **options: Any) -> Clustering:
    with HeatmapStore(store) as heatmaps:
        compute_distances(heatmaps, path, profile=profile, layers=["a"], micro=micro)
        with Distances(path) as distances:
            found = cluster(distances, profile, min_size=1, **options)
            return join_representatives(found, distances, heatmaps.layer("a")[:])


def same_groups(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(((one[:, None] == one) == (other[:, None] == other)).all())


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_clusters_are_those_of_all_errors(tmp_path: Path, make_store: Make, metric: str) -> None:
    cause, values = planted()
    exact = cluster({"a": pairwise(values, metric=metric)})
    store, path = make_store({"a": values}), tmp_path / "d.h5"
    with HeatmapStore(store) as heatmaps:
        compute_distances(heatmaps, path, layers=["a"], metric=metric, micro=60)
        with Distances(path) as distances:
            chosen = distances.representatives
            assert 50 < len(chosen) <= 60
            assert (np.diff(chosen) > 0).all()
            assert len(distances.rows) == 600
            np.testing.assert_allclose(distances["a"][:], pairwise(values, rows=chosen, metric=metric), rtol=1e-5)
            found = join_representatives(cluster(distances, min_size=1), distances, heatmaps.layer("a"))
    assert same_groups(found.labels, exact.labels)
    assert same_groups(found.labels, cause)
    assert found.sizes == exact.sizes
    assert found.silhouettes.mean() == pytest.approx(exact.silhouettes.mean(), abs=0.02)
    assert found.how_k.endswith(f", on {len(chosen)} errors that stand for all 600")


@pytest.mark.parametrize("memory", [1 << 30, 60_000])
def test_each_error_joins_its_nearest_representative_with_its_distances(
    tmp_path: Path, make_store: Make, memory: int
) -> None:
    _, values = planted(200, spread=2.0)
    store = make_store({"a": values})
    with HeatmapStore(store) as heatmaps:
        compute_distances(heatmaps, tmp_path / "d.h5", layers=["a"], micro=40)
        with Distances(tmp_path / "d.h5") as distances:
            chosen, some = distances.representatives, cluster(distances, k=5, min_size=1)
            found = join_representatives(some, distances, heatmaps.layer("a"), memory=memory)
            unit = heatmaps.layer("a")[:].reshape(200, -1).astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1)[:, None]
    to_chosen = cdist(unit, unit[chosen])
    nearest = to_chosen.argmin(axis=1)
    assert (some.labels >= 1).all()
    assert same_groups(found.labels, some.labels[nearest])
    of_chosen = found.labels[chosen]
    limits = dict.fromkeys(found.medoids, 0.0)
    for image, label in enumerate(found.labels.tolist()):
        fellows = (of_chosen == label) & (chosen != image)
        inside = to_chosen[image, fellows].mean()
        outside = min(to_chosen[image, of_chosen == other].mean() for other in found.medoids if other != label)
        expected = (outside - inside) / max(inside, outside)
        assert found.silhouettes[image] == pytest.approx(expected, abs=1e-5)
        at_medoid = np.linalg.norm(unit[image] - unit[found.medoids[label]])
        assert found.distance_to_medoid[image] == pytest.approx(at_medoid, abs=1e-5)
        limits[label] = max(limits[label], to_chosen[image, fellows].min())
    assert found.thresholds == pytest.approx(limits, rel=1e-5)
    sizes = [found.sizes[label] for label in found.medoids]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == 200
    for label, medoid in found.medoids.items():
        assert found.labels[medoid] == label
        assert medoid in chosen


def test_the_size_of_a_cluster_counts_all_errors_not_those_that_stand_for_them(
    tmp_path: Path, make_store: Make
) -> None:
    cause, values = planted(200, causes=4, spread=0.01)
    store = make_store({"a": values})
    found = joined(store, tmp_path / "d.h5", micro=4, k=4)
    assert sorted(found.sizes.values()) == sorted(np.bincount(cause).tolist())  # though one stands for each
    assert found.noise == ()
    assert all(limit > 0 for limit in (found.thresholds or {}).values())
    with HeatmapStore(store) as heatmaps, Distances(tmp_path / "d.h5") as distances:
        some = cluster(distances, k=4, min_size=1)
        fewer = join_representatives(some, distances, heatmaps.layer("a"), min_size=max(found.sizes.values()))
    assert len(fewer.medoids) == 1
    assert np.isnan(fewer.distance_to_medoid[fewer.labels == -1]).all()
    assert all("fewer than" in reason for reason in fewer.noise)


def test_profile_hudd_takes_part_with_raw_distances(tmp_path: Path, make_store: Make) -> None:
    cause, values = planted(300, causes=3, spread=0.1)
    store = make_store({"a": values / np.linalg.norm(values.reshape(300, -1), axis=1)[:, None, None, None]})
    found = joined(store, tmp_path / "d.h5", micro=50, profile="hudd", k=3)
    assert same_groups(found.labels, cause)
    assert found.profile == "hudd"


def test_improvement_images_are_assigned_to_such_clusters(tmp_path: Path, make_store: Make) -> None:
    _, values = planted(400, causes=4)
    new_cause, new = planted(80, causes=4, seed=5)
    far = np.random.default_rng(1).normal(size=(20, 3, 4, 5)).astype(np.float32)
    store = make_store({"a": values})
    improvement = make_store({"a": np.concatenate([new, far])}, "improvement.h5")
    found = joined(store, tmp_path / "d.h5", micro=60)
    with (
        HeatmapStore(improvement) as images,
        HeatmapStore(store) as errors,
        Distances(tmp_path / "d.h5") as distances,
    ):
        unsafe = assign_stores(images, errors, found, distances)
    assert unsafe.thresholds == found.thresholds
    assert {label: 2 * size for label, size in found.sizes.items()} == dict(unsafe.quotas)
    selected = np.array([one.image for one in unsafe.selected])
    assert len(selected) >= 70
    assert selected.max() < 80  # nothing of what resembles no cluster
    assert same_groups(np.array([one.cluster for one in unsafe.selected]), new_cause[selected])


KILLED = """
import os, signal, sys
from lrp_onnx.hudd import compute_distances
from lrp_onnx.store import HeatmapStore

def kill(layer, done, total):
    if layer == "b":
        os.kill(os.getpid(), signal.SIGKILL)

with HeatmapStore(sys.argv[1]) as store:
    compute_distances(store, sys.argv[2], micro=40, progress=kill)
"""


def test_a_killed_run_keeps_what_it_chose_and_ends_with_the_same_file(tmp_path: Path, make_store: Make) -> None:
    values = planted(200)[1]
    store = make_store({"a": values, "b": values[:, ::-1] * 2, "c": values**2})
    killed, whole = tmp_path / "killed.h5", tmp_path / "whole.h5"
    run = subprocess.run([sys.executable, "-c", KILLED, str(store), str(killed)], check=False)
    assert run.returncode == -signal.SIGKILL
    steps: list[str] = []
    with HeatmapStore(store) as heatmaps:
        compute_distances(heatmaps, killed, micro=40, progress=lambda layer, *_: steps.append(layer))
        compute_distances(heatmaps, whole, micro=40)
    assert list(dict.fromkeys(steps)) == ["b", "c"]
    with Distances(killed) as one, Distances(whole) as other:
        np.testing.assert_array_equal(one.representatives, other.representatives)
        for layer in ("a", "b", "c"):
            np.testing.assert_array_equal(one[layer][:], other[layer][:])


def test_distances_between_other_representatives_are_not_mixed(tmp_path: Path, make_store: Make) -> None:
    path = tmp_path / "d.h5"
    with HeatmapStore(make_store({"a": planted(90)[1]})) as heatmaps:
        compute_distances(heatmaps, path, micro=40)
        with pytest.raises(StoreError, match="representatives differs: 40 micro-clusters in the file, none now"):
            compute_distances(heatmaps, path)
        with pytest.raises(StoreError, match="representatives differs: 40 micro-clusters in the file, 50 micro-clu"):
            compute_distances(heatmaps, path, micro=50)
        compute_distances(heatmaps, path, overwrite=True)
    with Distances(path) as exact:
        assert exact.representatives.tolist() == list(range(90))
        assert len(exact["a"]) == 90 * 89 // 2


def test_errors_of_a_rare_cause_have_one_that_stands_for_them() -> None:
    random = np.random.default_rng(3)
    values = planted(3000, causes=4)[1]
    rare = random.choice(3000, 12, replace=False)
    values[rare] = np.random.default_rng(4).normal(size=(3, 4, 5)) + 0.3 * random.normal(size=(12, 3, 4, 5))
    chosen = choose_representatives({"a": HeatmapRows(values, scaling="unit-l2")}, 60)
    assert np.isin(chosen, rare).any()  # at random there would be none in four of five runs


def test_heatmaps_are_read_a_few_at_a_time_and_progress_is_told() -> None:
    values = planted(100)[1]
    most = 0

    class Reads:
        shape, dtype = values.shape, values.dtype

        def __len__(self) -> int:
            return 100

        def __getitem__(self, rows: slice) -> np.ndarray:
            nonlocal most
            most = max(most, len(values[rows]))
            return values[rows]

    told: list[tuple[int, int]] = []
    layers = {name: HeatmapRows(Reads(), scaling="unit-l2") for name in "ab"}  # type: ignore[arg-type]
    choose_representatives(layers, 10, memory=3 * 7 * 60 * 4, progress=lambda *done: told.append(done))
    assert most <= 7
    assert told == sorted(told)
    assert told[-1] == (300, 300)
    assert len(told) > 20


def test_identical_errors_need_but_one_to_stand_for_them(tmp_path: Path, make_store: Make) -> None:
    values = np.repeat(planted(5)[1], 30, axis=0)
    found = joined(make_store({"a": values}), tmp_path / "d.h5", micro=20, k=5)
    with Distances(tmp_path / "d.h5") as distances:
        assert len(distances.representatives) == 5
    assert same_groups(found.labels, np.repeat(np.arange(5), 30))


def test_how_many_stand_for_all_is_asked_for_or_found() -> None:
    assert micro_count(EXACT, None) == 0
    assert micro_count(EXACT + 1, None) == MICRO
    assert micro_count(10**6, 0) == 0
    assert micro_count(300, 40) == 40
    assert micro_count(300, 300) == micro_count(300, 1000) == 0
    for asked in (-1, 1):
        with pytest.raises(DataError, match=f"{asked} micro-clusters; expected 2 or more, or 0"):
            micro_count(300, asked)


def test_a_missing_package_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(DataError, match=r"lrp-onnx\[scale\]"):
        choose_representatives({"a": HeatmapRows(planted(20)[1])}, 5)
