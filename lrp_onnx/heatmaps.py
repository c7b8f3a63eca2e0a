"""From a model and a data set to a heatmap store: batches, relevance, rows on disk; interrupted runs go on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lrp_onnx.data import Batch, Dataset, batches
from lrp_onnx.engine import DEFAULT_COMPOSITE, Explainer, Plan
from lrp_onnx.engine.seed import Seed, Target
from lrp_onnx.errors import DataError, StoreError, TargetError
from lrp_onnx.inputs import Model, classes_of, feed_for, first_readable, number_of_outputs, open_both
from lrp_onnx.judging import Judge
from lrp_onnx.losses import Loss
from lrp_onnx.results import read_results
from lrp_onnx.rules import Composite
from lrp_onnx.store import HeatmapStore, LayerInfo, StoreSpec

StoreTarget = Literal["predicted", "label", "worst"] | int
# Their output is their input in another shape, and so is its relevance.
_RESHAPES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Cast"}


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
    """

    input: float
    biases: float
    lost: float

    def __str__(self) -> str:
        return f"{self.input:.1%} reached the input, {self.biases:.1%} biases absorbed, {abs(self.lost):.1%} was lost"


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


def compute_heatmaps(
    model: Model,
    data: Dataset | str | os.PathLike[str],
    store: str | os.PathLike[str],
    *,
    composite: str | Composite = DEFAULT_COMPOSITE,
    target: StoreTarget = "predicted",
    seed: Seed = "auto",
    layers: str | Sequence[str] = "input",
    errors: str | os.PathLike[str] | None = None,
    correct: str | os.PathLike[str] | None = None,
    per_class: int | None = None,
    loss: Loss | None = None,
    threshold: float | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    device: str = "cpu",
    dtype: Literal["float32", "float64"] = "float32",
    layer_dtype: str = "float32",
    compress: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Heatmaps:
    """Explain every sample of a data set and store the relevance.

    Rows of the store are in the order of the data. A sample that cannot be read keeps its row, which is never marked
    done (`HeatmapStore.done`) and holds nothing; resuming tries it again. The relevance of the model's input is stored
    channels first, also for (N, H, W, C) models; inner tensors are stored as the model has them.

    Parameters
    ----------
    model, data
        Paths, or open already; the model also as bytes or onnx.ModelProto.
    store : path-like
        HDF5 file to write.
    target
        Output to explain: what was predicted (the largest output, also of a regressor), the sample's label, one class
        index for all; or "worst", for regression: the output that is the farthest off, of landmarks both coordinates or
        the peak of their map. That needs targets, unless the model has one output only. Where images with and without
        targets are to be compared, ``seed="all"`` explains every output.
    seed : {"auto", "logit", "one", "all"}
        Initial relevance, see `Explainer.explain`.
    layers
        "input": the model's input alone. "all": every tensor on the relevance path, except those that are another one
        in another shape. Or tensor names and patterns with "*", as a list or separated by commas. Tensors whose first
        dimension is not the batch are left out with a note.
    errors : path-like, optional
        Table of `write_predictions`; only what it marks as wrong is explained.
    correct : path-like, optional
        The same, for what it marks as correct.
    per_class : int, optional
        At most so many of the correct samples of each class, see `correct_rows`.
    loss, threshold
        As in `judge`, for regression data. Left out, the loss is the one of the table, or else the default.
    limit : int, optional
        Explain the first so many samples.
    batch_size : int
        Samples at a time, if the model leaves it free. A resumed run equals an uninterrupted one bit for bit if both
        use the same.
    resume, overwrite : bool
        Go on with the store at `store`, or replace it; otherwise an existing file is an error.
    progress : callable, optional
        Called with (samples done, samples in all).

    Raises
    ------
    LrpOnnxError
        ModelError, DataError, RuleError, UnsupportedOpError, TargetError or StoreError; what was there stays as it was.
    """
    path = Path(store)
    check_output(path, resume=resume, overwrite=overwrite)
    for name, number in (("limit", limit), ("batch size", batch_size)):
        if number is not None and number < 1:
            raise DataError(f"{name} is {number}; expected at least 1")
    graph, dataset = open_both(model, data)
    known = -1
    if errors is not None or correct is not None:
        known = int(errors is None)
        dataset, loss = _chosen(dataset, errors, correct, per_class, loss)
    elif per_class is not None:
        raise DataError("a number per class is for correct samples; name a table of results with it (--correct)")
    if limit is not None:
        dataset = dataset.subset(range(min(limit, len(dataset))))
    if target == "label" and (dataset.labels < 0).any():
        raise TargetError(
            f"target 'label' needs the class of every sample, and {int((dataset.labels < 0).sum())} of {len(dataset)} "
            f"in {dataset.root} have none; use 'predicted' or a class index"
        )
    explainer = Explainer(graph, composite, device=device, dtype=dtype)
    judge = Judge(graph, explainer.output, dataset, feed_for(graph, dataset), loss, threshold)
    run = _Run(judge, explainer, target, seed, layers, known)
    spec = run.spec(layer_dtype, compress)
    opened = HeatmapStore.resume(path, spec) if resume else HeatmapStore.create(path, spec, overwrite=overwrite)
    with opened as out:
        computed = run.fill(out, run.feed.batch or batch_size, progress or (lambda done, total: None))
        out.finish()
        return Heatmaps(path, len(out), computed, out.layer_names, run.shares(), dataset.failures, tuple(run.notes))


def select_layers(plan: Plan, layers: str | Sequence[str]) -> list[str]:
    """Names of the inner tensors that `layers` means, in execution order; see `compute_heatmaps`.

    Raises
    ------
    TargetError
        When a name or pattern fits no tensor on the relevance path.
    """
    graph = plan.graph
    inner = [name for name in plan.tensors if name not in graph.inputs]
    if layers == "input":
        return []
    if layers == "all":
        return [name for name in inner if graph.producer[name].op_type not in _RESHAPES]
    if isinstance(layers, str):
        layers = [layers] if layers in inner else layers.split(",")
    chosen: set[str] = set()
    names = [name for name in map(str.strip, layers) if name]
    if not names:
        raise TargetError("no layer is named; expected 'input', 'all', or names and patterns of tensors")
    for wanted in names:
        name = graph.aliases.get(wanted, wanted)
        found = {name} & {*inner, *graph.inputs} or {n for n in inner if fnmatchcase(n, wanted)}
        if not found:
            raise TargetError(
                f"{graph.name}: no tensor on the relevance path fits '{wanted}'; `lrp-onnx inspect` lists them, "
                f"such as '{inner[0]}' and '{inner[-1]}'"
            )
        chosen |= found
    return [name for name in inner if name in chosen]


def check_output(path: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    if resume and overwrite:
        raise StoreError(f"{path}: choose one of --resume and --overwrite")
    if path.is_dir():
        raise StoreError(f"{path} is a folder; name a file")
    if path.exists() and not resume and not overwrite:
        raise StoreError(f"{path} exists already; use --resume to go on with it or --overwrite to replace it")


def _chosen(
    dataset: Dataset,
    errors: str | os.PathLike[str] | None,
    correct: str | os.PathLike[str] | None,
    per_class: int | None,
    loss: Loss | None,
) -> tuple[Dataset, Loss | None]:
    """The samples that a table of results calls wrong, or correct, and the loss by which it does."""
    table = errors if errors is not None else correct
    assert table is not None
    if errors is not None and (correct is not None or per_class is not None):
        raise DataError("errors and correct samples go into two stores; choose one of --errors and --correct")
    results = read_results(table, dataset)
    if loss is not None and results.loss is not None and loss != results.loss:
        raise DataError(f"{table}: was judged by the loss '{results.loss}', not '{loss}'; choose the same")
    rows = results.wrong() if errors is not None else results.right(per_class)
    return dataset.subset(rows), loss or results.loss


class _Run:
    """One model over one data set: what is the same for every batch."""

    def __init__(
        self,
        judge: Judge,
        explainer: Explainer,
        target: StoreTarget,
        seed: Seed,
        layers: str | Sequence[str],
        known: int,
    ) -> None:
        self.graph, self.dataset, self.feed, self.judge = judge.graph, judge.dataset, judge.feed, judge
        self.explainer, self.target = explainer, target
        self.known = known  # what a table of results says of all samples: 1, 0, or -1 for nothing
        self.seed: Seed = ("one" if explainer.composite.gradient else "logit") if seed == "auto" else seed
        self.notes = list(self.feed.notes)
        self.totals = {"start": 0.0, "input": 0.0, "biases": 0.0}  # relevance, over all samples computed
        self.layers = select_layers(explainer.plan, layers)
        self.shapes = self._try_out()
        outputs = math.prod(self.shapes[explainer.output])
        if self.dataset.targets is not None and target == "predicted" and self.seed != "all" and outputs > 1:
            self.notes.append(
                f"of {outputs} regressed outputs the largest is explained; the target 'worst' explains the one that is "
                "the farthest off, the seed 'all' every one"
            )
        recorded = {self.feed.input, *self.layers, explainer.output}
        self.recorded = [name for name in explainer.plan.tensors if name in recorded]  # in execution order

    def _try_out(self) -> dict[str, tuple[int, ...]]:
        """Explain the first sample: shows what does not fit before anything is written, and every tensor's shape."""
        sample = first_readable(self.dataset, self.feed)
        # Twice, so that a first dimension of 1 is not taken for the batch.
        inputs = self.feed.batch_of(np.stack([sample] * (self.feed.batch or 2)))
        labels, targets = np.maximum(self.dataset.labels[:1], 0).repeat(len(inputs)), self.dataset.targets
        if targets is not None:  # those of the sample with the fewest, which will not do where all are needed
            fewest = int(np.isnan(targets).sum(axis=1).argmax())
            targets = targets[[fewest] * len(inputs)]
        result = self._explain(inputs, labels, targets)
        if len(result.output) != len(inputs):
            raise DataError(
                f"{self.graph.name}: output '{self.explainer.output}' has shape {tuple(result.output.shape)} for a "
                f"batch of {len(inputs)}; expected a row per sample"
            )
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

    def _explain(self, inputs: np.ndarray, labels: np.ndarray, targets: np.ndarray | None) -> Any:
        names = [*self.layers, self.explainer.output]
        if self.target == "label" and number_of_outputs(self.graph) == 1:
            labels = np.zeros_like(labels)  # one output speaks for both classes
        target: Target = self.target if self.target != "worst" else "predicted"
        if self.target == "worst" and self.seed != "all":  # which explains every output anyway
            target = partial(self._worst, inputs=inputs, targets=targets)
        return self.explainer.explain(inputs, target, labels=labels, seed=self.seed, layers=names)

    def _worst(self, output: Tensor, inputs: np.ndarray, targets: np.ndarray | None) -> np.ndarray:
        """What `Explainer.explain` takes: the worst output (n,), or where that is several, the initial relevance."""
        logits = output.cpu().numpy()
        worst = self.judge.worst(logits, inputs, targets)
        if (worst.reshape(len(worst), -1).sum(axis=1) == 1).all():
            return worst.reshape(len(worst), -1).argmax(axis=1)
        return np.where(worst, logits if self.seed == "logit" else 1, 0)

    def spec(self, layer_dtype: str, compress: str | None) -> StoreSpec:
        dataset, graph, plan = self.dataset, self.graph, self.explainer.plan
        order = {name: position for position, name in enumerate(plan.tensors)}
        input_shape = self.feed.channels_first(np.empty((1, *self.shapes[self.feed.input]))).shape[1:]
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
                for name in self.layers
            },
            conservation=self.recorded,
            model=graph.name,
            model_sha256=graph.sha256,
            composite=json.dumps({"name": plan.composite.name, "nodes": nodes}, ensure_ascii=False),
            target=str(self.target),
            seed=self.seed,
            preprocess=None if preprocess is None else preprocess.to_json(),
            classes=classes,
            loss=self.measure or "",
            threshold=self.judge.threshold,
            target_names=dataset.target_names,
            layer_dtype=layer_dtype,
            compress=compress,
        )

    def fill(self, out: HeatmapStore, batch_size: int, progress: Callable[[int, int], None]) -> int:
        """Compute the rows that are pending; how many were."""
        total, done = len(self.dataset), set(out.done.tolist())
        if out.complete and out.attrs["compress"]:  # packed: what could not be read then has lost its place
            done = set(range(total))
        progress(len(done), total)
        computed = 0
        for batch in self._blocks(batch_size, done):
            fresh = np.flatnonzero([row not in done for row in batch.rows.tolist()])
            out.write(batch.rows[fresh], **self._rows(batch, fresh))
            computed += len(fresh)
            progress(int(batch.rows[-1]) + 1, total)
        return computed

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
            yield Batch(whole.rows + start, whole.index, whole.inputs, whole.labels, whole.paths, whole.targets)

    def _rows(self, batch: Batch, fresh: np.ndarray) -> dict[str, Any]:
        """What the store takes for the samples at `fresh` in the batch."""
        expected = None if batch.targets is None else self.feed.pad(batch.targets)
        result = self._explain(self.feed.batch_of(batch.inputs), self.feed.pad(batch.labels), expected)
        picked = torch.from_numpy(fresh)
        output = result.output.cpu()[picked]
        relevance = {name: result.relevance[name].cpu()[picked] for name in self.recorded}
        sums = torch.stack([r.flatten(1).sum(dim=1, dtype=torch.float64) for r in relevance.values()], dim=1)
        for place, total in (("input", sums[:, 0]), ("start", sums[:, -1])):
            self.totals[place] += float(total.sum())
        # the ledger is of the whole batch: its part that is padding or done already is left out in proportion
        self.totals["biases"] += sum(float(node.bias) for node in result.conservation) * len(fresh) / len(result.output)
        targets = None if batch.targets is None else batch.targets[fresh]
        verdict = self.judge(output.numpy(), batch.inputs, batch.labels[fresh], targets)
        regression: dict[str, Any] = {}
        if verdict.values is not None:
            regression = {"worst": verdict.worst, "predicted_value": verdict.values}
        return {
            "attribution": self.feed.channels_first(relevance[self.feed.input].numpy()),
            "prediction": output.numpy(),
            "predicted": verdict.predicted,
            "correct": np.where(verdict.correct < 0, self.known, verdict.correct),
            "loss": verdict.loss,
            **regression,
            "target": None if result.target is None else result.target[fresh],
            "layers": {name: relevance[name].numpy() for name in self.layers},
            "conservation": sums.numpy(),
        }

    def shares(self) -> Shares | None:
        start = self.totals["start"]
        if self.explainer.composite.gradient or not np.isfinite(start) or start == 0:
            return None
        reached, absorbed = self.totals["input"] / start, self.totals["biases"] / start
        return Shares(reached, absorbed, 1 - reached - absorbed)
