"""What retraining changed: which images became right, which became wrong, overall and per cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lrp_onnx.errors import DataError


@dataclass(frozen=True)
class ClusterVerdict:
    """Of one cluster: its size, how many of its images were right before and after, how many changed each way."""

    cluster: int
    size: int
    correct_before: int
    correct_after: int
    improved: int
    worsened: int


@dataclass(frozen=True, eq=False)
class Verdict:
    """Two models on the same n images.

    Attributes
    ----------
    images : int
    accuracy_before, accuracy_after : float
        Share of correct images, 0 to 1.
    improved, worsened : int64 arrays
        Rows of the images that became right, and of those that became wrong.
    clusters : tuple of ClusterVerdict
        By cluster number; images in no cluster (-1) are in none.
    """

    images: int
    accuracy_before: float
    accuracy_after: float
    improved: np.ndarray
    worsened: np.ndarray
    clusters: tuple[ClusterVerdict, ...] = ()

    @property
    def better(self) -> bool:
        """Whether more images are correct than before."""
        return self.accuracy_after > self.accuracy_before

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON."""
        plain = {**vars(self), "better": self.better, "clusters": [dict(vars(c)) for c in self.clusters]}
        return plain | {"improved": self.improved.tolist(), "worsened": self.worsened.tolist()}


def verdict(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray | None, clusters: np.ndarray | None = None
) -> Verdict:
    """Compare a model before and after retraining.

    Parameters
    ----------
    before, after : (n,) or (n, K)
        Predicted classes (whole numbers), or scores of K > 1 classes; or bool (n,), whether an image is correct, which
        is how regression is judged (loss below a threshold).
    labels : int (n,) or None
        Expected classes; None with bool.
    clusters : int (n,), optional
        Root-cause cluster of each image, -1 for none.

    Raises
    ------
    DataError
        When the arrays do not fit each other, or there are no images.
    """
    was, now = _correct(before, labels, "before"), _correct(after, labels, "after")
    if was.shape != now.shape or not len(was):
        raise DataError(f"{len(was)} images before and {len(now)} after retraining; expected as many, and at least one")
    groups: list[ClusterVerdict] = []
    if clusters is not None:
        clusters = np.asarray(clusters)
        if clusters.shape != was.shape or clusters.dtype.kind not in "iu":
            raise DataError(
                f"clusters: expected whole numbers of shape {was.shape}, got {clusters.dtype} {clusters.shape}"
            )
        for cluster in np.unique(clusters[clusters >= 0]):
            old, new = was[clusters == cluster], now[clusters == cluster]
            counts = (len(old), old.sum(), new.sum(), (~old & new).sum(), (old & ~new).sum())
            groups.append(ClusterVerdict(int(cluster), *(int(count) for count in counts)))
    return Verdict(
        len(was),
        float(was.mean()),
        float(now.mean()),
        np.flatnonzero(~was & now),
        np.flatnonzero(was & ~now),
        tuple(groups),
    )


def _correct(values: np.ndarray, labels: np.ndarray | None, what: str) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype == bool:
        if values.ndim != 1 or labels is not None:
            raise DataError(f"{what}: correctness is bool (n,) and comes without labels")
        return values
    if values.ndim == 2 and values.shape[1] > 1:
        values = values.argmax(axis=1)
    if labels is None or values.ndim != 1 or values.dtype.kind not in "iu":
        raise DataError(
            f"{what}: expected classes (n,) or scores (n, K > 1) with labels, got {values.dtype} {values.shape}"
        )
    labels = np.asarray(labels)
    if labels.shape != values.shape or labels.min(initial=0) < 0:
        raise DataError(f"labels: expected class indexes of shape {values.shape}, got {labels.shape}")
    return values == labels
