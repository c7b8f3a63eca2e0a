"""An ONNX model as a trainable torch module, and its trained weights back in the very same ONNX graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import Tensor, nn

from lrp_onnx.converters.base import InputSpec, one_line
from lrp_onnx.converters.onnx_to_torch import Binding, build, import_onnx2torch
from lrp_onnx.converters.verify import draw
from lrp_onnx.errors import ConversionError, LrpOnnxError, ModelError
from lrp_onnx.graph.cut import cut_activations
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.runtime import first_line, open_session

TOLERANCE = 1e-3  # relative difference between torch and ONNX Runtime
_EVERY = tuple(range(8))
# Inputs that hold what training learns; statistics, axes, shapes and bounds are not among them.
_WEIGHTS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": _EVERY,
    "MatMul": _EVERY,
    "Einsum": _EVERY,
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "PRelu": (1,),
}
_LINEAR = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"}
_STRUCTURE = {"Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"}
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class WrittenBack:
    """The original model with other weights, and how far ONNX Runtime is from the torch module (relative)."""

    model: onnx.ModelProto
    difference: float


class Trainable(nn.Module):
    """A model whose parameters are the trainable constants of an ONNX graph, under their ONNX names and shapes.

    The network inside stays as it is for inference: BatchNormalization uses its stored statistics, Dropout passes.

    Attributes
    ----------
    names : tuple of str
        The ONNX initializers (or outputs of Constant nodes) that are trained.
    weights : torch.nn.ParameterList
        Their values, in the same order.
    inputs : tuple of InputSpec
        Inputs of the model without the batch dimension.
    batch : int or None
        The only batch size that the model takes; None where it is free.
    activation : str
        Op type of the activation between `logits` and the first output, "" if there is none.
    route : str
        "onnx2torch", or "lrp_onnx.ops" where onnx2torch could not make the network or made a different one.
    notes : tuple of str
        Why onnx2torch was not taken.
    difference : float
        Largest relative difference to ONNX Runtime seen when the weights were perturbed at random.
    """

    def __init__(
        self,
        prepared: _Prepared,
        network: nn.Module,
        bindings: Sequence[Binding],
        *,
        route: str,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        used = {binding.name for binding in bindings}
        self.names = tuple(name for name in prepared.weights if name in used)
        self.weights = nn.ParameterList(torch.tensor(prepared.weights[name]) for name in self.names)
        self.network = network
        self.inputs, self.batch, self.activation = prepared.inputs, prepared.batch, prepared.activation
        self.route, self.notes, self.difference = route, tuple(notes), 0.0
        self._outputs, self._logits = prepared.outputs, prepared.logits
        self._bindings = tuple(bindings)
        self._index = {name: index for index, name in enumerate(self.names)}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The model's own outputs, in their order."""
        return tuple(self._run(inputs)[: self._outputs])

    def logits(self, *inputs: Tensor) -> Tensor:
        """The first output before a trailing Softmax, LogSoftmax or Sigmoid."""
        return self._run(inputs)[self._logits]

    def snapshot(self) -> list[Tensor]:
        """Copies of the weights, on the CPU."""
        return [weight.detach().cpu().clone() for weight in self.weights]

    def restore(self, values: Sequence[Tensor]) -> None:
        """Set the weights to those of a `snapshot`."""
        with torch.no_grad():
            for weight, value in zip(self.weights, values, strict=True):
                weight.copy_(value)

    def _run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        tensors = {binding.path: binding(self.weights[self._index[binding.name]]) for binding in self._bindings}
        result = torch.func.functional_call(self.network, tensors, tuple(inputs))
        return result if isinstance(result, list | tuple) else (result,)


def to_torch(model: onnx.ModelProto, *, example: Sequence[np.ndarray] | None = None) -> Trainable:
    """Make an ONNX model trainable.

    onnx2torch builds the network; ops and versions that it lacks come from `lrp_onnx.ops`. The result is checked in
    ONNX Runtime with all weights perturbed, so that both the function and the mapping of the weights are known to be
    right; where onnx2torch's network fails that check, all ops are taken from `lrp_onnx.ops`.

    Trained are the float weights and biases of linear layers, the scale and shift of normalisations, PRelu slopes, and
    the scale or shift per channel (Mul, Add) behind a linear layer, into which exporters fold normalisations.

    Parameters
    ----------
    model : onnx.ModelProto
        With all its data in memory. Is not modified.
    example : sequence of array, optional
        One batch for each input to check with; random numbers otherwise.

    Returns
    -------
    Trainable

    Raises
    ------
    ModelError
        The model is quantised, has no float weights, or neither way agrees with ONNX Runtime.
    UnsupportedOpError
        A node has no meaning in torch.
    ConversionError
        onnx2torch is not installed.
    """
    import_onnx2torch()
    prepared = _Prepared(model)
    arrays = list(example) if example is not None else _random_inputs(model, prepared)
    notes: list[str] = []
    for own in (False, True):
        route = "lrp_onnx.ops" if own else "onnx2torch"
        try:
            network, bindings = build(prepared.copy(), prepared.weights.keys(), own=own)
            if not bindings:
                raise ConversionError("the network has no trainable weights")
            trainable = Trainable(prepared, network, bindings, route=route, notes=notes)
            trainable.difference = _perturbed_difference(model, trainable, arrays)
        except LrpOnnxError as error:
            notes.append(f"{route}: {error}")
            if own:
                raise type(error)(f"the model cannot be made trainable: {'; '.join(notes)}") from error
            continue
        if trainable.difference <= TOLERANCE:
            return trainable
        notes.append(f"{route}: outputs differ from ONNX Runtime by {trainable.difference:.3g} (relative)")
    raise ModelError(f"the model cannot be made trainable: {'; '.join(notes)}; allowed: {TOLERANCE:.3g}")


def write_back(
    original: onnx.ModelProto, trainable: Trainable, *, example: Sequence[np.ndarray] | None = None
) -> WrittenBack:
    """Put trained weights into a copy of the model that they came from.

    Graph, names, opset, metadata and the tensors that were not trained stay; the result is checked in ONNX Runtime
    against the torch module.

    Parameters
    ----------
    original : onnx.ModelProto
        What `to_torch` was called with. Is not modified.
    trainable : Trainable
    example : sequence of array, optional
        One batch for each input to check with; random numbers otherwise.

    Raises
    ------
    ModelError
        The model lacks a weight or has it in another shape, a weight is not finite, or ONNX Runtime gives something
        else than the torch module.
    """
    result = _with_weights(original, trainable)
    difference = _difference(result, trainable, example if example is not None else _random_inputs(original, trainable))
    if not difference <= TOLERANCE:
        raise ModelError(
            f"the retrained model gives other outputs in ONNX Runtime than in torch: relative difference "
            f"{difference:.3g}, allowed {TOLERANCE:.3g}"
        )
    return WrittenBack(result, difference)


class _Prepared:
    """A copy of the model as onnx2torch wants it, with logits as further outputs; its trainable constants by name."""

    def __init__(self, original: onnx.ModelProto) -> None:
        _refuse_quantised(original)
        proto = onnx.ModelProto()
        proto.CopyFrom(original)
        model = ir.from_proto(proto)
        ir.passes.Sequential(
            common.InlinePass(),
            common.RemoveInitializersFromInputsPass(),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.IdentityEliminationPass(),
            common.RemoveUnusedNodesPass(),
            common.ShapeInferencePass(check_type=False, strict_mode=False),
        )(model)
        outputs = list(model.graph.outputs)
        cuts = cut_activations(model, [value.name for node in model.graph for value in node.outputs])
        logits = model.graph.outputs[0]
        self.activation = cuts[str(logits.name)].op_type if str(logits.name) in cuts else ""
        every = [*outputs, *([] if any(logits is value for value in outputs) else [logits])]
        model.graph.outputs.clear()
        model.graph.outputs.extend(every)
        self.outputs = len(outputs)  # the model's own; logits come behind them
        self.logits = next(index for index, value in enumerate(every) if value is logits)
        self.weights = _weights(model, dict(_stored(original)))
        self.inputs = tuple(
            InputSpec(
                str(value.name),
                tuple(size if isinstance(size, int) else None for size in (value.shape or ())[1:]),
                (value.dtype or ir.DataType.FLOAT).numpy(),
            )
            for value in model.graph.inputs
        )
        batch = next((value.shape[0] for value in model.graph.inputs if value.shape), None)
        self.batch = batch if isinstance(batch, int) and batch > 0 else None
        self._proto = ir.to_proto(model)

    def copy(self) -> onnx.ModelProto:
        """A model of one's own: `build` names and marks nodes."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self._proto)
        return copy


def _refuse_quantised(model: onnx.ModelProto) -> None:
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        kind = node.op_type
        if "quantize" in kind.lower() or kind.startswith(("QLinear", "QGemm")) or kind.endswith(("Integer", "NBits")):
            raise ModelError(
                f"a quantised model cannot be trained (node '{node.name or node.output[0]}', op '{kind}'): "
                "retrain the float model and quantise it again"
            )


def _weights(model: ir.Model, stored: dict[str, onnx.TensorProto]) -> dict[str, np.ndarray]:
    """The trainable constants, in the order in which the graph reads them."""
    found: dict[str, ir.Value] = {}
    slots: set[tuple[ir.Node, int]] = set()  # where a weight may be read
    learned: set[ir.Value] = set()  # what depends on a linear layer
    for node in model.graph:
        behind = not learned.isdisjoint(filter(None, node.inputs))
        for position in _weight_positions(node, behind):
            path = list(_path(node, position))
            value = path[-1][0].inputs[path[-1][1]]
            if value is not None and value.is_initializer() and value.const_value is not None:
                found.setdefault(str(value.name), value)
                slots.update(path)
        if behind or node.op_type in _LINEAR:
            learned.update(node.outputs)
    weights = {
        name: np.array(value.const_value.numpy())
        for name, value in found.items()
        if value.const_value is not None
        and value.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
        and name in stored
        # exporters store equal constants once: what is a statistic or a bound elsewhere has to stay
        and all((use.node, use.idx) in slots for use in value.uses())
    }
    if weights:
        return weights
    if any(value.dtype in _HALF for value in found.values()):
        raise ModelError("a model with 16-bit float weights cannot be trained: export it in float32")
    raise ModelError("the model cannot be trained: it has no float weights in linear layers or normalisations")


def _weight_positions(node: ir.Node, behind: bool) -> tuple[int, ...]:
    """Inputs of `node` that may be weights; `behind` says that a linear layer comes before it."""
    if node.domain != "":
        return ()
    if node.op_type in ("Add", "Mul"):
        return tuple(p for p in (0, 1) if _per_channel(node.inputs[p])) if behind else ()
    return tuple(p for p in _WEIGHTS.get(node.op_type, ()) if p < len(node.inputs))


def _path(node: ir.Node, position: int) -> Iterator[tuple[ir.Node, int]]:
    """The inputs, from that of `node` upwards, through which a constant comes that is only rearranged on its way."""
    yield node, position
    value = node.inputs[position]
    while value is not None and (above := value.producer()) is not None and above.op_type in _STRUCTURE:
        yield above, 0
        value = above.inputs[0]


def _per_channel(value: ir.Value | None) -> bool:
    """Whether a constant holds several numbers along one axis only: not a scalar of a formula, a mask, a position."""
    if value is None or value.const_value is None:
        return False
    return 1 < value.const_value.size == max(value.const_value.shape.numpy(), default=1)


def _stored(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Name and tensor of everything in the model that a weight can be written to."""
    for tensor in model.graph.initializer:
        yield tensor.name, tensor
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                yield node.output[0], attribute.t


def _with_weights(original: onnx.ModelProto, trainable: Trainable) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(original)
    stored = dict(_stored(result))
    for name, weight in zip(trainable.names, trainable.weights, strict=True):
        array = weight.detach().cpu().numpy()
        tensor = stored.get(name)
        if tensor is None or tuple(tensor.dims) != array.shape:
            shape = "none" if tensor is None else tuple(tensor.dims)
            raise ModelError(f"weight '{name}' has shape {array.shape}, in the model to write to: {shape}")
        if not np.isfinite(array).all():
            raise ModelError(f"weight '{name}' holds NaN or infinite values after training: lower the learning rate")
        for field in ("float_data", "double_data"):
            tensor.ClearField(field)
        tensor.raw_data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return result


def _random_inputs(model: onnx.ModelProto, like: _Prepared | Trainable) -> list[np.ndarray]:
    preprocess = Preprocess.from_metadata({entry.key: entry.value for entry in model.metadata_props})
    random = np.random.default_rng(0)
    return [draw(spec, like.batch or 2, random, None, preprocess) for spec in like.inputs]


def _perturbed_difference(original: onnx.ModelProto, trainable: Trainable, arrays: Sequence[np.ndarray]) -> float:
    """Difference to ONNX Runtime with every weight changed by a few per cent, so that a wrong mapping shows."""
    random = torch.Generator().manual_seed(0)
    kept = trainable.snapshot()
    with torch.no_grad():
        for weight in trainable.weights:
            size = 0.05 * float(weight.abs().mean()) or 0.01
            weight.add_(size * torch.randn(weight.shape, generator=random, dtype=weight.dtype))
    try:
        return _difference(_with_weights(original, trainable), trainable, arrays)
    finally:
        trainable.restore(kept)


def _difference(model: onnx.ModelProto, trainable: Trainable, arrays: Sequence[np.ndarray]) -> float:
    """Largest relative difference between `model` in ONNX Runtime and `trainable`, over all float outputs."""
    session = open_session(model)
    feeds = {spec.name: array for spec, array in zip(trainable.inputs, arrays, strict=True)}
    device = trainable.weights[0].device
    try:
        expected = session.run(None, feeds)
    except Exception as error:
        raise ModelError(f"ONNX Runtime stopped: {first_line(error)}") from error
    try:
        with torch.no_grad():
            outputs = trainable(*(torch.from_numpy(array).to(device) for array in arrays))
    except LrpOnnxError:
        raise
    except Exception as error:  # whatever the layers raise on a network that was built wrongly
        raise ConversionError(f"the torch network stopped: {one_line(error)}") from error
    worst = 0.0
    for output, reference in zip(outputs, expected, strict=True):
        found = output.detach().cpu().numpy() if isinstance(output, Tensor) else np.empty(0)
        if found.shape != reference.shape:
            raise ConversionError(f"the torch network gives shape {found.shape}, ONNX Runtime {reference.shape}")
        if reference.size and reference.dtype.kind == "f":
            scale = float(np.abs(reference).max())
            worst = max(worst, float(np.abs(found - reference).max()) / (scale or 1.0))
    return worst
