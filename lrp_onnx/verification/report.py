"""What a verification found: for each check a judgement with its reason, and one verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any, Literal

Judgement = Literal["pass", "warn", "fail", "skip"]


@dataclass(frozen=True)
class Check:
    """One row.

    Attributes
    ----------
    name : str
    judgement : {"pass", "warn", "fail", "skip"}
        "skip" where the check cannot be done, as the reason says.
    reason : str
    numbers : dict of str to float
    worst : dict of str to float
        Nodes or tensors and how far off they are, the worst first.
    """

    name: str
    judgement: Judgement
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    worst: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Verification:
    """What `verify` gives.

    Attributes
    ----------
    model, composite, output, target : str
        What was verified.
    samples : int
        On how many samples.
    random : bool
        They were random numbers.
    checks : tuple of Check
    notes : tuple of str
        What was guessed.
    """

    model: str
    composite: str
    output: str
    target: str
    samples: int
    random: bool
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Judgement:
        """The worst judgement: "fail", "warn" or "pass"."""
        found = {check.judgement for check in self.checks}
        return "fail" if "fail" in found else "warn" if "warn" in found else "pass"

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        of = {kind: [check.name for check in self.checks if check.judgement == kind] for kind in ("fail", "warn")}
        if of["fail"]:
            return f"heatmaps of {self.model} by {self.composite} are not to be trusted: {', '.join(of['fail'])} failed"
        if of["warn"]:
            return f"heatmaps of {self.model} by {self.composite} are right, with care: see {', '.join(of['warn'])}"
        return f"heatmaps of {self.model} by {self.composite} are right, as far as can be checked"

    def __getitem__(self, name: str) -> Check:
        return next(check for check in self.checks if check.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `lrp-onnx verify --json` prints it; None for a number that is not finite."""
        found = {"verdict": self.verdict, "sentence": self.sentence, **asdict(self)}
        for check in found["checks"]:
            for kind in ("numbers", "worst"):
                check[kind] = {name: value if isfinite(value) else None for name, value in check[kind].items()}
        return found
