"""A labelled unsafe set becomes a better model and an honest account of it, whatever interrupts the work."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from test_labels import CLASSES, label, read, write_set
from test_retrain import network, run, shapes
from torch import nn

from lrp_onnx.errors import DataError, ModelError, OutputError
from lrp_onnx.graph import load
from lrp_onnx.hudd import cluster_store, improve, retrain_unsafe
from lrp_onnx.hudd.training import Epoch
from lrp_onnx.preprocess import Preprocess

OPTIONS: dict[str, Any] = {"epochs": 4, "optimizer": "adam", "learning_rate": 1e-2}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class Case:
    """A model, arrays to train, improve and test it, and an unsafe set of twelve labelled images in two clusters."""

    folder: Path

    def __call__(self, output: str = "new.onnx", **options: Any) -> Any:
        given = {"model": "model.onnx", "training": "training.npz", "unsafe": "U"}
        paths = {name: self.folder / options.pop(name, path) for name, path in given.items()}
        return retrain_unsafe(**paths, output=self.folder / output, **{**OPTIONS, **options})  # type: ignore[arg-type]

    def files(self, *names: str) -> dict[str, bytes]:
        return {name: (self.folder / name).read_bytes() for name in names or ("new.onnx", "retraining.json")}

    @property
    def leftovers(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob(".*"))


def make_case(folder: Path, model: onnx.ModelProto) -> Case:
    for seed, (name, count) in enumerate({"training": 150, "improvement": 60, "test": 120}.items()):
        x, y = shapes(count, seed)
        np.savez(folder / f"{name}.npz", x=x, y=y)
    onnx.save(model, folder / "model.onnx")
    rows = [*range(9), 20, 30, 40]
    paths = [f"{folder / 'improvement.npz'}[{row}]" for row in rows]
    labels = [str(label) for label in np.load(folder / "improvement.npz")["y"][rows]]
    write_set(folder / "U", paths, labels)
    return Case(folder)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return network(classes=CLASSES)


@pytest.fixture
def case(tmp_path: Path, model: onnx.ModelProto) -> Case:
    return make_case(tmp_path, model)


@pytest.fixture
def clusters(case: Case, make_store: Callable[..., Path]) -> Path:
    """Clusters of the first twelve test images."""
    centres = np.random.default_rng(7).normal(size=(2, 24))
    values = np.repeat(centres, (7, 5), axis=0) + 0.05 * np.random.default_rng(1).normal(size=(12, 24))
    paths = [f"{case.folder / 'test.npz'}[{row}]" for row in range(12)]
    store = make_store({"conv": values.astype(np.float32)}, "errors.h5", paths=paths)
    cluster_store(store, case.folder / "T", layer="conv", k=2)
    return case.folder / "T"


def correct(path: Path, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return run(onnx.load(path), x).argmax(axis=1) == y


def test_the_verdict_says_what_both_models_do_on_the_test_set_and_on_each_cluster(case: Case, clusters: Path) -> None:
    steps: dict[str, list[tuple[int, int]]] = {}
    epochs: list[Epoch] = []
    found = case(
        test=case.folder / "test.npz",
        clusters=clusters,
        progress=lambda step, done, total: steps.setdefault(step, []).append((done, total)),
        epoch=epochs.append,
    )
    data = np.load(case.folder / "test.npz")
    was, now = (correct(case.folder / name, data["x"], data["y"]) for name in ("model.onnx", "new.onnx"))
    verdict = found.verdict
    assert (verdict.images, verdict.measure) == (120, "accuracy")
    assert (verdict.before, verdict.after) == (was.mean(), now.mean())
    assert found.better and verdict.after > verdict.before + 0.2
    assert verdict.loss_after < verdict.loss_before
    paths = np.array([f"{case.folder / 'test.npz'}[{row}]" for row in range(120)])
    assert verdict.improved == tuple(paths[~was & now]) and verdict.worsened == tuple(paths[was & ~now])
    for one, rows in zip(verdict.clusters, (slice(0, 7), slice(7, 12)), strict=True):
        assert (one.size, one.correct_before, one.correct_after) == (len(was[rows]), was[rows].sum(), now[rows].sum())
        assert (one.improved, one.worsened) == ((~was & now)[rows].sum(), (was & ~now)[rows].sum())
    assert {step: each[-1][0] / each[-1][1] for step, each in steps.items()} == {"Training": 1, "Judging": 1}
    assert epochs == list(found.retrained.history)


def test_the_record_has_what_a_report_needs(case: Case, clusters: Path) -> None:
    found = case(test=case.folder / "test.npz", clusters=clusters, validation=case.folder / "improvement.npz", seed=3)
    record = json.loads((case.folder / "retraining.json").read_text(encoding="utf-8"))
    assert list(record) == [
        "format", "format_version", "model", "retrained", "settings", "training_images", "labelled_images",
        "balanced_images", "validation_images", "history", "best_epoch", "stopped", "difference", "route", "notes",
        "verdict",
    ]  # fmt: skip
    assert (record["format"], record["format_version"]) == ("lrp-onnx-retraining", 1)
    for name, path in (("model", "model.onnx"), ("retrained", "new.onnx")):
        content = (case.folder / path).read_bytes()
        assert record[name] == {"path": str(case.folder / path), "sha256": sha256(content).hexdigest()}
    assert record["settings"]["seed"] == 3 and record["settings"]["learning_rate"] == 1e-2
    assert record["settings"]["loss"] == "cross-entropy"
    assert record["settings"]["validation"] == str(case.folder / "improvement.npz")
    counts = [record[f"{name}_images"] for name in ("training", "labelled", "balanced", "validation")]
    assert counts == [150, 12, 12, 60]
    assert [list(one) for one in record["history"]] == [
        ["epoch", "training_loss", "training_accuracy", "loss", "accuracy"]
    ] * 5
    assert record["history"][0]["training_loss"] is None
    verdict = record["verdict"]
    assert list(verdict) == [
        "images", "measure", "before", "after", "loss_before", "loss_after", "improved", "worsened", "clusters",
        "better",
    ]  # fmt: skip
    assert list(verdict["clusters"][0]) == [
        "cluster",
        "size",
        "correct_before",
        "correct_after",
        "improved",
        "worsened",
    ]
    assert record == json.loads(json.dumps(found.contents))


@pytest.mark.parametrize("profile, balanced", [("default", 16), ("hudd", 20)])
def test_every_cluster_weighs_the_same_whatever_was_labelled(case: Case, profile: str, balanced: int) -> None:
    rows = [*range(12)]
    paths = [f"{case.folder / 'improvement.npz'}[{row}]" for row in rows]
    labels = ["0" if row % 2 == 0 or row < 4 else "" for row in rows]  # six of cluster 1, two of cluster 2
    quotas = {"1": 8, "2": 10, "3": 4}
    write_set(case.folder / "U", paths, labels, profile=profile, quotas=quotas)
    found = case(partial=True, epochs=1)
    assert found.contents["balanced_images"] == (2 * 6 if profile == "default" else balanced)
    assert found.contents["labelled_images"] == 8 and found.better is None
    assert found.notes[:3] == (
        "4 of 12 selected images have no label and are left out",
        "no labelled image for cluster 3",
        "no labelled image of classes 'dog', 'élan'",
    )


def test_where_no_epoch_is_better_the_weights_stay_and_the_verdict_says_so(case: Case) -> None:
    found = case(test=case.folder / "test.npz", learning_rate=0.0, epochs=2)
    assert not found.retrained.improved and found.better is False
    assert found.verdict.before == found.verdict.after and found.verdict.improved == found.verdict.worsened == ()
    new, old = (onnx.load(case.folder / name).graph.initializer for name in ("new.onnx", "model.onnx"))
    assert [one.raw_data for one in new] == [one.raw_data for one in old]


def test_known_labels_are_filled_in_first(case: Case) -> None:
    table = case.folder / "U" / "unsafe.csv"
    labelled = table.read_bytes()
    rows = [row["image"] for row in read(table)]
    write_set(case.folder / "U", rows)
    whole = case("a.onnx", oracle=case.folder / "improvement.npz", record=case.folder / "a.json")
    assert len(whole.labels) == 12
    names = [CLASSES[int(row["label"])] if row["label"].isdecimal() else row["label"] for row in read(table)]
    assert names == [CLASSES[int(line.split(b",")[4])] for line in labelled.splitlines()[1:]]
    again = case("b.onnx", oracle=case.folder / "improvement.npz", record=case.folder / "b.json")
    assert case.files("a.onnx")["a.onnx"] == case.files("b.onnx")["b.onnx"]
    assert again.contents["notes"] == whole.contents["notes"]
    known = case.folder / "known.csv"
    known.write_text(f"image,label\n{rows[0]},cat\n", encoding="utf-8")
    write_set(case.folder / "U", rows)
    with pytest.raises(DataError, match=r"11 images have no known label: .*improvement\.npz\[1\].* and 8 more"):
        case(oracle=known)
    for _ in range(2):  # the second time, nothing is left to fill in
        found = case(oracle=known, partial=True, epochs=1, overwrite=True)
        assert len(found.labels) == 1
        assert any(note.startswith("11 images have no known label") for note in found.contents["notes"])


def test_nothing_to_learn_from_is_one_line_and_nothing_is_written(case: Case) -> None:
    before = sorted(path.name for path in case.folder.iterdir())
    write_set(case.folder / "U", [], explanation="nothing selected: the improvement set is empty")
    with pytest.raises(DataError, match="nothing to learn from: nothing selected: the improvement set is empty"):
        case()
    write_set(case.folder / "U", ["/a.png", "/b.png"])
    with pytest.raises(DataError, match="2 of 2 images have no label"):
        case()
    with pytest.raises(DataError, match="not one of 2 images has a label"):
        case(partial=True)
    assert sorted(path.name for path in case.folder.iterdir()) == before


def test_options_that_do_not_fit_are_refused_before_training(case: Case, clusters: Path) -> None:
    test = case.folder / "test.npz"
    x, y = shapes(10, 5)
    np.savez(case.folder / "numbers.npz", x=x, y=y.astype(np.float32))
    numbers = {"training": "numbers.npz"}
    for options, said in (
        ({"threshold": 0.1}, "a class is right or wrong"),
        ({"measure": "mae"}, "a class is right or wrong"),
        ({"clusters": clusters}, "judged by the images of a test set"),
        ({"clusters": clusters, "test": (x, y)}, "has none of the images in the clusters"),
        ({"test": (x, y.astype(np.float32))}, "holds numbers to regress"),
        ({"loss": "hinge"}, "loss is 'hinge'; expected one of cross-entropy, mse, mae"),
        ({"loss": "mse"}, "loss 'mse' does not fit the training set, which has classes"),
        ({**numbers, "loss": "cross-entropy"}, "which has numbers to regress"),
        ({**numbers, "test": test}, "give the threshold"),
        ({**numbers, "measure": "pixels", "threshold": 1}, "measure is 'pixels'; expected one of mse, mae"),
        ({**numbers, "threshold": -1}, "threshold is -1; expected"),
        ({"epochs": 0}, "epochs is 0"),
        ({"validation": 1.5}, "leaves one side empty"),
    ):
        with pytest.raises(DataError, match=said):
            case(**options, epoch=lambda one: pytest.fail("trained"))
        assert not (case.folder / "new.onnx").exists() and case.leftovers == []


def test_files_that_are_there_are_replaced_only_when_asked_and_the_model_never(case: Case) -> None:
    case(epochs=1)
    first = case.files()
    with pytest.raises(OutputError, match=r"new\.onnx exists already; use --overwrite"):
        case(epochs=1)
    with pytest.raises(OutputError, match=r"retraining\.json exists already"):
        case("other.onnx", epochs=1)
    for options in ({}, {"model": load(case.folder / "model.onnx"), "model_path": case.folder / "model.onnx"}):
        with pytest.raises(OutputError, match="is the model itself, which is kept"):
            retrain_unsafe(
                **{"model": case.folder / "model.onnx", **options},
                training=case.folder / "training.npz",
                unsafe=case.folder / "U",
                output=case.folder / "model.onnx",
                overwrite=True,
            )
    assert case.files() == first
    case(epochs=1, overwrite=True)
    assert case.files() == first and case.leftovers == []


def test_a_model_that_cannot_be_trained_is_refused_with_the_reason(case: Case) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(case.folder / "model.onnx", case.folder / "small.onnx")
    with pytest.raises(ModelError, match="quanti"):
        case(model="small.onnx")
    assert not (case.folder / "new.onnx").exists() and case.leftovers == []


@pytest.mark.parametrize("loss", ["mse", "mae"])
def test_regression_is_judged_by_a_threshold(tmp_path: Path, loss: Any) -> None:
    sets = {}
    for seed, (name, count) in enumerate({"training": 200, "improvement": 40, "test": 80}.items()):
        x, _ = shapes(count, seed)
        sets[name] = x, np.stack([x.mean(axis=(1, 2, 3)), x.max(axis=(1, 2, 3)) / 4], axis=1)
        np.savez(tmp_path / f"{name}.npz", x=x, y=sets[name][1])
    onnx.save(network(2, nn.Sigmoid()), tmp_path / "model.onnx")
    paths = [f"{tmp_path / 'improvement.npz'}[{row}]" for row in range(6)]
    texts = [" ".join(map(str, row)) for row in sets["improvement"][1][:6]]
    write_set(tmp_path / "U", paths, texts)
    found = Case(tmp_path)(test=tmp_path / "test.npz", loss=None if loss == "mse" else loss, threshold=0.01)
    x, y = sets["test"]
    losses = []
    for name in ("model.onnx", "new.onnx"):
        off = run(onnx.load(tmp_path / name), x) - y
        losses.append((off**2 if loss == "mse" else np.abs(off)).mean(axis=1))
    verdict = found.verdict
    assert found.contents["settings"]["loss"] == found.contents["settings"]["measure"] == loss
    assert verdict.measure == "within threshold"
    assert (verdict.before, verdict.after) == tuple((each <= 0.01).mean() for each in losses)
    assert (verdict.loss_before, verdict.loss_after) == pytest.approx([each.mean() for each in losses], rel=1e-4)
    assert verdict.loss_after < 0.7 * verdict.loss_before and found.contents["history"][0]["accuracy"] is None


def test_a_model_without_class_names_takes_those_of_the_training_folders(tmp_path: Path) -> None:
    x, y = shapes(90, 1)
    for row, (picture, truth) in enumerate(zip(x[:, 0], y, strict=True)):
        name = f"TrainingSet/{CLASSES[truth]}/{row}.png" if row < 60 else f"ImprovementSet/{row}.png"
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(picture * 100 + 60, 0, 255).astype(np.uint8)).save(tmp_path / name)
    onnx.save(network(preprocess=Preprocess(size=(12, 12), colour="L")), tmp_path / "model.onnx")
    images = sorted((tmp_path / "ImprovementSet").iterdir())[:8]
    write_set(tmp_path / "U", images, [CLASSES[y[int(image.stem)]] for image in images])
    found = Case(tmp_path)(training="TrainingSet")
    assert found.contents["training_images"] == 60
    assert found.labels.answers.tolist() == [y[int(image.stem)] for image in images]


@pytest.mark.parametrize("moment", ["epoch 2", "Judging", "end"])
def test_an_interrupted_run_goes_on_to_the_same_files_and_another_one_starts_anew(
    case: Case, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    test = case.folder / "test.npz"
    case(test=test)
    whole = case.files()
    for name in whole:
        (case.folder / name).unlink()

    def stop_at(now: str) -> None:
        if now == moment:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(improve._Files, "end", lambda files: stop_at("end" if files.record.exists() else "begin"))
        case(test=test, epoch=lambda one: stop_at(f"epoch {one.epoch}"), progress=lambda step, *_: stop_at(step))
    assert case.leftovers
    present = [name for name in whole if (case.folder / name).exists()]
    assert present == {"epoch 2": [], "Judging": ["new.onnx"], "end": list(whole)}[moment]
    if present:
        with pytest.raises(OutputError, match="exists already"):
            case(test=test, learning_rate=1e-4)
    seen: list[int] = []
    case(test=test, epoch=lambda one: seen.append(one.epoch))
    assert seen == ([2, 3, 4] if moment == "epoch 2" else [])
    assert case.files() == whole and case.leftovers == []


def test_labels_that_changed_since_an_interruption_start_it_anew(case: Case) -> None:
    def stop(one: Epoch) -> None:
        if one.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        case(epoch=stop)
    (before,) = case.leftovers
    label(case.folder / "U", _improvement="cat")
    seen: list[int] = []
    case(epoch=lambda one: seen.append(one.epoch))
    assert seen[0] == 0 and before.startswith(".new.onnx.") and case.leftovers == []


SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from lrp_onnx.hudd import improve
folder, moment = Path(sys.argv[1]), sys.argv[2]

def at(now):
    if now == moment:
        os.kill(os.getpid(), signal.SIGKILL)

replace = Path.replace
def replaced(path, target):
    replace(path, target)
    at(f"{Path(target).name} is there")

Path.replace = replaced
improve.retrain_unsafe(
    folder / "model.onnx", folder / "training.npz", folder / "U", folder / "new.onnx", test=folder / "test.npz",
    epochs=4, optimizer="adam", learning_rate=1e-2, oracle=folder / "improvement.npz",
    epoch=lambda one: at(f"epoch {one.epoch}"), progress=lambda step, done, total: at(step),
)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_and_started_again_ends_with_the_same_bytes(case: Case) -> None:
    rows = [row["image"] for row in read(case.folder / "U" / "unsafe.csv")]
    names = ("new.onnx", "retraining.json", "U/unsafe.csv")

    def start(moment: str) -> int:
        return subprocess.run([sys.executable, "-c", SCRIPT, str(case.folder), moment], timeout=300).returncode

    write_set(case.folder / "U", rows)
    assert start("never") == 0
    whole = case.files(*names)
    write_set(case.folder / "U", rows)
    for name in names[:2]:
        (case.folder / name).unlink()
    moments = ("unsafe.csv is there", "epoch 0", "epoch 2", "new.onnx is there", "Judging", "retraining.json is there")
    for moment in moments:  # each run goes on where the one before it was killed
        assert start(moment) == -signal.SIGKILL
        assert case.leftovers or moment == "unsafe.csv is there"
    assert start("never") == 0
    assert case.files(*names) == whole and case.leftovers == []
