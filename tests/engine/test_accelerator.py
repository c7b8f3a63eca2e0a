"""What an accelerator asks of an explanation, shown on the CPU: constants once, nothing waits, float32 is float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from pretended_accelerator import DEVICE, PretendedAccelerator, Waits, values
from small_networks import NETWORKS, inputs, network
from torch import Tensor

from experiments.benchmarks import accelerator as device_check
from lrp_onnx.accelerator import Fetching, sent, true_float32
from lrp_onnx.engine import Explainer
from lrp_onnx.forward import TorchForward
from lrp_onnx.graph import Graph, load
from lrp_onnx.rules import COMPOSITES, Composite, composite

X = np.random.default_rng(0).normal(size=(3, 2, 8, 8))


@pytest.fixture(scope="module")
def classifier() -> Graph:
    text = """(float[N,2,8,8] x) => (float[N,5] y) {
        c1 = Conv<pads=[1,1,1,1]>(x, w1, b1) r1 = Relu(c1) c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2) s = Add(c2, r1)
        r2 = Relu(s) f = Flatten(r2) m = MatMul(f, w3) d = Add(m, b3) r3 = Relu(d) y = Gemm<transB=1>(r3, w4, b4) }"""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 19]> g {text}')
    shapes = {"w1": (4, 2, 3, 3), "b1": (4,), "w2": (4, 4, 3, 3), "b2": (4,), "w3": (256, 6), "b3": (6,)}
    rng = np.random.default_rng(1)
    for name, shape in (shapes | {"w4": (5, 6), "b4": (5,)}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype("f"), name))
    return load(proto)


def test_weights_in_float64_are_there_once(classifier: Graph) -> None:
    """Walk and forward pass share them: in another precision, or on an accelerator, each holds a copy otherwise."""
    explainer = Explainer(classifier, "epsilon", dtype="float64")
    explainer.explain(X)
    (forward,) = explainer._forwards.values()
    assert isinstance(forward, TorchForward)
    walk = {step.node.inputs[p]: tensor for step in explainer.plan.steps for p, tensor in step.site.constants.items()}
    assert set(walk) == set(classifier.initializers)
    for name, tensor in walk.items():
        assert tensor.dtype == torch.float64
        assert tensor.data_ptr() == forward._constants.on(torch.device("cpu"), name).data_ptr(), name


def test_what_nobody_reads_any_more_is_freed(classifier: Graph) -> None:
    explainer = Explainer(classifier, "epsilon", dtype="float64")
    assert len(explainer._constants._made) == len(classifier.initializers)
    del explainer.plan
    assert not len(explainer._constants._made)


def made(name: str) -> Composite:
    boxed = any(entry.rule == "z-box" for entry in COMPOSITES[name].entries)
    return composite(name, **({"low": -4.0, "high": 4.0} if boxed else {}))


def given(name: str) -> dict[str, Tensor]:
    return {n: torch.from_numpy(array).to(DEVICE) for n, array in inputs(name).items()}


# ---- nothing waits


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x.argmax(dim=1).tolist(),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.ones(3).to(x.device),
        lambda x: torch.tensor([1, 2], device=x.device),
        lambda x: torch.as_tensor(np.ones(2), device=x.device),
    ],
)
def test_the_pretended_accelerator_notices_what_waits(wait: Callable[[Tensor], Any]) -> None:
    with PretendedAccelerator() as accelerator:
        x = torch.rand(2, 3).to(DEVICE)
        accelerator.waits.clear()
        with pytest.raises(Waits), accelerator.forbidding():
            wait(x)
        wait(x)
        assert len(accelerator.waits) == 2
        with pytest.raises(AssertionError, match="both sides"):
            x + torch.ones(3)


@pytest.mark.parametrize("name", COMPOSITES)
@pytest.mark.parametrize("kind", NETWORKS)
def test_nothing_waits_for_an_accelerator_between_input_and_relevance(kind: str, name: str) -> None:
    """All rules of all composites; the only wait is for the explained class, when the whole walk is launched."""
    graph = network(kind)
    wanted = Explainer(graph, made(name), dtype="float64").explain(inputs(kind), layers="all")
    with PretendedAccelerator() as accelerator:
        explainer = Explainer(graph, made(name), dtype="float64", device=str(DEVICE))
        explainer.open()
        x = given(kind)
        accelerator.waits.clear()
        found = explainer.explain(x, layers="all")
        assert accelerator.waits == ["a copy of (3,) from the accelerator"]
        assert accelerator.launched > 50
    np.testing.assert_array_equal(found.target, wanted.target)
    torch.testing.assert_close(values(found.output), wanted.output, rtol=1e-9, atol=1e-11)
    assert found.relevance.keys() == wanted.relevance.keys()
    for tensor, relevance in wanted.relevance.items():
        torch.testing.assert_close(values(found.relevance[tensor]), relevance, rtol=1e-9, atol=1e-11)
    for balance, other in zip(found.conservation, wanted.conservation, strict=True):
        torch.testing.assert_close(values(balance.handed), other.handed, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("choice", "waits"),
    [
        ({"target": 3}, 1),
        ({"target": [0, 1, 4]}, 1),
        ({"target": "label", "labels": np.array([0, 1, 4])}, 1),
        ({"seed": "one"}, 1),
        ({"seed": "all"}, 0),
        ({"target": np.eye(3, 5)}, 0),
        ({"target": np.eye(3, 5, dtype=bool)}, 1),
    ],
)
def test_a_target_is_sent_without_waiting(choice: dict[str, Any], waits: int) -> None:
    with PretendedAccelerator() as accelerator:
        explainer, x = Explainer(network("resnet"), dtype="float64", device=str(DEVICE)), given("resnet")
        accelerator.waits.clear()
        explainer.explain(x, **choice)
        assert len(accelerator.waits) == waits


def test_parts_of_a_batch_are_all_launched_before_the_first_target_is_waited_for() -> None:
    with PretendedAccelerator() as accelerator:
        explainer = Explainer(network("resnet"), dtype="float64", device=str(DEVICE), at_once=1)
        x = given("resnet")
        accelerator.waits.clear()
        with pytest.raises(Waits), accelerator.forbidding():
            explainer.explain(x)
        launched = accelerator.launched
        assert explainer.explain(x).target is not None
        assert accelerator.launched < 2 * launched + 5, "what waits comes last"


def test_weights_on_an_accelerator_are_there_once() -> None:
    with PretendedAccelerator():
        explainer = Explainer(network("vit"), dtype="float64", device=str(DEVICE))
        explainer.explain(given("vit"))
        (forward,) = explainer._forwards.values()
        assert isinstance(forward, TorchForward)
        reads = [*forward._at.values(), *(step.site.constants for step in explainer.plan.steps)]
        weights = {id(tensor) for read in reads for tensor in read.values() if tensor.is_floating_point()}
        assert len(weights) == sum(array.dtype.kind == "f" for array in explainer.graph.initializers.values())


# ---- copies and precision


def test_on_the_cpu_tensors_are_neither_sent_nor_fetched() -> None:
    x = torch.rand(3, 2)
    assert sent(x, torch.device("cpu")) is x
    assert Fetching([x]).wait()[0] is x


def tf32() -> tuple[object, ...]:
    return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("convolutions", [True, False])
@pytest.mark.parametrize("products", ["highest", "high"])
def test_float32_on_cuda_is_float32_and_settings_come_back(
    convolutions: bool, products: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings can be read without a device."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", convolutions)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(products)
    try:
        set_by_user, cuda = tf32(), torch.device("cuda")
        with true_float32(cuda, torch.float32):
            with true_float32(cuda, torch.float32):
                assert _convolutions() != "tf32"
            assert _convolutions() != "tf32", "until the last explanation ends"
            assert torch.get_float32_matmul_precision() == "highest"
        assert tf32() == set_by_user
        for device, dtype in (("cpu", torch.float32), ("cuda", torch.float64)):
            with true_float32(torch.device(device), dtype):
                assert tf32() == set_by_user
    finally:
        torch.set_float32_matmul_precision(before)


def _convolutions() -> str:
    cudnn = torch.backends.cudnn
    return cudnn.conv.fp32_precision if hasattr(cudnn, "conv") else ("tf32" if cudnn.allow_tf32 else "ieee")


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch before 2.9 has no other names for it")
def test_settings_by_their_new_names_come_back() -> None:
    backends, before = torch.backends, torch.backends.fp32_precision
    try:
        backends.fp32_precision = "tf32"
        names = backends.cudnn.conv, backends.cuda.matmul
        set_by_user = [name.fp32_precision for name in names]
        with true_float32(torch.device("cuda"), torch.float32):
            assert [name.fp32_precision for name in names] == ["ieee", "ieee"]
        assert [name.fp32_precision for name in names] == set_by_user
    finally:
        backends.fp32_precision = before
        backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("highest")


# ---- the check for machines that have one


def test_the_device_check_says_where_there_is_no_device(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_check.main([]) == 2
    assert "there is no CUDA device" in capsys.readouterr().err


def test_the_device_check_compares_and_measures() -> None:
    """On the CPU, where the device is the CPU itself."""
    graph = network("resnet")
    found = device_check.parity(graph, "epsilon-gamma-box", "cpu", torch.from_numpy(inputs("resnet")["x"]))
    assert found.exact == 0
    assert found.device == found.cpu < 1e-5
    assert found.holds
    assert not device_check.Parity(2e-9, 0, 0, 0).holds
    assert not device_check.Parity(0, 1e-3, 1e-4, 0).holds
    assert not device_check.Parity(0, 0, 0, 1).holds
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 12 * 12, 5))
    lines = list(device_check.report("small", module, graph, "cpu", (3, 12, 12), [1, 2], 0.001))
    assert len(lines) == len(device_check.COMPOSITES) + 2
    assert all(good for _, good in lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", device_check.NETWORKS)
def test_nothing_waits_in_networks_of_torchvision(name: str, tmp_path: Path) -> None:
    device_check.export(name, tmp_path / "model.onnx")
    graph, x = load(tmp_path / "model.onnx"), torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for by in ("epsilon-plus-flat", "epsilon-gamma-box"):
        with PretendedAccelerator() as accelerator:
            explainer = Explainer(graph, made(by), device=str(DEVICE))
            explainer.open()
            there = x.to(DEVICE)
            accelerator.waits.clear()
            found = explainer.explain(there)
            assert accelerator.waits == ["a copy of (1,) from the accelerator"]
            relevance = values(next(iter(found.relevance.values())))
        assert relevance.shape == x.shape
        assert relevance.isfinite().all()
