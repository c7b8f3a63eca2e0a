"""Two models by marked region and part: on which of them each puts its relevance, and which carried its decisions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lrp_onnx.debug.comparison_groups import LEVEL, adjust
from lrp_onnx.debug.parts import BACKGROUND, NONE, OBJECT, REST, Carried, carried, mean
from lrp_onnx.debug.placed_regions import PlacedRegions
from lrp_onnx.debug.regions import Regions
from lrp_onnx.hudd.report.steps import chance_of_change
from lrp_onnx.store import HeatmapStore

_COMMON = (OBJECT, REST, BACKGROUND)


@dataclass(frozen=True)
class PairCarried:
    """Of one image: what each part got from A and from B, and which carried their decisions."""

    a: Carried
    b: Carried

    @property
    def names(self) -> tuple[str, ...]:
        """Parts with a name of their own."""
        return tuple(name for name in self.a.shares if name not in _COMMON)


@dataclass(frozen=True)
class PartComparison:
    """Both models on one part.

    Attributes
    ----------
    part : str
        A named part, "object", "rest of the object", "background", or "nothing stands out".
    images : int
        Where it is marked for both models.
    area : float
        Mean share of the picture, 0 to 1, as A sees it.
    mass_a, mass_b : float
        Mean share of the positive relevance; NaN for "nothing stands out".
    more_a, more_b : int
        Images in which one model has a larger share there than the other.
    p, q : float or None
        Exact sign test on these two, two-sided, and p adjusted for the number of parts.
    looks : {"A", "B", ""}
        The model that looks more at the part, where q is below 0.05.
    carried_a, carried_b : int
        Images in which it carried the decision.
    """

    part: str
    images: int
    area: float
    mass_a: float
    mass_b: float
    more_a: int
    more_b: int
    p: float | None
    q: float | None
    looks: str
    carried_a: int
    carried_b: int


class RegionPairs:
    """Looks up which parts of an image carried the decisions of two models.

    Parameters
    ----------
    a, b : HeatmapStore
        Open, of pictures.
    regions : Regions

    Raises
    ------
    StoreError, DataError
        As `PlacedRegions`.
    """

    def __init__(self, a: HeatmapStore, b: HeatmapStore, regions: Regions) -> None:
        self._stores = a, b
        self._placed = PlacedRegions(a, regions), PlacedRegions(b, regions)
        self._rows = [set(placed.rows) for placed in self._placed]

    def at(self, rows: tuple[int, int]) -> PairCarried | None:
        """None where an image has no region, or one that a model does not see."""
        found = []
        for store, placed, known, row in zip(self._stores, self._placed, self._rows, rows, strict=True):
            marked = placed.at(row) if row in known else None
            if marked is None:
                return None
            found.append(carried(np.asarray(store.attribution[row], dtype=np.float64), marked))
        return PairCarried(*found)


def compare_parts(pairs: Sequence[PairCarried]) -> list[PartComparison]:
    """A row a part, named ones first."""
    names = dict.fromkeys(name for pair in pairs for name in pair.names)
    common = [name for name in _COMMON if any(name in pair.a.shares for pair in pairs)]
    rows = [_row(part, pairs) for part in (*names, *common, NONE)]
    adjusted = adjust([row.p for row in rows])
    return [
        replace(row, q=q, looks="" if q is None or q >= LEVEL else "A" if row.more_a > row.more_b else "B")
        for row, q in zip(rows, adjusted, strict=True)
    ]


def _row(part: str, pairs: Sequence[PairCarried]) -> PartComparison:
    both = [(p.a.shares[part], p.b.shares[part]) for p in pairs if part in p.a.shares and part in p.b.shares]
    known = [(one.mass, other.mass) for one, other in both if not math.isnan(one.mass + other.mass)]
    more_a, more_b = sum(one > other for one, other in known), sum(one < other for one, other in known)
    return PartComparison(
        part=part,
        images=len(pairs) if part == NONE else len(both),
        area=mean(one.area for one, _ in both),
        mass_a=mean(one for one, _ in known),
        mass_b=mean(other for _, other in known),
        more_a=more_a,
        more_b=more_b,
        p=chance_of_change(more_a, more_b) if known else None,
        q=None,
        looks="",
        carried_a=sum(pair.a.part == part for pair in pairs),
        carried_b=sum(pair.b.part == part for pair in pairs),
    )
