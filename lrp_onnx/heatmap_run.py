"""Samples that are chosen, explained batch by batch into a heatmap store."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrp_onnx.accelerator import Fetching
from lrp_onnx.batch_axis import BATCH_AXIS_KEY
from lrp_onnx.data import Batch, Dataset, batches
from lrp_onnx.embedding import embed
from lrp_onnx.engine import DEFAULT_COMPOSITE, Dtype, Explainer, Explanation
from lrp_onnx.engine.seed import Seed, Target
from lrp_onnx.errors import DataError
from lrp_onnx.graph import Graph
from lrp_onnx.inputs import classes_of, feed_for, first_inputs, number_of_outputs
from lrp_onnx.judging import Judge, require_rows
from lrp_onnx.layer_choice import select_layers
from lrp_onnx.losses import Loss
from lrp_onnx.memory import division, out_of_memory
from lrp_onnx.recording import Recorder
from lrp_onnx.rules import Composite
from lrp_onnx.runtime import first_line
from lrp_onnx.side_by_side import in_order, sharing_cores
from lrp_onnx.store import HeatmapStore, LayerInfo, StoreSpec
from lrp_onnx.targets import parse

StoreTarget = str | int
Inputs = tuple[np.ndarray, Mapping[str, np.ndarray]]  # of the model's input, and its further ones by name


def absorbed(biases: float) -> str:
    """What to do where biases absorbed this share of the relevance; empty unless that is nearly all."""
    if not 0.9 < biases < 1.1:  # far above 1, shares of either sign cancel out, which is another matter
        return ""
    return (
        "biases absorbing nearly all is common to deep networks whose norms became biases: --bias ignore leaves it to "
        "the inputs, which hardly changes the order of pixels by epsilon-plus-flat, but much by other composites; "
        "`lrp-onnx verify` says which composite follows the model"
    )


@dataclass(frozen=True)
class Shares:
    """Where relevance went, relative to what it started from.

    Attributes
    ----------
    input : float
        Reached the model's input.
    biases : float
        Absorbed by biases.
    lost : float
        The rest: stabilisers, and rules that do not conserve.
    start : float
        The relevance that it started from, of all samples, in units of the output.
    """

    input: float
    biases: float
    lost: float
    start: float

    def __str__(self) -> str:
        return f"{self.input:.1%} reached the input, {self.biases:.1%} biases absorbed, {abs(self.lost):.1%} was lost"

    @property
    def advice(self) -> str:
        """What to do where biases absorbed nearly all; empty elsewhere."""
        return absorbed(self.biases)


@dataclass(frozen=True)
class Heatmaps:
    """What `compute_heatmaps` did.

    Attributes
    ----------
    path : pathlib.Path
        The store.
    samples, computed : int
        Rows of the store, and those computed by this call.
    layers : list of str
        Inner tensors in the store.
    shares : Shares or None
        Where the relevance of the samples computed by this call went; None for gradients, which do not conserve.
    failures : dict of str to str
        Path and reason of each sample that could not be read.
    notes : tuple of str
        What was guessed or left out.
    """

    path: Path
    samples: int
    computed: int
    layers: list[str]
    shares: Shares | None
    failures: dict[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    """How samples are explained: the options of `compute_heatmaps` of the same names."""

    composite: str | Composite = DEFAULT_COMPOSITE
    target: StoreTarget = "predicted"
    seed: Seed = "auto"
    layers: str | Sequence[str] = "input"
    loss: Loss | None = None
    threshold: float | None = None
    batch_size: int | None = None
    device: str = "cpu"
    dtype: Dtype = "float32"
    layer_dtype: str = "float32"
    compress: str | None = None
    output: str | None = None
    vocabulary: str | None = None

    def explainer(self, graph: Graph) -> Explainer:
        return Explainer(graph, self.composite, device=self.device, dtype=self.dtype, output=self.output)


def explain_into(
    path: Path,
    explainer: Explainer,
    dataset: Dataset,
    settings: Settings,
    known: int = -1,
    *,
    trial: Dataset | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Heatmaps:
    """`compute_heatmaps` of samples that are chosen already.

    Parameters
    ----------
    explainer : Explainer
        Made as `settings` say.
    known : int
        What a table of results says of all samples: 1 for correct, 0 for wrong, -1 for nothing.
    trial : Dataset, optional
        Where a readable sample is looked for, to find out what the model makes of one; `dataset` by default, of which
        then not all may be unreadable.
    """
    feed = feed_for(explainer.graph, dataset)
    judge = Judge(explainer.graph, explainer.output, dataset, feed, settings.loss, settings.threshold)
    sample = first_inputs(dataset if trial is None else trial, feed)
    if resume and path.exists() and settings.batch_size is None:
        with HeatmapStore(path) as begun:
            settings = replace(settings, batch_size=begun.batch_size)
    batch, workers = division(
        explainer,
        {feed.input: sample[0].shape, **{name: values.shape for name, values in sample[1].items()}},
        len(dataset),
        feed.batch or settings.batch_size,
        recorded=select_layers(explainer.plan, settings.layers),
        itemsize=2 if settings.layer_dtype == "float16" else 4,
    )
    with ExitStack() as stack:
        stack.enter_context(sharing_cores(workers))
        run = _Run(judge, explainer, settings, known, sample)
        spec = run.spec(batch)
        opened = HeatmapStore.resume(path, spec) if resume else HeatmapStore.create(path, spec, overwrite=overwrite)
        out = stack.enter_context(opened)
        try:
            computed = run.fill(out, batch, workers, progress or (lambda done, total: None))
        except DataError:
            if trial is None or len(dataset.failures) < len(dataset):
                raise
            computed = 0
        out.finish()
        return Heatmaps(path, len(out), computed, out.layer_names, run.shares(), dataset.failures, tuple(run.notes))


@dataclass(frozen=True, eq=False)
class _Part:
    """Samples that are explained: their rows, what `HeatmapStore.write` takes, and the relevance of all, by place."""

    rows: np.ndarray
    arrays: dict[str, Any]
    totals: dict[str, float]


class _Run:
    """One model over one data set: what is the same for every batch."""

    def __init__(self, judge: Judge, explainer: Explainer, settings: Settings, known: int, sample: Inputs) -> None:
        self.graph, self.dataset, self.feed, self.judge = judge.graph, judge.dataset, judge.feed, judge
        self.explainer, self.settings, self.target, self.known = explainer, settings, settings.target, known
        self.seed = settings.seed
        if self.seed == "auto":
            self.seed = "one" if explainer.composite.gradient else "logit"
        self.notes = list(self.feed.notes)
        self.totals = {"start": 0.0, "input": 0.0, "biases": 0.0}  # relevance, over all samples computed
        self.chosen = self._chosen()
        reached = [name for name in explainer.plan.tensors if name in self.graph.inputs]
        self.main = self.feed.input if self.feed.input in reached else reached[0]
        self.inputs = [self.main, *(name for name in reached if name != self.main)]
        self.layers = [*self.inputs[1:], *select_layers(explainer.plan, settings.layers)]
        self.shapes = self._try_out(sample)
        outputs = math.prod(self.shapes[explainer.output])
        if self.dataset.targets is not None and self.target == "predicted" and self.seed != "all" and outputs > 1:
            self.notes.append(
                f"of {outputs} regressed outputs the largest is explained; the target 'worst' explains the one that is "
                "the farthest off, the seed 'all' every one"
            )
        recorded = {self.main, *self.layers, explainer.output}
        self.recorded = [name for name in explainer.plan.tensors if name in recorded]  # in execution order
        self._narrow = frozenset(self.layers) if settings.layer_dtype == "float16" else frozenset[str]()
        self._room = len(self.dataset)  # samples that there is memory for at a time, as far as it was tried

    def _chosen(self) -> Target:
        """What `Explainer.explain` takes for the target; for "worst" only where every output is explained anyway."""
        graph, output, vocabulary = self.graph, self.explainer.output, self.settings.vocabulary
        if not isinstance(self.target, str):
            return self.target
        names = self.dataset.target_names or classes_of(graph) or self.dataset.classes
        found = parse(self.target, names, partial(embed, graph, output=output, vocabulary=vocabulary))
        return "predicted" if found == "worst" else found

    def _try_out(self, sample: Inputs) -> dict[str, tuple[int, ...]]:
        """Explain a sample: shows what does not fit before anything is written, and every tensor's shape."""
        # Twice, so that a first dimension of 1 is not taken for the batch.
        main, others = sample
        repeated = self.feed.batch or 2
        inputs = np.stack([main] * repeated)
        further = {name: np.stack([values] * repeated) for name, values in others.items()}
        labels, targets = np.maximum(self.dataset.labels[:1], 0).repeat(len(inputs)), self.dataset.targets
        if targets is not None:  # those of the sample with the fewest, which will not do where all are needed
            fewest = int(np.isnan(targets).sum(axis=1).argmax())
            targets = targets[[fewest] * len(inputs)]
        try:
            result = self._explain((inputs, further), labels, targets)
        except MemoryError as error:
            raise DataError(str(error)) from None
        require_rows(self.graph.name, self.explainer.output, tuple(result.output.shape), len(inputs))
        free = self.feed.batch is None
        for name in list(self.layers):
            declared = (self.graph.shapes.get(name) or (None,))[0]
            shape = tuple(result.relevance[name].shape) if name in result.relevance else ()
            if shape[:1] != (len(inputs),) or (free and isinstance(declared, int)):
                self.layers.remove(name)
                self.notes.append(f"layer '{name}' is left out: its first dimension is not the batch (shape {shape})")
        verdict = self.judge(result.output.cpu().numpy(), inputs, labels, targets)
        self.measure = self.judge.measure(verdict)
        shapes = {name: tuple(relevance.shape[1:]) for name, relevance in result.relevance.items()}
        return {**shapes, self.explainer.output: tuple(result.output.shape[1:])}

    def _explain(
        self, inputs: Inputs, labels: np.ndarray, targets: np.ndarray | None, recorder: Recorder | None = None
    ) -> Explanation:
        """What the engine says; MemoryError, whoever ran out of it."""
        names = [*self.layers, self.explainer.output]
        if self.target == "label" and number_of_outputs(self.graph, self.explainer.output) == 1:
            labels = np.zeros_like(labels)  # one output speaks for both classes
        target, given = self.chosen, self.feed.batch_by_name(*inputs)
        if self.target == "worst" and self.seed != "all":
            target = partial(self._worst, inputs=given[self.feed.input], targets=targets)
        try:
            return self.explainer.explain(given, target, labels=labels, seed=self.seed, layers=names, record=recorder)
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise MemoryError(
                f"{self.graph.name}: there is no memory to explain {len(labels)} samples at a time and record "
                f"{len(self.layers)} inner layers ({first_line(error)}); record fewer, or free some memory"
            ) from None

    def _worst(self, output: Tensor, inputs: np.ndarray, targets: np.ndarray | None) -> np.ndarray:
        """What `Explainer.explain` takes: the part of the output that is the farthest off."""
        return self.judge.worst(output.cpu().numpy(), inputs, targets)

    def spec(self, batch_size: int) -> StoreSpec:
        dataset, graph, plan = self.dataset, self.graph, self.explainer.plan
        order = {name: position for position, name in enumerate(plan.tensors)}
        input_shape = self.feed.channels_first(np.empty((1, *self.shapes[self.main]))).shape[1:]
        nodes = {step.node.name: {"rule": step.rule, **step.parameters} for step in plan.steps}
        preprocess = self.feed.preprocess
        producer = graph.producer
        classes = classes_of(graph) or dataset.classes
        return StoreSpec(
            paths=dataset.paths,
            index=dataset.index,
            labels=None if (dataset.labels < 0).all() else dataset.labels,
            target_values=dataset.targets,
            input_shape=input_shape,
            outputs=self.shapes[self.explainer.output],
            layers={
                name: LayerInfo(self.shapes[name], producer[name].name, producer[name].op_type, order[name])
                if name in producer
                else LayerInfo(self.shapes[name], "", "Input", order[name])
                for name in self.layers
            },
            tokens=self._tokens(),
            conservation=self.recorded,
            model=graph.name,
            model_sha256=graph.sha256,
            composite=json.dumps({"name": plan.composite.name, "nodes": nodes}, ensure_ascii=False),
            target=str(self.target),
            seed=self.seed,
            preprocess=None if preprocess is None else preprocess.to_json(),
            dtype=self.settings.dtype,
            batch_axis=graph.metadata.get(BATCH_AXIS_KEY),
            classes=classes,
            loss=self.measure or "",
            threshold=self.judge.threshold,
            target_names=dataset.target_names,
            layer_dtype=self.settings.layer_dtype,
            compress=self.settings.compress,
            batch_size=batch_size,
        )

    def _tokens(self) -> list[tuple[str, ...]] | None:
        """What is said of each sample's tokens, if the model takes such: words, or else their ids."""
        samples, array = self.dataset.samples, self.dataset.array
        if self.main not in self.explainer.plan.ids or len(self.shapes[self.main]) != 1:
            return None
        if array is None or samples[0].tokens:
            return [sample.tokens for sample in samples] if samples[0].tokens else None
        return [tuple(map(str, array[sample.index].astype(np.int64).tolist())) for sample in samples]

    def fill(self, out: HeatmapStore, batch_size: int, workers: int, progress: Callable[[int, int], None]) -> int:
        """Compute the rows that are pending; how many were."""
        total, done = len(self.dataset), set(out.done.tolist())
        if out.complete and out.attrs["compress"]:  # packed: what could not be read then has lost its place
            done = set(range(total))
        progress(len(done), total)
        computed = 0

        def work(batch: Batch) -> list[_Part]:
            return self._parts(batch, np.array([row not in done for row in batch.rows.tolist()]))

        with closing(in_order(work, self._blocks(batch_size, done), workers)) as results:
            for parts in results:
                for part in parts:  # written while the next batches are explained
                    out.write(part.rows, **part.arrays)
                    for place, relevance in part.totals.items():
                        self.totals[place] += relevance
                    computed += len(part.rows)
                    progress(int(part.rows[-1]) + 1, total)
        return computed

    def _parts(self, batch: Batch, fresh: np.ndarray) -> list[_Part]:
        """A batch explained, in halves where memory does not allow for it in one; `fresh` (n,) tells pending rows."""
        if not fresh.any():
            return []
        count = len(batch.rows)
        if count <= self._room:
            try:
                return [self._part(batch, np.flatnonzero(fresh))]
            except MemoryError as error:
                if count == 1 or self.feed.batch is not None:
                    raise DataError(str(error)) from None
            self._room = count // 2  # outside of the handler, which would keep what was computed
        halves = slice(None, count // 2), slice(count // 2, None)
        return [part for half in halves for part in self._parts(batch.part(half), fresh[half])]

    def _blocks(self, batch_size: int, done: set[int]) -> Iterator[Batch]:
        """Batches with pending rows. One that was interrupted half way is read in full, to compute the same numbers."""
        preprocess = self.feed.preprocess
        for batch in batches(self.dataset, preprocess, batch_size, skip=done):
            start = int(batch.rows[0]) // batch_size * batch_size
            block = range(start, min(start + batch_size, len(self.dataset)))
            if done.isdisjoint(block):
                yield batch
                continue
            whole = next(batches(self.dataset.subset(block), preprocess, batch_size))
            yield replace(whole, rows=whole.rows + start)

    def _part(self, batch: Batch, fresh: np.ndarray) -> _Part:
        """What the store takes for the samples at `fresh` in the batch."""
        expected = None if batch.targets is None else self.feed.pad(batch.targets)
        recorder = Recorder(self._narrow)
        result = self._explain((batch.inputs, batch.others), self.feed.pad(batch.labels), expected, recorder)
        # a slice copies nothing
        picked = slice(None) if len(fresh) == len(result.output) else torch.from_numpy(fresh)
        biases = torch.stack([node.bias for node in result.conservation])
        given = [result.output, recorder.sums(self.recorded), biases]
        fetched = Fetching([*given, *(result.relevance[name] for name in self.recorded)]).wait()
        output, sums, absorbed = fetched[0][picked], fetched[1][picked], fetched[2].tolist()
        relevance = {name: tensor[picked] for name, tensor in zip(self.recorded, fetched[3:], strict=True)}
        reached = sums[:, [self.recorded.index(name) for name in self.inputs if name in relevance]]
        # the ledger is of the whole batch: its part that is padding or done already is left out in proportion
        share = sum(absorbed) * len(fresh) / len(result.output)
        totals = {"input": float(reached.sum()), "start": float(sums[:, -1].sum()), "biases": share}
        targets = None if batch.targets is None else batch.targets[fresh]
        verdict = self.judge(output.numpy(), batch.inputs, batch.labels[fresh], targets)
        regression: dict[str, Any] = {}
        if verdict.values is not None:
            regression = {"worst": verdict.worst, "predicted_value": verdict.values}
        arrays = {
            "attribution": self.feed.channels_first(relevance[self.main].numpy()),
            "prediction": output.numpy(),
            "predicted": verdict.predicted,
            "correct": np.where(verdict.correct < 0, self.known, verdict.correct),
            "loss": verdict.loss,
            **regression,
            "target": None if result.target is None else result.target[fresh],
            "layers": {name: relevance[name].numpy() for name in self.layers},
            "conservation": sums.numpy(),
        }
        return _Part(batch.rows[fresh], arrays, totals)

    def shares(self) -> Shares | None:
        start = self.totals["start"]
        if self.explainer.composite.gradient or not np.isfinite(start) or start == 0:
            return None
        reached, absorbed = self.totals["input"] / start, self.totals["biases"] / start
        return Shares(reached, absorbed, 1 - reached - absorbed, start)
