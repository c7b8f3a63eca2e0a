"""Compare a converted model with its source: same random inputs, ONNX Runtime against the source framework."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx

from lrp_onnx.converters.base import InputSpec, Loaded, Route, Run, one_line
from lrp_onnx.errors import ConversionError, ModelError
from lrp_onnx.runtime import open_session

if TYPE_CHECKING:
    from lrp_onnx.preprocess import Preprocess

_RANGES = {"uint8": (0, 255), "int8": (-128, 127)}
_FREE_SIZE = 224  # for dimensions that the model leaves free
_CONSTANT = 1e-5  # outputs that vary by less than this, relative to the largest, barely depend on the input


@dataclass(frozen=True)
class Agreement:
    """Largest absolute difference over all outputs and batches, the same relative to the largest reference output."""

    difference: float
    relative: float
    notes: tuple[str, ...] = ()


def compare(
    model: onnx.ModelProto,
    loaded: Loaded,
    route: Route,
    *,
    examples: Sequence[np.ndarray] | None,
    preprocess: Preprocess | None,
    seed: int,
    exactly: bool = False,
) -> Agreement:
    """
    Run both on two random batches of different size (of the same size when the model only takes one).

    `exactly` compares in float64 instead, the model in torch: for networks that make rounding errors large.

    Inputs are uniform over what the preprocessing can produce; without preprocessing normal, with the mean and spread
    of the example if there is one; integers are an example's in another order, else uniform over the table's rows where
    they pick those, 0..255 for uint8, -128..127 for int8, else 0 and 1.

    Raises
    ------
    ConversionError
        When ONNX Runtime cannot run the model, or the outputs differ in number or shape or are not finite.
    """
    run_model = _in_torch(model) if exactly else _in_runtime(model)
    run_source = loaded.run_exactly if exactly else loaded.run
    if run_source is None:
        if exactly:
            raise ConversionError(f"{loaded.framework} does not run this model in float64")
        return Agreement(0.0, 0.0)
    random = np.random.default_rng(seed)
    batches = (route.batch, route.batch) if route.batch else (loaded.batch or 1, 3 * (loaded.batch or 1))
    difference = relative = 0.0
    constant = True
    for batch in batches:
        inputs = [
            draw(spec, batch, random, None if examples is None else examples[index], preprocess)
            for index, spec in enumerate(loaded.inputs)
        ]
        reference = _in_chunks(run_source, inputs, loaded.batch)
        outputs = run_model(inputs)
        if [output.shape for output in outputs] != [array.shape for array in reference]:
            raise ConversionError(
                f"for a batch of {batch} ONNX Runtime gives outputs of shape {[output.shape for output in outputs]}, "
                f"the source {[array.shape for array in reference]}"
            )
        for output, expected in zip(outputs, reference, strict=True):
            largest, scale = _difference(output, expected)
            difference = max(difference, largest)
            relative = max(relative, largest / scale if scale else largest)
            constant &= bool(np.ptp(expected.astype(np.float64), axis=0).max(initial=0) <= _CONSTANT * scale)
    notes = ("the outputs hardly depend on the input, so the comparison says little (untrained weights?)",)
    return Agreement(difference, relative, notes if constant and batches[-1] > 1 else ())


def _in_runtime(model: onnx.ModelProto) -> Run:
    try:
        session = open_session(model)
    except ModelError as error:
        raise ConversionError(str(error)) from error
    names = [value.name for value in session.get_inputs()]

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        try:
            return session.run(None, dict(zip(names, inputs, strict=True)))
        except Exception as error:
            raise ConversionError(f"ONNX Runtime fails on a batch of {len(inputs[0])}: {one_line(error)}") from error

    return run


def _in_torch(model: onnx.ModelProto) -> Run:
    """In float64, by this package's own operators."""
    import torch

    from lrp_onnx.forward import TorchForward
    from lrp_onnx.graph import load

    graph = load(model, canonical=False, check=False)
    forward = TorchForward(graph, graph.outputs, torch.float64, torch.device("cpu"))

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        tensors = [torch.from_numpy(array) for array in inputs]
        fed = [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]
        return [value.numpy() for value in forward(dict(zip(graph.inputs, fed, strict=True))).values()]

    return run


def draw(
    spec: InputSpec,
    batch: int,
    random: np.random.Generator,
    example: np.ndarray | None = None,
    preprocess: Preprocess | None = None,
) -> np.ndarray:
    """One random batch for one input, of the input's own dtype."""
    shape = (batch, *_sizes(spec, preprocess))
    if spec.dtype.kind == "b":
        return random.integers(0, 2, shape).astype(bool)
    if spec.dtype.kind in "iu":
        low, high = _RANGES.get(spec.dtype.name, (0, spec.highest or 1))
        if example is not None and example.size:
            # in another order: ids stay ids of the vocabulary, a mask keeps something unmasked
            rows = example[random.integers(0, len(example), batch)].reshape(batch, -1)
            return random.permuted(rows, axis=1).reshape(batch, *example.shape[1:]).astype(spec.dtype)
        return random.integers(low, high, shape, endpoint=True).astype(spec.dtype)
    if preprocess is not None and len(shape) == 4:
        lowest, highest = preprocess.bounds()
        if preprocess.layout == "NCHW":
            lowest, highest = lowest[:, None, None], highest[:, None, None]
        return random.uniform(lowest, highest, shape).astype(spec.dtype)
    mean, spread = 0.0, 1.0
    if example is not None and example.size > 1:
        mean, spread = float(example.mean()), float(example.std()) or 1.0
    return random.normal(mean, spread, shape).astype(spec.dtype)


def _sizes(spec: InputSpec, preprocess: Preprocess | None) -> list[int]:
    own = preprocess.shape if preprocess is not None else ()
    if len(own) == len(spec.shape):
        return [size or other for size, other in zip(spec.shape, own, strict=True)]
    return [size or _FREE_SIZE for size in spec.shape]


def _in_chunks(run: Run, inputs: Sequence[np.ndarray], size: int | None) -> list[np.ndarray]:
    """Run a source of fixed batch size as often as needed."""
    count = len(inputs[0])
    if size is None or size == count:
        return run(inputs)
    parts = [run([array[start : start + size] for array in inputs]) for start in range(0, count, size)]
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def _difference(output: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Largest absolute difference, largest absolute expected value."""
    if expected.size == 0:
        return 0.0, 0.0
    output, expected = output.astype(np.float64), expected.astype(np.float64)
    if not np.isfinite(expected).all():
        raise ConversionError("the source model gives NaN or infinity on random inputs, so nothing can be compared")
    if not np.isfinite(output).all():
        raise ConversionError("ONNX Runtime gives NaN or infinity where the source does not")
    return float(np.abs(output - expected).max()), float(np.abs(expected).max())
