"""The rules once more, straight from their formulas: numpy on a dense weight matrix, the oracle of the tests here.

z = W x + b with W of shape (outputs, inputs); every function gives the relevance of x for the relevance R of z.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray
EPS = 1e-6


def s(z: Array, eps: float | Array = EPS) -> Array:
    return z + np.where(z < 0, -1.0, 1.0) * eps


def pos(a: Array) -> Array:
    return np.maximum(a, 0)


def neg(a: Array) -> Array:
    return np.minimum(a, 0)


def epsilon(w: Array, b: Array, x: Array, r: Array, eps: float | Array = EPS) -> Array:
    return x * (w.T @ (r / s(w @ x + b, eps)))


def montavon_std(w: Array, b: Array, x: Array, r: Array) -> Array:
    z = w @ x + b
    return epsilon(w, b, x, r, 1e-9 + 0.25 * np.sqrt(np.mean(z**2)))


def z_plus(w: Array, b: Array, x: Array, r: Array) -> Array:
    g = r / s(pos(w) @ pos(x) + neg(w) @ neg(x) + pos(b))
    return pos(x) * (pos(w).T @ g) + neg(x) * (neg(w).T @ g)


def alpha_beta(w: Array, b: Array, x: Array, r: Array, alpha: float = 2, beta: float = 1) -> Array:
    g = r / s(neg(w) @ pos(x) + pos(w) @ neg(x) + neg(b))
    inhibiting = pos(x) * (neg(w).T @ g) + neg(x) * (pos(w).T @ g)
    return alpha * z_plus(w, b, x, r) - beta * inhibiting


def gamma(w: Array, b: Array, x: Array, r: Array, gamma: float = 0.25) -> Array:
    z, more, less = w @ x + b, w + gamma * pos(w), w + gamma * neg(w)
    above = np.where(z > 0, r, 0) / s(more @ pos(x) + less @ neg(x) + b + gamma * pos(b))
    below = np.where(z < 0, r, 0) / s(less @ pos(x) + more @ neg(x) + b + gamma * neg(b))
    on_positive = pos(x) * (more.T @ above + less.T @ below)
    return on_positive + neg(x) * (less.T @ above + more.T @ below)


def z_box(w: Array, b: Array, x: Array, r: Array, low: float = -3, high: float = 4) -> Array:
    l, h = np.full_like(x, low), np.full_like(x, high)  # noqa: E741 - the formula's name
    g = r / s(w @ x - pos(w) @ l - neg(w) @ h)
    return x * (w.T @ g) - l * (pos(w).T @ g) - h * (neg(w).T @ g)


def w_square(w: Array, b: Array, x: Array, r: Array) -> Array:
    return (w**2).T @ (r / s((w**2).sum(1) + b**2))


def hudd_dense(w: Array, b: Array, x: Array, r: Array) -> Array:
    return x * (pos(w).T @ (r / (pos(w) @ x + 1e-9)))


def hudd_convolution(w: Array, b: Array, x: Array, r: Array) -> Array:
    return x * (w.T @ (r / (w @ x + b + 1e-9)))


def gradient(w: Array, b: Array, x: Array, r: Array) -> Array:
    return w.T @ r


RULES: dict[str, Callable[[Array, Array, Array, Array], Array]] = {
    "epsilon": epsilon,
    "montavon-std": montavon_std,
    "z-plus": z_plus,
    "alpha-beta": alpha_beta,
    "gamma": gamma,
    "z-box": z_box,
    "w-square": w_square,
    "gradient": gradient,
}
PARAMETERS: dict[str, dict[str, float]] = {"z-box": {"low": -3.0, "high": 4.0}}
TAKES_BIAS = ("epsilon", "montavon-std", "z-plus", "alpha-beta", "gamma", "w-square")


def flat(taps: Array, r: Array) -> Array:
    """`taps` (outputs, inputs) counts how often an input enters an output: the matrix of the op with weights of 1."""
    return taps.T @ (r / s(taps.sum(1)))
