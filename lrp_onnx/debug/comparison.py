"""Two models on the same images: `compare_stores` writes tables, pictures and a page about where they differ."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lrp_onnx.debug.comparison_groups import ComparedImage, GroupRow, disagreements, group_rows
from lrp_onnx.debug.comparison_heatmaps import HeatmapPairs
from lrp_onnx.debug.comparison_page import comparison_page
from lrp_onnx.debug.comparison_pairs import Pairs
from lrp_onnx.debug.comparison_parts import PairCarried, PartComparison, RegionPairs, compare_parts
from lrp_onnx.debug.comparison_pictures import comparison_sheet, groups_chart, most_different
from lrp_onnx.debug.parts import mean
from lrp_onnx.debug.region_files import read_regions
from lrp_onnx.debug.regions import Regions
from lrp_onnx.debug.stability import read_manifest
from lrp_onnx.errors import DataError
from lrp_onnx.folders import folder_written_whole
from lrp_onnx.hudd.records import write_csv
from lrp_onnx.render import save_png
from lrp_onnx.store import HeatmapStore

IMAGES, GROUPS, PARTS, DISAGREEMENTS, SUMMARY, REPORT, SHEET, CHART = (
    "images.csv",
    "groups.csv",
    "parts.csv",
    "disagreements.csv",
    "summary.json",
    "report.html",
    "sheet.png",
    "groups.png",
)
_SETTINGS = {
    "composite": "by different rules (composites)",
    "target": "of different targets",
    "seed": "from different initial relevance (seeds)",
}


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare_stores` found and wrote.

    Attributes
    ----------
    folder, report : pathlib.Path
    names : (str, str)
        Of the models A and B.
    images : tuple of ComparedImage
        In both stores.
    groups : tuple of GroupRow
        All images first.
    parts : tuple of PartComparison
        Empty without regions.
    only_a, only_b : tuple of str
        Paths of images with a heatmap in one store alone.
    summary : dict
        What summary.json holds.
    notes : tuple of str
    """

    folder: Path
    report: Path
    names: tuple[str, str]
    images: tuple[ComparedImage, ...]
    groups: tuple[GroupRow, ...]
    parts: tuple[PartComparison, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    summary: dict[str, Any]
    notes: tuple[str, ...]


def compare_stores(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    regions: Regions | str | os.PathLike[str] | None = None,
    manifest: str | os.PathLike[str] | None = None,
    smooth: float = 2.0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Compare the decisions and the heatmaps of two models on the images that both stores hold.

    Under `out` appear ``report.html`` (self-contained), ``images.csv`` (a row an image), ``groups.csv`` and ``.png``
    (all images, classes, variations and parts, see `GroupRow`), ``parts.csv`` (see `PartComparison`),
    ``disagreements.csv``, ``sheet.png`` and ``summary.json``.

    Parameters
    ----------
    a, b : path-like
        Heatmap stores. Images are matched by path, classes by name.
    out : path-like
    regions : Regions or path-like, optional
        See `read_regions`.
    manifest : path-like, optional
        Of `write_variations`, when the images are variations.
    smooth : float
        Standard deviation by which heatmaps are blurred before they are compared, % of the short edge.
    overwrite : bool
        Replace an earlier comparison at `out`.
    progress : callable, optional
        Called with (images done, images in all).

    Raises
    ------
    LrpOnnxError
        DataError, StoreError or OutputError: something cannot be read, the stores have no image or no class in common,
        or `out` may not be replaced; what was there stays.
    """
    if not 0 <= smooth <= 100:
        raise DataError(f"smooth is {smooth}; expected 0 to 100, % of the short edge")
    marked = read_regions(regions) if isinstance(regions, (str, os.PathLike)) else regions
    varied = {} if manifest is None else {one.path: (one.source, one.variation) for one in read_manifest(manifest)}
    with (
        folder_written_whole(Path(out), DISAGREEMENTS, overwrite=overwrite) as folder,
        HeatmapStore(a) as one,
        HeatmapStore(b) as other,
    ):
        pairs, heatmaps = Pairs(one, other), HeatmapPairs(one, other, smooth)
        looked_up = None if marked is None else RegionPairs(one, other, marked)
        images, carried = [], []
        for image, parts in _compare(pairs, heatmaps, looked_up, varied):
            images.append(image)
            carried += [parts] if parts else []
            if progress:
                progress(len(images), len(pairs))
        names = _names(one, other)
        groups, parts_table = group_rows(images), compare_parts(carried) if carried else []
        notes = [*pairs.notes, *_notes(pairs, heatmaps, images, len(carried) if marked else None, manifest)]
        chance = _json(mean(heatmaps.chance))
        summary = _summary(pairs, images, groups, parts_table, names, notes) | {"smooth": smooth, "chance": chance}
        _write_tables(folder, images, groups, parts_table)
        (folder / SUMMARY).write_text(json.dumps(summary, ensure_ascii=False, indent=1), encoding="utf-8")
        showcase = most_different(images)
        save_png(groups_chart(groups, names), folder / CHART)
        if showcase:
            save_png(comparison_sheet(pairs, showcase, names), folder / SHEET)
        page = comparison_page(pairs, images, groups, parts_table, showcase, summary)
        (folder / REPORT).write_text(page, encoding="utf-8")
    return Comparison(
        Path(out),
        Path(out) / REPORT,
        names,
        tuple(images),
        tuple(groups),
        tuple(parts_table),
        tuple(pairs.only_a),
        tuple(pairs.only_b),
        summary,
        tuple(notes),
    )


def _compare(
    pairs: Pairs, heatmaps: HeatmapPairs, regions: RegionPairs | None, varied: dict[str, tuple[str, str]]
) -> Iterator[tuple[ComparedImage, PairCarried | None]]:
    for pair in pairs:
        source, variation = varied.get(pair.path, (pair.path, ""))
        rank, cosine = heatmaps.compare(pair.rows, pair.path, source)
        parts = None if regions is None else regions.at(pair.rows)
        yield (
            ComparedImage(
                path=pair.path,
                source=source,
                expected=pair.expected,
                variation=variation,
                predicted_a=pair.a.predicted,
                predicted_b=pair.b.predicted,
                right_a=pair.a.right,
                right_b=pair.b.right,
                confidence_a=pair.a.confidence,
                confidence_b=pair.b.confidence,
                explained_a=pair.a.explained,
                explained_b=pair.b.explained,
                rank=rank,
                cosine=cosine,
                row_a=pair.rows[0],
                row_b=pair.rows[1],
                parts=parts.names if parts else (),
            ),
            parts,
        )


def _names(one: HeatmapStore, other: HeatmapStore) -> tuple[str, str]:
    """Of the models; of the stores where the models have one name."""
    models = str(one.attrs["model"]), str(other.attrs["model"])
    return models if models[0] != models[1] else (one.path.name, other.path.name)


def _notes(
    pairs: Pairs,
    heatmaps: HeatmapPairs,
    images: Sequence[ComparedImage],
    with_region: int | None,
    manifest: str | os.PathLike[str] | None,
) -> Iterator[str]:
    one, other = (samples.store.attrs for samples in pairs.samples)
    if one["model_sha256"] == other["model_sha256"]:
        yield "both stores are of the same model"
    for name, words in _SETTINGS.items():
        if _setting(one, name) != _setting(other, name):
            yield (
                f"the heatmaps were made {words}: {_setting(one, name)} in A, {_setting(other, name)} in B; a part of "
                "their difference comes from that"
            )
    if not heatmaps.same_input:
        yield "the models see pictures in different ways; heatmaps are compared on the part of a picture that both see"
    if lost := sum(math.isnan(image.rank) for image in images):
        yield f"images whose heatmaps cannot be compared (without relevance, or picture not readable): {lost}"
    if unknown := sum(not image.outcome for image in images):
        yield f"images on which not both models are known to be right or wrong: {unknown}"
    if with_region is not None and with_region < len(images):
        yield f"images without a region that both models see: {len(images) - with_region}"
    if manifest is not None and (others := sum(not image.variation for image in images)):
        yield f"images that are not in {manifest}: {others}"


def _setting(attrs: dict[str, Any], name: str) -> str:
    return json.loads(attrs[name]).get("name", "unnamed rules") if name == "composite" else str(attrs[name])


def _summary(
    pairs: Pairs,
    images: Sequence[ComparedImage],
    groups: Sequence[GroupRow],
    parts: Sequence[PartComparison],
    names: Sequence[str],
    notes: Sequence[str],
) -> dict[str, Any]:
    stores = [samples.store for samples in pairs.samples]
    return {
        "models": [
            {
                "name": name,
                "store": str(store.path),
                "model": str(store.attrs["model"]),
                "sha256": str(store.attrs["model_sha256"]),
                **{setting: _setting(store.attrs, setting) for setting in _SETTINGS},
                "input": list(store.attribution.shape[1:]),
            }
            for name, store in zip(names, stores, strict=True)
        ],
        "images": len(images),
        "only_a": pairs.only_a,
        "only_b": pairs.only_b,
        "notes": list(notes),
        "all": _plain(groups[0]),
        "same_explained": _likeness([image for image in images if image.same_explained]),
        "other_explained": _likeness([image for image in images if not image.same_explained]),
        "groups": [_plain(row) for row in groups[1:]],
        "parts": [_plain(row) for row in parts],
        "most_different": [
            {"difference": way, "images": [image.path for image in found]} for way, found in most_different(images)
        ],
    }


def _likeness(images: Sequence[ComparedImage]) -> dict[str, Any]:
    known = [image for image in images if not math.isnan(image.rank)]
    if not known:
        return {"images": 0, "rank": None, "cosine": None}
    means = (sum(getattr(image, name) for image in known) / len(known) for name in ("rank", "cosine"))
    return {"images": len(known), **dict(zip(("rank", "cosine"), means, strict=True))}


def _plain(row: GroupRow | PartComparison) -> dict[str, Any]:
    return {name: _json(value) for name, value in asdict(row).items()}


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _write_tables(
    folder: Path, images: Sequence[ComparedImage], groups: Sequence[GroupRow], parts: Sequence[PartComparison]
) -> None:
    columns = [field.name for field in fields(ComparedImage)]
    write_csv(
        folder / IMAGES,
        ("image", *columns[1:], "outcome"),
        ([*(_cell(getattr(image, name)) for name in columns), image.outcome] for image in images),
    )
    for path, kind, rows in ((GROUPS, GroupRow, groups), (PARTS, PartComparison, parts)):
        if rows:
            header = [field.name for field in fields(kind)]
            write_csv(folder / path, header, ([_cell(value) for value in asdict(row).values()] for row in rows))
    write_csv(folder / DISAGREEMENTS, ("expected", "predicted_a", "predicted_b", "images"), disagreements(images))


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, tuple):
        return "; ".join(value)
    return int(value) if isinstance(value, bool) else f"{value:.6g}" if isinstance(value, float) else value
