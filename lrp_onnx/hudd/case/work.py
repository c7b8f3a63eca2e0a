"""A case being worked on: its model, its data and what its steps depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from lrp_onnx import __version__
from lrp_onnx.data import Dataset
from lrp_onnx.engine import DEFAULT_COMPOSITE
from lrp_onnx.errors import DataError
from lrp_onnx.graph import Graph
from lrp_onnx.hudd.case.settings import Case
from lrp_onnx.hudd.case.state import Parts, State, data_digest, file_digest
from lrp_onnx.inputs import load_described, open_both

Progress = Callable[[str, int, int], None]


def step_part(name: str) -> str:
    """What the result of a step is called among the parts of the steps that take it."""
    return f"step {name}"


@dataclass
class Work:
    """A case, what is known of its files, and how progress is shown.

    The methods that return `Parts` say what a step is made from: a change in any of them makes the step run anew.
    """

    case: Case
    state: State
    oracle: Path | None = None
    progress: Progress = field(default=lambda step, done, total: None)
    digests: dict[str, str] = field(default_factory=dict)

    @cached_property
    def graph(self) -> Graph:
        """The model, with what the settings say of its preprocessing and classes."""
        said = self.case.settings.model
        preprocess, classes = self._file_or_text(said.preprocess), said.classes
        return load_described(self.case.model, preprocess, None if classes is None else self.case.path(classes))

    @property
    def composite(self) -> str:
        named, profile = self.case.settings.heatmaps.composite, self.case.settings.cluster.profile
        return self._file_or_text(named) or ("hudd" if profile == "hudd" else DEFAULT_COMPOSITE)

    @property
    def known_labels(self) -> Path | None:
        """Where labels are known already, if anywhere."""
        named = self.case.settings.label.oracle
        return self.oracle or (None if named is None else self.case.path(named))

    @cached_property
    def regression(self) -> bool:
        """Whether the model gives numbers instead of classes."""
        return self.data("test").targets is not None

    def data(self, name: str) -> Dataset:
        path = self.case.data(name)
        if path is None:
            raise DataError(f"{self.case.root}: has no {name} set")
        return open_both(self.graph, path, unlabelled=name == "improvement")[1]

    def model_parts(self) -> Parts:
        said = asdict(self.case.settings.model) | {"file": None}
        others = {f"[model] {name}": self._content(text) for name, text in said.items() if text is not None}
        return {
            "version of lrp-onnx": __version__,
            "model": self._once("model", lambda: file_digest(self.case.model)),
            **others,
        }

    def data_parts(self, name: str) -> Parts:
        path = self.case.data(name)
        if path is None:
            return {}
        return {f"{name} set": self._once(name, lambda: data_digest(path, self.over(f"Checking the {name} set")))}

    def setting_parts(self, section: str, *names: str) -> Parts:
        values = asdict(getattr(self.case.settings, section))
        return {f"[{section}] {name}": str(values[name]) for name in names or values}

    def composite_parts(self) -> Parts:
        return {"composite": self._content(self.composite)}

    def step_parts(self, *steps: str) -> Parts:
        done = {step: self.state.records.get(step) for step in steps}
        return {step_part(step): record.digest() if record is not None else "" for step, record in done.items()}

    def over(self, what: str) -> Callable[[int, int], None]:
        """Progress of one thing."""
        return lambda done, total: self.progress(what, done, total)

    def _file_or_text(self, text: str | None) -> str | None:
        """The path of a file in the case, or what was said if there is no such file."""
        return str(self.case.path(text)) if text is not None and self.case.path(text).is_file() else text

    def _content(self, text: str) -> str:
        path = self.case.path(text)
        return file_digest(path) if path.is_file() else text

    def _once(self, name: str, compute: Callable[[], str]) -> str:
        if name not in self.digests:
            self.digests[name] = compute()
        return self.digests[name]
