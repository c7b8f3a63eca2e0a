"""Is what is explained what the model computes: the canonical graph, and every op's meaning in torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from lrp_onnx.engine.analysis import ROUNDING
from lrp_onnx.errors import LrpOnnxError, ModelError, UnsupportedOpError
from lrp_onnx.forward import TorchForward, to_tensor
from lrp_onnx.graph import Graph, Node
from lrp_onnx.graph.check import Difference, canonical_differences, difference
from lrp_onnx.ops import find, label, run
from lrp_onnx.runtime import first_line, open_session
from lrp_onnx.verification.report import Check, Judgement
from lrp_onnx.verification.samples import Samples, chosen

# Largest difference over the largest value, for which a check passes, and beyond which it fails
EXACT, WRONG = 1e-4, 1e-2
# Of a model that computes in float16 or bfloat16; and of one that rounds activations to 8 bits, where a number next to
# the border of two levels goes to either: a level is up to 1/128 of the largest value
EXACT_ROUGH, WRONG_ROUGH = 2e-2, 0.2
_HALF = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
_FLOATS = _HALF | {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE}
_SHOWN = 3  # of the worst
_CPU = torch.device("cpu")


def runs(graph: Graph) -> bool:
    """Whether ONNX Runtime can load the model; it does not know ops that a user gave a meaning in torch alone."""
    try:
        open_session(graph.model, name=graph.name, optimise=False)
    except ModelError:
        return False
    return True


def check_canonical(graph: Graph, samples: Samples) -> Check:
    """The canonical graph against the model as it was loaded, both in ONNX Runtime without its own rewriting."""
    if graph.original is None:
        return Check("canonical", "skip", "the graph has no original to compare with")
    part = next(samples.parts())
    found = canonical_differences(graph, part, inner=True)
    outputs, inner = found[: len(graph.outputs)], found[len(graph.outputs) :]
    worst = max(outputs, key=lambda one: one.relative)
    numbers = {"absolute": worst.absolute, "relative": worst.relative}
    reason = f"outputs are {worst.relative:.1e} from the model's ({worst.absolute:.1e} absolute)"
    if inner:
        deepest = max(inner, key=lambda one: one.relative)
        numbers["relative_inner"] = deepest.relative
        reason += f"; of {len(inner)} inner tensors the worst is '{deepest.tensor}', {deepest.relative:.1e}"
    if _rounds(graph):
        deployed = max(canonical_differences(graph, part, optimise=True), key=lambda one: one.relative)
        numbers["relative_default"] = deployed.relative
        reason += (
            f"; as ONNX Runtime runs both by default, the model in integers, outputs are {deployed.relative:.1e} off"
        )
        found.append(deployed)
    judgement = _judge(graph, max(one.relative for one in found))
    return Check("canonical", judgement, reason, numbers | _each(outputs), _worst(found))


def check_forward(graph: Graph, samples: Samples) -> Check:
    """The torch meaning of every op against ONNX Runtime, end to end, and node by node on ONNX Runtime's own inputs."""
    part = next(samples.parts())
    values = _all_tensors(graph, part)
    nodes, unknown = _by_node(graph, values)
    worst = max(nodes, key=lambda one: one.relative, default=Difference("", 0.0, 0.0))
    numbers = {"nodes": float(len(nodes)), "relative_node": worst.relative}
    local = f"of {len(nodes)} nodes the worst is '{worst.tensor}', {worst.relative:.1e}"
    if unknown:
        reason = f"no meaning in torch is known for {chosen(unknown)}, so that float64 cannot be had; {local}"
        judgement = _judge(graph, worst.relative)
        return Check("forward", "warn" if judgement == "pass" else judgement, reason, numbers, _worst(nodes))
    try:
        numbers_of = [n for n, info in graph.outputs.items() if info.elem_type != onnx.TensorProto.STRING]
        forward = TorchForward(graph, numbers_of, torch.float32, _CPU)
        found = forward({name: _tensor(array) for name, array in part.items()})
    except LrpOnnxError as error:
        return Check("forward", "fail", f"torch stops: {error}", numbers, _worst(nodes))
    outputs = [
        difference(name, values[name], found[name].numpy())
        for name, info in graph.outputs.items()
        if info.elem_type in _FLOATS
    ]
    last = max(outputs, key=lambda one: one.relative, default=Difference("", 0.0, 0.0))
    reason = f"torch's outputs are {last.relative:.1e} from ONNX Runtime's; {local}"
    numbers |= {"absolute": last.absolute, "relative": last.relative, **_each(outputs)}
    return Check("forward", _judge(graph, max(last.relative, worst.relative)), reason, numbers, _worst(nodes))


def _all_tensors(graph: Graph, part: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    names = list(graph.producer)
    session = open_session(graph.model, names, name=graph.name, optimise=False)
    try:
        arrays = session.run(names, dict(part))
    except Exception as error:  # ONNX Runtime has its own exception types, all directly below Exception
        raise ModelError(f"{graph.name}: ONNX Runtime cannot run the model: {first_line(error)}") from error
    return {**part, **dict(zip(names, arrays, strict=True))}


def _by_node(graph: Graph, values: Mapping[str, NDArray[np.generic]]) -> tuple[list[Difference], list[str]]:
    """The largest difference of each node by name, and the op types without a meaning in torch."""
    result, unknown = [], dict[str, None]()
    for node in graph.nodes:
        if any(graph.dtypes.get(name) == onnx.TensorProto.STRING for name in (*node.inputs, *node.outputs)):
            continue  # class names
        try:
            outputs = _run(graph, node, values)
        except UnsupportedOpError:
            unknown[label(node)] = None
            continue
        except RuntimeError:  # torch cannot make of these inputs what ONNX Runtime could
            result.append(Difference(node.name, np.inf, np.inf))
            continue
        found = [
            difference(node.name, values[name], array) if array.size == values[name].size else None
            for name, array in zip(node.outputs, outputs, strict=False)
            if name and graph.dtypes.get(name) in _FLOATS
        ]
        whole = [one or Difference(node.name, np.inf, np.inf) for one in found]
        result += [max(whole, key=lambda one: one.relative)] if whole else []
    return result, list(unknown)


def _run(graph: Graph, node: Node, values: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.generic]]:
    arguments = [
        None if not name else _tensor(graph.initializers[name] if name in graph.initializers else values[name])
        for name in node.inputs
    ]
    outputs = run(node, find(node), arguments)
    return [
        output.numpy().reshape(values[name].shape) if output.numel() == values[name].size else output.numpy()
        for name, output in zip(node.outputs, outputs, strict=False)
        if name
    ]


def _tensor(array: NDArray[np.generic]) -> torch.Tensor:
    return to_tensor(array, torch.float32, _CPU)


def _judge(graph: Graph, relative: float) -> Judgement:
    rough = bool(_HALF.intersection(graph.dtypes.values())) or _rounds(graph)
    exact, wrong = (EXACT_ROUGH, WRONG_ROUGH) if rough else (EXACT, WRONG)
    return "pass" if relative <= exact else "warn" if relative <= wrong else "fail"


def _rounds(graph: Graph) -> bool:
    return any(node.op_type in ROUNDING for node in graph.nodes)


def _each(outputs: list[Difference]) -> dict[str, float]:
    """The relative difference of each output, where there are several."""
    return {f"relative of {one.tensor}": one.relative for one in outputs} if len(outputs) > 1 else {}


def _worst(found: list[Difference]) -> dict[str, float]:
    ordered = sorted(found, key=lambda one: one.relative, reverse=True)
    return {one.tensor: one.relative for one in ordered[:_SHOWN] if one.relative > 0}
