"""A heatmap store gives back what was written, and refuses what does not fit."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from lrp_onnx.errors import StoreError
from lrp_onnx.store import HeatmapStore, LayerInfo, layer_key


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Every dataset of the file."""
    found: dict[str, np.ndarray] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def assert_same_arrays(one: Path, other: Path) -> None:
    first, second = arrays(one), arrays(other)
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)


@pytest.mark.parametrize("compress", [None, "gzip", "lzf"])
def test_what_is_written_is_read(tmp_path, make_spec, values_of, fill, compress):
    spec = make_spec(compress=compress)
    with HeatmapStore.create(tmp_path / "h.h5", spec) as store:
        fill(store, spec, [0, 1, 2, 4, 5, 7])
        assert store.pending().tolist() == [3, 6, 8, 9]
        assert not store.complete
        store.finish()
    expected = values_of(spec, range(10))
    with HeatmapStore(tmp_path / "h.h5") as store:
        assert len(store) == 10
        assert store.complete
        assert store.done.tolist() == [0, 1, 2, 4, 5, 7]
        assert store.layer_names == list(spec.layers)
        assert store.classes == ["cat", "dog", "bär"]
        assert store.preprocess == spec.preprocess
        assert store.attrs["composite"] == spec.composite
        np.testing.assert_array_equal(store.labels, spec.labels)
        for row in store.done:
            np.testing.assert_array_equal(store.attribution[row], expected["attribution"][row])
            np.testing.assert_array_equal(store.prediction[row], expected["prediction"][row])
            for name in spec.layers:
                np.testing.assert_array_equal(store.layer(name)[row], expected["layers"][name][row])
        names, sums = store.conservation
        assert names == spec.conservation
        np.testing.assert_array_equal(sums[5], expected["conservation"][5])
        samples = store.samples
        assert samples["path"].tolist() == spec.paths
        assert samples["index"].tolist() == list(range(0, 20, 2))
        assert samples["correct"].tolist() == [1, 0, 1, -1, 1, 0, -1, 0, -1, -1]
        assert samples["predicted"][3] == -1
        assert np.isnan(samples["loss"][3])
    assert [entry.name for entry in tmp_path.iterdir()] == ["h.h5"]


def test_iteration_gives_finished_samples_in_order(tmp_path, make_spec, values_of, fill):
    spec = make_spec()
    with HeatmapStore.create(tmp_path / "h.h5", spec) as store:
        fill(store, spec, [6, 7, 1])
        rows = list(store)
    assert [row.row for row in rows] == [1, 6, 7]
    assert (rows[1].path, rows[1].index, rows[1].label, rows[1].predicted) == ("/photos/bär 6.png", 12, 1, 0)
    np.testing.assert_array_equal(rows[1].attribution, values_of(spec, [6])["attribution"][0])


def test_missing_results_and_labels_are_marked_as_such(tmp_path, make_spec, values_of):
    spec = make_spec(labels=None, layers={}, conservation=(), classes=None, preprocess=None)
    values = values_of(spec, [0])
    with HeatmapStore.create(tmp_path / "h.h5", spec) as store:
        store.write(np.array([0]), attribution=values["attribution"], prediction=values["prediction"])
        assert set(store.labels) == {-1}
        assert (store.classes, store.preprocess, store.conservation, store.target_values) == (None, None, None, None)
        assert (store.samples["predicted"][0], store.samples["correct"][0]) == (-1, -1)
    with h5py.File(tmp_path / "h.h5") as file:
        assert file["label"][0] == 65535


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 4, 4, 4)])
def test_inputs_that_are_no_pictures_are_stored_as_they_are(tmp_path, make_spec, fill, values_of, shape):
    spec = make_spec(input_shape=shape, outputs=(2, 3), classes=None)
    with HeatmapStore.create(tmp_path / "h.h5", spec) as store:
        fill(store, spec, [0, 1])
        np.testing.assert_array_equal(store.attribution[:2], values_of(spec, [0, 1])["attribution"])
        assert store.prediction.shape == (10, 2, 3)


def test_regression_targets_are_kept(tmp_path, make_spec):
    targets = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)
    with HeatmapStore.create(tmp_path / "h.h5", make_spec(labels=None, target_values=targets)) as store:
        np.testing.assert_array_equal(store.target_values, targets)


def test_inner_layers_as_float16(tmp_path, make_spec, values_of):
    spec = make_spec(layer_dtype="float16")
    values = values_of(spec, [0])
    with HeatmapStore.create(tmp_path / "h.h5", spec) as store:
        store.write(np.array([0]), **values)
        assert store.attribution.dtype == np.float32
        np.testing.assert_array_equal(store.layer("logits")[0], values["layers"]["logits"][0].astype(np.float16))
        values["layers"]["logits"] = np.full((1, 3), 1e6)
        with pytest.raises(StoreError, match=r"layers/logits has values beyond float16"):
            store.write(np.array([1]), **values)


def test_chunks_hold_whole_samples_of_about_a_mebibyte(tmp_path, make_spec):
    with HeatmapStore.create(tmp_path / "h.h5", make_spec(50, input_shape=(3, 100, 100), layers={})) as store:
        assert store.attribution.chunks == (8, 3, 100, 100)
        assert store.prediction.chunks == (50, 3)
    with HeatmapStore.create(tmp_path / "big.h5", make_spec(2, input_shape=(3, 600, 600), layers={})) as store:
        assert store.attribution.chunks == (1, 3, 600, 600)


def test_no_two_tensors_share_a_key(tmp_path, make_spec):
    names = ["a/b", "a%2Fb", "a%252Fb", "/", ".", "..", "%2E", "a.b", "ä/é", "a b", "a\nb", "a", "A"]
    assert len({layer_key(name) for name in names}) == len(names)
    layers = {name: LayerInfo((order + 1,), "n", "Relu", order) for order, name in enumerate(names)}
    with HeatmapStore.create(tmp_path / "h.h5", make_spec(layers=layers)) as store:
        assert store.layer_names == names
        assert [store.layer(name).shape[1] for name in names] == list(range(1, len(names) + 1))


def test_a_composite_of_a_megabyte_fits_into_the_attributes(tmp_path, make_spec):
    spec = make_spec(composite='{"node": "epsilon"}' * 60_000)
    HeatmapStore.create(tmp_path / "h.h5", spec).close()
    with HeatmapStore(tmp_path / "h.h5") as store:
        assert store.attrs["composite"] == spec.composite


def test_more_layers_than_a_dimension_scale_can_list_are_stored_without_scales(tmp_path, make_spec, monkeypatch):
    monkeypatch.setattr("lrp_onnx.store.layout.MOST_SCALED_LAYERS", 1)
    with HeatmapStore.create(tmp_path / "h.h5", make_spec()) as store:
        assert len(store.attribution.dims[0]) == 1
        assert len(store.layer("logits").dims[0]) == 0


def test_an_existing_file_is_kept_unless_told(tmp_path, make_spec):
    path = tmp_path / "h.h5"
    path.write_text("precious")
    with pytest.raises(StoreError, match=r"h.h5 exists already; use --resume .* or --overwrite"):
        HeatmapStore.create(path, make_spec())
    assert path.read_text() == "precious"
    HeatmapStore.create(path, make_spec(), overwrite=True).close()
    assert len(HeatmapStore(path)) == 10


def test_a_create_that_fails_leaves_the_existing_file(tmp_path, make_spec, monkeypatch):
    path = tmp_path / "h.h5"
    path.write_text("precious")
    bad = make_spec(layers={"huge": LayerInfo((1 << 40,), "n", "Relu", 0)})
    with pytest.raises(StoreError, match=r"GB of heatmaps do not fit"):
        HeatmapStore.create(path, bad, overwrite=True)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lrp_onnx.store.heatmaps.lay_out", full)
    with pytest.raises(StoreError, match="No space left on device"):
        HeatmapStore.create(path, make_spec(), overwrite=True)
    assert path.read_text() == "precious"
    assert [entry.name for entry in tmp_path.iterdir()] == ["h.h5"]


def test_resume_writes_only_what_is_missing_and_equals_an_uninterrupted_run(tmp_path, make_spec, fill):
    spec = make_spec()
    with HeatmapStore.create(tmp_path / "whole.h5", spec) as store:
        fill(store, spec, range(10))
        store.finish()
    with HeatmapStore.create(tmp_path / "twice.h5", spec) as store:
        fill(store, spec, [0, 1, 2, 8])
    with HeatmapStore.resume(tmp_path / "twice.h5", spec) as store:
        fill(store, spec, store.pending().tolist())
        store.finish()
    assert_same_arrays(tmp_path / "whole.h5", tmp_path / "twice.h5")


def test_resume_starts_a_store_that_is_not_there_yet(tmp_path, make_spec):
    with HeatmapStore.resume(tmp_path / "new" / "h.h5", make_spec()) as store:
        assert len(store.pending()) == 10


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_sha256": "ee"}, "model_sha256 differs: 0f"),
        ({"composite": "{}"}, "composite differs"),
        ({"target": "label"}, "target differs: predicted in the store, label now"),
        ({"seed": "one"}, "seed differs"),
        ({"n": 11}, "number of samples differs: 10 in the store, 11 now"),
        ({"paths": ["other"] * 10}, "paths differs"),
        ({"labels": None}, "labels differs"),
        ({"layers": {}}, "layers differs"),
        ({"layer_dtype": "float16"}, "layers differs"),
        ({"conservation": ()}, "conservation differs"),
        ({"compress": "gzip"}, "compress differs"),
        ({"dtype": "bfloat16"}, "dtype differs: float32 in the store, bfloat16 now"),
        ({"input_shape": (3, 8, 8)}, "input shape differs"),
    ],
)
def test_resume_refuses_another_run_and_names_the_difference(tmp_path, make_spec, fill, change, said):
    spec = make_spec()
    with HeatmapStore.create(tmp_path / "h.h5", spec) as store:
        fill(store, spec, [0])
    before = (tmp_path / "h.h5").read_bytes()
    with pytest.raises(StoreError, match=said):
        HeatmapStore.resume(tmp_path / "h.h5", make_spec(**change))
    assert (tmp_path / "h.h5").read_bytes() == before


def test_a_finished_compressed_store_can_be_resumed_but_not_added_to(tmp_path, make_spec, fill):
    spec = make_spec(compress="gzip")
    with HeatmapStore.create(tmp_path / "h.h5", spec) as store:
        fill(store, spec, range(9))
        store.finish()
    with HeatmapStore.resume(tmp_path / "h.h5", spec) as store:
        with pytest.raises(StoreError, match="finished and compressed"):
            fill(store, spec, [9])
        store.finish()
        assert store.pending().tolist() == [9]


def test_compression_without_its_package_is_refused_before_the_work(tmp_path, make_spec, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "hdf5plugin", None)
    with pytest.raises(StoreError, match="pip install hdf5plugin"):
        HeatmapStore.create(tmp_path / "h.h5", make_spec(compress="zstd"))
    assert not (tmp_path / "h.h5").exists()


@pytest.mark.parametrize("compress", ["zstd", "lz4"])
def test_plugin_compressions_are_read_back(tmp_path, make_spec, values_of, fill, compress):
    pytest.importorskip("hdf5plugin")
    spec = make_spec(compress=compress)
    with HeatmapStore.create(tmp_path / "h.h5", spec) as store:
        fill(store, spec, range(10))
        store.finish()
        np.testing.assert_array_equal(store.attribution[:], values_of(spec, range(10))["attribution"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attribution": np.zeros((2, 3, 8, 8))}, "attribution has shape (2, 3, 8, 8); expected (2, 3, 8, 9)"),
        ({"prediction": np.zeros((1, 3))}, "prediction has shape (1, 3); expected (2, 3)"),
        ({"prediction": [["a"] * 3] * 2}, "prediction is not an array of numbers"),
        ({"layers": {"logits": np.zeros((2, 3))}}, "differ in /features/conv:0"),
        ({"conservation": None}, "conservation has shape"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_and_nothing_is_marked(tmp_path, make_spec, values_of, change, said):
    spec = make_spec()
    with HeatmapStore.create(tmp_path / "h.h5", spec) as store:
        with pytest.raises(StoreError, match=re.escape(said)):
            store.write(np.array([0, 1]), **values_of(spec, [0, 1]) | change)
        assert not store.done.size


@pytest.mark.parametrize("rows", [[10], [-1], []])
def test_rows_outside_the_store_are_refused(tmp_path, make_spec, values_of, rows):
    spec = make_spec()
    with HeatmapStore.create(tmp_path / "h.h5", spec) as store, pytest.raises(StoreError, match="do not lie in 0 to 9"):
        store.write(np.array(rows), **values_of(spec, [0]))


def test_done_rows_are_not_written_again(tmp_path, make_spec, fill):
    spec = make_spec()
    with HeatmapStore.create(tmp_path / "h.h5", spec) as store:
        fill(store, spec, [3])
        with pytest.raises(StoreError, match="some that are done"):
            fill(store, spec, [2, 3])


def test_a_store_open_for_reading_is_not_written(tmp_path, make_spec, fill):
    spec = make_spec()
    HeatmapStore.create(tmp_path / "h.h5", spec).close()
    with HeatmapStore(tmp_path / "h.h5") as store, pytest.raises(StoreError, match="open for reading"):
        fill(store, spec, [0])


def test_an_unknown_layer_is_named(tmp_path, make_spec):
    with (
        HeatmapStore.create(tmp_path / "h.h5", make_spec()) as store,
        pytest.raises(StoreError, match="no layer 'conv'; it holds /features/conv:0, logits"),
    ):
        store.layer("conv")


def test_what_is_no_store_is_not_opened(tmp_path):
    with pytest.raises(StoreError, match="no such heatmap store"):
        HeatmapStore(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("no HDF5 at all")
    with pytest.raises(StoreError, match="cannot be opened as HDF5"):
        HeatmapStore(tmp_path / "text.h5")
    h5py.File(tmp_path / "other.h5", "w").close()
    with pytest.raises(StoreError, match="not a heatmap store"):
        HeatmapStore(tmp_path / "other.h5")
    with h5py.File(tmp_path / "newer.h5", "w") as file:
        file.attrs.update(format="lrp-onnx-heatmaps", format_version=2)
    with pytest.raises(StoreError, match="format version 2"):
        HeatmapStore(tmp_path / "newer.h5")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n": 0}, "at least one sample"),
        ({"labels": [1, 2]}, "10 paths, but 2 labels"),
        ({"labels": [65535] * 10}, "labels from 65535 to 65535"),
        ({"layer_dtype": "int8"}, "expected one of float32, float16"),
        ({"compress": "bzip"}, "compression 'bzip'"),
    ],
)
def test_specifications_that_cannot_be_are_refused(make_spec, change, said):
    with pytest.raises(StoreError, match=said):
        make_spec(**change)
