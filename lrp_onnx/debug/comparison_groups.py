"""Two models by group of images: how often each is right, who wins beyond chance, how alike their heatmaps are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lrp_onnx.debug.parts import ALL_CLASSES, mean
from lrp_onnx.hudd.report.steps import chance_of_change

ALL, CLASS, VARIATION, PART = "all", "class", "variation", "part"
BOTH_RIGHT, ONLY_A, ONLY_B, BOTH_WRONG = "both right", "only A right", "only B right", "both wrong"
OUTCOMES = (BOTH_RIGHT, ONLY_A, ONLY_B, BOTH_WRONG)
LEVEL = 0.05  # false discovery rate at which a model is called the winner


@dataclass(frozen=True)
class ComparedImage:
    """One image and both models.

    Attributes
    ----------
    path : str
        As in A.
    source : str
        What it is a variation of; its own path if it is none.
    expected, variation : str
        "" where there is none.
    predicted_a, predicted_b, explained_a, explained_b : str
    right_a, right_b : bool or None
        None where it is not known.
    confidence_a, confidence_b : float or None
        See `Decision`.
    rank, cosine : float
        Likeness of the heatmaps; NaN where they cannot be compared.
    row_a, row_b : int
        In the stores.
    parts : tuple of str
        Named parts that regions mark on it.
    """

    path: str
    source: str
    expected: str
    variation: str
    predicted_a: str
    predicted_b: str
    right_a: bool | None
    right_b: bool | None
    confidence_a: float | None
    confidence_b: float | None
    explained_a: str
    explained_b: str
    rank: float
    cosine: float
    row_a: int
    row_b: int
    parts: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        """One of `OUTCOMES`; "" where not both are known to be right or wrong."""
        if self.right_a is None or self.right_b is None:
            return ""
        return OUTCOMES[2 * (not self.right_a) + (not self.right_b)]

    @property
    def same(self) -> bool | None:
        """Whether both decide for the same class; None for regression."""
        return self.predicted_a == self.predicted_b if self.explained_a or self.explained_b else None

    @property
    def same_explained(self) -> bool:
        return self.explained_a == self.explained_b


@dataclass(frozen=True)
class GroupRow:
    """Both models on a group of images.

    Attributes
    ----------
    kind : {"all", "class", "variation", "part"}
    name : str
    images, judged : int
        In the group; and those of them on which both are known to be right or wrong.
    both_right, only_a, only_b, both_wrong : int
    accuracy_a, accuracy_b : float or None
        Share of the judged.
    p : float or None
        Exact McNemar test, two-sided: chance that `only_a` and `only_b` are as uneven if the models were equally good.
        Variations of one image are no independent images: they count as one, for the model that is right on more.
    q : float or None
        `p` adjusted for the number of groups of that kind (Benjamini and Hochberg 1995).
    winner : {"A", "B", ""}
        The better model where q is below 0.05.
    same : float or None
        Share of the images on which both decide for the same class.
    rank, cosine : float
        Mean likeness of the heatmaps; NaN where no two can be compared.
    """

    kind: str
    name: str
    images: int
    judged: int
    both_right: int
    only_a: int
    only_b: int
    both_wrong: int
    accuracy_a: float | None
    accuracy_b: float | None
    p: float | None
    q: float | None
    winner: str
    same: float | None
    rank: float
    cosine: float


def group_rows(images: Sequence[ComparedImage]) -> list[GroupRow]:
    """All images, then each class, variation and part in the order in which they come; classes sorted by name."""
    of_kind: dict[str, dict[str, list[ComparedImage]]] = {ALL: {ALL_CLASSES: list(images)}}
    of_kind[CLASS] = _split(images, lambda image: (image.expected,))
    of_kind[CLASS] = {name: of_kind[CLASS][name] for name in sorted(of_kind[CLASS], key=_by_number)}
    of_kind[VARIATION] = _split(images, lambda image: (image.variation,))
    of_kind[PART] = _split(images, lambda image: image.parts)
    rows = []
    for kind, groups in of_kind.items():
        of_groups = [_row(kind, name, members) for name, members in groups.items()]
        adjusted = adjust([row.p for row in of_groups])
        rows += [
            replace(row, q=q, winner=row.winner if q is not None and q < LEVEL else "")
            for row, q in zip(of_groups, adjusted, strict=True)
        ]
    return rows


def adjust(p: Sequence[float | None]) -> list[float | None]:
    """Adjust for the number of tests, so that of the groups below a level at most that share is there by chance."""
    from scipy.stats import false_discovery_control

    known = [value for value in p if value is not None]
    adjusted = iter(false_discovery_control(known).tolist() if known else ())
    return [None if value is None else next(adjusted) for value in p]


def disagreements(images: Sequence[ComparedImage]) -> list[tuple[str, str, str, int]]:
    """Expected class, what A and what B decide for, and how often: the most frequent first."""
    times = Counter((image.expected, image.predicted_a, image.predicted_b) for image in images if image.same is False)
    return [(*key, count) for key, count in times.most_common()]


def _split(
    images: Iterable[ComparedImage], names_of: Callable[[ComparedImage], Sequence[str]]
) -> dict[str, list[ComparedImage]]:
    groups: dict[str, list[ComparedImage]] = {}
    for image in images:
        for name in filter(None, names_of(image)):
            groups.setdefault(name, []).append(image)
    return groups


def _by_number(name: str) -> tuple[bool, int, str]:
    """Classes that are numbers in their order, then names."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def _row(kind: str, name: str, images: Sequence[ComparedImage]) -> GroupRow:
    times = Counter(image.outcome for image in images)
    both_right, only_a, only_b, both_wrong = (times[outcome] for outcome in OUTCOMES)
    judged = sum(times[outcome] for outcome in OUTCOMES)
    same = [image.same for image in images if image.same is not None]
    votes: Counter[str] = Counter()
    for image in images:
        votes[image.source] += (image.outcome == ONLY_A) - (image.outcome == ONLY_B)
    for_a, for_b = (sum(sign * vote > 0 for vote in votes.values()) for sign in (1, -1))
    return GroupRow(
        kind=kind,
        name=name,
        images=len(images),
        judged=judged,
        both_right=both_right,
        only_a=only_a,
        only_b=only_b,
        both_wrong=both_wrong,
        accuracy_a=(both_right + only_a) / judged if judged else None,
        accuracy_b=(both_right + only_b) / judged if judged else None,
        p=chance_of_change(for_a, for_b) if judged else None,
        q=None,
        winner="A" if for_a > for_b else "B",
        same=float(np.mean(same)) if same else None,
        rank=mean(image.rank for image in images),
        cosine=mean(image.cosine for image in images),
    )
