"""Distances by several processes are those of one process."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lrp_onnx.hudd import Distances, compute_distances
from lrp_onnx.store import HeatmapStore, LayerInfo, StoreSpec

COUNT, SHAPE = 90, (4, 6, 6)


def write_store(path: Path) -> None:
    spec = StoreSpec(
        paths=[f"{row}.png" for row in range(COUNT)],
        index=np.arange(COUNT),
        input_shape=(1, 2, 2),
        outputs=1,
        layers={"features": LayerInfo(SHAPE, "conv", "Conv", 0)},
        model="model.onnx",
        model_sha256="0" * 64,
        composite="{}",
        target="predicted",
        seed="logit",
    )
    random = np.random.default_rng(0)
    with HeatmapStore.create(path, spec) as store:
        store.write(
            np.arange(COUNT),
            attribution=random.normal(size=(COUNT, 1, 2, 2)),
            prediction=np.zeros((COUNT, 1)),
            layers={"features": random.normal(size=(COUNT, *SHAPE))},
        )
        store.finish()


def test_blocks_compared_by_workers_make_the_same_file(tmp_path: Path) -> None:
    write_store(tmp_path / "h.h5")
    memory = 3 * 4 * 144 * 20  # blocks of 20 rows
    rows = np.setdiff1d(np.arange(COUNT), [3, 50])
    with HeatmapStore(tmp_path / "h.h5") as store:
        for name, scheduler in (("one", None), ("many", "local:2")):
            compute_distances(store, tmp_path / f"{name}.h5", rows=rows, memory=memory, scheduler=scheduler)
    with Distances(tmp_path / "one.h5") as one, Distances(tmp_path / "many.h5") as many:
        assert list(many) == list(one) == ["features"]
        np.testing.assert_array_equal(many["features"][:], one["features"][:])
        assert one["features"][:].min() > 0
