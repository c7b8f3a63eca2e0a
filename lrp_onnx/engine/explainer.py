"""`Explainer`: forward pass, seed, reverse walk, conservation ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lrp_onnx import rules
from lrp_onnx.engine.analysis import bind_dimensions
from lrp_onnx.engine.plan import Plan, Step, build_plan, known_shape
from lrp_onnx.engine.seed import Seed, Target, make_seed, output_name
from lrp_onnx.errors import DataError, RuleError, TargetError
from lrp_onnx.forward import Forward, make_forward
from lrp_onnx.graph import Graph, load

Layers = Literal["input", "all"] | Sequence[str] | Callable[[str], bool]

DEFAULT_COMPOSITE = "epsilon-plus-flat"
ATTENTION_MASK = "attention_mask"  # what exporters call the input that tells tokens from padding


@dataclass(frozen=True, eq=False)
class NodeBalance:
    """Relevance of one node, summed over the batch: what arrived, what was handed on, what its bias absorbed.

    What is left, `remainder`, went into the stabiliser (or, for a rule that does not conserve, was lost). `shares` says
    how much of `handed` each input tensor got.
    """

    node: str
    op_type: str
    rule: str
    arrived: Tensor
    handed: Tensor
    bias: Tensor
    shares: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def remainder(self) -> Tensor:
        return self.arrived - self.handed - self.bias


@dataclass(frozen=True, eq=False)
class Explanation:
    """What `Explainer.explain` gives, batch first.

    Attributes
    ----------
    output : Tensor
        The model output that relevance started from (logits), (N, K) or as the model has it.
    target : numpy.ndarray or None
        Index of the explained output element of each sample, (N,); None where several were.
    relevance : dict of str to Tensor
        By tensor name: the model's inputs and the layers asked for, each shaped as the tensor.
    conservation : list of NodeBalance
        From the output back to the input.
    """

    output: Tensor
    target: np.ndarray | None
    relevance: dict[str, Tensor]
    conservation: list[NodeBalance]


class Explainer:
    """Layer-wise relevance propagation for one model.

    Parameters
    ----------
    graph : Graph, path, bytes or onnx.ModelProto
        The model.
    composite : str or Composite
        Which node gets which rule.
    device : str
        "cpu", "cuda", "cuda:1" …
    dtype : {"float32", "float64"}
        Precision of forward pass and walk. ONNX Runtime runs the forward pass for float32 on the CPU, torch otherwise.
    output : str, optional
        Name of the output to explain (also of one that the activation was cut off from); the first by default.

    Raises
    ------
    UnsupportedOpError, RuleError
        A node on the relevance path has no rule, or one that it cannot run; found here, before any image is read.

    Examples
    --------
    >>> explainer = Explainer("model.onnx", "epsilon-plus")                             # doctest: +SKIP
    >>> explainer.explain(x, target="predicted").relevance["input"]                     # doctest: +SKIP
    """

    def __init__(
        self,
        graph: Graph | Any,
        composite: str | rules.Composite = DEFAULT_COMPOSITE,
        *,
        device: str = "cpu",
        dtype: Literal["float32", "float64"] = "float32",
        output: str | None = None,
    ) -> None:
        self.graph = graph if isinstance(graph, Graph) else load(graph)
        self.composite = rules.composite(composite) if isinstance(composite, str) else composite
        if dtype not in ("float32", "float64"):
            raise RuleError(f"dtype must be 'float32' or 'float64', not '{dtype}'")
        self.dtype = torch.float32 if dtype == "float32" else torch.float64
        try:
            self.device = torch.device(device)
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise DataError(f"device '{device}' cannot be used: {str(error).splitlines()[0]}") from error
        self.output = output_name(self.graph, output)
        self.plan: Plan = build_plan(self.graph, self.composite, self.output, dtype=self.dtype, device=self.device)
        self._forwards: dict[frozenset[str], Forward] = {}
        self._last_reader = {name: i for i, step in reversed(list(enumerate(self.plan.steps))) for name in step.reads}

    def explain(
        self,
        x: Any,
        target: Target = "predicted",
        *,
        labels: Sequence[int] | np.ndarray | None = None,
        seed: Seed = "auto",
        layers: Layers = "input",
    ) -> Explanation:
        """Relevance of the model's inputs, and of inner tensors.

        Parameters
        ----------
        x : array or dict of str to array
            The model's input, batch first, shaped as the model wants it; by name for several inputs.
        target : "predicted", "label", int, array of int (N,), target of `lrp_onnx.targets`, array, or callable
            The output element to explain; several for some of `lrp_onnx.targets` (or its text, "position:-1"), or as a
            bool array shaped as the output; with a float array shaped as the output, the initial relevance itself. A
            callable is given the output, a Tensor, and returns one of these.
        labels : array of int (N,)
            For target="label".
        seed : {"auto", "logit", "one", "all"}
            Initial relevance: the target's own value, 1, or every output's own value. "auto" is "logit", and "one" for
            gradients.
        layers : "input", "all", list of tensor names, or predicate on names
            Tensors to record beside the inputs.
        """
        inputs = self._inputs(x)
        recorded = self._recorded(layers)
        with torch.no_grad():
            activations = self._forward(recorded)(inputs)
            output = activations[self.output]
            initial, index = make_seed(output, target, labels, self._seed_kind(seed), inputs.get(ATTENTION_MASK))
            relevance, ledger = self._walk(initial, inputs, activations, recorded)
            if self.composite.times_input:
                relevance = {n: r if n in self.plan.ids else r * activations[n] for n, r in relevance.items()}
        return Explanation(output, index, relevance, ledger)

    def _seed_kind(self, seed: Seed) -> Seed:
        return seed if seed != "auto" else ("one" if self.composite.gradient else "logit")

    def _forward(self, recorded: frozenset[str]) -> Forward:
        names = self.plan.reads | recorded if self.composite.times_input else self.plan.reads
        if names not in self._forwards:
            self._forwards[names] = make_forward(
                self.graph, sorted(names), self.dtype, self.device, channels_last=self.plan.pictures
            )
        return self._forwards[names]

    def _inputs(self, x: Any) -> dict[str, Tensor]:
        given = dict(x) if isinstance(x, Mapping) else {next(iter(self.graph.inputs)): x}
        if missing := [n for n in self.graph.inputs if n not in given]:
            raise DataError(f"input '{missing[0]}' is missing; the model wants {', '.join(self.graph.inputs)}")
        if unknown := [n for n in given if n not in self.graph.inputs]:
            raise DataError(f"the model has no input '{unknown[0]}'; it wants {', '.join(self.graph.inputs)}")
        result = {}
        for name, value in given.items():
            tensor = value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
            wanted = self.graph.inputs[name].shape
            fits = wanted is None or (
                len(wanted) == tensor.ndim
                and all(not isinstance(w, int) or w == s for w, s in zip(wanted, tensor.shape, strict=True))
            )
            if not fits:
                shown = tuple("any" if d is None else d for d in wanted or ())
                raise DataError(f"input '{name}' has shape {tuple(tensor.shape)}, the model wants {shown}")
            result[name] = tensor.to(self.device, self.dtype if tensor.is_floating_point() else None).contiguous()
        return result

    def _recorded(self, layers: Layers) -> frozenset[str]:
        tensors = self.plan.tensors
        inputs = [n for n in tensors if n in self.graph.inputs]
        if layers == "input":
            return frozenset(inputs)
        if layers == "all":
            return frozenset(tensors)
        if callable(layers):
            return frozenset([*inputs, *(n for n in tensors if layers(n))])
        wanted = [layers] if isinstance(layers, str) else list(layers)
        for name in wanted:
            if name not in tensors:
                raise TargetError(f"no tensor on the relevance path is named '{name}'; `lrp-onnx inspect` lists them")
        return frozenset([*inputs, *wanted])

    def _walk(
        self, initial: Tensor, inputs: Mapping[str, Tensor], activations: dict[str, Tensor], recorded: frozenset[str]
    ) -> tuple[dict[str, Tensor], list[NodeBalance]]:
        dimensions = bind_dimensions(self.graph, {n: tuple(t.shape) for n, t in inputs.items()})
        keep = recorded if self.composite.times_input else frozenset[str]()
        pending, sums = {self.output: initial}, {self.output: initial.sum()}
        result: dict[str, Tensor] = {}
        ledger: list[NodeBalance] = []

        def shape(name: str) -> tuple[int, ...] | None:
            return tuple(activations[name].shape) if name in activations else known_shape(self.graph, name, dimensions)

        for i, step in reversed(list(enumerate(self.plan.steps))):
            arrived = [pending.pop(name, None) for name in step.node.outputs]
            here = {n: r for n, r in zip(step.node.outputs, arrived, strict=True) if r is not None}
            result.update((n, r) for n, r in here.items() if n in recorded)
            if here:
                call = rules.Call(
                    inputs=[activations.get(n) for n in step.node.inputs],
                    outputs=[activations.get(n) for n in step.outputs],
                    shapes=[shape(n) if n else None for n in step.node.inputs],
                    relevance=arrived,
                )
                shares = _checked(step, call, step.backward(call))
                came = _total([sums.pop(n) for n in here])
                handed = []
                for name, share in zip(step.active, shares.inputs, strict=True):
                    # each sum is a pass over memory: what is handed on as it came has the sum that it had
                    handed.append(came if len(here) == 1 and share is arrived[0] else share.sum())
                    pending[name] = pending[name] + share if name in pending else share
                    sums[name] = sums[name] + handed[-1] if name in sums else handed[-1]
                bias = torch.zeros_like(came) if shares.bias is None else shares.bias
                to: dict[str, Tensor] = {}
                for name, part in zip(step.active, handed, strict=True):
                    to[name] = to[name] + part if name in to else part
                balance = NodeBalance(step.node.name, step.node.op_type, step.rule, came, _total(handed), bias, to)
                ledger.append(balance)
            for name in step.reads:
                if self._last_reader[name] == i and name not in keep:
                    activations.pop(name, None)
        result.update((n, r) for n, r in pending.items() if n in recorded)
        return {n: result[n].contiguous() for n in self.plan.tensors if n in result}, ledger


def _total(sums: Sequence[Tensor]) -> Tensor:
    return sums[0] if len(sums) == 1 else torch.stack(list(sums)).sum()


def _checked(step: Step, call: rules.Call, shares: rules.Shares) -> rules.Shares:
    """The same shares, unless a rule that was made for other ops gave them another shape than the inputs have."""
    for position, share in zip(step.site.active, shares.inputs, strict=True):
        wanted = call.shapes[position]
        if wanted is not None and tuple(share.shape) != tuple(wanted):
            raise RuleError(
                f"{step.node}: rule '{step.rule}' gives relevance of shape {tuple(share.shape)}, and the input "
                f"'{step.node.inputs[position]}' has {tuple(wanted)}; choose another rule for this op"
            )
    return shares
