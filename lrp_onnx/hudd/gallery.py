"""The images of each cluster in a folder, on a contact sheet and as an animation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.hudd.clusters import NOISE, Clustering
from lrp_onnx.hudd.samples import Samples, save_gif
from lrp_onnx.render import SheetItem, contact_sheet, save_png

MOST_ON_SHEET, MOST_FRAMES = 48, 200  # two minutes of animation


def groups(clustering: Clustering) -> list[int]:
    """Cluster numbers, largest cluster first, and -1 at the end if there is noise."""
    return [*clustering.medoids, *([NOISE] if (clustering.labels == NOISE).any() else [])]


def write_gallery(
    samples: Samples,
    rows: NDArray[np.int64],
    clustering: Clustering,
    folder: Path,
    progress: Callable[[int, int], None],
) -> int:
    """For each cluster, and for noise, write a folder of images, ``<cluster>.png`` and ``<cluster>.gif``.

    Parameters
    ----------
    samples : Samples
    rows : int array (n,)
        Row in the store of each clustered image.
    clustering : Clustering
    folder : pathlib.Path
    progress : callable (done, total)

    Returns
    -------
    int
        Images that could not be read again.
    """
    done = without = 0
    for label in groups(clustering):
        group = _Group(samples, rows, clustering, label)
        (folder / group.name).mkdir()
        without += group.place(folder / group.name)
        save_png(group.sheet(), folder / f"{group.name}.png")
        save_gif((group.frame(place) for place in group.spread(MOST_FRAMES)), folder / f"{group.name}.gif")
        done += len(group.images)
        progress(done, len(rows))
    return without


class _Group:
    """One cluster, or the noise: its images, the medoid first, then by distance to it; noise in order of the store."""

    def __init__(self, samples: Samples, rows: NDArray[np.int64], clustering: Clustering, label: int) -> None:
        self.samples, self.rows, self.clustering = samples, rows, clustering
        self.name = "noise" if label == NOISE else str(label)
        self.title = "noise" if label == NOISE else f"cluster {label}"
        self.medoid, distance = clustering.medoids.get(label), clustering.distance_to_medoid
        images: list[int] = np.flatnonzero(clustering.labels == label).tolist()
        if self.medoid is not None:
            images.sort(key=lambda image: (image != self.medoid, distance[image], image))
        self.images = images

    def place(self, folder: Path) -> int:
        """Put the images into a folder; how many there were no images of."""
        numbered = enumerate(self.images, start=1)
        return sum(not self.samples.place(int(self.rows[image]), folder, number) for number, image in numbered)

    def spread(self, most: int) -> list[int]:
        """Places of at most so many images, the first, the last and others at equal distances between them."""
        count = len(self.images)
        return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()

    def sheet(self) -> NDArray[np.uint8]:
        shown, count = self.spread(MOST_ON_SHEET), len(self.images)
        about = [f"{count} image{'' if count == 1 else 's'}" + (f", {len(shown)} shown" if len(shown) < count else "")]
        about += [f"layer {self.clustering.layer}"]
        about += ["medoid first, then by distance to it"] if self.medoid is not None and count > 1 else []
        if self.samples.heatmaps:
            items = [self._item(place, self._where(place)) for place in shown]
            return contact_sheet(items, title=self.title, subtitle=" · ".join(about))
        # Under a title stands the colour scale of heatmaps; without them a heading takes its place.
        heading = " · ".join([self.title, *about])
        items = [replace(self._item(place, self._where(place)), heading=heading) for place in shown]
        return contact_sheet(items, columns=6)

    def frame(self, place: int) -> SheetItem:
        return self._item(place, f"{self.title} · {place + 1} of {len(self.images)} · {self._where(place)}")

    def _item(self, place: int, first: str) -> SheetItem:
        row = int(self.rows[self.images[place]])
        return SheetItem(self.samples.pictures(row), [first, *self.samples.lines(row), self.samples.name(row)])

    def _where(self, place: int) -> str:
        image = self.images[place]
        if self.medoid is None:
            return f"silhouette {self.clustering.silhouettes[image]:.2f}"
        if image == self.medoid:
            return "medoid"
        return f"distance {self.clustering.distance_to_medoid[image]:.3g}"
