"""Every metric on the heatmaps of a store: the images, the model and the composite that they came from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.batch_axis import batch_first
from lrp_onnx.data import Dataset
from lrp_onnx.debug.evaluation_report import SUMMARY, Evaluation, write_evaluation
from lrp_onnx.debug.evaluation_verdicts import (
    insertion_verdict,
    randomisation_verdict,
    removal_verdict,
    sensitivity_verdict,
    sparseness_verdict,
)
from lrp_onnx.debug.explained import explained_by
from lrp_onnx.debug.faithfulness import (
    REGION,
    STEPS,
    Classifier,
    Curve,
    First,
    Ranks,
    Score,
    deletion,
    insertion,
    pixel_flipping,
    random_ranks,
    relevance_ranks,
    road,
)
from lrp_onnx.debug.heatmap_statistics import gini
from lrp_onnx.debug.randomisation import Randomised, randomisation
from lrp_onnx.debug.sensitivity import RADIUS, max_sensitivity
from lrp_onnx.engine import Explainer
from lrp_onnx.errors import DataError, RuleError, StoreError, UnsupportedOpError
from lrp_onnx.folders import folder_written_whole, refuse_folder
from lrp_onnx.graph import Graph, load
from lrp_onnx.inputs import Feed, describe, feed_for
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.render import reduce_channels
from lrp_onnx.rules import COMPOSITES, Composite, Entry
from lrp_onnx.store import HeatmapStore
from lrp_onnx.stored_inputs import read_input, stored_dataset
from lrp_onnx.targets import fixed

METRICS = ("flipping", "road", "deletion", "insertion", "sparseness", "sensitivity", "randomisation")
ORDERS = {
    "flipping": ("most", "random"),
    "road": ("most", "least", "random"),
    "deletion": ("most", "random"),
    "insertion": ("most", "random"),
}
RANDOMISED_IMAGES = 32  # the first so many are explained by every shuffled model
FOLLOWING = ("epsilon-gamma-box", "epsilon")  # composites to name where one does not follow the weights, tried in turn
_ALIKE = 0.99  # cosine between a stored heatmap and the same computed anew


def evaluate_store(
    store: str | os.PathLike[str],
    model: Graph | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    metrics: Sequence[str] = METRICS,
    limit: int | None = None,
    steps: int = STEPS,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Say whether the heatmaps of a store are faithful to the model.

    Under `out` appear ``images.csv`` (a row an image), ``curves.csv`` (mean curves), ``randomisation.csv`` (a row a
    shuffled model), ``summary.json`` (verdicts and numbers) and ``curves.png``. The score is what a heatmap explains:
    the probability of its class, or else the number that its target chose in the unchanged picture (a box's score, a
    class summed over a map, a regressed coordinate …; its opposite, where that is below 0).

    Parameters
    ----------
    store : path-like
        Of pictures.
    model : Graph or path
        The one that the heatmaps are of.
    out : path-like
        Folder.
    data
        Where the images are now, see `stored_dataset`.
    metrics : sequence of str
        Of `METRICS`.
    limit : int, optional
        The first so many images.
    steps : int
        Of the curves (but for ROAD, see `ROAD_FRACTIONS`), and shuffled models at most.
    seed : int
        Of everything random; equal seeds give equal numbers.
    overwrite : bool
        Replace an earlier evaluation at `out`.
    progress : callable, optional
        Called with (images and models done, in all).

    Raises
    ------
    LrpOnnxError
        DataError, ModelError, StoreError or OutputError; what was at `out` stays.
    """
    folder = Path(out)
    refuse_folder(folder, SUMMARY, overwrite)
    if unknown := [name for name in metrics if name not in METRICS]:
        raise DataError(f"metric '{unknown[0]}' is unknown; choose among {', '.join(METRICS)}")
    for name, number in (("limit", limit), ("steps", steps)):
        if number is not None and number < 2 - (name == "limit"):
            raise DataError(f"{name} is {number}; expected at least {2 - (name == 'limit')}")
    with HeatmapStore(store) as heatmaps:
        run = _Run(heatmaps, model, data, [name for name in METRICS if name in metrics], limit, steps, seed)
        run.all_images(progress or (lambda done, total: None))
        found = run.result(folder)
        with folder_written_whole(folder, SUMMARY, overwrite=overwrite) as new:
            about = {"store": str(heatmaps.path), "model": run.graph.name, "composite": composite_of(heatmaps).name}
            about["score"] = run.score_name
            write_evaluation(new, found, {**about, "steps": steps, "seed": seed})
    return found


def composite_of(store: HeatmapStore) -> Composite:
    """The composite that a store's heatmaps were made by, node by node as it was resolved."""
    said = json.loads(store.attrs["composite"])
    known = COMPOSITES.get(said["name"], Composite(said["name"]))
    entries = []
    for node, rule in said["nodes"].items():
        parameters = {name: value for name, value in rule.items() if name != "rule"}
        entries.append(Entry(rule["rule"], parameters, node=escape(node)))
    return Composite(known.name, tuple(entries), known.gradient, known.times_input)


@dataclass(eq=False)
class _Run:
    """One store and its model: what all metrics share, and what they found."""

    store: HeatmapStore
    model: Graph | str | os.PathLike[str]
    data: str | os.PathLike[str] | None
    metrics: list[str]
    limit: int | None
    steps: int
    seed: int
    curves: dict[str, dict[str, list[Curve]]] = field(default_factory=dict)
    ginis: list[float] = field(default_factory=list)
    sensitivities: list[float] = field(default_factory=list)
    layers: list[Randomised] = field(default_factory=list)
    better: tuple[str, Sequence[Randomised]] | None = None  # a composite that follows the weights, if this one does not
    rows: list[int] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        store = self.store
        if len(store.attribution.shape) != 4 or 1 in store.attribution.shape[2:]:
            raise StoreError(
                f"{store.path}: samples of shape {store.attribution.shape[1:]}; expected pictures (`lrp-onnx verify` "
                "follows other inputs)"
            )
        graph = batch_first(self.model if isinstance(self.model, Graph) else load(self.model), store.batch_axis)
        if graph.sha256 != store.attrs["model_sha256"]:
            raise StoreError(f"{store.path}: heatmaps of another model, {store.attrs['model']}, than {graph.name}")
        if len(graph.inputs) > 1:
            raise DataError(
                f"{graph.name} has {len(graph.inputs)} inputs ({', '.join(graph.inputs)}), and one picture is "
                "evaluated; `lrp-onnx verify` follows several inputs, and tokens, on the data itself"
            )
        preprocess = None if store.preprocess is None else Preprocess.from_json(store.preprocess)
        self.graph = graph if preprocess is None else describe(graph, preprocess)
        self.explained = explained_by(store, self.graph)
        of_class = "the probability of the explained class"
        self.score_name = of_class if self.explained.classes else f"the number explained ({store.attrs['target']})"
        self.chosen = store.done[: self.limit]
        self.dataset: Dataset = stored_dataset(store, self.chosen, self.data)
        self.feed: Feed = feed_for(self.graph, self.dataset)
        self.classifier = Classifier(self.graph, output=self.explained.output, channels_last=self.feed.channels_last)
        self.explainer: Explainer | None = None
        self.samples, self.composite = store.samples, composite_of(store)
        self.targets: dict[int, int | NDArray[np.float32]] = {}  # by row
        for metric in self.metrics:
            if metric in ORDERS:
                self.curves[metric] = {order: [] for order in ORDERS[metric]}

    def all_images(self, progress: Callable[[int, int], None]) -> None:
        shuffles = self.steps if "randomisation" in self.metrics else 0
        total = len(self.chosen) + shuffles
        kept: list[NDArray[np.float32]] = []
        for done, row in enumerate(self.chosen.tolist(), start=1):
            try:
                if not (self.explained.classes or self.explained.number(row)):
                    raise DataError("the number explained is 0, which cannot fall")
                read = read_input(self.dataset, done - 1, self.feed.preprocess)
            except DataError as error:
                self.skipped[str(self.samples["path"][row])] = str(error)
                continue
            self.image(row, self.feed.channels_first(read[None])[0])
            if len(kept) < RANDOMISED_IMAGES:
                kept.append(read)
            progress(done, total)
        if not self.rows:
            raise DataError(next(iter(self.skipped.values())))
        if shuffles:
            self.shuffle(np.stack(kept), lambda done, models: progress(total - models + done, total))

    def image(self, row: int, picture: NDArray[np.float32]) -> None:
        """All metrics of one picture, (C, H, W)."""
        target, number = self.explained.target(row), self.explained.number(row)
        relevance = self.store.attribution[row]
        if not np.isfinite(relevance).all():
            raise StoreError(f"{self.store.path}, {self.samples['path'][row]}: the relevance holds NaN or infinity")
        against = number < 0 and not (self.explained.classes and self.store.prediction.shape[1] > 1)
        # from 1, LRP shares out the size of the number, so that positive relevance speaks for what it is
        turned = against and (self.composite.gradient or self.store.attrs["seed"] != "one")
        heatmap = reduce_channels(relevance) * (-1 if turned else 1)
        score = self._score(target, against)
        edge = max(1, round(REGION * min(heatmap.shape)))
        for metric, orders in self.curves.items():
            region = edge if metric == "flipping" else 1
            for order, curves in orders.items():
                ranks = self._ranks(heatmap, order, region, row)
                if metric == "flipping":
                    bounds = self._bounds(picture)
                    curve = pixel_flipping(score, picture, ranks, self._random(row, 2), bounds=bounds, steps=self.steps)
                elif metric == "road":
                    curve = road(score, picture, ranks, self._random(row, 3))
                else:
                    curve = (deletion if metric == "deletion" else insertion)(score, picture, ranks, steps=self.steps)
                curves.append(curve)
        if "sparseness" in self.metrics:
            self.ginis.append(gini(heatmap))
        if "sensitivity" in self.metrics or ("randomisation" in self.metrics and self.explainer is None):
            self._explain(picture[None], target, row)
        if "sensitivity" in self.metrics:
            low, high = self._bounds(picture)
            self.sensitivities.append(
                max_sensitivity(
                    lambda pictures: self._explain(pictures, target),
                    picture,
                    self._random(row, 4),
                    radius=RADIUS * (high - low),
                )
            )
        self.rows.append(row)
        self.targets[row] = target

    def _score(self, target: int | NDArray[np.float32], against: bool) -> Score:
        """What should fall when relevant pixels go."""
        if not isinstance(target, int):
            return self.classifier.number(target, negative=against)
        if self.explained.classes:
            return self.classifier.score(target, against=against)
        size = int(np.prod(self.store.prediction.shape[1:]))
        return self.classifier.number(np.eye(1, size, target)[0], negative=against)

    def _ranks(self, heatmap: NDArray[np.float64], order: str, region: int, row: int) -> Ranks:
        if order == "random":
            return random_ranks(heatmap.shape, self._random(row, 1), region=region)
        first: First = "most" if order == "most" else "least"
        return relevance_ranks(heatmap, first=first, region=region, random=self._random(row, 1))

    def _random(self, row: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, row, purpose))

    def _bounds(self, picture: NDArray[np.float32]) -> NDArray[np.float64]:
        """Lowest and highest value of each channel, (2, C): of all pictures if that is known, else of this one."""
        if self.feed.preprocess is not None:
            return np.array(self.feed.preprocess.bounds(), dtype=np.float64)
        return np.stack([picture.min(axis=(1, 2)), picture.max(axis=(1, 2))]).astype(np.float64)

    def _explain(
        self, pictures: NDArray[np.floating], target: int | NDArray[np.float32], row: int | None = None
    ) -> NDArray[np.float32]:
        """Relevance (n, C, H, W) by the store's composite; with a row, compared with what the store has there."""
        if self.explainer is None:
            self.explainer = Explainer(self.graph, self.composite, output=self.explained.output)
        wanted = target if isinstance(target, int) else fixed(target)
        given = np.moveaxis(pictures, 1, -1) if self.feed.channels_last else pictures
        step, found = self.feed.batch or 8, []
        for at in range(0, len(given), step):
            part = given[at : at + step]
            result = self.explainer.explain(self.feed.batch_of(part), wanted, seed=self.store.attrs["seed"])
            found.append(result.relevance[self.feed.input].numpy()[: len(part)])
        relevance = self.feed.channels_first(np.concatenate(found))
        if row is not None:
            one, other = relevance[0].ravel().astype(np.float64), self.store.attribution[row].ravel().astype(np.float64)
            length = np.linalg.norm(one) * np.linalg.norm(other)
            if length and one @ other < _ALIKE * length:
                raise StoreError(
                    f"{self.store.path}: the heatmap of {self.samples['path'][row]} is not what its composite gives "
                    "now: the image has changed, or the heatmap was made otherwise; leave out the metrics sensitivity "
                    "and randomisation, or compute the heatmaps anew"
                )
        return relevance

    def shuffle(self, inputs: NDArray[np.floating], progress: Callable[[int, int], None]) -> None:
        assert self.explainer is not None
        targets = np.stack([np.asarray(self.targets[row]) for row in self.rows[: len(inputs)]])
        if self.feed.batch:  # whole batches only: the last image fills the last one
            missing = -len(inputs) % self.feed.batch
            inputs = np.concatenate([inputs, inputs[-1:].repeat(missing, axis=0)])
            targets = np.concatenate([targets, targets[-1:].repeat(missing, axis=0)])
        how: dict[str, Any] = {
            "seed": self.seed,
            "channels_last": self.feed.channels_last,
            "batch_size": self.feed.batch or 8,
        }
        given = inputs, targets
        self.layers = randomisation(self.explainer, *given, stages=self.steps, progress=progress, **how)
        if randomisation_verdict(self.layers).judgement != "bad":
            return
        for name in FOLLOWING:
            try:
                stages = randomisation(
                    Explainer(self.graph, name, output=self.explained.output), *given, stages=2, **how
                )
            except (RuleError, UnsupportedOpError):  # such as a z-box for a model whose range of inputs is not known
                continue
            if randomisation_verdict(stages).judgement == "good":
                self.better = name, stages
                return

    def result(self, folder: Path) -> Evaluation:
        verdicts = []
        for metric in self.metrics:
            if metric == "insertion":
                verdicts.append(insertion_verdict(self.curves[metric]))
            elif metric in ORDERS:
                verdicts.append(removal_verdict(metric, self.curves[metric]))
            elif metric == "sparseness":
                verdicts.append(sparseness_verdict(np.array(self.ginis)))
            elif metric == "sensitivity":
                verdicts.append(sensitivity_verdict(np.array(self.sensitivities), RADIUS))
            else:
                verdicts.append(randomisation_verdict(self.layers, self.better))
        return Evaluation(
            folder,
            tuple(verdicts),
            self.curves,
            np.array(self.ginis),
            np.array(self.sensitivities),
            tuple(self.layers),
            tuple(str(self.samples["path"][row]) for row in self.rows),
            self.skipped,
        )
