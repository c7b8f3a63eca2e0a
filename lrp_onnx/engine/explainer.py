"""`Explainer`: forward pass, seed, reverse walk, conservation ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lrp_onnx import rules
from lrp_onnx.accelerator import Fetching, sent, true_float32
from lrp_onnx.engine.explanation import Explanation, NodeBalance, joined
from lrp_onnx.engine.parts import Independence, most_at_once, part_of, ranges
from lrp_onnx.engine.plan import Plan, Step, build_plan
from lrp_onnx.engine.seed import Seed, Target, fetched, make_seed, output_name
from lrp_onnx.engine.shapes import Shape, Shapes
from lrp_onnx.errors import DataError, RuleError, TargetError
from lrp_onnx.forward import Constants, Forward, make_forward
from lrp_onnx.graph import Graph, load
from lrp_onnx.ops import has_bfloat16

Dtype = Literal["float32", "float64", "bfloat16"]
Layers = Literal["input", "all"] | Sequence[str] | Callable[[str], bool]
Record = Callable[[str, Tensor], Tensor]

DEFAULT_COMPOSITE = "epsilon-plus-flat"
ATTENTION_MASK = "attention_mask"  # what exporters call the input that tells tokens from padding


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
    dtype : {"float32", "float64", "bfloat16"}
        Precision of forward pass and walk. ONNX Runtime runs the forward pass for float32 on the CPU, torch otherwise.
        "bfloat16" is float32 except that in the walk, layers with weights multiply numbers rounded to 8 bits of
        precision, which some processors have fast kernels for; docs/performance.md has gains and errors.
    output : str, optional
        Name of the output to explain (also of one that the activation was cut off from); the first by default.
    at_once : int, optional
        How many samples the forward pass and the walk take at a time; a larger batch goes in parts, with the same
        result. By default as many as a fixed amount of memory has room for: with more, an explanation is no faster.

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
        dtype: Dtype = "float32",
        output: str | None = None,
        at_once: int | None = None,
    ) -> None:
        self.graph = graph if isinstance(graph, Graph) else load(graph)
        self.composite = rules.composite(composite) if isinstance(composite, str) else composite
        if dtype not in get_args(Dtype):
            raise RuleError(f"dtype must be 'float32', 'float64' or 'bfloat16', not '{dtype}'")
        self.dtype = torch.float64 if dtype == "float64" else torch.float32
        try:
            self.device = torch.device(device)
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise DataError(f"device '{device}' cannot be used: {str(error).splitlines()[0]}") from error
        if dtype == "bfloat16" and not has_bfloat16(self.device):
            raise DataError(f"device '{device}' has no kernels for bfloat16; leave dtype at float32")
        self.output = output_name(self.graph, output)
        self._constants = Constants(self.graph, self.dtype, self.device)
        with true_float32(self.device, self.dtype):
            self.plan: Plan = build_plan(
                self.graph, self.composite, self.output, self._constants, narrow=dtype == "bfloat16"
            )
        if at_once is not None and at_once < 1:
            raise DataError(f"at_once is {at_once}; expected 1 or more samples")
        self.at_once = at_once
        self._forwards: dict[frozenset[str], Forward] = {}
        self.shapes = Shapes(self.graph, self.plan.names)
        self._independence = Independence(self.plan, self.shapes)
        self._last_reader = {name: i for i, step in reversed(list(enumerate(self.plan.steps))) for name in step.reads}

    def open(self) -> None:
        """Make the forward pass ready now (an ONNX Runtime session, as a rule), not with the first explanation.

        Raises
        ------
        ModelError
            ONNX Runtime cannot load the model.
        """
        self._forward(self._recorded("input"), self.shapes.guessed())

    def explain(
        self,
        x: Any,
        target: Target = "predicted",
        *,
        labels: Sequence[int] | np.ndarray | None = None,
        seed: Seed = "auto",
        layers: Layers = "input",
        record: Record | None = None,
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
        record : callable, optional
            Given the name and relevance of each recorded tensor as soon as that is known, the output first; what it
            returns, batch first, is recorded in its place, such as a copy of lower precision. The relevance itself may
            change afterwards, so that what is kept of it has to be copied. The batch then goes as a whole.
        """
        inputs = self._inputs(x)
        recorded = self._recorded(layers)
        samples = most = 1 if record is not None else self._independence.samples(inputs, target, labels)
        if samples > 1:
            most = self.at_once or most_at_once(self.plan, self.shapes, inputs, self.dtype, self.device)
        if samples <= most or not self._independence.holds(inputs, recorded, self._tried):
            only, index = self._explain(inputs, target, labels, seed, recorded, record)
            return replace(only, target=fetched([index]))
        parts = []
        for rows in ranges(samples, most):
            given = {name: tensor[rows] for name, tensor in inputs.items()}
            parts.append(
                self._explain(given, part_of(target, rows, samples), part_of(labels, rows, samples), seed, recorded)
            )
        return replace(joined([part for part, _ in parts]), target=fetched([index for _, index in parts]))

    def _explain(
        self,
        inputs: Mapping[str, Tensor],
        target: Target,
        labels: Sequence[int] | np.ndarray | None,
        seed: Seed,
        recorded: frozenset[str],
        record: Record | None = None,
    ) -> tuple[Explanation, Fetching | None]:
        """The explanation without its target, which is on its way to the host while the walk goes on."""
        shapes = self.shapes({name: tensor.shape for name, tensor in inputs.items()})
        with torch.no_grad(), true_float32(self.device, self.dtype):
            activations = self._forward(recorded, shapes)(inputs)
            shapes = {**shapes, **{name: tuple(tensor.shape) for name, tensor in activations.items()}}
            for name in activations.keys() - self._read(recorded):  # it was there for its shape
                del activations[name]
            output = activations[self.output].clone()  # it may be a view of what a rule writes to
            initial, index = make_seed(output, target, labels, self._seed_kind(seed), inputs.get(ATTENTION_MASK))
            chosen = None if index is None else Fetching([index])

            def take(name: str, relevance: Tensor) -> Tensor:
                if self.composite.times_input and name not in self.plan.ids:
                    relevance = relevance * activations[name]
                return relevance.contiguous() if record is None else record(name, relevance)

            relevance, ledger = self._walk(initial, shapes, activations, recorded, take)
        return Explanation(output, None, relevance, ledger), chosen

    def _tried(self, inputs: Mapping[str, Tensor], target: Target) -> Explanation:
        return self._explain(inputs, target, None, "auto", self._recorded("input"))[0]

    def _seed_kind(self, seed: Seed) -> Seed:
        return seed if seed != "auto" else ("one" if self.composite.gradient else "logit")

    def _read(self, recorded: frozenset[str]) -> frozenset[str]:
        """The tensors whose values are needed."""
        return self.plan.reads | recorded if self.composite.times_input else self.plan.reads

    def _forward(self, recorded: frozenset[str], shapes: Mapping[str, Shape]) -> Forward:
        names = self._read(recorded) | ((self.plan.sizes | recorded) - shapes.keys())  # no known shape: read for it
        if names not in self._forwards:
            self._forwards[names] = make_forward(
                self.graph,
                sorted(names),
                self.dtype,
                self.device,
                channels_last=self.plan.pictures,
                constants=self._constants,
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
            tensor = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
            result[name] = sent(tensor, self.device).contiguous()
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
        self,
        initial: Tensor,
        shapes: Mapping[str, Shape],
        activations: dict[str, Tensor],
        recorded: frozenset[str],
        take: Record,
    ) -> tuple[dict[str, Tensor], list[NodeBalance]]:
        keep = recorded if self.composite.times_input else frozenset[str]()
        pending, sums = {self.output: initial}, {self.output: initial.sum()}
        result: dict[str, Tensor] = {}
        ledger: list[NodeBalance] = []

        for i, step in reversed(list(enumerate(self.plan.steps))):
            arrived = [pending.pop(name, None) for name in step.node.outputs]
            here = {n: r for n, r in zip(step.node.outputs, arrived, strict=True) if r is not None}
            result.update((n, take(n, r)) for n, r in here.items() if n in recorded)
            if here:
                call = rules.Call(
                    inputs=[activations.get(n) for n in step.node.inputs],
                    outputs=[activations.get(n) for n in step.outputs],
                    shapes=[shapes.get(n) for n in step.node.inputs],
                    relevance=arrived,
                )
                shares = _checked(step, call, step.backward(call))
                came = _total([sums.pop(n) for n in here])
                to: dict[str, Tensor] = {}
                for name, share in zip(step.active, shares.inputs, strict=True):
                    if share is None:
                        continue
                    # each sum is a pass over memory: what is handed on as it came has the sum that it had
                    part = came if len(here) == 1 and _same_elements(share, arrived[0]) else share.sum()
                    pending[name] = pending[name] + share if name in pending else share
                    sums[name] = sums[name] + part if name in sums else part
                    to[name] = to[name] + part if name in to else part
                bias = torch.zeros_like(came) if shares.bias is None else shares.bias
                handed = _total(list(to.values())) if to else torch.zeros_like(came)
                balance = NodeBalance(step.node.name, step.node.op_type, step.rule, came, handed, bias, to)
                ledger.append(balance)
            for name in step.reads:
                if self._last_reader[name] == i and name not in keep:
                    activations.pop(name, None)
        result.update((n, take(n, r)) for n, r in pending.items() if n in recorded)
        for name in recorded - result.keys():  # nothing went there
            result[name] = take(name, torch.zeros(shapes[name], dtype=self.dtype, device=self.device))
        return {n: result[n] for n in self.plan.tensors if n in result}, ledger


def _same_elements(share: Tensor, arrived: Tensor | None) -> bool:
    """Whether what is handed on is what arrived, or a view of it with all its elements in another order or shape."""
    if arrived is None or share.numel() != arrived.numel() or 0 in share.stride():
        return False
    return _owner(share) is _owner(arrived)


def _owner(tensor: Tensor) -> Tensor:
    return tensor if tensor._base is None else tensor._base


def _total(sums: Sequence[Tensor]) -> Tensor:
    return sums[0] if len(sums) == 1 else torch.stack(list(sums)).sum()


def _checked(step: Step, call: rules.Call, shares: rules.Shares) -> rules.Shares:
    """The same shares, unless a rule that was made for other ops gave them another shape than the inputs have."""
    for position, share in zip(step.site.active, shares.inputs, strict=True):
        wanted = call.shapes[position]
        if share is not None and wanted is not None and tuple(share.shape) != tuple(wanted):
            raise RuleError(
                f"{step.node}: rule '{step.rule}' gives relevance of shape {tuple(share.shape)}, and the input "
                f"'{step.node.inputs[position]}' has {tuple(wanted)}; choose another rule for this op"
            )
    return shares
