"""Random models: torch's forward pass is ONNX Runtime's, relevance conserves, the gradient is autograd's, no crash."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import OPS, build, samples

from lrp_onnx import Explainer, load
from lrp_onnx.forward import TorchForward
from lrp_onnx.rules import composite

EXAMPLES = 1000
EPS = 1e-12
# Rules that hand on all that they get, whatever the numbers are.
EXACT = {"pass", "product", "winner-takes-all", "quotient"}
OPSETS = [20, 20, 20, 21, 21, 18, 13, 11]  # the older ones take longer: they are converted
STARTS = [(2, 4, 6, 6), (2, 2, 5, 4), (2, 3, 8), (2, 6)]


@pytest.fixture(scope="module")
def examples(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--fuzz")


def models() -> st.SearchStrategy[tuple]:
    step = st.tuples(st.sampled_from(sorted(OPS)), st.integers(0, 2**20))
    return st.tuples(
        st.lists(step, min_size=1, max_size=12),
        st.sampled_from(STARTS),
        st.sampled_from(OPSETS),
        st.booleans(),
        st.booleans(),
    )


def check(steps: list[tuple[str, int]], start: tuple[int, ...], opset: int, positive: bool, free_batch: bool) -> None:
    proto = build(steps, start, opset, positive, free_batch)
    x = samples(start, positive)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})

    graph = load(proto)
    explainer = Explainer(graph, composite("epsilon", bias="ignore", eps=EPS), dtype="float64")
    e = explainer.explain(torch.from_numpy(x), seed="all", layers="all")
    output = e.output.numpy()
    if graph.cut:
        assert graph.cut in ("Softmax", "Sigmoid")
    elif np.isfinite(expected).all():
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(output.reshape(expected.shape) / scale, expected / scale, atol=2e-4)
        single = Explainer(graph, "epsilon").explain(x, seed="all").output.numpy()
        np.testing.assert_allclose(single.reshape(expected.shape) / scale, expected / scale, atol=2e-4)

    relevance = e.relevance["x"]
    assert relevance.shape == x.shape
    absorbed = sum(balance.bias + balance.remainder for balance in e.conservation)
    total = sum(abs(balance.arrived) for balance in e.conservation)
    if torch.isfinite(relevance).all():
        assert abs(relevance.sum() + absorbed - e.output.sum()) <= 1e-9 * (total + 1)
    largest = max(
        r.abs().sum() for r in e.relevance.values()
    )  # relevance that cancels leaves the rounding of its parts
    for balance in e.conservation:
        if positive or balance.rule in EXACT:
            assert abs(balance.remainder) <= 1e-6 * abs(balance.arrived) + 1e-9 + 1e-14 * largest, balance
    if positive:
        assert torch.isfinite(relevance).all()
        assert relevance.sum() == pytest.approx(float(e.output.sum()), rel=1e-6)

    leaf = torch.from_numpy(x.astype(np.float64)).requires_grad_()
    forward = TorchForward(graph, [explainer.output], torch.float64, torch.device("cpu"))
    forward({"x": leaf})[explainer.output].sum().backward()
    gradient = Explainer(graph, "gradient", dtype="float64").explain(x, np.ones_like(output)).relevance["x"]
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-6, atol=1e-9 + 1e-9 * float(leaf.grad.abs().max()))


def test_random_models_are_explained_and_conserve(examples: int) -> None:
    usual = examples == EXAMPLES

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=usual,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=not usual,
    )
    @given(models())
    def run(model: tuple) -> None:
        check(*model)

    run()
