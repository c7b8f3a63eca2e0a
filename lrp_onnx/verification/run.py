"""Every check of a model and a composite, in one table."""

from __future__ import annotations

import os
from collections.abc import Callable

import onnx

from lrp_onnx.batch_axis import batch_first
from lrp_onnx.engine import DEFAULT_COMPOSITE, Explainer
from lrp_onnx.errors import DataError, ModelError, UnsupportedOpError
from lrp_onnx.graph import Graph, load
from lrp_onnx.losses import Loss
from lrp_onnx.ops import find, label
from lrp_onnx.rules import Composite
from lrp_onnx.targets import Chosen
from lrp_onnx.verification.aim import aim_at, of_class
from lrp_onnx.verification.computation import check_canonical, check_forward, runs
from lrp_onnx.verification.flipping import check_faithfulness
from lrp_onnx.verification.following import check_randomisation
from lrp_onnx.verification.relevance import Walks, check_conservation, check_precision, walk
from lrp_onnx.verification.report import Check, Judgement, Verification
from lrp_onnx.verification.samples import Data, Samples, chosen, take_samples

SAMPLES = 8


def verify(
    graph: Graph | str | os.PathLike[str] | bytes | onnx.ModelProto,
    data: Data | None = None,
    *,
    composite: str | Composite = DEFAULT_COMPOSITE,
    target: str | int | Chosen = "predicted",
    samples: int = SAMPLES,
    output: str | None = None,
    vocabulary: str | os.PathLike[str] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Verification:
    """Say whether heatmaps of a model are right: what they are computed from, how, and whether they mean something.

    The checks are "canonical", "forward", "conservation", "precision", "randomisation" and "faithfulness"; what each
    does and where it passes, warns and fails is in docs/verify.md.

    Parameters
    ----------
    graph : Graph, path, bytes or onnx.ModelProto
        The model.
    data : Dataset, path, array (n, …) or dict of str to array, optional
        What the model is for; without it random inputs are used, and faithfulness is skipped.
    composite : str or Composite
        What the heatmaps are made by.
    target : str, int or Chosen
        What they explain, as `compute_heatmaps` takes it: "label", a class, "position:-1", "box:best", "worst" …
    samples : int
        At most so many, evenly over the data.
    output : str, optional
        Name of the output to explain; the first by default.
    vocabulary : path-like, optional
        For texts, see `open_texts`.
    loss : {"mse", "mae", "landmarks"}, optional
        By which "worst" is the farthest off.
    seed : int
        Of everything random; equal seeds give equal numbers.
    progress : callable, optional
        Called with (check, done, in all).

    Raises
    ------
    LrpOnnxError
        The model, the composite or the data cannot be used at all; what can be used and is wrong fails its check.

    Examples
    --------
    >>> lrp_onnx.verify("model.onnx", "photos/").verdict                                # doctest: +SKIP
    'pass'
    """
    graph = batch_first(graph if isinstance(graph, Graph) else load(graph))
    explainer = Explainer(graph, composite, output=output)
    taken = take_samples(graph, data, samples, seed, output=output, vocabulary=vocabulary)
    report = progress or (lambda check, done, total: None)
    aim = aim_at(target, graph, explainer.output, taken, loss=loss, vocabulary=vocabulary)
    rough = walk(explainer, taken, aim=aim)
    cut = graph.cuts.get(explainer.output)
    classes = of_class(target, taken, rough.shape, sigmoid=cut is not None and cut.op_type == "Sigmoid")
    own = sorted({label(node) for node in graph.nodes if node.domain and find(node)})

    def of(name: str, check: Callable[[], Check]) -> Check:
        report(name, 0, 1)
        try:
            return check()
        except (DataError, ModelError) as error:
            return Check(name, "fail", str(error))

    def in_onnxruntime(name: str, check: Callable[[Graph, Samples], Check]) -> Check:
        if own and not runs(graph):
            return Check(
                name, "skip", f"ONNX Runtime does not know {chosen(own)}: torch's meaning is the only one there is"
            )
        return of(name, lambda: check(graph, taken))

    def shuffled(done: int, total: int) -> None:
        report("randomisation", done, total)

    def flipped(done: int, total: int) -> None:
        report("faithfulness", done, total)

    checks = (
        in_onnxruntime("canonical", check_canonical),
        in_onnxruntime("forward", check_forward),
        *_in_float64(explainer, taken, rough, report),
        of("randomisation", lambda: check_randomisation(explainer, taken, rough.targets, seed=seed, progress=shuffled)),
        of(
            "faithfulness",
            lambda: check_faithfulness(explainer, taken, rough.targets, classes=classes, seed=seed, progress=flipped),
        ),
    )
    said = target.text if isinstance(target, Chosen) else str(target)
    found = (graph.name, explainer.composite.name, explainer.output, said, taken.count, taken.random)
    return Verification(*found, checks, taken.notes)


def _in_float64(
    explainer: Explainer, samples: Samples, rough: Walks, report: Callable[[str, int, int], None]
) -> tuple[Check, Check]:
    report("conservation", 0, 1)
    try:
        precise = Explainer(explainer.graph, explainer.composite, dtype="float64", output=explainer.output)
        exact = walk(precise, samples, rough.targets)
        return check_conservation(precise, exact, samples), check_precision(rough, exact)
    except (DataError, UnsupportedOpError) as error:
        judgement: Judgement = "fail" if isinstance(error, DataError) else "warn"
        reason = f"cannot be computed in float64: {error}"
        return Check("conservation", judgement, reason), Check("precision", judgement, reason)
