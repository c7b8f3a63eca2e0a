"""From a model and a data set to a heatmap store; interrupted runs go on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from lrp_onnx.data import Dataset
from lrp_onnx.engine import DEFAULT_COMPOSITE, Dtype
from lrp_onnx.engine.seed import Seed
from lrp_onnx.errors import DataError, StoreError, TargetError
from lrp_onnx.heatmap_run import Heatmaps, Settings, Shares, StoreTarget, explain_into
from lrp_onnx.inputs import Model, open_both
from lrp_onnx.layer_choice import select_layers
from lrp_onnx.losses import Loss
from lrp_onnx.results import read_results
from lrp_onnx.rules import Composite

__all__ = ["Heatmaps", "Shares", "check_output", "compute_heatmaps", "select_layers"]


def compute_heatmaps(
    model: Model,
    data: Dataset | str | os.PathLike[str],
    store: str | os.PathLike[str],
    *,
    composite: str | Composite = DEFAULT_COMPOSITE,
    target: StoreTarget = "predicted",
    seed: Seed = "auto",
    layers: str | Sequence[str] = "input",
    output: str | None = None,
    vocabulary: str | os.PathLike[str] | None = None,
    errors: str | os.PathLike[str] | None = None,
    correct: str | os.PathLike[str] | None = None,
    per_class: int | None = None,
    loss: Loss | None = None,
    threshold: float | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    device: str = "cpu",
    dtype: Dtype = "float32",
    layer_dtype: str = "float32",
    compress: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    scheduler: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Heatmaps:
    """Explain every sample of a data set and store the relevance.

    Rows of the store are in the order of the data. A sample that cannot be read keeps its row, which is never marked
    done (`HeatmapStore.done`) and holds nothing; resuming tries it again. The relevance of the model's input is stored
    channels first, also for (N, H, W, C) models; inner tensors are stored as the model has them. Token ids have the
    summed relevance of their embeddings, (N, T). Of several inputs, the first that has relevance is `attribution`, the
    others are among the layers.

    Parameters
    ----------
    model, data
        Paths, or open already; the model also as bytes or onnx.ModelProto.
    store : path-like
        HDF5 file to write.
    target
        Output to explain: what was predicted (the largest output, also of a regressor), the sample's label, one class
        for all by name or index; a text of `lrp_onnx.targets`, such as "position:-1" or "segmentation:road", in which
        references may also be pictures and texts; or "worst", for regression: the output that is the farthest off, of
        landmarks both coordinates or the peak of their map. That needs targets, unless the model has one output only.
        Where images with and without targets are to be compared, ``seed="all"`` explains every output.
    seed : {"auto", "logit", "one", "all"}
        Initial relevance, see `Explainer.explain`.
    layers
        "input": the model's input alone. "all": every tensor on the relevance path, except those that are another one
        in another shape. Or tensor names and patterns with "*", as a list or separated by commas. Tensors whose first
        dimension is not the batch are left out with a note.
    output : str, optional
        Name of the output to explain; the first by default.
    vocabulary : path-like, optional
        For texts, see `open_texts`.
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
    batch_size : int, optional
        Samples at a time, if the model leaves it free. Left out, 8, or as many as fit into half of the free memory; a
        resumed run takes as many as the interrupted one and so equals an uninterrupted run bit for bit. As many batches
        are explained side by side as torch has threads (at most 8), one thread each, if memory allows. Where it turns
        out to be short, batches are halved.
    resume, overwrite : bool
        Go on with the store at `store`, or replace it; otherwise an existing file is an error.
    scheduler : str, optional
        Where to compute, if not here: "local:N" for N processes of this machine, or the address of a Dask scheduler,
        "tcp://…"; see `lrp_onnx.distributed`.
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
    graph, dataset = open_both(model, data, output=output, vocabulary=vocabulary)
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
    settings = Settings(
        *(composite, target, seed, layers, loss, threshold, batch_size, device, dtype, layer_dtype, compress, output),
        None if vocabulary is None else str(vocabulary),
    )
    explainer = settings.explainer(graph)
    if scheduler is not None:
        from lrp_onnx.distributed import explain_on

        return explain_on(
            scheduler, path, explainer, dataset, settings, known, resume=resume, overwrite=overwrite, progress=progress
        )
    return explain_into(
        path, explainer, dataset, settings, known, resume=resume, overwrite=overwrite, progress=progress
    )


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
