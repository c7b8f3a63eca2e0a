"""What is recorded while the walk goes on is what it had at that tensor, in the store's precision, and its sums."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from lrp_onnx.engine import Explainer
from lrp_onnx.errors import StoreError
from lrp_onnx.recording import Recorder
from lrp_onnx.store import HeatmapStore


def relevance(*shape: int, channels_last: bool = False) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 10
    return values.contiguous(memory_format=torch.channels_last) if channels_last else values


@pytest.mark.parametrize("shape", [(3,), (3, 1000), (3, 5, 7), (3, 20, 30, 31), (3, 4, 5, 6, 7)])
def test_values_and_sums_are_those_of_the_relevance(shape: tuple[int, ...]) -> None:
    for last in (False, True)[: 1 + (len(shape) == 4)]:
        values, recorder = relevance(*shape, channels_last=last), Recorder({"narrow"})
        narrow, wide = recorder("narrow", values), recorder("wide", values)
        assert (narrow.dtype, wide.dtype) == (torch.float16, torch.float32)
        assert narrow.is_contiguous()
        assert wide.is_contiguous()
        assert torch.equal(narrow, values.half())
        assert torch.equal(wide, values)
        exact = values.double().reshape(3, -1)
        sums = recorder.sums(["wide", "narrow"])
        assert sums.shape == (3, 2)
        assert sums.dtype == torch.float64
        assert bool(((sums - exact.sum(1, keepdim=True)).abs() <= 1e-7 * exact.abs().sum(1, keepdim=True)).all())


@pytest.mark.parametrize("narrow", [True, False])
def test_what_is_recorded_stays_when_the_walk_writes_on_its_tensor(narrow: bool) -> None:
    values, recorder = relevance(2, 6), Recorder({"a", "b"} if narrow else ())
    before = values.clone()
    first = recorder("a", values)
    values.mul_(2)
    second = recorder("b", values)
    assert torch.equal(first.float(), before.half().float() if narrow else before)
    assert torch.equal(second.float(), (2 * before).half().float() if narrow else 2 * before)
    assert not torch.allclose(*recorder.sums(["a", "b"]).T)


def test_a_tensor_that_is_handed_on_as_it_came_is_taken_in_once() -> None:
    values, recorder = relevance(2, 6), Recorder({"a", "b"})
    assert recorder("a", values) is recorder("b", values)
    assert recorder("c", values).dtype == torch.float32  # not narrowed
    assert recorder("d", values.clone()) is not recorder("c", values)


def test_finite_values_beyond_float16_are_refused_and_infinite_ones_kept() -> None:
    recorder = Recorder({"conv"})
    large = relevance(2, 3, 4, 4, channels_last=True)
    large[1, 2, 3, 3] = 1e5
    with pytest.raises(StoreError, match=r"layer 'conv' has values beyond float16"):
        recorder("conv", large)
    large[1, 2, 3, 3] = float("inf")
    assert bool(recorder("conv", large).isinf().any())
    assert bool(recorder("conv", torch.full((2, 3, 4, 4), 60000.0)).isfinite().all())  # a norm beyond float16


def test_float16_goes_into_the_store_as_it_is(tmp_path, make_spec, values_of) -> None:
    spec = make_spec(layer_dtype="float16")
    values = values_of(spec, [0, 1])
    values["layers"] = {name: layer.astype(np.float16) for name, layer in values["layers"].items()}
    with HeatmapStore.create(tmp_path / "h.h5", spec) as store:
        store.write(np.array([0, 1]), **values)
        np.testing.assert_array_equal(store.layer("logits")[:2], values["layers"]["logits"])


@pytest.mark.parametrize("composite", ["epsilon-plus", "input-x-gradient"])
def test_the_engine_records_what_is_made_of_the_relevance(composite: str) -> None:
    text = """<ir_version: 8, opset_import: ["" : 19]> g (float[N,2,6,6] x) => (float[N,4] y) {
        c = Conv(x, w) r = Relu(c) g = GlobalAveragePool(r) y = Flatten(g) }"""
    model = onnx.parser.parse_model(text)
    weights = np.random.default_rng(0).normal(size=(4, 2, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    explainer, x = Explainer(model, composite), relevance(3, 2, 6, 6)
    plain = explainer.explain(x, layers="all").relevance
    seen: list[str] = []

    def record(name: str, values: torch.Tensor) -> torch.Tensor:
        seen.append(name)
        return values.half().contiguous()

    recorded = explainer.explain(x, layers="all", record=record).relevance
    assert seen[0] == "y"
    assert sorted(seen) == sorted(plain) == sorted(recorded)
    assert list(recorded) == list(plain)
    for name, values in plain.items():
        assert torch.equal(recorded[name], values.half()), name


def test_values_beyond_float16_on_an_accelerator_are_told_when_the_sums_are_asked_for() -> None:
    """On the CPU at once; there, nobody waits for it in the middle of the walk."""
    recorder = Recorder({"a"})
    recorder("a", relevance(2, 3).to("meta"))
    recorder._beyond["a"] = torch.tensor(True)
    with pytest.raises(StoreError, match="layer 'a' has values beyond float16"):
        recorder.sums(["a"])
