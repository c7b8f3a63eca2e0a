"""Retraining starts from the model's own weights, is repeatable and resumable, and keeps only what is better."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from lrp_onnx.converters import convert
from lrp_onnx.data import Dataset, open_dataset
from lrp_onnx.errors import DataError, OutputError
from lrp_onnx.hudd.retrain import Epoch, Retrained, retrain, verdict
from lrp_onnx.hudd.training import Trainer
from lrp_onnx.preprocess import Preprocess

pytest.importorskip("onnx2torch")
Arrays = tuple[np.ndarray, np.ndarray]
OPTIONS: dict[str, Any] = {"epochs": 6, "optimizer": "adam", "learning_rate": 1e-2}


def shapes(count: int, seed: int) -> Arrays:
    """Pictures of a row, a column or a block in noise, and which of them it is."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    pictures = random.normal(0, 0.3, (count, 1, 12, 12)).astype(np.float32)
    for picture, label in zip(pictures[:, 0], labels, strict=True):
        at = random.integers(0, 9)
        part = (
            (slice(at, at + 2), slice(None)),
            (slice(None), slice(at, at + 2)),
            (slice(at, at + 4), slice(at, at + 4)),
        )
        picture[part[label]] += 1
    return pictures, labels


def network(outputs: int = 3, last: nn.Module | None = None, **options: Any) -> onnx.ModelProto:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, outputs), last or nn.Softmax(1),
    ]  # fmt: skip
    return convert(nn.Sequential(*layers).eval(), input_shape=(1, 12, 12), **options).model


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Such small layers are faster so, and far faster when other processes use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return network()


@pytest.fixture(scope="module")
def retrained(model: onnx.ModelProto) -> Retrained:
    return retrain(model, shapes(300, 1), shapes(100, 2), **OPTIONS)


def run(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def test_a_retrained_model_is_better_on_images_it_never_saw_and_still_gives_probabilities(
    model: onnx.ModelProto, retrained: Retrained
) -> None:
    x, y = shapes(200, 3)
    before, after = run(model, x), run(retrained.model, x)
    result = verdict(before, after, y)
    assert result.accuracy_after > 0.8 > 0.6 > result.accuracy_before and result.better
    np.testing.assert_allclose(after.sum(axis=1), 1, rtol=1e-5)
    assert retrained.difference < 1e-4 and retrained.improved
    assert [node.op_type for node in retrained.model.graph.node] == [node.op_type for node in model.graph.node]


def test_the_history_says_what_the_models_do(model: onnx.ModelProto, retrained: Retrained) -> None:
    x, y = shapes(100, 2)
    first, best = retrained.history[0], retrained.history[retrained.best_epoch]
    assert [epoch.epoch for epoch in retrained.history] == list(range(7)) and retrained.stopped == "epochs"
    assert first.training_loss is None
    for epoch, proto in ((first, model), (best, retrained.model)):
        scores = run(proto, x)
        assert epoch.accuracy == pytest.approx((scores.argmax(1) == y).mean())
        assert epoch.loss == pytest.approx(-np.log(scores[np.arange(100), y]).mean(), rel=1e-4)
    assert best.accuracy == max(epoch.accuracy or 0 for epoch in retrained.history)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    model: onnx.ModelProto, retrained: Retrained
) -> None:
    again = retrain(model, shapes(300, 1), shapes(100, 2), **OPTIONS)
    other = retrain(model, shapes(300, 1), shapes(100, 2), **OPTIONS, seed=1)
    assert again.model == retrained.model != other.model and again.history == retrained.history


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_run_that_was_interrupted_goes_on_to_the_same_result(
    model: onnx.ModelProto, tmp_path: Path, optimizer: str
) -> None:
    data = shapes(300, 1), shapes(100, 2)
    options = {**OPTIONS, "optimizer": optimizer, "patience": None}
    whole = retrain(model, *data, **options)

    def interrupt(epoch: Epoch) -> None:
        if epoch.epoch == 3:
            raise KeyboardInterrupt

    path = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        retrain(model, *data, **options, checkpoint=path, resume=True, progress=interrupt)
    seen: list[int] = []
    resumed = retrain(
        model, *data, **options, checkpoint=path, resume=True, progress=lambda epoch: seen.append(epoch.epoch)
    )
    assert seen == [3, 4, 5, 6]  # the checkpoint of epoch 2 was the last that was whole
    assert resumed.model == whole.model and resumed.history == whole.history
    finished = retrain(model, *data, **options, checkpoint=path, resume=True)
    assert finished.model == whole.model


SCRIPT = """
import sys
import numpy as np, onnx, torch
torch.set_num_threads(1)
from lrp_onnx.hudd.retrain import retrain
data = np.load(sys.argv[2])
result = retrain(
    onnx.load(sys.argv[1]), (data["x"], data["y"]), 0.25, epochs=40, patience=None, checkpoint=sys.argv[3],
    resume=True, learning_rate=1e-2, progress=lambda epoch: print(epoch.epoch, flush=True),
)
onnx.save(result.model, sys.argv[4])
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_result(model: onnx.ModelProto, tmp_path: Path) -> None:
    x, y = shapes(400, 1)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    onnx.save(model, tmp_path / "model.onnx")

    def start(name: str) -> subprocess.Popen[str]:
        paths = ("model.onnx", "data.npz", f"{name}.pt", f"{name}.onnx")
        command = [sys.executable, "-c", SCRIPT, *(str(tmp_path / path) for path in paths)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    whole = start("whole")
    assert whole.communicate(timeout=120)[0].split()[-1] == "40" and whole.returncode == 0
    killed = start("killed")
    assert killed.stdout is not None
    for line in killed.stdout:
        if int(line) == 7:
            os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL and not (tmp_path / "killed.onnx").exists()
    epochs = start("killed").communicate(timeout=120)[0].split()
    assert 7 <= int(epochs[0]) <= 20 and epochs[-1] == "40"
    assert (tmp_path / "killed.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()


def test_a_checkpoint_of_another_run_or_a_broken_one_is_not_continued(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    data = shapes(60, 1), shapes(30, 2)
    retrain(model, *data, epochs=1, checkpoint=path)
    with pytest.raises(OutputError, match=r"state\.pt: there is a checkpoint already"):
        retrain(model, *data, epochs=1, checkpoint=path)
    with pytest.raises(DataError, match="another run, with other learning rate;"):
        retrain(model, *data, epochs=1, checkpoint=path, resume=True, learning_rate=0.5)
    with pytest.raises(DataError, match="other training"):
        retrain(model, shapes(60, 5), data[1], epochs=1, checkpoint=path, resume=True)
    path.write_bytes(b"half a file")
    with pytest.raises(DataError, match="not a checkpoint"):
        retrain(model, *data, epochs=1, checkpoint=path, resume=True)


def test_training_stops_early_and_keeps_the_original_weights_when_nothing_is_better(retrained: Retrained) -> None:
    x, y = shapes(60, 4)
    wrong = (y + 1) % 3  # learning these makes the model worse on the validation set
    result = retrain(retrained.model, (x, wrong), shapes(100, 2), epochs=30, learning_rate=1e-2, patience=2)
    assert (result.best_epoch, result.improved, result.stopped, len(result.history)) == (0, False, "patience", 3)
    assert result.model == retrained.model


def test_a_loss_that_explodes_ends_training_with_the_best_weights_so_far(model: onnx.ModelProto) -> None:
    result = retrain(model, shapes(300, 1), shapes(100, 2), epochs=20, learning_rate=1e18, patience=None)
    assert result.stopped == "diverged" and np.isfinite(run(result.model, shapes(5, 0)[0])).all()


@pytest.mark.parametrize("loss", ["mse", "mae"])
def test_regression_learns_numbers_through_the_last_activation(loss: Any) -> None:
    x, _ = shapes(300, 1)
    y = np.stack([x.mean(axis=(1, 2, 3)), x.max(axis=(1, 2, 3)) / 4], axis=1)
    regressor = network(2, nn.Sigmoid())
    result = retrain(regressor, (x[:200], y[:200]), (x[200:], y[200:]), loss=loss, **OPTIONS)
    assert result.history[0].accuracy is None
    assert result.history[result.best_epoch].loss < 0.5 * result.history[0].loss
    error = run(result.model, x[200:]) - y[200:]
    expected = (error**2).mean() if loss == "mse" else np.abs(error).mean()
    assert result.history[result.best_epoch].loss == pytest.approx(float(expected), rel=1e-3)


def test_one_logit_tells_two_classes_apart() -> None:
    x, y = shapes(400, 1)
    x, y = x[y < 2], y[y < 2]
    result = retrain(network(1, nn.Sigmoid()), (x, y), 0.25, **{**OPTIONS, "epochs": 12})
    accuracy = ((run(result.model, x)[:, 0] > 0.5) == y).mean()
    assert accuracy > 0.9


def test_a_model_of_fixed_batch_size_retrains_as_one_of_free_batch_size(model: onnx.ModelProto) -> None:
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    data = shapes(62, 1), shapes(31, 2)
    results = [retrain(proto, *data, epochs=2, learning_rate=1e-2).history for proto in (model, fixed)]
    for free, own in zip(*results, strict=True):
        assert own.loss == pytest.approx(free.loss, rel=1e-4) and own.accuracy == free.accuracy


def test_picture_folders_are_joined_and_go_through_the_models_preprocessing(tmp_path: Path) -> None:
    names = ("row", "column", "block")
    pictures, labels = shapes(120, 1)
    for index, (picture, label) in enumerate(zip(pictures[:, 0], labels, strict=True)):
        folder = tmp_path / ("old" if index < 80 else "new") / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(picture * 100 + 60, 0, 255).astype(np.uint8)).save(folder / f"{index}.png")
    (tmp_path / "new" / "row" / "broken.png").write_bytes(b"not a picture")
    proto = network(preprocess=Preprocess(size=(12, 12), colour="L"), classes=names)
    old = open_dataset(tmp_path / "old", classes=names)
    again = old.subset([0, 0, 1, 1, 1])  # as a bootstrap does
    steps: list[tuple[int, int]] = []
    result = retrain(
        proto, [old, again, tmp_path / "new"], 0.2, epochs=2, step=lambda done, every: steps.append((done, every))
    )
    assert [Path(path).name for path in result.failures] == ["broken.png"]
    done, total = steps[-1]
    assert len(result.history) == 3 and 2 * (126 - 24 - 3) <= total <= 2 * (126 - 24) and 0 <= total - done <= 1


def test_a_checkpoint_is_not_continued_when_a_picture_has_changed(tmp_path: Path) -> None:
    pictures, labels = shapes(30, 1)
    for index, (picture, label) in enumerate(zip(pictures[:, 0], labels, strict=True)):
        folder = tmp_path / "data" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(picture * 100 + 60, 0, 255).astype(np.uint8)).save(folder / f"{index}.png")
    proto = network(preprocess=Preprocess(size=(12, 12), colour="L"), classes=("0", "1", "2"))
    options: Any = {"epochs": 1, "checkpoint": tmp_path / "state.pt"}
    retrain(proto, tmp_path / "data", shapes(30, 2), **options)
    retrain(proto, tmp_path / "data", shapes(30, 2), **options, resume=True)
    Image.new("L", (12, 12), 200).save(next((tmp_path / "data").rglob("7.png")))
    with pytest.raises(DataError, match="other training;"):
        retrain(proto, tmp_path / "data", shapes(30, 2), **options, resume=True)


def test_repetitions_of_a_sample_never_stand_on_both_sides_of_the_validation_split(model: onnx.ModelProto) -> None:
    from lrp_onnx.graph import load
    from lrp_onnx.hudd.training_data import examples, split

    x, y = shapes(20, 1)
    whole = examples(load(model), [(x, y), (x, y)], regression=False, what="training set")
    assert len(set(whole.dataset.paths)) == len(whole) == 40
    repeated = examples(load(model), whole.dataset.subset([*range(40), *range(30)]), regression=False, what="set")
    learn, check = split(repeated, 0.25, seed=0)
    assert len(learn) + len(check) == 70 and len(set(check.dataset.paths)) == 10
    assert not set(learn.dataset.paths) & set(check.dataset.paths)
    assert learn.dataset.labels.tolist() == learn.answers.tolist()


def test_data_that_does_not_fit_is_refused_with_what_is_wrong(model: onnx.ModelProto) -> None:
    x, y = shapes(30, 1)
    validation = shapes(10, 2)
    nothing = Dataset(Path("unsafe"), [], array=x)  # as when no image was selected
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        ((x, y + 1), validation, {}, "class index 3, but the model tells 3 classes apart"),
        ((x, y - 1), validation, {}, "samples have no label"),
        ((x, y[:9]), validation, {}, "30 inputs and 9 answers"),
        ((x, y.astype(np.float32)), validation, {}, "use the loss mse or mae"),
        ((x, y), validation, {"loss": "mse"}, "no numbers to regress"),
        ((x, np.zeros((30, 2), np.float32)), (x, np.zeros((30, 2))), {"loss": "mae"}, "2 numbers .* gives 3"),
        ([(x, y), (x[:, :, :6], y)], validation, {}, "cannot be trained on together"),
        ((x, y), 0.001, {}, "leaves one side empty"),
        (nothing, validation, {}, "training set: .* has no samples"),
        ((x, y), nothing, {}, "validation set: .* has no samples"),
        ((x, y), validation, {"epochs": 0}, "epochs is 0"),
        ((x, y), validation, {"optimizer": "lion"}, "'lion' is not known here; expected one of sgd, adam"),
    ]
    for training, checked, options, message in cases:
        with pytest.raises(DataError, match=message):
            retrain(model, training, checked, **{"epochs": 1, **options})


def test_the_verdict_counts_improved_and_worsened_images_overall_and_per_cluster() -> None:
    labels = np.array([0, 1, 2, 0, 1, 2])
    before = np.array([1, 0, 0, 0, 1, 2])
    after = np.array([0, 1, 1, 0, 1, 1])
    result = verdict(before, after, labels, np.array([4, 4, 7, -1, -1, 7]))
    assert (result.images, result.accuracy_before, result.accuracy_after) == (6, 0.5, 4 / 6) and result.better
    assert result.improved.tolist() == [0, 1] and result.worsened.tolist() == [5]
    figures = [(c.cluster, c.size, c.correct_before, c.correct_after, c.improved, c.worsened) for c in result.clusters]
    assert figures == [(4, 2, 0, 2, 2, 0), (7, 2, 1, 0, 0, 1)]
    assert verdict(np.eye(3)[before], np.eye(3)[after], labels).as_dict()["improved"] == [0, 1]
    assert not verdict(before == labels, before == labels, None).better
    with pytest.raises(DataError, match="6 images before and 5 after"):
        verdict(before == labels, (after == labels)[:5], None)
    with pytest.raises(DataError, match="clusters"):
        verdict(before, after, labels, np.array([1, 2]))


def test_the_last_epoch_that_is_not_measurably_worse_than_the_best_is_kept() -> None:
    class Weights:
        def snapshot(self) -> list[int]:
            return [len(trainer.history)]

    trainer = Trainer(Weights(), [], [None] * 200, None, None, 8, 0)  # type: ignore[arg-type]
    kept = []
    for number, accuracy in enumerate([0.91, 0.905, 0.935, 0.92, 0.915, 0.96, 0.94]):  # one error: 0.017, then 0.014
        trainer._note(Epoch(number, None, None, 1 - accuracy, accuracy), None)
        kept.append(trainer.best_epoch)
    assert kept == [0, 0, 2, 3, 3, 5, 5]
    assert trainer.best == [6]  # taken when epoch 5 was the sixth
