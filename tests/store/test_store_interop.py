"""Other tools open a heatmap store as it is."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest

from lrp_onnx.store import HeatmapStore


@pytest.fixture(params=[None, "gzip"])
def store_path(request, tmp_path, make_spec, fill) -> Path:
    spec = make_spec(compress=request.param)
    with HeatmapStore.create(tmp_path / "h.h5", spec) as store:
        fill(store, spec, range(10))
        store.finish()
    return tmp_path / "h.h5"


def test_virelay_finds_the_arrays_it_reads(store_path):
    with h5py.File(store_path) as file:
        assert (file["attribution"].dtype, file["attribution"].shape) == (np.float32, (10, 3, 8, 9))
        assert (file["prediction"].dtype, file["prediction"].shape) == (np.float32, (10, 3))
        assert (file["label"].dtype, file["label"].shape) == (np.uint16, (10,))
        assert (file["index"].dtype, file["index"].shape) == (np.uint32, (10,))


def test_the_file_describes_itself(store_path):
    with h5py.File(store_path) as file:
        attrs = dict(file.attrs)
        assert (attrs["format"], attrs["format_version"], attrs["complete"]) == ("lrp-onnx-heatmaps", 1, True)
        assert json.loads(attrs["preprocess"]) == {"size": [8, 9]}
        assert json.loads(attrs["classes"]) == ["cat", "dog", "bär"]
        layer = file["layers/%2Ffeatures%2Fconv:0"]
        assert (layer.attrs["tensor"], layer.attrs["node"]) == ("/features/conv:0", "conv")
        assert (layer.attrs["op_type"], layer.attrs["order"]) == ("Conv", 0)
        assert file["samples/path"].asstr()[3] == "/photos/bär 3.png"


def test_every_dimension_has_a_name_and_a_scale(store_path):
    with h5py.File(store_path) as file:
        assert [dim.label for dim in file["attribution"].dims] == ["batch", "channel", "height", "width"]
        assert [dim.label for dim in file["layers/logits"].dims] == ["batch", "feature"]
        assert file["prediction"].dims[1][0].asstr()[:].tolist() == ["cat", "dog", "bär"]
        assert file["conservation"].dims[1][0].asstr()[:].tolist() == ["image", "/features/conv:0"]
        missing: list[str] = []

        def look(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset) and not item.is_scale:
                missing.extend(name for dim in item.dims if len(dim) != 1)

        file.visititems(look)
        assert not missing


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_xarray_shows_named_dimensions(store_path, engine):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf" if engine == "h5netcdf" else "netCDF4")
    with xarray.open_dataset(store_path, engine=engine) as root:
        assert root["attribution"].dims == ("batch", "channel", "height", "width")
        assert root["prediction"].sel({"class": "dog"}).shape == (10,)
    with xarray.open_dataset(store_path, engine=engine, group="samples") as samples:
        assert samples["path"].values[3] == "/photos/bär 3.png"
    with xarray.open_dataset(store_path, engine=engine, group="layers") as layers:
        assert layers["%2Ffeatures%2Fconv:0"].shape == (10, 4, 5, 6)


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="needs hdf5-tools")
def test_hdf5_command_line_tools_read_it(store_path):
    dumped = subprocess.run(["h5dump", "-d", "/label", store_path], capture_output=True, text=True, check=True)
    assert "65535, 0, 1, 2, 65535" in dumped.stdout
    subprocess.run(["h5dump", store_path], capture_output=True, check=True)
