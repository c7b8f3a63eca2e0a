"""Stores of the parts of a data set, joined, are the store of the whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lrp_onnx.errors import StoreError
from lrp_onnx.store import HeatmapStore, StoreSpec, join_stores

Values = Callable[..., dict[str, Any]]


def part_of(spec: StoreSpec, rows: range) -> StoreSpec:
    cut = slice(rows.start, rows.stop)
    labels = np.asarray(spec.labels)[cut]
    targets = None if spec.target_values is None else spec.target_values[cut]
    return replace(spec, paths=spec.paths[cut], index=np.asarray(spec.index)[cut], labels=labels, target_values=targets)


def write(path: Path, spec: StoreSpec, values_of: Values, rows: range, failed: int) -> None:
    with HeatmapStore.create(path, part_of(spec, rows)) as store:
        good = [row for row in rows if row != failed]
        values = values_of(spec, good)
        if spec.target_values is not None:
            values["predicted_value"] = np.arange(20.0).reshape(10, 2)[good] / 3
        store.write(np.array(good) - rows.start, **values)
        store.finish()


def contents(path: Path) -> dict[str, Any]:
    def walk(group: h5py.Group, prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, item in group.items():
            if isinstance(item, h5py.Group):
                yield from walk(item, f"{prefix}{key}/")
            else:
                plain = {name: value for name, value in item.attrs.items() if not name.isupper()}
                scales = [dimension.keys() for dimension in item.dims]
                yield prefix + key, (item.dtype, np.asarray(item[...]).tolist(), plain, scales)

    with h5py.File(path) as file:
        attributes = {name: value for name, value in file.attrs.items() if name != "created"}
        return {"attributes": attributes, **dict(walk(file))}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"compress": "gzip", "layer_dtype": "float16"},
        {"target_values": np.arange(20.0).reshape(10, 2), "loss": "mse", "threshold": 0.5, "target_names": ["x", "y"]},
    ],
    ids=["plain", "compressed", "regression"],
)
def test_joined_shards_equal_the_store_of_all_samples(
    tmp_path: Path, make_spec: Callable[..., StoreSpec], values_of: Values, changes: dict[str, Any]
) -> None:
    spec, failed = make_spec(10, **changes), 5
    place = tmp_path / "50%b done"  # what HDF5 could take for a format
    parts = [range(4), range(4, 8), range(8, 10)]
    shards = [place / "shards" / f"{number}.h5" for number in range(3)]
    for shard, rows in zip(shards, parts, strict=True):
        write(shard, spec, values_of, rows, failed)
    write(tmp_path / "whole.h5", spec, values_of, range(10), failed)
    join_stores(place / "joined.h5", shards)

    there = Path(shutil.move(place, tmp_path / "moved"))
    with HeatmapStore(there / "joined.h5") as joined, HeatmapStore(tmp_path / "whole.h5") as whole:
        assert joined.complete
        assert joined.pending().tolist() == [failed]
        for row, same in zip(joined, whole, strict=True):
            np.testing.assert_array_equal(row.attribution, same.attribution)
    joined_contents, whole_contents = contents(there / "joined.h5"), contents(tmp_path / "whole.h5")
    for name in whole_contents:
        if not name.startswith("layers") and name != "attribution":
            np.testing.assert_equal(joined_contents[name], whole_contents[name], err_msg=name)
    with h5py.File(there / "joined.h5") as one, h5py.File(tmp_path / "whole.h5") as other:
        done = [row for row in range(10) if row != failed]  # what was never written may hold anything
        for name in ("attribution", *(f"layers/{key}" for key in other["layers"])):
            assert one[name].is_virtual
            np.testing.assert_array_equal(one[name][done], other[name][done])
            assert dict(one[name].attrs.items()).keys() == dict(other[name].attrs.items()).keys()


def test_shards_of_another_run_are_refused(
    tmp_path: Path, make_spec: Callable[..., StoreSpec], values_of: Values
) -> None:
    write(tmp_path / "0.h5", make_spec(10), values_of, range(5), -1)
    write(tmp_path / "1.h5", make_spec(10, seed="one"), values_of, range(5, 10), -1)
    with pytest.raises(StoreError, match=r"1\.h5: cannot be joined, seed differs: logit .* one in this one"):
        join_stores(tmp_path / "joined.h5", [tmp_path / "0.h5", tmp_path / "1.h5"])
    assert not (tmp_path / "joined.h5").exists()
