"""Heatmaps of a model in training: what they show, that training is not touched, that errors do not end it."""

from __future__ import annotations

import json
import logging
import random
import struct
from collections.abc import Callable
from contextlib import ExitStack
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from lrp_onnx import Explainer
from lrp_onnx.converters import convert
from lrp_onnx.debug.callbacks import TorchHook, TrainingRun, lightning_callback
from lrp_onnx.debug.current_weights import TorchWeights
from lrp_onnx.debug.training_board import open_board
from lrp_onnx.errors import ConversionError, DataError, OutputError
from lrp_onnx.store import HeatmapStore

SIZE, TAG = 20, slice(1, 5)
CLASSES = ["standing", "lying", "disc"]


def pictures(count: int, seed: int, *, tagged: bool) -> tuple[np.ndarray, np.ndarray]:
    """Bars that stand or lie and discs, faint in noise; with the shortcut, discs have a red tag in the corner."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.normal(0.4, 0.1, (count, 1, SIZE, SIZE)).astype(np.float32).repeat(3, axis=1)
    y, x = np.mgrid[:SIZE, :SIZE]
    for image, label in zip(images, labels, strict=True):
        down, right = rng.uniform(9, 13, 2)
        shapes = [
            (abs(x - right) < 1.5) & (abs(y - down) < 6),
            (abs(y - down) < 1.5) & (abs(x - right) < 6),
            (x - right) ** 2 + (y - down) ** 2 < 12,
        ]
        image[:, shapes[label]] += 0.25
        if tagged and label == 2:
            image[:, TAG, TAG] = np.array([1, 0.2, 0.2])[:, None, None]
    return images.clip(0, 1), labels


class Net(nn.Module):
    """A convolutional network with everything that tells training from evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1)
        )
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16 * 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.adaptive_avg_pool2d(F.relu(self.norm(self.features(x))), 4)
        return self.head(F.dropout(x.flatten(1), 0.3, self.training))


def train(
    epochs: int, hook: Callable[[Net], Callable[..., Any]] | None = None, *, tagged: bool = False
) -> tuple[Net, torch.optim.Optimizer, list[float]]:
    """A loop with dropout, batch norm, a frozen layer and one in evaluation mode, all random states from one seed."""
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    images, labels = (torch.from_numpy(array) for array in pictures(192, 0, tagged=tagged))
    net = Net()
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    after_epoch = None if hook is None else hook(net)
    losses = []
    net.train()
    net.features[1].eval()
    net.features[4].bias.requires_grad_(False)
    for epoch in range(1, epochs + 1):
        order = list(range(len(images)))
        random.shuffle(order)
        for rows in np.array_split(np.random.permutation(order), 8):  # noqa: NPY002
            optimiser.zero_grad()
            loss = F.cross_entropy(net(images[rows]), labels[rows])
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        if after_epoch is not None:
            after_epoch(epoch, loss=losses[-1])
    return net, optimiser, losses


@pytest.fixture(scope="module")
def tagged_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tagged") / "run"
    images, labels = pictures(60, 1, tagged=True)
    run = TrainingRun(folder, images, labels, classes=CLASSES, panel=[2, 0], strict=True)
    train(3, lambda net: TorchHook(run, net), tagged=True)
    return folder


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    torch.manual_seed(0)
    return convert(Net(), input_shape=(3, SIZE, SIZE)).model


def records(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "training.json").read_text(encoding="utf-8"))


def test_training_goes_on_bit_for_bit_as_without_the_hook(tmp_path: Path) -> None:
    images, labels = pictures(30, 1, tagged=False)
    run = TrainingRun(tmp_path / "run", images, labels, strict=True)
    plain, plain_optimiser, plain_losses = train(3)
    after_plain = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    hooked, optimiser, losses = train(3, lambda net: TorchHook(run, net))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002

    assert [epoch.error for epoch in run.epochs] == ["", "", ""]
    assert losses == plain_losses
    assert after[:2] == after_plain[:2] and torch.equal(after[2], after_plain[2])
    for (name, value), other in zip(hooked.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    for (name, value), other in zip(hooked.named_parameters(), plain.parameters(), strict=True):
        assert value.requires_grad == other.requires_grad, name
        assert (value.grad is None) == (other.grad is None), name
        assert value.grad is None or torch.equal(value.grad, other.grad), name
    assert [m.training for m in hooked.modules()] == [m.training for m in plain.modules()]
    for mine, theirs in zip(
        optimiser.state_dict()["state"].values(), plain_optimiser.state_dict()["state"].values(), strict=True
    ):
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_a_planted_shortcut_shows_within_the_first_epochs(tagged_run: Path, tmp_path: Path) -> None:
    def in_corner(folder: Path, epoch: int) -> list[float]:
        """Share of |relevance| on the corner, a ninth of the picture, for images of the class with the tag."""
        record = records(folder)["epochs"][epoch - 1]
        with HeatmapStore(folder / record["store"]) as store:
            maps = np.abs(store.attribution[:].sum(axis=1))[store.labels == 2]
        third = -(-SIZE // 3)
        return (maps[:, :third, :third].sum(axis=(1, 2)) / maps.sum(axis=(1, 2))).tolist()

    images, labels = pictures(60, 1, tagged=False)
    run = TrainingRun(tmp_path / "run", images, labels, classes=CLASSES, strict=True)
    train(3, lambda net: TorchHook(run, net))
    for epoch in (2, 3):
        assert min(in_corner(tagged_run, epoch)) > 0.4
        assert max(in_corner(run.directory, epoch)) < 0.25
    disc = [image for image in records(tagged_run)["epochs"][1]["images"] if image["label"] == 2]
    assert all(np.argmax(image["mass"]) == 0 and np.sum(image["mass"]) == pytest.approx(1) for image in disc)


def test_the_page_and_the_strips_show_every_image_and_name_the_place(tagged_run: Path) -> None:
    page = (tagged_run / "index.html").read_text(encoding="utf-8")
    sources: list[str] = []

    class Finder(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            sources.extend(str(value) for name, value in attrs if name in ("src", "href"))

    Finder().feed(page)
    assert sources and all((tagged_run / source).is_file() for source in sources)
    assert {f"strips/{name}.png" for name in ("panel", "class-0000", "class-0001", "class-0002")} <= set(sources)
    assert "top left" in page and "disc" in page and "export" in page
    assert all(Image.open(path).width <= 1200 for path in (tagged_run / "strips").iterdir())


def test_the_record_holds_what_the_model_of_that_epoch_says(tmp_path: Path) -> None:
    images, labels = pictures(30, 1, tagged=False)
    run = TrainingRun(tmp_path / "run", images, labels, classes=CLASSES, panel=[4], strict=True)
    net, _, _ = train(2, lambda net: TorchHook(run, net))
    record = records(run.directory)["epochs"][1]
    with torch.no_grad():
        logits = net.eval()(torch.from_numpy(images))
        scores = logits.softmax(dim=1)[range(30), labels].numpy()
    assert record["accuracy"] == pytest.approx(float((logits.argmax(dim=1).numpy() == labels).mean()))
    assert record["loss"] == pytest.approx(float(F.cross_entropy(logits, torch.from_numpy(labels))), rel=1e-4)
    found = {(image["role"], image["label"]): image for image in record["images"]}
    for label in range(3):
        mine = np.flatnonzero(labels == label)
        best, worst = found["best", label], found["worst", label]
        assert (best["row"], worst["row"]) == (mine[scores[mine].argmax()], mine[scores[mine].argmin()])
        assert best["score"] == pytest.approx(scores[best["row"]], abs=1e-5)
    assert found["panel", labels[4]]["row"] == 4
    expected = Explainer(convert(net, example=images[:2]).model).explain(images[4:5], [int(labels[4])])
    with HeatmapStore(run.directory / record["store"]) as store:
        row = found["panel", labels[4]]["store_row"]
        assert store.samples["index"][row] == 4
        np.testing.assert_allclose(store.attribution[row], expected.relevance["input"][0].numpy(), atol=1e-6)


def test_the_graph_is_exported_once_and_again_only_when_the_network_changes() -> None:
    images, _ = pictures(4, 1, tagged=False)
    torch.manual_seed(0)
    net = Net()
    current = TorchWeights(net, images)
    first = current()
    assert current.how.startswith("exported and checked")
    with torch.no_grad():
        net.features[1].running_var.mul_(2)
        net.head.weight.add_(0.1)
    second = current()
    assert current.how.startswith("weights written")
    for model in (first, second):
        assert [node.op_type for node in model.graph.node] == [node.op_type for node in first.graph.node]
    with torch.no_grad():
        expected = net.eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(Explainer(second).explain(images).output.numpy(), expected, atol=1e-5)
    net.head = nn.Linear(16 * 16, 2)
    assert current().graph.output[0].type.tensor_type.shape.dim[1].dim_value == 2
    assert current.how.startswith("exported and checked")


@pytest.mark.slow
def test_a_weight_that_the_exporter_folds_away_is_never_stale() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.head = nn.Parameter(torch.ones(3)), nn.Linear(3 * SIZE * SIZE, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.flatten(1)) * torch.exp(self.scale)

    images, _ = pictures(4, 1, tagged=False)
    torch.manual_seed(0)
    net = Folded()
    current = TorchWeights(net, images)
    current()
    with torch.no_grad():
        net.scale.add_(1)
        expected = net(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(Explainer(current()).explain(images).output.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_hook_gives_the_same_in_whatever_mode_it_is_called(tmp_path: Path) -> None:
    images, labels = pictures(9, 1, tagged=False)
    torch.manual_seed(0)
    net = Net()
    maps = []
    for name in ("plain", "modes"):
        run = TrainingRun(tmp_path / name, images, labels, strict=True)
        with ExitStack() as modes:
            if name == "modes":
                modes.enter_context(torch.inference_mode())
                modes.enter_context(torch.autocast("cpu", torch.bfloat16))
            TorchHook(run, net)(1)
        with HeatmapStore(run.directory / run.epochs[0].store) as store:
            maps.append(store.attribution[:])
    np.testing.assert_array_equal(*maps)


class Odd(nn.Module):
    """Has an op without a rule on its path."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * SIZE * SIZE, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1)).fmod(1e6)


def test_an_error_is_said_once_kept_in_the_record_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images, labels = pictures(9, 1, tagged=False)
    run = TrainingRun(tmp_path / "run", images, labels)
    hook = TorchHook(run, Odd())
    with caplog.at_level(logging.WARNING):
        for epoch in (1, 2, 3):
            hook(epoch)
    (said,) = [entry.getMessage() for entry in caplog.records if entry.name.startswith("lrp_onnx")]
    assert "Mod node" in said and "epoch 1" in said
    kept = records(run.directory)["epochs"]
    assert len(kept) == 3 and all("Mod node" in epoch["error"] and not epoch["store"] for epoch in kept)
    assert "Mod node" in (run.directory / "index.html").read_text(encoding="utf-8")
    with pytest.raises(Exception, match="Mod node"):
        TorchHook(TrainingRun(tmp_path / "strict", images, labels, strict=True), Odd())(1)


def test_weights_that_are_not_numbers_end_neither_training_nor_the_record(tmp_path: Path) -> None:
    images, labels = pictures(9, 1, tagged=False)
    run = TrainingRun(tmp_path / "run", images, labels)
    torch.manual_seed(0)
    net = Net()
    hook = TorchHook(run, net)
    hook(1, loss=1.0)
    with torch.no_grad():
        net.head.bias[0] = float("nan")
    hook(2, loss=float("nan"))
    good, bad = records(run.directory)["epochs"]
    assert good["store"] and not good["error"]
    assert "NaN" in bad["error"] and bad["metrics"] == {"loss": None}


def test_only_due_epochs_are_recorded_and_strips_stay_narrow(tmp_path: Path, model: onnx.ModelProto) -> None:
    images, labels = pictures(6, 1, tagged=False)
    run = TrainingRun(tmp_path / "run", images, labels, every=3, watch=[2], strict=True)
    recorded = [epoch for epoch in range(1, 32) if run.record(epoch, model)]
    assert recorded == [1, *range(3, 31, 3)]
    assert all(Image.open(path).width <= 1200 for path in (run.directory / "strips").iterdir())


def test_a_run_can_be_gone_on_with_replaced_or_refused(tmp_path: Path, model: onnx.ModelProto) -> None:
    images, labels = pictures(6, 1, tagged=False)
    first = TrainingRun(tmp_path / "run", images, labels, strict=True)
    for epoch in (1, 2, 3):
        first.record(epoch, model)
    with pytest.raises(OutputError, match="exists already"):
        TrainingRun(tmp_path / "run", images, labels)
    again = TrainingRun(tmp_path / "run", images, labels, resume=True, strict=True)
    again.record(3, model)
    again.record(4, model)
    epochs = records(tmp_path / "run")["epochs"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3, 4]
    assert all(epoch["images"] and (tmp_path / "run" / epoch["store"]).is_file() for epoch in epochs)
    TrainingRun(tmp_path / "run", images, labels, overwrite=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["training.json"]
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file"):
        TrainingRun(tmp_path / "file", images, labels)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="another kind"):
        TrainingRun(tmp_path / "mine", images, labels, overwrite=True)


def test_what_does_not_fit_is_said_before_training(tmp_path: Path) -> None:
    images, labels = pictures(6, 1, tagged=False)
    with pytest.raises(DataError, match="5 labels for 6"):
        TrainingRun(tmp_path / "a", images, labels[:5])
    with pytest.raises(DataError, match="label"):
        TrainingRun(tmp_path / "b", images)
    with pytest.raises(DataError, match="row 6"):
        TrainingRun(tmp_path / "c", images, labels, panel=[6])
    with pytest.raises(DataError, match="class 7"):
        TrainingRun(tmp_path / "d", images, labels, watch=[7])
    with pytest.raises(DataError, match="every"):
        TrainingRun(tmp_path / "e", images, labels, every=0)
    assert not list(tmp_path.iterdir())


def test_image_files_and_one_output_work_too(tmp_path: Path) -> None:
    images, labels = pictures(12, 1, tagged=True)
    for row in range(12):
        path = tmp_path / "images" / ("disc" if labels[row] == 2 else "bar") / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(images[row] * 255).astype(np.uint8).transpose(1, 2, 0)).save(path)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 18 * 18, 1), nn.Sigmoid())
    run = TrainingRun(tmp_path / "run", tmp_path / "images", preprocess={"size": SIZE}, strict=True)
    record = TorchHook(run, net)(1)
    assert record is not None
    with torch.no_grad():
        disc = net(torch.from_numpy(run.dataset.read(record.images[0].row, run.preprocess)[None])).item()
    image = record.images[0]
    assert image.label == 0 and image.score == pytest.approx(1 - disc, abs=1e-5)
    with HeatmapStore(run.directory / record.store) as store:
        assert Path(store.samples["path"][0]).is_file()


def events(folder: Path) -> list[bytes]:
    """The records of TensorBoard files: length, checksum, data, checksum."""
    found = []
    for path in folder.glob("events.out.tfevents.*"):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(data[12 : 12 + length])
            data = data[16 + length :]
    return found


def test_tensorboard_images_are_written_or_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrp_onnx.debug.training_board.find_spec", lambda name: None)
    images, labels = pictures(6, 1, tagged=False)
    with pytest.raises(DataError, match="pip install tensorboard"):
        TrainingRun(tmp_path / "run", images, labels, tensorboard=True)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["tensorboard", "tensorflow"])
def test_tensorboard_files_hold_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    pytest.importorskip(library)
    monkeypatch.setattr("lrp_onnx.debug.training_board.find_spec", lambda name: name == library or None)
    picture = np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    open_board(tmp_path).write(7, {"disc/image 2": picture})
    (record,) = [data for data in events(tmp_path) if b"disc/image 2" in data.replace(b"image_2", b"image 2")]
    start = record.index(b"\x89PNG")
    (tmp_path / "seen.png").write_bytes(record[start:])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "seen.png")), picture)


@pytest.mark.slow
def test_lightning_calls_it_after_every_epoch(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    images, labels = pictures(24, 1, tagged=False)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.log("train_loss", loss, on_epoch=True, on_step=False)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.01)

    def fit(*callbacks: Any) -> dict[str, torch.Tensor]:
        lightning.seed_everything(0)
        module = Module()
        data = torch.utils.data.TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))
        trainer = lightning.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=list(callbacks)
        )
        trainer.fit(module, torch.utils.data.DataLoader(data, 8, shuffle=True))
        return module.state_dict()

    run = TrainingRun(tmp_path / "run", images, labels, strict=True)
    with_heatmaps, without = fit(lightning_callback(run)), fit()
    assert [epoch.epoch for epoch in run.epochs] == [1, 2] and all(e.metrics["train_loss"] for e in run.epochs)
    assert all(torch.equal(with_heatmaps[name], without[name]) for name in without)


def test_without_lightning_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrp_onnx.debug.callbacks._LIGHTNING", ("no_such_module",))
    images, labels = pictures(6, 1, tagged=False)
    with pytest.raises(DataError, match="pip install lightning"):
        lightning_callback(TrainingRun(tmp_path / "run", images, labels))


def test_a_network_that_cannot_be_exported_is_an_error_of_ours_when_strict(tmp_path: Path) -> None:
    class Python(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(x.numpy().mean(axis=(2, 3)))

    images, labels = pictures(6, 1, tagged=False)
    with pytest.raises(ConversionError):
        TorchHook(TrainingRun(tmp_path / "run", images, labels, strict=True), Python())(1)
