"""A heatmap store as a folder of pictures: heatmaps, overlays, inner layers, contact sheets, a page to see them."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.errors import DataError, StoreError
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.render.colours import RGB, colour_map, overlay, reduce_channels, robust_max, to_rgb
from lrp_onnx.render.figures import SheetItem, bar_strip, contact_sheet, enlarge, number, save_png, two_lines
from lrp_onnx.render.photographs import Photographs
from lrp_onnx.render.regressed import Regressed
from lrp_onnx.render.texts import render_texts
from lrp_onnx.store import HeatmapStore

if TYPE_CHECKING:
    import h5py

IMAGES = ("both", "heatmap", "overlay", "none")
_ORDER = ("wrong", "correct", "without a label")  # on a sheet
_PAGE = 48  # samples on one contact sheet
_CELL = 176


@dataclass(frozen=True)
class Rendered:
    """What `render_store` wrote: the page to open first, the contact sheets, every other picture, how many samples
    went without a photograph because their image could not be read again, and how many texts are on the page."""

    index: Path
    sheets: tuple[Path, ...]
    pictures: tuple[Path, ...]
    without_image: int
    texts: int = 0


def render_store(
    store_path: str | Path,
    out_dir: str | Path,
    *,
    images: str = "both",
    layers: str | Sequence[str] | None = None,
    cmap: str = "seismic",
    percentile: float = 99.5,
    per_class: bool = True,
    limit: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Rendered:
    """Draw the finished samples of a heatmap store; of texts, write a page with coloured tokens (see `render_texts`).

    Under `out_dir` appear `heatmaps/`, `overlays/`, `layers/` (a picture per sample, inner tensors in execution
    order), `sheets/` (contact sheets, wrong predictions first) and `index.html`.

    Parameters
    ----------
    store_path
        HDF5 file as `HeatmapStore` writes it; it may be unfinished.
    out_dir
        Made when missing.
    images
        Pictures per sample: "both", "heatmap", "overlay", or "none" for contact sheets alone. A sample whose image is
        gone gets its heatmap in place of the overlay.
    layers
        Inner tensors to draw: None, "all", or tensor names.
    cmap, percentile
        As `to_rgb`; every heatmap is scaled on its own.
    per_class
        A contact sheet per expected class (per predicted class for unlabelled data), or one for all of them.
    limit
        Draw at most that many samples, in the order of the store.
    overwrite
        Allow an `out_dir` that holds files; those of the same name are replaced.
    progress
        Called with (samples drawn, samples in all).

    Raises
    ------
    StoreError
        The store cannot be read, holds no finished sample, has no such layer or not a number in its relevance, or
        `out_dir` is in use or cannot be written.
    DataError
        An option has no such value.
    """
    if images not in IMAGES:
        raise DataError(f"images can be one of {', '.join(IMAGES)}, got {images!r}")
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, got {limit}")
    colour_map(cmap)
    robust_max([0.0], percentile)
    out = Path(out_dir)
    with HeatmapStore(store_path) as store:
        if store.tokens is not None:
            rows = finished_rows(store)[:limit]
            _claim(out, overwrite)
            page = render_texts(store, rows, out, cmap=cmap, progress=progress)
            return Rendered(page, (), (), 0, len(rows))
        with _reading(store.path):
            album = _Album(store, out, images, layers, cmap, percentile)
        rows = finished_rows(store)[:limit]
        _claim(out, overwrite)
        return album.draw(rows, per_class, progress or (lambda done, total: None))


def finished_rows(store: HeatmapStore) -> list[int]:
    """Rows that are done; StoreError where there are none."""
    rows: list[int] = store.done.tolist()
    if not rows:
        raise StoreError(f"{store.path} holds no finished sample; run `lrp-onnx heatmaps --resume` first")
    return rows


def _claim(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise StoreError(f"cannot write pictures to {out}: it is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise StoreError(f"the folder {out} already holds files; choose another or pass --overwrite")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError) as error:
        raise StoreError(f"{path} is damaged ({error}); compute its heatmaps again") from error


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}; free space or name another folder"
        ) from error


@dataclass
class _Sheet:
    """The samples of a class on their way to paper."""

    name: str
    stem: str
    rows: list[int]
    paths: list[Path] = field(default_factory=list)
    wrong: int = 0


class _Album:
    """One store being drawn; holds what every picture needs."""

    def __init__(
        self,
        store: HeatmapStore,
        out: Path,
        images: str,
        layers: str | Sequence[str] | None,
        cmap: str,
        percentile: float,
    ) -> None:
        self.store, self.out, self.images, self.cmap, self.percentile = store, out, images, cmap, percentile
        self.samples, self.classes = store.samples, store.classes or []
        self.regressed = None if store.target_values is None else Regressed(store)
        self.target = str(store.attrs["target"])
        self.attribution, self.prediction, self.model = store.attribution, store.prediction, str(store.attrs["model"])
        held = store.layer_names
        wanted = held if layers == "all" else [layers] if isinstance(layers, str) else list(layers or ())
        chosen = {name: store.layer(name) for name in wanted}
        self.layers = [chosen[name] for name in held if name in chosen]
        # a sequence, a map, boxes, an embedding: there is no class for the whole sample
        self.classless = self.prediction.ndim > 2 or ":" in self.target
        self.photographs = Photographs(Preprocess.from_json(store.preprocess) if store.preprocess else None)
        self.pictures: list[Path] = []
        self.without_image = 0

    # ---- what is known about a sample

    def class_name(self, index: int) -> str:
        return str(self.classes[index]) if 0 <= index < len(self.classes) else f"class {index}"

    def expected(self, row: int) -> int | None:
        label = int(self.samples["label"][row])
        return None if label < 0 else label

    def wrong(self, row: int) -> bool:
        return self.expected(row) is not None and int(self.samples["correct"][row]) == 0

    def verdict(self, row: int) -> str:
        return "without a label" if self.expected(row) is None else "wrong" if self.wrong(row) else "correct"

    def path(self, row: int) -> str:
        return str(self.samples["path"][row])

    def caption(self, row: int) -> list[str]:
        """Expected, predicted with its score (or loss), what is explained when that is neither, and the file."""
        output = np.asarray(self.prediction[row], dtype=np.float64).ravel()
        name = PurePosixPath(self.path(row).replace("\\", "/")).name
        predicted, target = (int(self.samples[column][row]) for column in ("predicted", "target"))
        label = self.expected(row)
        if self.regressed is not None:
            return [*self.regressed.lines(row), name]
        if predicted < 0:
            return [f"predicted {_numbers(output)}", name]
        if self.classless:
            return [f"explains {self.target}", name]
        lines = [f"predicted {self.class_name(predicted)}  {_score(output, predicted)}"]
        if label is not None:
            lines.insert(0, f"expected {self.class_name(label)}")
        if target >= 0 and target != predicted:
            lines.append(f"explains {self.class_name(target)}")
        return [*lines, name]

    def file_stem(self, row: int) -> str:
        """The row keeps names unique; the rest is the sample's own name with only characters safe everywhere."""
        name = PurePosixPath(self.path(row).replace("\\", "/")).name
        return f"{row:05d}-{_safe(re.sub(r'[.][A-Za-z0-9]{1,5}$', '', name))}".rstrip("-")

    # ---- pictures

    def image(self, row: int) -> RGB | None:
        """What the model saw, rebuilt from the sample's file; None when that is gone."""
        return self.photographs.read(self.path(row))

    def values(self, dataset: h5py.Dataset, row: int) -> NDArray[np.float64]:
        """Relevance of one sample as something to draw: (H, W), or (D,) for what extends in one direction only."""
        with _reading(self.store.path):
            values = np.asarray(dataset[row], dtype=np.float64)
        if not np.isfinite(values).all():
            raise StoreError(
                f"{self.store.path}: {dataset.name}, row {row} ({self.path(row)}) holds NaN or infinite relevance; "
                "compute it again with another composite or in float64"
            )
        if values.ndim >= 2 and values.shape[-2:] != (1, 1):
            values = reduce_channels(values)
        return values.ravel() if values.ndim < 2 or 1 in values.shape else values

    def heatmap(self, values: NDArray[np.float64]) -> RGB:
        if values.ndim == 1:
            return bar_strip(values, cmap=self.cmap, percentile=self.percentile, height=_CELL, width=_CELL)
        return to_rgb(values, cmap=self.cmap, percentile=self.percentile)

    def save(self, picture: RGB, folder: str, stem: str) -> None:
        self.pictures.append(self.write(picture, folder, stem))

    def write(self, picture: RGB, folder: str, stem: str) -> Path:
        path = self.out / folder / f"{stem}.png"
        with _writing(path):
            return save_png(picture, path)

    def draw_sample(self, row: int) -> list[RGB]:
        """Write the sample's own pictures; return those for the contact sheet."""
        values, stem = self.values(self.attribution, row), self.file_stem(row)
        heatmap, image = self.heatmap(values), self.image(row)
        shown = [heatmap]
        if image is None:
            self.without_image += 1
        elif values.ndim == 2:
            laid_over = overlay(image, values, cmap=self.cmap, percentile=self.percentile)
            shown = [image, heatmap, laid_over]
            if self.images in ("both", "overlay"):
                self.save(laid_over, "overlays", stem)
        if self.images in ("both", "heatmap") or (self.images == "overlay" and len(shown) == 1):
            self.save(heatmap, "heatmaps", stem)
        if self.layers:
            self.save(self.layer_sheet(row, shown[-1]), "layers", stem)
        return [enlarge(picture, _CELL) for picture in shown]  # a page of them must not grow with the model's input

    def layer_sheet(self, row: int, first: RGB) -> RGB:
        items = [SheetItem([first], ["input"])]
        for layer in self.layers:
            values = self.values(layer, row)
            shape = " x ".join(str(size) for size in layer.shape[1:])
            caption = [*two_lines(str(layer.attrs["tensor"]), _CELL), f"{layer.attrs.get('op_type', '')}  {shape}"]
            items.append(SheetItem([self.heatmap(values)], caption))
        *about, name = self.caption(row)
        return contact_sheet(items, columns=6, title=name, subtitle=" · ".join(about), cmap=self.cmap, cell=_CELL)

    # ---- sheets

    def groups(self, rows: Sequence[int], per_class: bool) -> list[_Sheet]:
        by_class: dict[int, list[int]] = {}
        for row in rows:
            label = self.expected(row)
            index = int(self.samples["predicted"][row]) if label is None else label
            classes = per_class and self.regressed is None and (label is not None or not self.classless)
            by_class.setdefault(index if classes else -1, []).append(row)
        sheets = []
        for index in sorted(by_class):
            name = "all samples" if index < 0 else self.class_name(index)
            ordered = sorted(by_class[index], key=lambda row: (_ORDER.index(self.verdict(row)), row))
            stem = "all" if index < 0 else f"{index:04d}-{_safe(name)}".rstrip("-")
            sheets.append(_Sheet(name, stem, ordered, wrong=sum(map(self.wrong, ordered))))
        return sheets

    def draw(self, rows: Sequence[int], per_class: bool, progress: Callable[[int, int], None]) -> Rendered:
        sheets, done = self.groups(rows, per_class), 0
        labelled = any(self.expected(row) is not None for row in rows)
        for sheet in sheets:
            pages = [sheet.rows[i : i + _PAGE] for i in range(0, len(sheet.rows), _PAGE)]
            for page, on_page in enumerate(pages, start=1):
                items = []
                for row in on_page:
                    heading = self.verdict(row) if labelled else ""
                    items.append(SheetItem(self.draw_sample(row), self.caption(row), self.wrong(row), heading))
                    done += 1
                    progress(done, len(rows))
                stem = sheet.stem + (f"-page{page}" if len(pages) > 1 else "")
                about = [self.summary(sheet), self.model]
                about += [f"page {page} of {len(pages)}"] if len(pages) > 1 else []
                picture = contact_sheet(
                    items, title=sheet.name, subtitle=" · ".join(filter(None, about)), cmap=self.cmap, cell=_CELL
                )
                sheet.paths.append(self.write(picture, "sheets", stem))
        index = self.out / "index.html"
        with _writing(index):
            index.write_text(self.page(sheets), encoding="utf-8")
        return Rendered(
            index, tuple(path for s in sheets for path in s.paths), tuple(self.pictures), self.without_image
        )

    def summary(self, sheet: _Sheet) -> str:
        count = f"{len(sheet.rows)} sample{'s' if len(sheet.rows) != 1 else ''}"
        return f"{count}, {sheet.wrong} wrong" if any(self.expected(row) is not None for row in sheet.rows) else count

    def page(self, sheets: Sequence[_Sheet]) -> str:
        parts = [
            f"<section><h2>{html.escape(sheet.name)} <small>{self.summary(sheet)}</small></h2>"
            + "".join(
                f'<a href="sheets/{path.name}"><img src="sheets/{path.name}" alt="" loading="lazy"></a>'
                for path in sheet.paths
            )
            + "</section>"
            for sheet in sheets
        ]
        return _PAGE_HTML.format(
            model=html.escape(self.model), store=html.escape(self.store.path.name), body="\n".join(parts)
        )


_PAGE_HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Heatmaps of {model}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 1760px; margin: 2rem auto; padding: 0 1rem }}
h2 small {{ font-weight: normal; color: #6a737d }}
img {{ max-width: 100%; border: 1px solid #d0d7de }}
</style></head><body>
<h1>Heatmaps of {model}</h1>
<p>From {store}. Each heatmap has its own scale; wrong predictions come first, captioned in red.</p>
{body}
</body></html>
"""


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")[:60]


def _score(output: NDArray[np.float64], predicted: int) -> str:
    """The probability that softmax gives the prediction; a single output has none and is shown as it is."""
    if output.size < 2:
        return _numbers(output)
    odds = np.exp(output - output.max())
    return f"{odds[predicted] / odds.sum():.2f}"


def _numbers(values: NDArray[np.float64]) -> str:
    return ", ".join(number(float(value)) for value in values[:4]) + (" …" if values.size > 4 else "")
