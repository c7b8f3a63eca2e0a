"""LSTM, GRU and RNN, and the linear signal that flows through them where their gates are held constant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lrp_onnx.errors import UnsupportedOpError
from lrp_onnx.ops.registry import moved, op


@dataclass(frozen=True)
class Signal:
    """Inputs of a layer whose gates, and the slopes of whose activations, are held constant.

    Given a signal, an op below computes its outputs by a function that is linear in the signal's tensors; where these
    are the layer's own inputs the outputs are its own, too.

    Attributes
    ----------
    x : Tensor
        (T, N, I), or as `layout` has it.
    states : tuple of Tensor or None
        Initial hidden state, and cell state of an LSTM: (D, N, H), or as `layout` has it; None for zeros.
    bias : bool
        Whether biases are part of the function.
    eps : float
        Stabiliser of a slope: value / (input of the activation ± eps).
    """

    x: Tensor
    states: tuple[Tensor | None, ...]
    bias: bool
    eps: float

    def through(self, value: Tensor, a: Tensor) -> Tensor:
        """`a`, carried to `value` by a factor that is held constant."""
        held = a.detach()
        return a * (value / (held + torch.where(held < 0, -self.eps, self.eps)))


# ---- activation functions by their ONNX names, with the defaults of the ops of the same names

Function = Callable[[Tensor], Tensor]

_PLAIN: dict[str, Function] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softsign": F.softsign,
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
}
_ALPHA: dict[str, tuple[Callable[..., Tensor], float]] = {
    "leakyrelu": (F.leaky_relu, 0.01),
    "elu": (F.elu, 1.0),
    "thresholdedrelu": (lambda x, alpha: torch.where(x > alpha, x, torch.zeros_like(x)), 1.0),
}
_ALPHA_BETA: dict[str, tuple[Callable[..., Tensor], float, float]] = {
    "affine": (lambda x, alpha, beta: alpha * x + beta, 1.0, 0.0),
    "scaledtanh": (lambda x, alpha, beta: alpha * torch.tanh(beta * x), 1.0, 1.0),
    "hardsigmoid": (lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1), 0.2, 0.5),
}


def _functions(names: Sequence[str], alpha: Sequence[float], beta: Sequence[float]) -> list[Function]:
    """The functions in order; those that have parameters take the next ones given."""
    alphas, betas = iter(alpha), iter(beta)
    return [_function(name.lower(), alphas, betas) for name in names]


def _function(name: str, alphas: Iterator[float], betas: Iterator[float]) -> Function:
    if name in _PLAIN:
        return _PLAIN[name]
    if name in _ALPHA:
        call, alpha = _ALPHA[name]
        return partial(_call, call, next(alphas, alpha))
    if name in _ALPHA_BETA:
        call, alpha, beta = _ALPHA_BETA[name]
        return partial(_call, call, next(alphas, alpha), next(betas, beta))
    raise UnsupportedOpError(f"activation '{name}' of a recurrent layer is not known")


def _call(function: Callable[..., Tensor], *parameters_and_x: float | Tensor) -> Tensor:
    *parameters, x = parameters_and_x
    return function(x, *parameters)


def _clipped(function: Function, clip: float) -> Function:
    return (lambda a: function(a.clamp(-clip, clip))) if clip else function


# ---- what the three have in common

Step = Callable[[int, tuple[Tensor, ...]], tuple[Tensor, ...]]


def _unrolled(
    step_of: Callable[[int, Tensor, Tensor], Step],
    r: Tensor,
    x: Tensor,
    states: tuple[Tensor | None, ...],
    lengths: Tensor | None,
    signal: Signal | None,
    direction: str,
    layout: int,
) -> tuple[Tensor, ...]:
    """Y (T, D, N, H) and the last states (D, N, H).

    `step_of(d, x, x of the signal)` gives direction d's function (t, state) -> next state, in which the hidden state
    comes first; a signal's states come before the layer's own.
    """
    flow, count = (x, len(states)) if signal is None else (signal.x, len(signal.states))
    states = states if signal is None else (*signal.states, *states)
    if layout:
        x, flow = x.transpose(0, 1), flow.transpose(0, 1)
        states = tuple(None if s is None else s.transpose(0, 1) for s in states)
    zeros = x.new_zeros((len(r), x.shape[1], r.shape[-1]))
    every, last = [], []
    for d in range(len(r)):
        step, outputs = step_of(d, x, flow), {}
        state = tuple((zeros if s is None else s)[d] for s in states)
        for t in range(len(x))[:: -1 if direction == "reverse" or d == 1 else 1]:
            new = step(t, state)
            if lengths is None:
                state, outputs[t] = new, new[0]
                continue
            # beyond its length a sequence gives zeros and keeps its state
            lives = (moved(lengths, x.device) > t)[:, None]
            state = tuple(torch.where(lives, n, s) for n, s in zip(new, state, strict=True))
            outputs[t] = torch.where(lives, new[0], torch.zeros_like(new[0]))
        every.append(torch.stack([outputs[t] for t in range(len(x))]))
        last.append(state[:count])
    y, ends = torch.stack(every, 1), [torch.stack(parts) for parts in zip(*last, strict=True)]
    return (y.permute(2, 0, 1, 3), *(s.transpose(0, 1) for s in ends)) if layout else (y, *ends)


def _biases(b: Tensor | None, r: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Of the input and of the hidden state, (gates · H) each."""
    return (r.new_zeros(r.shape[1]),) * 2 if b is None else tuple(b[d].chunk(2))  # type: ignore[return-value]


# ---- the three


@op("RNN", family="recurrent", inputs=(0, 5))
def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    hidden_size: int = 0,
    direction: str = "forward",
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    clip: float = 0.0,
    layout: int = 0,
    signal: Signal | None = None,
) -> tuple[Tensor, ...]:
    functions = _functions(activations or ("Tanh",) * len(r), activation_alpha, activation_beta)

    def step_of(d: int, x: Tensor, flow: Tensor) -> Step:
        squash = _clipped(functions[d], clip)
        of_x, of_h = _biases(b, r, d)
        bias = of_x + of_h
        driven, signalled = x @ w[d].T + bias, flow @ w[d].T

        def step(t: int, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            h = squash(driven[t] + state[-1] @ r[d].T)
            if signal is None:
                return (h,)
            a = signalled[t] + state[0] @ r[d].T
            return signal.through(h, a + bias if signal.bias else a), h

        return step

    return _unrolled(step_of, r, x, (initial_h,), sequence_lens, signal, direction, layout)


@op("GRU", family="recurrent", inputs=(0, 5))
def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    hidden_size: int = 0,
    direction: str = "forward",
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    clip: float = 0.0,
    layout: int = 0,
    linear_before_reset: int = 0,
    signal: Signal | None = None,
) -> tuple[Tensor, ...]:
    functions = _functions(activations or ("Sigmoid", "Tanh") * len(r), activation_alpha, activation_beta)
    size = r.shape[-1]

    def step_of(d: int, x: Tensor, flow: Tensor) -> Step:
        gate, squash = (_clipped(f, clip) for f in functions[2 * d : 2 * d + 2])
        of_x, of_h = _biases(b, r, d)
        driven, signalled = x @ w[d].T + of_x, flow @ w[d, 2 * size :].T
        gates, candidate = r[d, : 2 * size], r[d, 2 * size :]

        def recurrent(h: Tensor, reset: Tensor, bias: Tensor | float) -> Tensor:
            return reset * (h @ candidate.T + bias) if linear_before_reset else (reset * h) @ candidate.T + bias

        def step(t: int, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            h = state[-1]
            update, reset = gate(driven[t, :, : 2 * size] + h @ gates.T + of_h[: 2 * size]).chunk(2, -1)
            new = squash(driven[t, :, 2 * size :] + recurrent(h, reset, of_h[2 * size :]))
            mixed = (1 - update) * new + update * h
            if signal is None:
                return (mixed,)
            a = signalled[t] + recurrent(state[0], reset, of_h[2 * size :] if signal.bias else 0.0)
            a = a + of_x[2 * size :] if signal.bias else a
            return (1 - update) * signal.through(new, a) + update * state[0], mixed

        return step

    return _unrolled(step_of, r, x, (initial_h,), sequence_lens, signal, direction, layout)


@op("LSTM", family="recurrent", inputs=(0, 5, 6))
def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    p: Tensor | None = None,
    *,
    hidden_size: int = 0,
    direction: str = "forward",
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    clip: float = 0.0,
    layout: int = 0,
    input_forget: int = 0,
    signal: Signal | None = None,
) -> tuple[Tensor, ...]:
    names = activations or ("Sigmoid", "Tanh", "Tanh") * len(r)
    functions = _functions(names, activation_alpha, activation_beta)
    size = r.shape[-1]

    def step_of(d: int, x: Tensor, flow: Tensor) -> Step:
        gate, squash = (_clipped(f, clip) for f in functions[3 * d : 3 * d + 2])
        out = functions[3 * d + 2]  # of the cell, which ONNX Runtime does not clip
        of_x, of_h = _biases(b, r, d)
        bias = of_x + of_h
        peep_i, peep_o, peep_f = (0.0, 0.0, 0.0) if p is None else p[d].chunk(3)
        driven, signalled = x @ w[d].T + bias, flow @ w[d, 3 * size :].T

        def step(t: int, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            h, c = state[-2:]
            i, o, f, a = (driven[t] + h @ r[d].T).chunk(4, -1)
            i = gate(i + peep_i * c)
            f = 1 - i if input_forget else gate(f + peep_f * c)
            candidate = squash(a)
            c = f * c + i * candidate
            h = gate(o + peep_o * c) * out(c)
            if signal is None:
                return h, c
            a = signalled[t] + state[0] @ r[d, 3 * size :].T
            a = a + bias[3 * size :] if signal.bias else a
            cell = f * state[1] + i * signal.through(candidate, a)
            return signal.through(h, cell), cell, h, c

        return step

    return _unrolled(step_of, r, x, (initial_h, initial_c), sequence_lens, signal, direction, layout)
