"""Decisions against heatmaps: whether the images that are classified right are those whose heatmaps show the object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lrp_onnx.debug.localisation import EVERYTHING, NOTHING, Localisation

MARGIN = 0.5


@dataclass(frozen=True)
class Confusion:
    """Images, or shares of them, by decision (right, wrong) and heatmap (shows the object, or not).

    Attributes
    ----------
    tp : float
        Right, and the object is shown.
    fn : float
        Right, but the object is not shown: perhaps right for a wrong reason.
    fp : float
        Wrong, though the object is shown: seen and mistaken.
    tn : float
        Wrong, and the object is not shown.
    """

    tp: float
    fn: float
    fp: float
    tn: float

    @property
    def agreement(self) -> float:
        """Share of the images whose heatmap says of the decision what is true: (TP + TN) / all."""
        total = self.tp + self.fn + self.fp + self.tn
        return (self.tp + self.tn) / total if total else float("nan")


def shown(found: Localisation) -> float:
    """Share of the region that the heatmap shows, 0 to 1: its red share, and 0 where everything is red."""
    return 0.0 if found.size == EVERYTHING else found.covered


def shows(found: Localisation, margin: float = MARGIN) -> int:
    """The study's score of 0 or 1: whether the heatmap shows the object, which takes `margin` of its region."""
    return int(found.size != NOTHING and shown(found) >= margin)


def grade(found: Localisation, margin: float = MARGIN) -> int:
    """The study's score of 0 to 3.

    - 3: the object and little else: `margin` of the region is red, and at least half of what is red is the region.
    - 2: the object among other things: `margin` of the region is red.
    - 1: some of the object: less is red, but the region has more of the red area than its share of the picture.
    - 0: not the object: nothing is red, everything is, or no more of the region than by chance.
    """
    if shows(found, margin):
        return 3 if found.precise >= 0.5 else 2
    return int(found.size not in (NOTHING, EVERYTHING) and found.precise > found.area)


def confusion(right: ArrayLike, shown: ArrayLike) -> Confusion:
    """Count images by decision and heatmap.

    Parameters
    ----------
    right : bool (n,)
        Whether each decision is right.
    shown : float (n,)
        How far each heatmap shows the object: `shows` for the macro matrix, where an image counts as a whole, and
        `shown` for the micro matrix, where it counts by the share of its region.
    """
    decided, seen = np.asarray(right, dtype=bool), np.asarray(shown, dtype=np.float64)
    return Confusion(
        tp=float(seen[decided].sum()),
        fn=float((1 - seen[decided]).sum()),
        fp=float(seen[~decided].sum()),
        tn=float((1 - seen[~decided]).sum()),
    )
