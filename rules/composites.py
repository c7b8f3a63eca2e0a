"""Composites: which rule each node gets, as data; the built-in ones, and reading a user's own from TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path
from typing import Any

from lrp_onnx.errors import RuleError
from lrp_onnx.ops import OPS
from lrp_onnx.rules.registry import find

KINDS: dict[str, tuple[str, ...]] = {
    "convolution": ("Conv", "ConvTranspose"),
    "dense": ("Gemm", "MatMul", "Einsum"),
}
PLACES = ("first", "lower", "upper")


@dataclass(frozen=True)
class Place:
    """Where a node stands, for a composite to match on.

    Attributes
    ----------
    linear : bool
        It is linear with weights.
    depth : float
        Position among the convolutions (or, for other nodes, the convolutions below it), 0 to 1.
    first : bool
        The first linear node in execution order.
    """

    op_type: str
    name: str
    family: str
    linear: bool = False
    depth: float = 0.0
    first: bool = False


@dataclass(frozen=True)
class Entry:
    """One line of a composite: a rule, its parameters, and the nodes it is for.

    Attributes
    ----------
    rule : str
    parameters : dict
    op : tuple of str
        Op types, or "convolution", "dense", "linear" (both); empty: any op. A domain ("com.example.Squash") may be left
        out.
    node : str
        Pattern on the node's name, as in a shell: "*" and "?".
    place : str
        "first" (first linear node in execution order), "lower" or "upper" (half of the convolutions), or "" (anywhere).
    """

    rule: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    op: tuple[str, ...] = ()
    node: str = "*"
    place: str = ""

    def __post_init__(self) -> None:
        find(self.rule).check(self.parameters)
        if self.place and self.place not in PLACES:
            raise RuleError(f"place must be one of {', '.join(PLACES)}, not '{self.place}'")

    def matches(self, place: Place) -> bool:
        """Whether the node at `place` is meant."""
        if self.place == "first" and not place.first:
            return False
        if self.place in ("lower", "upper") and (place.depth < 0.5) != (self.place == "lower"):
            return False
        return fnmatchcase(place.name, self.node) and (not self.op or any(_is(place, op) for op in self.op))


def _is(place: Place, op: str) -> bool:
    if op == "linear":
        return place.linear
    if op in KINDS:
        return place.linear and place.op_type in KINDS[op]
    return op in (place.op_type, place.op_type.rpartition(".")[2])


@dataclass(frozen=True)
class Composite:
    """An ordered list of entries; the first that matches gives a node its rule, the base table the rest.

    Attributes
    ----------
    gradient : bool
        The base rule is the gradient, for every op, and nothing is held constant.
    times_input : bool
        Every recorded relevance is multiplied by the tensor it belongs to (input x gradient).
    parameters : dict
        Parameters for every rule that takes them, e.g. bias="ignore"; an entry's own come first.
    """

    name: str
    entries: tuple[Entry, ...] = ()
    gradient: bool = False
    times_input: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def resolve(self, place: Place) -> tuple[str, dict[str, Any]] | None:
        """Rule name and parameters for the node at `place`; None where nothing applies."""
        entry = next((e for e in self.entries if e.matches(place)), None)
        name = entry.rule if entry else self._base(place)
        if name is None:
            return None
        common = {k: v for k, v in self.parameters.items() if k in find(name).parameters}
        return name, {**common, **(entry.parameters if entry else {})}

    def why(self, place: Place) -> str:
        """What gave the node at `place` its rule, in words."""
        entry = next((e for e in self.entries if e.matches(place)), None)
        if entry is None:
            return "gradient of every op" if self.gradient else f"default of family {place.family}"
        what = [entry.place, "/".join(entry.op), "" if entry.node == "*" else f"named {entry.node}"]
        return f"composite: {' '.join(filter(None, what)) or 'any op'}"

    def _base(self, place: Place) -> str | None:
        if self.gradient:
            return "gradient"
        if place.family == "linear":
            return "epsilon" if place.linear else "bilinear"
        return BASE.get(place.family)

    def override(self, rules: Mapping[str, str]) -> Composite:
        """A copy in which op types (or node-name patterns with "*") get the rules given: {"Pow": "gradient"}."""
        entries = tuple(
            Entry(rule, node=key) if any(c in key for c in "*?/") else Entry(rule, op=(key,))
            for key, rule in rules.items()
        )
        return replace(self, entries=entries + self.entries)

    def misspelt(self, places: Sequence[Place]) -> str | None:
        """A name in the entries that no op and none of the model's nodes has; None when there is none."""
        ops = {"linear", *KINDS, *(op for _, op in OPS), *(place.op_type for place in places)}
        ops |= {f"{domain}.{op}" for domain, op in OPS} | {op.rpartition(".")[2] for op in ops}
        for entry in self.entries:
            if unknown := [op for op in entry.op if op not in ops]:
                return unknown[0]
            if not any(fnmatchcase(place.name, entry.node) for place in places):
                return entry.node
        return None

    def with_parameters(self, parameters: Mapping[str, Any]) -> Composite:
        """A copy with parameters for every rule in it that takes them, in place of its entries' own.

        Raises
        ------
        RuleError
            None of its rules takes a parameter, or not with that value.
        """
        bases = ["gradient"] if self.gradient else [*BASE.values(), "bilinear"]
        for name, value in parameters.items():
            takers = [rule for rule in (*(e.rule for e in self.entries), *bases) if name in find(rule).parameters]
            if not takers:
                raise RuleError(f"no rule of composite '{self.name}' takes a parameter '{name}'")
            find(takers[0]).check({name: value})
        entries = tuple(
            replace(e, parameters={k: v for k, v in e.parameters.items() if k not in parameters}) for e in self.entries
        )
        return replace(self, entries=entries, parameters={**self.parameters, **parameters})

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as a store records it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], name: str = "custom") -> Composite:
        """The reverse of `to_dict`; optional keys may be left out.

        `base` names a built-in composite whose entries follow the ones given. Parameters of an entry come before those
        of the whole composite, and these before the base's.

        Raises
        ------
        RuleError
            Naming the entry and the key that are wrong.
        """
        known = {"name", "base", "entries", "gradient", "times_input", "parameters"}
        if unknown := set(data) - known:
            raise RuleError(f"composite: unknown key '{min(unknown)}'; known: {', '.join(sorted(known))}")
        base = composite(data["base"]) if "base" in data else Composite(name)
        given = data.get("entries", ())
        if isinstance(given, str | Mapping):
            raise RuleError(f"composite: entries is {given!r}; expected a list of tables, [[entries]] in TOML")
        own = tuple(_entry(number, item) for number, item in enumerate(given, 1))
        chosen = Composite(
            data.get("name", name),
            (*own, *base.entries),
            data.get("gradient", base.gradient),
            data.get("times_input", base.times_input),
            base.parameters,
        ).with_parameters(_mapping("parameters", data.get("parameters", {})))
        return replace(chosen, entries=(*own, *chosen.entries[len(own) :]))

    @classmethod
    def from_toml(cls, path: str | PathLike[str]) -> Composite:
        """Read a composite from a TOML file with the keys of `from_dict`."""
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RuleError(f"composite file {path} does not exist") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RuleError(f"composite file {path} cannot be read: {error}") from None
        try:
            return cls.from_dict(data, name=Path(path).stem)
        except RuleError as error:
            raise RuleError(f"composite file {path}: {error}") from None


def _mapping(what: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RuleError(f"composite: {what} is {value!r}; expected names with values, a table in TOML")
    return value


def _entry(number: int, item: Any) -> Entry:
    known = [part.name for part in fields(Entry)]
    values = dict(_mapping(f"entry {number}", item))
    if unknown := [key for key in values if key not in known]:
        raise RuleError(f"composite: entry {number}: unknown key '{unknown[0]}'; keys: {', '.join(known)}")
    ops = values.pop("op", ())
    ops = [ops] if isinstance(ops, str) else ops
    texts = {"rule": values.get("rule"), "node": values.get("node", "*"), "place": values.get("place", "")}
    for key, text in (*texts.items(), *(("op", op) for op in ops)):
        if not isinstance(text, str):
            raise RuleError(f"composite: entry {number}: {key} is {text!r}; expected a text")
    parameters = _mapping(f"entry {number}: parameters", values.pop("parameters", {}))
    try:
        return Entry(**values, op=tuple(ops), parameters=parameters)
    except RuleError as error:
        raise RuleError(f"entry {number}: {error}") from None


# The rule of each family of ops where no entry says otherwise; see RULES in the documentation for the reasons.
BASE: dict[str, str] = {
    "mean": "norm",
    "sum": "norm",
    "activation": "pass",
    "max": "winner-takes-all",
    "route": "route",
    "identity": "pass",
    "product": "product",
    "quotient": "quotient",
    "normalisation": "held-scale",
    "softmax": "softmax",
    "recurrent": "held-gates",
    "proportion": "proportional",
}


def _layers(convolution: str, dense: str, *first: Entry, **parameters: Any) -> tuple[Entry, ...]:
    return (*first, Entry(convolution, parameters, ("convolution",)), Entry(dense, op=("dense",)))


_FLAT = Entry("flat", op=("linear",), place="first")
_BOX = Entry("z-box", op=("convolution",), place="first")
_ATTNLRP = _layers("gamma", "epsilon", Entry("epsilon", op=("linear",), place="first"), gamma=0.25)

COMPOSITES: dict[str, Composite] = {
    c.name: c
    for c in (
        Composite("epsilon", _layers("epsilon", "epsilon")),
        Composite("epsilon-plus", _layers("z-plus", "epsilon")),
        Composite("epsilon-plus-flat", _layers("z-plus", "epsilon", _FLAT)),
        Composite("epsilon-alpha2-beta1", _layers("alpha-beta", "epsilon", alpha=2.0, beta=1.0)),
        Composite("epsilon-alpha2-beta1-flat", _layers("alpha-beta", "epsilon", _FLAT, alpha=2.0, beta=1.0)),
        Composite("epsilon-gamma-box", _layers("gamma", "epsilon", _BOX, gamma=0.25)),
        Composite(
            "montavon2019",
            (
                _BOX,
                Entry("gamma", {"gamma": 0.25, "eps": 1e-9}, ("convolution",), place="lower"),
                Entry("montavon-std", op=("convolution",), place="upper"),
                Entry("epsilon", {"eps": 1e-9}, ("dense",)),
            ),
        ),
        Composite("excitation-backprop", _layers("z-plus", "z-plus")),
        Composite("hudd", _layers("hudd", "hudd")),
        Composite("attnlrp", _ATTNLRP),
        Composite("cp-lrp", _ATTNLRP, parameters={"attention": "values"}),
        Composite("gradient", gradient=True),
        Composite("input-x-gradient", gradient=True, times_input=True),
        Composite("guided-backprop", (Entry("guided", op=("Relu",)),), gradient=True),
        Composite("deconvnet", (Entry("deconvnet", op=("Relu",)),), gradient=True),
    )
}


def composite(name: str, **parameters: Any) -> Composite:
    """A built-in composite, with parameters for every rule in it that takes them.

    Parameters
    ----------
    name : str
        One of `COMPOSITES`.
    **parameters
        For instance bias="ignore", eps=1e-9, low=-3.0, high=3.0, gamma=0.1, gate="signal".

    Raises
    ------
    RuleError
        Unknown name, or a parameter that none of its rules takes.
    """
    if name not in COMPOSITES:
        raise RuleError(f"no composite is named '{name}'; known: {', '.join(COMPOSITES)}")
    return COMPOSITES[name].with_parameters(parameters)
