"""Stores of texts hold what the ids stand for, beside the relevance, also when they are joined."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from lrp_onnx.errors import StoreError
from lrp_onnx.store import HeatmapStore, LayerInfo, StoreSpec, join_stores

TOKENS = [("[CLS]", "élan", "[SEP]"), ("[CLS]", "[SEP]", "")]


def spec(rows: list[int], tokens: list[tuple[str, ...]] | None = None) -> StoreSpec:
    return StoreSpec(
        paths=[f"/data/texts.txt[{row}]" for row in rows],
        index=rows,
        input_shape=(3,),
        outputs=2,
        layers={"token_type_ids": LayerInfo((3,), "", "Input", 1)},
        model="m.onnx",
        model_sha256="0",
        composite="{}",
        target="position:-1",
        seed="logit",
        tokens=[TOKENS[row] for row in rows] if tokens is None else tokens,
    )


def write(path: Path, rows: list[int]) -> Path:
    with HeatmapStore.create(path, spec(rows)) as store:
        relevance = np.arange(3 * len(rows), dtype=np.float32).reshape(-1, 3)
        store.write(
            np.arange(len(rows)),
            attribution=relevance,
            prediction=np.zeros((len(rows), 2)),
            layers={"token_type_ids": -relevance},
        )
        store.finish()
    return path


def test_tokens_are_read_as_they_were_written(tmp_path: Path) -> None:
    with HeatmapStore(write(tmp_path / "h.h5", [0, 1])) as store:
        assert store.tokens is not None
        assert store.tokens.tolist() == [list(row) for row in TOKENS]
        assert store.layer("token_type_ids").attrs["op_type"] == "Input"
    with h5py.File(tmp_path / "h.h5") as file:  # as other tools see it: with the dimensions of the relevance
        assert [dim.label for dim in file["token"].dims] == [dim.label for dim in file["attribution"].dims]


def test_joined_stores_keep_their_tokens(tmp_path: Path) -> None:
    join_stores(tmp_path / "all.h5", [write(tmp_path / "0.h5", [0]), write(tmp_path / "1.h5", [1])])
    with HeatmapStore(tmp_path / "all.h5") as store:
        assert store.tokens is not None
        assert store.tokens.tolist() == [list(row) for row in TOKENS]


def test_as_many_rows_of_tokens_as_samples() -> None:
    with pytest.raises(StoreError, match="2 paths, but 1 tokens"):
        spec([0, 1], TOKENS[:1])


def test_a_store_of_pictures_has_none(tmp_path: Path) -> None:
    other = StoreSpec(paths=["a.png"], index=[0], input_shape=(3, 4, 4), outputs=2, model="m", model_sha256="0",
                      composite="{}", target="predicted", seed="logit")  # fmt: skip
    with HeatmapStore.create(tmp_path / "h.h5", other) as store:
        assert store.tokens is None
