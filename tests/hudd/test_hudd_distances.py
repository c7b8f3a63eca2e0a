"""Distances are those of the plain formulas, in little memory, and a killed run ends with the same file."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import openpyxl
import pytest
import torch
from scipy.spatial.distance import pdist, squareform

from lrp_onnx.errors import DataError, StoreError
from lrp_onnx.hudd import Distances, compute_distances, export_xlsx, pairwise
from lrp_onnx.store import HeatmapStore

TOLERANCE = {"float32": 1e-5, "float64": 1e-9}


def heatmaps(count: int = 60, shape: tuple[int, ...] = (6, 5, 7), seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    scale = random.lognormal(0, 2, (count, *[1] * len(shape)))
    return (random.normal(size=(count, *shape)) * scale).astype(np.float32)


def plain(values: np.ndarray, scaling: str = "none", metric: str = "euclidean") -> np.ndarray:
    rows = values.reshape(len(values), -1).astype(np.float64)
    if scaling == "unit-l2":
        rows /= np.linalg.norm(rows, axis=1)[:, None]
    return pdist(rows, metric)


class Reads:
    """An array that notes how many rows were read at once, and how many in total."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype
        self.most = self.total = 0

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice) -> np.ndarray:
        read = self.values[rows]
        self.most, self.total = max(self.most, len(read)), self.total + len(read)
        return read


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("memory", [1 << 30, 15_000])
@pytest.mark.parametrize("scaling", ["none", "unit-l2"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_distances_are_those_of_the_formula_however_little_memory_there_is(dtype, memory, scaling, metric):
    values = heatmaps()
    found = pairwise(values, metric=metric, scaling=scaling, dtype=dtype, memory=memory)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, plain(values, scaling, metric), rtol=TOLERANCE[dtype], atol=0)


@pytest.mark.parametrize(("reduce", "axes"), [("channels", (2, 3)), ("spatial", (1,))])
def test_reduced_heatmaps_are_compared_by_their_sums(reduce, axes):
    values = heatmaps()
    found = pairwise(values, reduce=reduce, scaling="none", dtype="float64")
    np.testing.assert_allclose(found, plain(values.astype(np.float64).sum(axes)), rtol=1e-6)
    flat = heatmaps(shape=(9,))
    np.testing.assert_array_equal(pairwise(flat, reduce=reduce), pairwise(flat))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("apart", [3e-2, 1e-3, 1e-5])
def test_heatmaps_that_are_nearly_equal_keep_their_small_distance(dtype, apart):
    random = np.random.default_rng(3)
    values = random.normal(size=(40, 500)).astype(np.float32)
    values[20:] = values[:20] + (apart * random.normal(size=(20, 500))).astype(np.float32)
    found = pairwise(values, scaling="none", dtype=dtype)
    np.testing.assert_allclose(found, plain(values), rtol=TOLERANCE[dtype], atol=0)


def test_identical_heatmaps_are_exactly_zero_apart():
    values = heatmaps(50)
    values[[7, 23, 41]] = values[2]
    for memory in (1 << 30, 15_000):
        square = squareform(pairwise(values, memory=memory))
        assert not square[np.ix_([2, 7, 23, 41], [2, 7, 23, 41])].any()
        assert np.count_nonzero(square == 0) == 50 + 12
    assert not pairwise(np.ones((30, 12), np.float32)).any()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_heatmaps_whose_squares_leave_float32_are_compared_by_their_direction(metric):
    values = heatmaps(40)
    values *= np.float32(10.0) ** np.random.default_rng(5).integers(-30, 31, (40, 1, 1, 1)).astype(np.float32)
    values[30:] = values[:10] * np.float32(2) ** -20
    for memory in (1 << 30, 15_000):
        found = pairwise(values, metric=metric, memory=memory)
        expected = plain(values, "unit-l2", metric)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-12)


def test_a_heatmap_of_zeros_has_a_distance():
    values = heatmaps(5, (4,))
    values[[1, 3]] = 0
    cosine = squareform(pairwise(values, metric="cosine"))
    np.testing.assert_allclose(cosine[1], [1, 0, 1, 0, 1])
    np.testing.assert_allclose(squareform(pairwise(values))[1], [1, 0, 1, 0, 1], rtol=1e-6)


def test_only_the_rows_asked_for_are_compared_and_a_few_at_a_time():
    values = heatmaps(90, (100,))
    rows = np.array([3, 4, 5, 20, 60, 61, 88])
    np.testing.assert_allclose(pairwise(values, rows=rows), plain(values[rows], "unit-l2"), rtol=1e-5)
    source = Reads(values)
    pairwise(source, memory=3 * 10 * 100 * 4)
    assert source.most <= 10
    assert source.total == sum(range(10, 91, 10))  # each block of rows once for every block before it, and once itself


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "manhattan"}, "metric 'manhattan'; expected one of euclidean, cosine"),
        ({"scaling": "l1"}, "scaling 'l1'"),
        ({"reduce": "all"}, "reduce 'all'"),
        ({"dtype": "float16"}, "dtype 'float16'"),
        ({"rows": np.array([0, 60])}, "rows 0 to 60 asked, but there are 60 rows"),
    ],
)
def test_options_that_do_not_exist_are_refused(options, words):
    with pytest.raises(DataError, match=words):
        pairwise(heatmaps(), **options)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_heatmap_that_is_not_finite_is_named(value):
    values = heatmaps()
    values[17, 2, 3, 4] = value
    with pytest.raises(DataError, match="row 17 holds values that are not finite"):
        pairwise(values)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_file_holds_every_layer_of_a_store(tmp_path, make_store, dtype):
    layers = {"/conv/0": heatmaps(30) / 100, "fc": heatmaps(30, (11,), seed=1) / 100}
    path = make_store(layers, layer_dtype=dtype, done=[*range(12), *range(15, 29)])
    with HeatmapStore(path) as store:
        names = ["input", *store.layer_names]
        compute_distances(store, tmp_path / "T" / "distances.h5", layers=names, memory=20_000)
        done = store.done
        attribution = store.attribution[:]
    with Distances(tmp_path / "T" / "distances.h5") as distances:
        assert list(distances) == ["input", "/conv/0", "fc"]
        assert distances.rows.tolist() == done.tolist()
        assert distances.paths[12] == "/photos/15.png"
        assert (distances.metric, distances.scaling, distances.reduce) == ("euclidean", "unit-l2", "none")
        for layer, values in {"input": attribution, **{k: v.astype(dtype) for k, v in layers.items()}}.items():
            assert distances[layer].dtype == np.float32
            np.testing.assert_allclose(distances[layer][:], plain(values[done], "unit-l2"), rtol=1e-5)


def test_profile_hudd_keeps_raw_distances_in_double_precision(tmp_path, make_store):
    values = heatmaps(20)
    with HeatmapStore(make_store({"conv": values})) as store:
        compute_distances(store, tmp_path / "d.h5", profile="hudd", layers=["conv"], rows=np.arange(5, 15))
    with Distances(tmp_path / "d.h5") as distances:
        assert list(distances) == ["conv"]
        assert distances.scaling == "none"
        np.testing.assert_allclose(distances["conv"][:], plain(values[5:15]), rtol=1e-9)


KILLED = """
import os, signal, sys
from lrp_onnx.hudd import compute_distances
from lrp_onnx.store import HeatmapStore

def kill(layer, done, total):
    if layer == "b" and done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)

with HeatmapStore(sys.argv[1]) as store:
    compute_distances(store, sys.argv[2], memory=20_000, progress=kill)
"""


def test_a_killed_run_goes_on_at_the_layer_it_was_at_and_ends_the_same(tmp_path, make_store):
    path = make_store({"a": heatmaps(30), "b": heatmaps(30, seed=1), "c": heatmaps(30, seed=2)})
    killed, whole = tmp_path / "killed.h5", tmp_path / "whole.h5"
    run = subprocess.run([sys.executable, "-c", KILLED, str(path), str(killed)], check=False)
    assert run.returncode == -signal.SIGKILL
    with Distances(killed) as distances:
        assert list(distances) == ["a"]
    computed: list[str] = []
    with HeatmapStore(path) as store:
        compute_distances(store, killed, memory=20_000, progress=lambda layer, *_: computed.append(layer))
        compute_distances(store, whole, memory=20_000)
        again: list[str] = []
        compute_distances(store, killed, progress=lambda layer, *_: again.append(layer))
    assert list(dict.fromkeys(computed)) == ["b", "c"]
    assert again == []
    with Distances(killed) as one, Distances(whole) as other:
        assert list(one) == list(other) == ["a", "b", "c"]
        for layer in other:
            np.testing.assert_array_equal(one[layer][:], other[layer][:])


def test_a_layer_is_added_to_what_is_there(tmp_path, make_store):
    path = tmp_path / "d.h5"
    computed: list[str] = []
    with HeatmapStore(make_store({"a": heatmaps(9), "b": heatmaps(9, seed=1)})) as store:
        compute_distances(store, path, layers=["b"])
        compute_distances(store, path, layers=["a", "b"], progress=lambda layer, *_: computed.append(layer))
    assert computed == ["a"]
    with Distances(path) as distances:
        assert list(distances) == ["a", "b"]
        np.testing.assert_allclose(distances["b"][:], plain(heatmaps(9, seed=1), "unit-l2"), rtol=1e-5)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["d.h5", "heatmaps.h5"]


def test_distances_made_otherwise_are_not_mixed(tmp_path, make_store):
    path = tmp_path / "d.h5"
    one, other = make_store({"a": heatmaps(9)}), make_store({"a": heatmaps(9)}, "other.h5", model_sha256="1e" * 32)
    with HeatmapStore(one) as store, HeatmapStore(other) as changed:
        compute_distances(store, path)
        with pytest.raises(StoreError, match="made otherwise, scaling differs: unit-l2 in the file, none now"):
            compute_distances(store, path, profile="hudd")
        with pytest.raises(StoreError, match="metric differs"):
            compute_distances(store, path, metric="cosine")
        with pytest.raises(StoreError, match="store_sha256 differs"):
            compute_distances(changed, path)
        compute_distances(store, path, profile="hudd", overwrite=True)
    with Distances(path) as distances:
        assert distances.scaling == "none"


def test_what_cannot_be_compared_is_said_in_one_line(tmp_path, make_store):
    with HeatmapStore(make_store({"a": heatmaps(4)}, done=[])) as store:
        with pytest.raises(DataError, match="0 image\\(s\\), so there is nothing to cluster"):
            compute_distances(store, tmp_path / "d.h5")
        with pytest.raises(DataError, match="row 2 has no finished heatmap"):
            compute_distances(store, tmp_path / "d.h5", rows=np.array([2, 3]))
    with HeatmapStore(make_store({"a": heatmaps(1)}, "one.h5")) as store:
        with pytest.raises(DataError, match="1 image\\(s\\), so there is nothing to cluster"):
            compute_distances(store, tmp_path / "d.h5")
        with pytest.raises(DataError, match="profile 'best'"):
            compute_distances(store, tmp_path / "d.h5", profile="best")
    assert not (tmp_path / "d.h5").exists()
    with pytest.raises(StoreError, match="no such distances file"):
        Distances(tmp_path / "d.h5")
    with pytest.raises(StoreError, match="not a distances file"):
        Distances(tmp_path / "one.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(StoreError, match="cannot be opened as HDF5"):
        Distances(tmp_path / "text.h5")


def test_a_distances_file_describes_itself(tmp_path, make_store):
    with HeatmapStore(make_store({"a/b": heatmaps(6)})) as store:
        compute_distances(store, tmp_path / "d.h5", reduce="channels")
    with h5py.File(tmp_path / "d.h5") as file:
        assert file.attrs["format"] == "lrp-onnx-distances"
        assert file.attrs["store"] == "heatmaps.h5"
        assert len(file.attrs["store_sha256"]) == 64
        dataset = file["layers/a%2Fb"]
        assert dataset.shape == (15,)
        assert dict(dataset.attrs) == {"tensor": "a/b", "order": 0, "features": 6, "complete": True}


def test_a_spreadsheet_holds_the_full_matrix_with_names(tmp_path):
    condensed = plain(heatmaps(12))
    names = [f"{row}_ü.png" for row in range(11)] + ["=1+1"]
    export_xlsx(tmp_path / "fc-distances.xlsx", condensed, names)
    sheet = openpyxl.load_workbook(tmp_path / "fc-distances.xlsx").active
    rows = [list(row) for row in sheet.iter_rows(values_only=True)]
    assert rows[0] == [None, *names]
    assert [row[0] for row in rows[1:]] == names
    assert {cell.data_type for cell in (*sheet[1][1:], *sheet["A"][1:])} == {"s"}  # "=1+1" is no formula
    np.testing.assert_allclose([row[1:] for row in rows[1:]], squareform(condensed), rtol=1e-15)
    assert [entry.name for entry in tmp_path.iterdir()] == ["fc-distances.xlsx"]


def test_a_spreadsheet_that_would_not_fit_is_refused(tmp_path):
    with pytest.raises(DataError, match="16384 images, but a sheet holds 16383"):
        export_xlsx(tmp_path / "d.xlsx", np.zeros(0), [""] * 16384)
    with pytest.raises(DataError, match="3 names, but 4 distances"):
        export_xlsx(tmp_path / "d.xlsx", np.zeros(4), ["a", "b", "c"])
    with pytest.raises(DataError, match="cannot be written"):
        export_xlsx(Path(tmp_path / "no folder" / "d.xlsx"), np.zeros(1), ["a", "b"])


def test_a_device_that_is_not_there_is_one_clear_line():
    with pytest.raises(DataError, match="device 'abacus' cannot be used: "):
        pairwise(heatmaps(4), device="abacus")


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("apart", [1, 1e-3])
def test_distances_are_those_of_the_formula_on_every_device(device, dtype, apart):
    values = heatmaps(60)
    values[20:40] = values[:20] * (1 + apart * np.random.default_rng(3).normal(size=(20, 6, 5, 7)))
    values[59] = values[0]
    found = pairwise(values, scaling="none", dtype=dtype, memory=15_000, device=device)
    np.testing.assert_allclose(found, plain(values), rtol=TOLERANCE[dtype], atol=0)
    assert squareform(found)[59, 0] == 0
