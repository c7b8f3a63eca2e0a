"""What a store keeps of regression, and that stores made without it are read and resumed as before."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from lrp_onnx.errors import StoreError
from lrp_onnx.store import HeatmapStore

TARGETS = np.arange(20, dtype=np.float32).reshape(10, 2)
FIELDS = {"labels": None, "target_values": TARGETS, "loss": "mae", "threshold": 0.5, "target_names": ["yaw", "größe"]}


@pytest.mark.parametrize("compress", [None, "gzip"])
def test_values_and_the_worst_output_are_kept(tmp_path, make_spec, values_of, compress):
    spec = make_spec(**FIELDS, compress=compress)
    with HeatmapStore.create(tmp_path / "h.h5", spec) as store:
        rows = np.array([1, 4])
        store.write(rows, **values_of(spec, rows.tolist()), worst=[1, 0], predicted_value=TARGETS[rows] + 0.25)
        store.finish()
        np.testing.assert_array_equal(store.predicted_values[rows], TARGETS[rows] + 0.25)
        assert np.isnan(store.predicted_values[[0, 2]]).all()
        assert store.samples["worst"].tolist() == [-1, 1, -1, -1, 0, *[-1] * 5]
        assert store.target_names == ["yaw", "größe"]
        assert (store.attrs["loss"], store.attrs["threshold"]) == ("mae", "0.5")
        assert [row.worst for row in store] == [1, 0]


def test_missing_targets_do_not_keep_a_run_from_being_resumed(tmp_path, make_spec):
    missing = np.where(TARGETS == 3, np.nan, TARGETS)
    HeatmapStore.create(tmp_path / "h.h5", make_spec(**FIELDS | {"target_values": missing})).close()
    HeatmapStore.resume(tmp_path / "h.h5", make_spec(**FIELDS | {"target_values": missing})).close()
    with pytest.raises(StoreError, match="target values differs"):
        HeatmapStore.resume(tmp_path / "h.h5", make_spec(**FIELDS))


@pytest.mark.parametrize("change", [{"loss": "mse"}, {"threshold": None}, {"target_names": None}])
def test_a_run_that_judges_otherwise_is_not_resumed(tmp_path, make_spec, change):
    HeatmapStore.create(tmp_path / "h.h5", make_spec(**FIELDS)).close()
    with pytest.raises(StoreError, match=f"{next(iter(change))} differs"):
        HeatmapStore.resume(tmp_path / "h.h5", make_spec(**FIELDS | change))


@pytest.mark.parametrize("compress", [None, "gzip"])
def test_a_store_of_an_earlier_version_is_read_and_resumed(tmp_path, make_spec, fill, compress):
    spec = make_spec(compress=compress)
    with HeatmapStore.create(tmp_path / "h.h5", spec) as store:
        fill(store, spec, [0])
    with h5py.File(tmp_path / "h.h5", "r+") as file:
        del file["samples/worst"]
        for name in ("loss", "threshold", "target_names"):
            del file.attrs[name]
    with HeatmapStore.resume(tmp_path / "h.h5", spec) as store:
        fill(store, spec, store.pending().tolist())
        store.finish()
        assert store.samples["worst"].tolist() == [-1] * 10
        assert (store.target_names, store.predicted_values) == (None, None)
        assert [row.worst for row in store] == [-1] * 10
