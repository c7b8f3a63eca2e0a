"""`lrp-onnx retrain`: a better model from the labelled unsafe set, and what became better."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrp_onnx.cli.options import (
    ClassesOption,
    ClusteredStoreOption,
    ExtensionsOption,
    JsonOption,
    Model,
    OverwriteOption,
    PreprocessOption,
    load_model,
    run_extensions,
)
from lrp_onnx.cli.output import count, show_failures, show_json, show_notes, status, steps
from lrp_onnx.errors import DataError

if TYPE_CHECKING:
    from lrp_onnx.hudd.before_after import TestVerdict
    from lrp_onnx.hudd.improve import Improved
    from lrp_onnx.hudd.training import Epoch

NAME = "retrain"


def command(
    model: Model,
    training: Annotated[
        Path,
        typer.Option("--training", metavar="DATA", help="The training set: the model learns on.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="ONNX file to write.")] = Path("retrained.onnx"),
    unsafe: Annotated[Path, typer.Option("--unsafe", metavar="DIR", help="Labelled folder of `assign`.")] = Path(
        "UnsafeSet"
    ),
    test: Annotated[
        Path | None,
        typer.Option("--test", metavar="DATA", help="Test set: judges both models.", show_default=False),
    ] = None,
    validation: Annotated[
        str,
        typer.Option(
            "--validation",
            metavar="DATA|FRACTION",
            help="Chooses the best epoch: a set of its own, or so much of what is learned from.",
        ),
    ] = "0.2",
    clusters: Annotated[
        Path | None,
        typer.Option(
            "--clusters", metavar="DIR", help="Folder of `cluster`: judges each cluster, too.", show_default=False
        ),
    ] = None,
    store: ClusteredStoreOption = None,
    oracle: Annotated[
        Path | None,
        typer.Option(
            "--oracle",
            metavar="DATA",
            help="Known labels in place of a person's: a folder per class, a manifest, arrays with labels.",
            show_default=False,
        ),
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Go on without the images that have no label.")] = False,
    record: Annotated[
        Path | None,
        typer.Option(
            "--record", metavar="JSON", help="Account of it; retraining.json beside OUTPUT.", show_default=False
        ),
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", help="Most passes over the training set.")] = 10,
    optimizer: Annotated[str, typer.Option("--optimizer", metavar="sgd|adam", help="How weights are updated.")] = "sgd",
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Size of the updates.")] = 1e-3,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Samples an update.")] = 32,
    patience: Annotated[
        int, typer.Option("--patience", help="Stop after so many epochs without a better one; 0: never.")
    ] = 5,
    seed: Annotated[int, typer.Option("--seed", help="Of everything random.")] = 0,
    loss: Annotated[
        str | None,
        typer.Option(
            "--loss",
            metavar="cross-entropy|mse|mae",
            help="What is minimised; mse for numbers to regress, else cross-entropy.",
            show_default=False,
        ),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(
            "--measure",
            metavar="mse|mae|landmarks",
            help="Regression: judges test images; as --loss by default.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", help="Regression: largest loss of a correct test image.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="cpu|cuda", help="Where to train.")] = "cpu",
    preprocess: PreprocessOption = None,
    classes: ClassesOption = None,
    extensions: ExtensionsOption = None,
    require_improvement: Annotated[
        bool, typer.Option("--require-improvement", help="Exit with code 1 unless the test set says better.")
    ] = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Retrain a model on its training set and the balanced unsafe set; MODEL itself is kept.

    Interrupted work goes on where it was when the same command runs again.
    """
    if require_improvement and test is None:
        raise DataError("--require-improvement needs a test set to judge by; give it with --test")
    run_extensions(extensions)
    with status(f"Loading {model}"):
        graph = load_model(model, preprocess, classes)
    from lrp_onnx.hudd.improve import retrain_unsafe

    options: dict[str, Any] = {"optimizer": optimizer, "loss": loss, "measure": measure}  # the library checks them
    with steps() as advance:
        found = retrain_unsafe(
            graph,
            training,
            unsafe,
            output,
            test=test,
            validation=_data_or_fraction(validation),
            clusters=clusters,
            store=store,
            oracle=oracle,
            record=record,
            model_path=model,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            patience=patience or None,
            seed=seed,
            device=device,
            threshold=threshold,
            partial=partial,
            overwrite=overwrite,
            progress=advance,
            epoch=lambda one: print(_line(one), file=sys.stderr),
            **options,
        )
    if as_json:
        show_json({**found.contents, "record": found.record, "failures": found.failures})
    else:
        show_notes(found.notes)
        show_failures(found.failures)
        _print(found)
    if require_improvement and not found.better:
        raise typer.Exit(1)


def _data_or_fraction(text: str) -> Path | float:
    try:
        return float(text)
    except ValueError:
        return Path(text)


def _line(epoch: Epoch) -> str:
    def figures(loss: float | None, accuracy: float | None) -> str:
        return f"loss {loss:.4g}" + ("" if accuracy is None else f", accuracy {accuracy:.2%}")

    learned = (
        "" if epoch.training_loss is None else f"training {figures(epoch.training_loss, epoch.training_accuracy)}; "
    )
    return f"epoch {epoch.epoch}: {learned}validation {figures(epoch.loss, epoch.accuracy)}"


def _print(found: Improved) -> None:
    contents, retrained = found.contents, found.retrained
    print(
        f"learned from {count(contents['training_images'], 'image')} of the training set and "
        f"{count(contents['labelled_images'], 'labelled image')} ({contents['balanced_images']} when balanced); "
        f"{contents['validation_images']} of validation chose the epoch"
    )
    done = len(retrained.history) - 1
    if retrained.improved:
        print(f"epoch {retrained.best_epoch} of {done} is the best -> {found.model}")
    else:
        print(f"none of {count(done, 'epoch')} is better on the validation set; the weights stay -> {found.model}")
    if found.verdict is not None:
        _print_verdict(found.verdict)
    print(f"account of it -> {found.record}")


def _print_verdict(verdict: TestVerdict) -> None:
    better = "better" if verdict.better else "not better"
    print(f"test set, {count(verdict.images, 'image')}: {better}")
    print(f"{verdict.measure} {verdict.before:.2%} -> {verdict.after:.2%}")
    if verdict.loss_before is not None and verdict.loss_after is not None:
        print(f"mean loss {verdict.loss_before:.4g} -> {verdict.loss_after:.4g}")
    print(f"{count(len(verdict.improved), 'image')} improved, {len(verdict.worsened)} worsened")
    for one in verdict.clusters:
        print(
            f"cluster {one.cluster}: {one.correct_before} -> {one.correct_after} of {count(one.size, 'image')} "
            f"correct, {one.improved} improved, {one.worsened} worsened"
        )
