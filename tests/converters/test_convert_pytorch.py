"""PyTorch sources: every form converts, agrees with its source, and leaves it as it was."""

from __future__ import annotations

import json
import random
import warnings
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from lrp_onnx.converters import convert
from lrp_onnx.errors import ConversionError

SHAPE = (3, 12, 12)


class Net(nn.Module):
    """Batch norm, dropout and a flatten: what training mode or a baked-in batch size would break."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4 * 6 * 6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return self.head(self.drop(x.flatten(1)))


FACTORY = """
import torch
from torch import nn
def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
def needs_argument(classes):
    return small()
def fails():
    raise RuntimeError("no such dataset")
def not_a_model():
    return 3
"""


@pytest.fixture
def older_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The older exporter takes a tenth of the time, for tests of how models are found and loaded."""
    monkeypatch.setattr("lrp_onnx.converters.pytorch_export.has_current_exporter", lambda: False)


def seeded(seed: int = 0) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Net()
        nn.init.normal_(net.norm.running_mean)
        nn.init.uniform_(net.norm.running_var, 0.5, 2.0)
    return net


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def assert_same_function(model: onnx.ModelProto, net: nn.Module, batch: int = 4) -> None:
    x = np.random.default_rng(1).normal(size=(batch, *SHAPE)).astype(np.float32)
    with torch.no_grad():
        expected = net.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-4, atol=1e-5)


def test_module_converts_with_named_dynamic_batch_and_stays_as_it_was() -> None:
    net = seeded().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    random_state, python_state = torch.get_rng_state(), random.getstate()
    conversion = convert(net, input_shape=SHAPE)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())
    assert python_state == random.getstate()
    assert conversion.framework == "pytorch" and conversion.relative < 1e-4
    (value,), (output,) = conversion.model.graph.input, conversion.model.graph.output
    assert (value.name, dims(value)) == ("input", ["batch", *SHAPE])
    assert (output.name, dims(output)) == ("output", ["batch", 5])
    assert_same_function(conversion.model, net)


def test_nothing_reaches_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(seeded(), input_shape=SHAPE)
    assert capfd.readouterr() == ("", "")


def test_older_exporter_takes_over_when_the_current_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("data-dependent control flow")

    monkeypatch.setattr(torch.export, "export", broken)
    conversion = convert(seeded(), input_shape=SHAPE)
    assert conversion.how == "TorchScript exporter"
    assert any("data-dependent control flow" in note for note in conversion.notes)
    assert dims(conversion.model.graph.input[0]) == ["batch", *SHAPE]
    assert_same_function(conversion.model, seeded())


def test_export_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from lrp_onnx.converters import pytorch_export

    wrong = convert(seeded(1), input_shape=SHAPE).model
    monkeypatch.setattr(pytorch_export, "export_current", lambda *_: wrong)
    monkeypatch.setattr(pytorch_export, "export_older", lambda *_: wrong)
    with pytest.raises(ConversionError, match=r"outputs differ by [\d.e-]+, relative [\d.e-]+, allowed 0.001"):
        convert(seeded(0), input_shape=SHAPE)


def test_example_sets_shapes_and_dtypes_of_several_inputs_and_outputs() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 3)

        def forward(self, values: torch.Tensor, index: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"sum": values + self.table(index), "twice": 2 * values}

    conversion = convert(Pair(), example=(torch.randn(2, 3), torch.tensor([1, 6])))
    assert [value.name for value in conversion.model.graph.input] == ["values", "index"]
    assert [value.name for value in conversion.model.graph.output] == ["sum", "twice"]
    assert conversion.model.graph.input[1].type.tensor_type.elem_type == onnx.TensorProto.INT64
    assert conversion.relative < 1e-6


@pytest.mark.usefixtures("older_exporter")
def test_half_precision_module_is_widened_and_said_so() -> None:
    conversion = convert(seeded().half(), input_shape=SHAPE)
    assert any("float32" in note for note in conversion.notes)
    assert conversion.model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_module_without_input_shape_asks_for_it() -> None:
    with pytest.raises(ConversionError, match=r"Net .*input_shape"):
        convert(seeded())


def test_input_shape_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(ConversionError, match=r"without the batch dimension") as caught:
        convert(seeded(), input_shape=(1, *SHAPE))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batch_is_free", [True, False])
def test_exported_program_file(tmp_path: Path, batch_is_free: bool) -> None:
    net = seeded().eval()
    shapes = ({0: torch.export.Dim("n")},) if batch_is_free else None
    example = torch.randn(2 if batch_is_free else 1, *SHAPE)
    torch.export.save(torch.export.export(net, (example,), dynamic_shapes=shapes), tmp_path / "net.pt2")
    conversion = convert(tmp_path / "net.pt2")
    assert dims(conversion.model.graph.input[0]) == ["batch", *SHAPE]
    assert_same_function(conversion.model, net)


def test_program_whose_batch_cannot_be_freed_keeps_it(tmp_path: Path) -> None:
    class Baked(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.conv(x))[:, :, ::2, ::2].reshape(2, 4 * 6 * 6))

    torch.export.save(torch.export.export(Baked().eval(), (torch.randn(2, *SHAPE),)), tmp_path / "net.pt2")
    conversion = convert(tmp_path / "net.pt2")
    assert dims(conversion.model.graph.input[0]) == [2, *SHAPE]
    assert any("exactly 2" in note for note in conversion.notes)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".pt", ".ts", ".pth"])
@pytest.mark.parametrize("scripted", [True, False])
def test_torchscript_file(tmp_path: Path, suffix: str, scripted: bool) -> None:
    net = seeded().eval()
    script = torch.jit.script(net) if scripted else torch.jit.trace(net, torch.randn(2, *SHAPE))
    script.save(str(tmp_path / f"net{suffix}"))
    conversion = convert(str(tmp_path / f"net{suffix}"), input_shape=SHAPE)
    assert conversion.relative < 1e-4
    assert_same_function(conversion.model, net)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.usefixtures("older_exporter")
def test_factory_with_state_dict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrap: object, prefix: str) -> None:
    (tmp_path / "own_nets.py").write_text(FACTORY)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    torch.save(wrap({prefix + key: value for key, value in net.state_dict().items()}), tmp_path / "w.pth")  # type: ignore[operator]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry != ""])
    conversion = convert("own_nets:small", weights="w.pth", input_shape=SHAPE)
    assert_same_function(conversion.model, net)


@pytest.mark.usefixtures("older_exporter")
def test_factory_in_a_file_with_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    (tmp_path / "arch.py").write_text(FACTORY)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    safetensors.save_file(net.state_dict(), str(tmp_path / "w.safetensors"))
    conversion = convert(f"{tmp_path}/arch.py:small", weights=tmp_path / "w.safetensors", input_shape=SHAPE)
    assert_same_function(conversion.model, net)


@pytest.mark.usefixtures("older_exporter")
def test_factory_without_weights_is_seeded_and_keeps_the_random_state(tmp_path: Path) -> None:
    (tmp_path / "arch.py").write_text(FACTORY)
    before = torch.get_rng_state()
    first, second, third = (
        convert(f"{tmp_path}/arch.py:small", input_shape=SHAPE, seed=seed).model for seed in (5, 5, 6)
    )
    x = np.ones((1, *SHAPE), np.float32)
    assert np.array_equal(run(first, x), run(second, x)) and not np.array_equal(run(first, x), run(third, x))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", r"has no 'missing'; it defines fails, needs_argument"),
        ("needs_argument", r"needs_argument: calling the factory without arguments failed, TypeError"),
        ("fails", r"RuntimeError: no such dataset"),
        ("not_a_model", r"an object of type builtins.int is of no form"),
    ],
)
def test_factory_that_gives_no_model_is_one_clear_line(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "arch.py").write_text(FACTORY)
    with pytest.raises(ConversionError, match=message) as caught:
        convert(f"{tmp_path}/arch.py:{name}", input_shape=SHAPE)
    assert "\n" not in str(caught.value)


def test_factory_in_a_module_that_does_not_import() -> None:
    with pytest.raises(ConversionError, match=r"importing no_such_package.nets failed"):
        convert("no_such_package.nets:build")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.bias"), r"missing: 0\.bias"),
        (lambda s: s.update(extra=torch.ones(1)), r"unexpected: extra"),
        (lambda s: s.update({"4.weight": torch.ones(9, 4)}), r"4\.weight \(9, 4\) instead of \(2, 4\)"),
    ],
)
def test_weights_that_do_not_fit_name_the_keys(tmp_path: Path, change: object, message: str) -> None:
    (tmp_path / "arch.py").write_text(FACTORY)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    state = net.state_dict()
    change(state)  # type: ignore[operator]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ConversionError, match=message):
        convert(f"{tmp_path}/arch.py:small", weights=tmp_path / "w.pth", input_shape=SHAPE)


@pytest.mark.usefixtures("older_exporter")
def test_pickled_module_is_refused_unless_trusted(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 2))
    torch.save(net, tmp_path / "whole.pth")
    with pytest.raises(ConversionError, match=r"pickled module.*trust_pickle=True"):
        convert(tmp_path / "whole.pth", input_shape=SHAPE)
    assert_same_function(convert(tmp_path / "whole.pth", input_shape=SHAPE, trust_pickle=True).model, net)


class Touch:
    """Unpickling this creates a file: the harmless stand-in for code in a pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_no_file_runs_code_when_not_trusted(tmp_path: Path) -> None:
    import zipfile

    trace = tmp_path / "ran"
    torch.save({"state_dict": Touch(trace)}, tmp_path / "w.pth")
    torch.save(Touch(trace), tmp_path / "evil.bin")
    torch.export.save(torch.export.export(seeded().eval(), (torch.randn(2, *SHAPE),)), tmp_path / "good.pt2")
    evil = (tmp_path / "evil.bin").read_bytes()
    replaced = 0
    with zipfile.ZipFile(tmp_path / "good.pt2") as good, zipfile.ZipFile(tmp_path / "evil.pt2", "w") as bad:
        for item in good.infolist():
            content = good.read(item)
            replaced += content[:2] == b"PK"
            bad.writestr(item.filename, evil if content[:2] == b"PK" else content)
    assert replaced  # sample inputs are kept as a pickle
    for name in ("w.pth", "evil.bin", "evil.pt2"):
        with pytest.raises(ConversionError, match=r"trust"):
            convert(tmp_path / name, input_shape=SHAPE)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".pt", ".pt2", ".pth", ".safetensors"])
def test_damaged_file_names_itself(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(b"this is no model" * 40)
    with pytest.raises(ConversionError, match=path.name) as caught:
        convert(path, input_shape=SHAPE)
    assert "\n" not in str(caught.value)


def test_truncated_torchscript_names_itself(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(seeded()).save(str(tmp_path / "whole.pt"))
    content = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ConversionError, match=r"half.pt"):
        convert(tmp_path / "half.pt", input_shape=SHAPE)


def test_weights_alone_ask_for_the_architecture(tmp_path: Path) -> None:
    torch.save(seeded().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ConversionError, match=r"without an architecture.*module:factory"):
        convert(tmp_path / "w.pth", input_shape=SHAPE)


@pytest.mark.usefixtures("older_exporter")
def test_metadata_travels_with_the_model() -> None:
    preprocess = {"size": [12, 12], "layout": "NCHW", "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    names = ["a", "b", "c", "ö", "e"]
    conversion = convert(seeded(), preprocess=preprocess, classes=names)
    stored = {entry.key: json.loads(entry.value) for entry in conversion.model.metadata_props}
    assert stored["lrp_onnx.classes"] == names
    assert stored["lrp_onnx.preprocess"]["mean"] == preprocess["mean"]
    assert stored["lrp_onnx.source"]["framework"] == "pytorch" and "2." in stored["lrp_onnx.source"]["version"]
    with pytest.raises(ConversionError, match=r"5 scores, but 2 names"):
        convert(seeded(), preprocess=preprocess, classes=["a", "b"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["alexnet", "vgg16", "resnet18", "mobilenet_v2", "densenet121", "inception_v3", "efficientnet_b0"]
)
def test_torchvision_model_agrees(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = {"init_weights": True} if name == "inception_v3" else {}
        net = getattr(models, name)(weights=None, **options)
    size = 299 if name == "inception_v3" else 224
    conversion = convert(net, input_shape=(3, size, size))
    assert conversion.relative < 1e-4
    assert conversion.how == "torch.export exporter" and conversion.notes == []


def test_a_preset_takes_the_pictures_size_from_the_model() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    conversion = convert(net, input_shape=(3, 20, 24), preprocess={"preset": "imagenet"})
    metadata = {entry.key: entry.value for entry in conversion.model.metadata_props}
    assert json.loads(metadata["lrp_onnx.preprocess"])["size"] == [20, 24]


class Classifier(nn.Module):
    """As Hugging Face builds them: ids in, a dict out, with a name for the first argument and a cache."""

    main_input_name = "input_ids"

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(use_cache=True)
        self.words, self.kinds = nn.Embedding(30, 8), nn.Embedding(2, 8)
        self.head = nn.Linear(8, 3)

    def forward(
        self, input_ids: torch.Tensor, token_type_ids: torch.Tensor | None = None, attention_mask: Any = None
    ) -> dict[str, torch.Tensor]:
        kinds = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        x = self.words(input_ids) + self.kinds(kinds)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        pooled = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return {"logits": self.head(pooled)} | ({"past": x} if self.config.use_cache else {})


def test_model_of_token_ids_needs_only_the_length_and_gives_no_cache() -> None:
    net = Classifier()
    conversion = convert(net, input_shape=(6,))
    (value,), (output,) = conversion.model.graph.input, conversion.model.graph.output
    assert (value.name, output.name, dims(value)) == ("input_ids", "logits", ["batch", 6])
    assert value.type.tensor_type.elem_type == onnx.TensorProto.INT64
    assert net.config.use_cache
    ids = np.random.default_rng(0).integers(0, 30, (5, 6))  # beyond the rows of the smaller table, too
    net.config.use_cache = False
    expected = net(torch.from_numpy(ids))["logits"].detach().numpy()
    np.testing.assert_allclose(run(conversion.model, ids), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("current", [True, False])
def test_example_by_name_reaches_the_arguments_of_that_name(current: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not current:
        monkeypatch.setattr("lrp_onnx.converters.pytorch_export.has_current_exporter", lambda: False)
    net = Classifier()
    ids, mask = torch.randint(0, 30, (2, 6)), torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    conversion = convert(net, example={"input_ids": ids, "attention_mask": mask})
    assert [value.name for value in conversion.model.graph.input] == ["input_ids", "attention_mask"]
    net.config.use_cache = False
    session = onnxruntime.InferenceSession(conversion.model.SerializeToString())
    output = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
    expected = net(ids, attention_mask=mask)["logits"].detach().numpy()
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-6)


def test_factory_may_return_an_example_with_the_model(tmp_path: Path) -> None:
    (tmp_path / "pair.py").write_text(
        "import torch\nclass Sum(torch.nn.Module):\n    def forward(self, a, b):\n        return a + b.float()\n"
        "def make():\n    return Sum(), {'a': torch.zeros(2, 3), 'b': torch.zeros(2, 3, dtype=torch.int64)}\n"
    )
    graph = convert(f"{tmp_path}/pair.py:make").model.graph
    kinds = [(value.name, value.type.tensor_type.elem_type) for value in graph.input]
    assert kinds == [("a", onnx.TensorProto.FLOAT), ("b", onnx.TensorProto.INT64)]


def test_nodes_are_named_after_the_modules_they_come_from() -> None:
    net = nn.Sequential(OrderedDict(stem=nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), flat=nn.Flatten()))
    names = [node.name for node in convert(net, input_shape=SHAPE).model.graph.node]
    assert {"stem.0/Conv", "stem.1/Relu"} <= set(names) and len(set(names)) == len(names)
    assert not any(name.startswith("_") for name in names)


def test_control_flow_that_cannot_be_exported_names_its_module() -> None:
    class Repeating(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(int(x.abs().sum()) % 97):
                x = x + 1.0
            return x

    net = nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 4, 3), loop=nn.Sequential(Repeating()), end=nn.Flatten()))
    with pytest.raises(ConversionError, match=r"torch.export exporter: in loop\.0 \(Repeating\)") as caught:
        convert(net, input_shape=SHAPE)
    assert "\n" not in str(caught.value)
    assert not net.stem._forward_hooks and not net.stem._forward_pre_hooks


def test_operator_without_onnx_form_names_its_module() -> None:
    class Special(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.zeta(x.abs() + 2.0, x.abs() + 1.0)

    net = nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 4, 3), odd=Special()))
    with pytest.raises(ConversionError, match=r"in odd \(Special\).*zeta"):
        convert(net, input_shape=SHAPE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Bert", "GPT2", "Llama", "ViT"])
def test_hugging_face_model_from_its_configuration(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    kind = {"Bert": "ForSequenceClassification", "ViT": "ForImageClassification", "GPT2": "LMHeadModel"}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"image_size": 32} if name == "ViT" else {"vocab_size": 50, "num_key_value_heads": 1}
    net = getattr(transformers, name + kind.get(name, "ForCausalLM"))(getattr(transformers, f"{name}Config")(**sizes))
    conversion = convert(net, input_shape=(3, 32, 32) if name == "ViT" else (6,))
    graph = conversion.model.graph
    assert conversion.relative < 1e-4
    assert [value.name for value in graph.input] == ["pixel_values" if name == "ViT" else "input_ids"]
    assert [value.name for value in graph.output] == ["logits"]
