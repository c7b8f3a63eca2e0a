"""Normalisations: with 1/std held constant each is linear, and its relevance is that of the matrix it then is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from lrp_onnx.engine import Explainer
from lrp_onnx.rules import composite

Array = np.ndarray
RNG = np.random.default_rng(0)
X = RNG.normal(0.5, 1.0, (2, 4, 3, 2))
R = RNG.normal(size=X.shape)
EPS = 2.0**-10  # attributes are float32
GAMMA, BETA = RNG.uniform(0.5, 2, 4), RNG.normal(size=4)
ROW_GAMMA, ROW_BETA = RNG.uniform(0.5, 2, (3, 2)), RNG.normal(size=(3, 2))


def centred(x: Array, axes: tuple[int, ...]) -> Array:
    return x - x.mean(axes, keepdims=True)


def held(axes: tuple[int, ...], groups: int = 0, centre: bool = True) -> Callable[[Array], Array]:
    """x -> normalised x, with the scale of X itself."""

    def split(x: Array) -> Array:
        return x.reshape(2, groups, -1) if groups else x

    base = centred(split(X), axes) if centre else split(X)
    scale = 1 / np.sqrt((base**2).mean(axes, keepdims=True) + EPS)
    return lambda x: ((centred(split(x), axes) if centre else split(x)) * scale).reshape(x.shape)


COLUMN = (4, 1, 1)
CASES: dict[str, tuple[str, Callable[[Array], Array], Array, Array, dict[str, Array]]] = {
    "LayerNormalization": (
        f"LayerNormalization<axis = -2, epsilon = {EPS}>(x, g, b)",
        held((2, 3)),
        ROW_GAMMA,
        ROW_BETA,
        {"g": ROW_GAMMA, "b": ROW_BETA},
    ),
    "RMSNormalization": (
        f"RMSNormalization<axis = -2, epsilon = {EPS}>(x, g)",
        held((2, 3), centre=False),
        ROW_GAMMA,
        np.zeros(()),
        {"g": ROW_GAMMA},
    ),
    "InstanceNormalization": (
        f"InstanceNormalization<epsilon = {EPS}>(x, g, b)",
        held((2, 3)),
        GAMMA.reshape(COLUMN),
        BETA.reshape(COLUMN),
        {"g": GAMMA, "b": BETA},
    ),
    "GroupNormalization": (
        f"GroupNormalization<epsilon = {EPS}, num_groups = 2>(x, g, b)",
        held((2,), groups=2),
        GAMMA.reshape(COLUMN),
        BETA.reshape(COLUMN),
        {"g": GAMMA, "b": BETA},
    ),
}


@pytest.mark.parametrize("bias", ["absorb", "ignore"])
@pytest.mark.parametrize("name", CASES)
def test_relevance_is_that_of_the_matrix(name: str, bias: str) -> None:
    call, normalised, gamma, beta, constants = CASES[name]
    text = f"(double[2,4,3,2] x) => (double[2,4,3,2] y) {{ y = {call} }}"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 23]> g {text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in constants.items())
    explanation = Explainer(model, composite("epsilon", bias=bias, eps=1e-14), dtype="float64").explain(X, R)
    units = np.eye(X.size).reshape(X.size, *X.shape)
    matrix = np.stack([(normalised(unit) * gamma).ravel() for unit in units], 1)
    product = matrix @ X.ravel()
    z = product if bias == "ignore" else product + np.broadcast_to(beta, X.shape).ravel()
    np.testing.assert_allclose(explanation.output.numpy(), (normalised(X) * gamma + beta), rtol=1e-9, atol=1e-9)
    wanted = X.ravel() * (matrix.T @ (R.ravel() / z))
    found = explanation.relevance["x"].numpy().ravel()
    assert np.abs(found - wanted).max() <= 1e-9 * np.abs(wanted).max()
    if bias == "ignore":
        assert found.sum() == pytest.approx(R.sum(), abs=1e-8 * np.abs(wanted).max())
    (node,) = explanation.conservation
    assert node.rule == "held-scale"
