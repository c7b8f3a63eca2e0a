"""A HUDD case on disk: where everything is, and the settings in its `case.toml`."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lrp_onnx.errors import DataError, OutputError

SETTINGS = "case.toml"
MODELS, DATA = "DNNModels", "DataSets"
RETRAINED = "-retrained"
_MANIFEST = "manifest.csv"
_SETS = {
    "training": "TrainingSet",
    "test": "TestSet",
    "improvement": "ImprovementSet",
    "validation": "ValidationSet",
}
_NEEDED = ("training", "test", "improvement")
_MAY_BE_ZERO = ("micro", "threshold", "momentum", "weight_decay", "patience", "seed")
# What a case without settings has; `init_case` writes it, so that every setting can be seen where it is changed.
TEMPLATE = """\
# Settings of a HUDD case; `lrp-onnx hudd run` on this folder does all steps. Paths are relative to this file.
# What stands behind a "#" is the default, or an example where it says so.

[model]
# file = "DNNModels/model.onnx"          # example; by default the only model in DNNModels
# preprocess = "imagenet"                # example; only for a model whose metadata does not say it
# classes = "classes.txt"                # example; likewise

[data]                                   # folder (a sub-folder a class, or a manifest.csv), .csv manifest or .npz
# training = "DataSets/TrainingSet"
# test = "DataSets/TestSet"
# improvement = "DataSets/ImprovementSet"
# validation = "DataSets/ValidationSet"  # to choose the epoch, never learned from; else a fifth of what is learned

[test]
# loss = "landmarks"                     # example; regression: mse, mae or landmarks
# threshold = 4.0                        # example; regression: a larger loss is an error

[heatmaps]
# composite = "epsilon-plus-flat"        # "hudd" in profile hudd
# layers = "all"                         # or names and patterns of tensors, separated by commas
# batch_size = 8
# correct_per_class = 20                 # correctly handled images that errors are contrasted with in the report

[cluster]
# profile = "default"                    # or "hudd", as published
# k = 8                                  # example; by default found
# layer = "/features/conv2/Conv_output"  # example; by default found
# linkage = "ward"
# min_size = 2                           # smaller clusters are noise; 1 in profile hudd
# metric = "euclidean"                   # or "cosine"
# reduce = "none"                        # or "channels", "spatial"
# micro = 5000                           # example; so many stand for all errors; by default above 20,000, 0 for none
# xlsx = false                           # the chosen layer's distances as a spreadsheet too

[assign]
# factor = 2.0                           # a cluster selects at most so many times as many images as it has

[label]
# oracle = "labels.csv"                  # example; known labels in place of a person's
# partial = false                        # go on when some of the unsafe set have no label

[retrain]
# epochs = 10
# optimizer = "sgd"                      # or "adam"
# learning_rate = 0.001
# momentum = 0.9
# weight_decay = 0.0005
# batch_size = 32
# patience = 5                           # epochs without a better one; 0 never stops early
# seed = 0
"""


@dataclass(frozen=True)
class ModelSettings:
    file: str | None = None
    preprocess: str | None = None
    classes: str | None = None


@dataclass(frozen=True)
class DataSettings:
    training: str | None = None
    test: str | None = None
    improvement: str | None = None
    validation: str | None = None


@dataclass(frozen=True)
class TestSettings:
    loss: Literal["mse", "mae", "landmarks"] | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class HeatmapSettings:
    composite: str | None = None
    layers: str = "all"
    batch_size: int = 8
    correct_per_class: int = 20


@dataclass(frozen=True)
class ClusterSettings:
    profile: Literal["default", "hudd"] = "default"
    k: int | None = None
    layer: str | None = None
    linkage: Literal["ward", "average", "complete", "single"] = "ward"
    min_size: int | None = None
    metric: Literal["euclidean", "cosine"] = "euclidean"
    reduce: Literal["none", "channels", "spatial"] = "none"
    micro: int | None = None
    xlsx: bool = False


@dataclass(frozen=True)
class AssignSettings:
    factor: float = 2.0


@dataclass(frozen=True)
class LabelSettings:
    oracle: str | None = None
    partial: bool = False


@dataclass(frozen=True)
class RetrainSettings:
    epochs: int = 10
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 32
    patience: int = 5
    seed: int = 0


@dataclass(frozen=True)
class Settings:
    """What `case.toml` says, one attribute a section."""

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    test: TestSettings = field(default_factory=TestSettings)
    heatmaps: HeatmapSettings = field(default_factory=HeatmapSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    assign: AssignSettings = field(default_factory=AssignSettings)
    label: LabelSettings = field(default_factory=LabelSettings)
    retrain: RetrainSettings = field(default_factory=RetrainSettings)


@dataclass(frozen=True)
class Case:
    """A case directory; the properties say where HUDD keeps what.

    Attributes
    ----------
    root : pathlib.Path
    settings : Settings
    """

    root: Path
    settings: Settings

    @classmethod
    def open(cls, root: str | os.PathLike[str]) -> Case:
        """Read the settings of a case.

        Raises
        ------
        DataError
            There is no case, or its settings cannot be used.
        """
        folder = Path(root)
        file = folder / SETTINGS
        if not file.is_file():
            raise DataError(f"{folder}: no HUDD case (no {SETTINGS}); make one with `lrp-onnx hudd init {folder}`")
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read: {error}") from error
        return cls(folder, _read(Settings, values, str(file)))

    def path(self, *parts: str) -> Path:
        return self.root.joinpath(*parts)

    @property
    def results(self) -> Path:
        return self.path("T")

    @property
    def model(self) -> Path:
        """The ONNX file.

        Raises
        ------
        DataError
            None is there, or several are and the settings name none.
        """
        named = self.settings.model.file
        if named is not None:
            if not self.path(named).is_file():
                raise DataError(f"{self.path(SETTINGS)}, [model] file: {self.path(named)} does not exist")
            return self.path(named)
        found = sorted(self.path(MODELS).glob("*.onnx"))
        models = [path for path in found if not path.stem.endswith(RETRAINED)]
        if found and not models:
            raise DataError(
                f"{found[0]} is taken for a result by its name; rename it, or name it in {SETTINGS}, [model] file"
            )
        if not models:
            raise DataError(f"{self.path(MODELS)}: no .onnx file there; put the model there, see `lrp-onnx convert`")
        if len(models) > 1:
            names = ", ".join(path.name for path in models)
            raise DataError(f"{self.path(MODELS)}: holds {names}; name one in {SETTINGS}, [model] file")
        return models[0]

    @property
    def retrained(self) -> Path:
        return self.path(MODELS, f"{self.model.stem}{RETRAINED}.onnx")

    def data(self, name: str) -> Path | None:
        """Where a data set is; None where it is optional and not there.

        Parameters
        ----------
        name : {"training", "test", "improvement", "validation"}

        Raises
        ------
        DataError
            It is not there and needed.
        """
        named = getattr(self.settings.data, name)
        place = self.path(named) if named is not None else self.path(DATA, _SETS[name])
        if place.is_dir():
            manifest = place / _MANIFEST
            if manifest.is_file():
                return manifest
            if any(not entry.name.startswith(".") for entry in place.iterdir()):
                return place
            missing = f"{place} is empty"
        elif place.exists():
            return place
        else:
            missing = f"{place} does not exist"
        if name == "validation" and named is None:
            return None
        raise DataError(f"{missing}; it holds the {name} set: put images there, or say where in {SETTINGS}, [data]")


def init_case(root: str | os.PathLike[str], settings: Mapping[str, Mapping[str, Any]] | None = None) -> Case:
    """Make the folders of a case and a commented `case.toml`.

    Parameters
    ----------
    root : path-like
    settings : mapping of section to mapping, optional
        What is not to be the default, such as ``{"retrain": {"epochs": 20}}``. Paths are given as seen from here, and
        written as seen from the case. A data set that is named gets no folder.

    Raises
    ------
    DataError
        A path given does not exist, or a setting is not known.
    OutputError
        There is a case already, or it cannot be written.
    """
    folder, given = Path(root), settings or {}
    if (folder / SETTINGS).exists():
        raise OutputError(f"{folder / SETTINGS} exists already; edit it, or name another folder")
    text = TEMPLATE
    for section, values in given.items():
        for name, value in values.items():
            text = _with_value(text, section, name, _seen_from(folder, value) if isinstance(value, Path) else value)
    _read(Settings, tomllib.loads(text), str(folder / SETTINGS))
    folders = [MODELS, *(f"{DATA}/{_SETS[name]}" for name in _NEEDED if name not in given.get("data", {}))]
    try:
        for made in folders:
            (folder / made).mkdir(parents=True, exist_ok=True)
        (folder / SETTINGS).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from error
    return Case.open(folder)


def _seen_from(folder: Path, path: Path) -> str:
    """The path relative to the case where that leads nowhere outside it, else absolute."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    there, here = path.resolve(), folder.resolve()
    return (there.relative_to(here) if there.is_relative_to(here) else there).as_posix()


def _with_value(text: str, section: str, name: str, value: str | float | bool) -> str:
    """The template with one setting in it."""
    before, header, rest = text.partition(f"[{section}]")
    lines = rest.split("\n")
    place = next((i for i, line in enumerate(lines) if line.startswith(f"# {name} =")), None)
    if place is None:
        raise DataError(f"{SETTINGS}: [{section}] {name} is no setting")
    lines[place] = f"{name} = {json.dumps(value, ensure_ascii=False)}"  # text, numbers, true: JSON's form is TOML's
    return before + header + "\n".join(lines)


def _read(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """A settings object from a table; every name and type is checked."""
    hints = get_type_hints(kind)
    if unknown := [name for name in values if name not in hints]:
        raise DataError(f"{where}: '{unknown[0]}' is not known here; expected one of {', '.join(hints)}")
    read = {}
    for one in fields(kind):
        if one.name not in values:
            continue
        value, hint = values[one.name], hints[one.name]
        if isinstance(hint, type) and hasattr(hint, "__dataclass_fields__"):
            if not isinstance(value, dict):
                raise DataError(f"{where}: '{one.name}' is a section; write [{one.name}]")
            read[one.name] = _read(hint, value, f"{where}, [{one.name}]")
            continue
        allowed = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        words = next((get_args(each) for each in allowed if get_origin(each) is Literal), ())
        if float in allowed and type(value) is int:
            value = float(value)
        if value not in words if words else type(value) not in allowed:
            kinds = {str: "text in quotes", int: "a whole number", float: "a number", bool: "true or false"}
            expected = " or ".join(f'"{word}"' for word in words) or next(kinds[a] for a in allowed if a in kinds)
            raise DataError(f"{where} {one.name} = {value!r}: expected {expected}")
        if type(value) in (int, float) and (value < 0 or (value == 0 and one.name not in _MAY_BE_ZERO)):
            raise DataError(f"{where} {one.name} = {value}: expected more than 0")
        read[one.name] = value
    return kind(**read)
