"""From a graph and a composite to the steps of the reverse walk: everything that is done once per model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from lrp_onnx import rules
from lrp_onnx.engine.analysis import (
    INTEGERS,
    ROUNDING,
    clip_bound,
    ids,
    looks_up,
    nonnegative_tensors,
    pictures,
    rectifies,
    relevance_path,
    zero_at_zero,
)
from lrp_onnx.errors import ModelError, RuleError, UnsupportedOpError
from lrp_onnx.forward import Constants, TorchForward
from lrp_onnx.graph import Graph, Node
from lrp_onnx.graph.classic import CLASSIC
from lrp_onnx.ops import Site, find, label, narrowed


@dataclass(frozen=True, eq=False)
class Step:
    """One node of the walk with its rule.

    Attributes
    ----------
    site : Site
    rule : str
    parameters : dict
    backward : callable
        What the rule made of the site.
    outputs : tuple of str
        The tensors whose values the rule sees as the node's outputs (behind a MatMul with a bias: the sum; before a
        ReLU: what it gives, if the rule said that this is enough).
    reads : frozenset of str
        Activations that must be there.
    sizes : frozenset of str
        Tensors of which the rule wants the shape alone.
    why : str
        What chose the rule.
    """

    site: Site
    rule: str
    parameters: Mapping[str, Any]
    backward: rules.Backward
    outputs: tuple[str, ...]
    reads: frozenset[str]
    sizes: frozenset[str]
    why: str = ""

    @property
    def node(self) -> Node:
        return self.site.node

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the inputs that receive relevance."""
        return tuple(self.node.inputs[p] for p in self.site.active)


@dataclass(frozen=True, eq=False)
class Plan:
    """The steps in execution order (the walk goes through them in reverse); `ids` names the tensors of token ids."""

    graph: Graph
    composite: rules.Composite
    output: str
    steps: tuple[Step, ...]
    ids: frozenset[str] = frozenset()

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """All tensors that get relevance, in execution order: model inputs first."""
        inputs = [n for n in self.graph.inputs if any(n in s.active for s in self.steps)]
        return (*inputs, *(o for s in self.steps for o in s.node.outputs if o in self._relevant))

    @cached_property
    def _relevant(self) -> set[str]:
        return {self.output, *(name for step in self.steps for name in step.active)}

    @cached_property
    def reads(self) -> frozenset[str]:
        """Activations that the walk reads."""
        return frozenset().union(*(step.reads for step in self.steps), {self.output})

    @cached_property
    def sizes(self) -> frozenset[str]:
        """Tensors of which the walk wants the shape alone."""
        return frozenset().union(*(step.sizes for step in self.steps)) - self.reads

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All tensors that the steps have to do with."""
        every = (name for step in self.steps for name in (*step.node.inputs, *step.outputs, *step.node.outputs) if name)
        return tuple(dict.fromkeys(every))

    @cached_property
    def pictures(self) -> frozenset[str]:
        """Activations (N, C, H, W) that the walk is faster with in the channels_last memory format."""
        return pictures(self.graph) & self.reads - {self.output}


def build_plan(
    graph: Graph, composite: rules.Composite, output: str, constants: Constants, *, narrow: bool = False
) -> Plan:
    """Choose and prepare the rule of every node on the path to `output`; precision and device are those of `constants`.

    With `narrow`, layers with weights multiply numbers rounded to bfloat16.

    Raises
    ------
    UnsupportedOpError
        A node on the path has no rule.
    RuleError
        A rule cannot be applied to the node that it was chosen for.
    """
    path = relevance_path(graph, output, hold_detached=not composite.gradient)
    if not path:
        kinds = ", ".join(f"'{name}' is {_kind(info.elem_type)}" for name, info in graph.inputs.items())
        raise ModelError(
            f"{graph.name}: output '{output}' does not depend on any input that can have relevance ({kinds}): floats, "
            "and integers that pick rows of a table or are cast to floats"
        )
    for node, _ in path:
        if node.captured or node.name in graph.refused:
            reason = graph.refused.get(node.name, "it holds a graph of its own")
            raise UnsupportedOpError(f"{graph.name}: {node} is on the relevance path and cannot be explained: {reason}")
    return _Builder(graph, composite, path, constants, narrow).build(output)


def _kind(elem_type: int) -> str:
    return str(onnx.TensorProto.DataType.Name(elem_type)).lower()


# a gate behind these is a gate
_AS_IT_IS = (*ROUNDING, "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Cast")


class _Builder:
    def __init__(
        self,
        graph: Graph,
        composite: rules.Composite,
        path: Sequence[tuple[Node, tuple[int, ...]]],
        constants: Constants,
        narrow: bool,
    ) -> None:
        self.graph, self.composite, self.constants, self.narrow = graph, composite, constants, narrow
        self.dtype, self.device = constants.dtype, constants.device
        self.ids = ids(graph, list(path))
        self.nonnegative = nonnegative_tensors(graph)
        self.sites = [self._site(node, active) for node, active in path]
        self.users: dict[str, list[int]] = {}  # tensor -> the steps on the path that read it
        for i, site in enumerate(self.sites):
            for p in site.active:
                self.users.setdefault(site.node.inputs[p], []).append(i)
        places = self._places()
        if wrong := composite.misspelt(places):
            raise RuleError(
                f"{graph.name}: composite '{composite.name}' has a rule for '{wrong}', and no op or node on the "
                "relevance path has that name; `lrp-onnx inspect --json` lists them"
            )
        self.chosen = [self._choose(site, place) for site, place in zip(self.sites, places, strict=True)]

    def build(self, output: str) -> Plan:
        biases = self._biases_behind()
        support = self._positive_support(output)
        bounded = self._bounded(output, support)
        steps = []
        for i, site in enumerate(self.sites):
            name, parameters, why = self.chosen[i]
            outputs, linear, relu = site.node.outputs, site.linear, support.get(i)
            stands_in = relu is not None and clip_bound(self.graph, relu, 2) == np.inf
            if linear is not None:
                bias, outputs = biases.get(i, (linear.bias, outputs))
                linear = replace(
                    linear,
                    bias=bias,
                    nonnegative=site.node.inputs[site.active[0]] in self.nonnegative,
                    positive_support=i in support,
                    rectified=stands_in,
                    bounds=self._bounds(site, parameters) if name == "z-box" else None,
                    tiles=linear.convolution and self._stays_bounded(i, support, bounded),
                )
            needs = rules.find(name).needs_at(linear)
            if relu and stands_in and "rectified" in needs:
                outputs, site = relu.outputs, replace(site, rectified=True)
            if linear is not None:
                # what reads z stands behind it, and was walked before; a weighted sum shares memory with nothing
                owned = linear.weight is not None and output not in outputs and not self.composite.times_input
                site = replace(site, linear=replace(linear, rectified=site.rectified, owned=owned))
            steps.append(replace(self._step(site, name, parameters, outputs, needs), why=why))
        return Plan(self.graph, self.composite, output, tuple(steps), self.ids)

    def _site(self, node: Node, active: tuple[int, ...]) -> Site:
        op = find(node)
        constants = self.constants.of(node)
        if node.op_type in ("Conv", "ConvTranspose") and 1 in constants and self.dtype == torch.float32:
            constants[1] = _channels_last(constants[1])
        linear = op.linear(node, constants, active) if op and op.linear else None
        linear = narrowed(linear) if linear and self.narrow else linear
        gates = frozenset(p for p in active if self._is_gate(node.inputs[p]))
        return Site(node, op, active, constants, linear, gates)

    def _is_gate(self, name: str) -> bool:
        producer = self.graph.producer.get(name)
        while producer is not None and producer.op_type in (*_AS_IT_IS, "Where"):
            # exporters write Where(IsNaN(s), 0, s) for a Softmax with a mask
            _, *branches = producer.inputs if producer.op_type == "Where" else ("", producer.inputs[0])
            computed = [branch for branch in branches if branch not in self.graph.initializers]
            producer = self.graph.producer.get(computed[0]) if len(computed) == 1 else None
        return producer is not None and producer.op_type in ("Sigmoid", "HardSigmoid", "Softmax")

    def _places(self) -> list[rules.Place]:
        """Where each site stands, in execution order."""
        linears = [s.linear is not None and s.linear.weight is not None for s in self.sites]
        # a table of embeddings is the first layer of a model of tokens
        weighted = [w or looks_up(self.graph, s.node) for w, s in zip(linears, self.sites, strict=True)]
        convolutions = sum(s.node.op_type in rules.KINDS["convolution"] for s in self.sites)
        places: list[rules.Place] = []
        below = 0
        for i, (site, linear) in enumerate(zip(self.sites, linears, strict=True)):
            family = site.op.family if site.op else ""
            depth = below / convolutions if convolutions else 0.0
            first = linear and not any(weighted[:i])
            places.append(rules.Place(label(site.node), site.node.name, family, linear, depth, first))
            below += site.node.op_type in rules.KINDS["convolution"]
        return places

    def _choose(self, site: Site, place: rules.Place) -> tuple[str, dict[str, Any], str]:
        """The rule, its parameters, and what chose it."""
        if looks_up(self.graph, site.node):
            return "look-up", {"gradient": self.composite.gradient}, "picks rows of a table"
        name = site.node.inputs[site.active[0]]
        if name in self.ids or self.graph.dtypes.get(name) in INTEGERS:  # which have no gradient
            return ("route" if site.op and site.op.family == "route" else "pass"), {}, "reads integers"
        if self.composite.gradient and place.op_type in ROUNDING:
            return "straight-through", {}, "rounds"
        chosen = self.composite.resolve(place)
        if chosen is None and site.node.domain == CLASSIC:
            raise UnsupportedOpError(
                f"{site.node} is on the relevance path and cannot be explained: trees, support vectors and neighbours "
                "compare instead of adding up, so that there is nothing to share out"
            )
        if chosen is None:
            known = "no rule by default" if site.op else "no meaning known to this package"
            raise UnsupportedOpError(
                f"{site.node} is on the relevance path and has {known}; choose one: "
                f"--rule {label(site.node)}=pass or --rule {label(site.node)}=gradient",
                op_type=label(site.node),
            )
        return (*chosen, self.composite.why(place))

    def _biases_behind(self) -> dict[int, tuple[Tensor, tuple[str, ...]]]:
        """MatMul followed by the Add of a constant vector: the Add is its bias, and passes relevance on."""
        result = {}
        for i, site in enumerate(self.sites):
            users = self.users.get(site.node.outputs[0], [])
            if site.linear is None or site.linear.weight is None or site.linear.bias is not None or len(users) != 1:
                continue
            add = self.sites[users[0]]
            constant = next(iter(add.constants.values()), None)
            if add.node.op_type != "Add" or constant is None or self.chosen[users[0]][0] != "norm":
                continue
            if constant.ndim == 1 and site.node.op_type == "MatMul" and site.active == (0,):
                result[i] = (constant, add.node.outputs)
                self.chosen[users[0]] = ("pass", {}, f"the bias of {site.node}")
        return result

    def _positive_support(self, output: str) -> dict[int, Node]:
        """Steps whose output relevance is zero wherever the output is not positive, and the ReLU that they feed."""
        vanishes: set[str] = set()  # tensors whose relevance is zero where the tensor is zero
        support = {}
        for i, site in reversed(list(enumerate(self.sites))):
            (result, *_), node = site.node.outputs, site.node
            users = self.users.get(result, [])
            if result != output and users and all(self._zero_stays(u, vanishes) for u in users):
                vanishes.add(result)
            if len(users) == 1 and result != output:
                user = self.sites[users[0]].node
                passes = self.chosen[users[0]][0] == "pass"
                if passes and rectifies(self.graph, user) and user.outputs[0] in vanishes and node.op_type != "Split":
                    support[i] = user
        return support

    def _bounded(self, output: str, support: Mapping[int, Node]) -> set[str]:
        """Tensors whose relevance is the tensor times something that is large nowhere because the tensor is small.

        That holds below a dense output, whose relevance over itself is one number for each sample, as far down as each
        step divides by its own bounded output, or by more, or hands on what it gets.
        """
        top = next((site.linear for site in self.sites if output in site.node.outputs), None)
        if top is None or top.weight is None or top.convolution or len(self.graph.shapes.get(output) or ()) != 2:
            return set()
        bounded = {output}
        for site in reversed(self.sites):
            for p in site.active:
                tensor = site.node.inputs[p]
                if all(self._stays_bounded(user, support, bounded) for user in self.users[tensor]):
                    bounded.add(tensor)
        return bounded

    def _stays_bounded(self, i: int, support: Mapping[int, Node], bounded: set[str]) -> bool:
        """Whether what step i makes of the relevance of its outputs is bounded as that is."""
        site, (name, parameters, _) = self.sites[i], self.chosen[i]
        if not bounded.issuperset(o for o in site.node.outputs if o):
            return False
        rule = rules.find(name)
        if rule.zeros == "moved":
            return zero_at_zero(self.graph, site.node)
        fits = rule.divisor == "output" or (rule.divisor == "more" and i in support)
        return fits and parameters.get("bias") != "ignore"

    def _zero_stays(self, user: int, vanishes: set[str]) -> bool:
        site, rule = self.sites[user], rules.find(self.chosen[user][0])
        if rule.zeros == "moved":
            return zero_at_zero(self.graph, site.node) and all(o in vanishes for o in site.node.outputs if o)
        return rule.zeros == "kept"

    def _bounds(self, site: Site, parameters: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
        """Lowest and highest value of the site's input, carried there from the model's input."""
        low, high = parameters.get("low"), parameters.get("high")
        if (low is None or high is None) and (found := input_bounds(self.graph)):
            low, high = (found[0] if low is None else low), (found[1] if high is None else high)
        if low is None or high is None:
            return None
        if any(np.asarray(bound).dtype.kind not in "fiu" for bound in (low, high)) or np.any(np.greater(low, high)):
            raise RuleError(f"z-box: low is {low!r}, high is {high!r}; expected the lowest and highest input, numbers")
        name = site.node.inputs[site.active[0]]
        forward = TorchForward(self.graph, [name], self.dtype, self.device, self.constants)
        ends = [forward({n: self._filled(n, bound) for n in self.graph.inputs})[name] for bound in (low, high)]
        return torch.minimum(*ends), torch.maximum(*ends)

    def _filled(self, name: str, bound: float | Sequence[float]) -> Tensor:
        """A batch of one with every element at the bound of its channel."""
        info = self.graph.inputs[name]
        shape = [d if isinstance(d, int) else 1 for d in info.shape or ()]
        values = torch.as_tensor(bound, dtype=self.dtype, device=self.device).flatten()
        if values.numel() > 1:
            axis = next((a for a in (1, -1) if len(shape) > 1 and shape[a] == values.numel()), None)
            if axis is None:
                raise RuleError(
                    f"z-box: {values.numel()} bounds were given, input '{name}' has shape {tuple(info.shape or ())}"
                )
            values = values.reshape([-1 if a == axis % len(shape) else 1 for a in range(len(shape))])
        return values.expand([1, *shape[1:]])

    def _step(
        self, site: Site, name: str, parameters: dict[str, Any], outputs: tuple[str, ...], needs: frozenset[str]
    ) -> Step:
        rule = rules.find(name)
        backward = rule.build(site, **parameters)
        node, reads = site.node, set[str]()
        others = [n for p, n in enumerate(node.inputs) if n and p not in site.active and p not in site.constants]
        if "inputs" in needs:
            reads.update(node.inputs[p] for p in site.active)
            reads.update(others)
        if needs & {"outputs", "rectified"}:
            reads.update(o for o in outputs[:1] if o)
        if "extras" in needs and not (site.op and site.op.adjoint):
            reads.update(others)
        computed = {p: tensor for p, tensor in enumerate(node.inputs) if tensor and p not in site.constants}
        sizes = frozenset(t for p, t in computed.items() if p in site.active or rule.name == "route")
        return Step(site, name, parameters, backward, outputs, frozenset(reads), sizes)


def _channels_last(weight: Tensor) -> Tensor:
    """The layout that the kernels for 2-D convolutions on the CPU are fastest with."""
    fits = weight.ndim == 4 and weight.device.type == "cpu"
    return weight.contiguous(memory_format=torch.channels_last) if fits else weight


def input_bounds(graph: Graph) -> tuple[list[float], list[float]] | None:
    """Lowest and highest input per channel that the model's preprocessing allows; None without that metadata."""
    from lrp_onnx.preprocess import Preprocess

    preprocess = Preprocess.from_metadata(graph.metadata)
    if preprocess is None:
        return None
    low, high = preprocess.bounds()
    return [float(v) for v in low], [float(v) for v in high]
