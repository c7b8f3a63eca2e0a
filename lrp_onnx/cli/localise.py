"""`lrp-onnx localise`: heatmaps against hand-labelled regions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrp_onnx.cli.options import JsonOption, OverwriteOption
from lrp_onnx.cli.output import count, progress, show_json, show_notes

if TYPE_CHECKING:
    from lrp_onnx.debug.localisation_report import Localised

NAME = "localise"
_MOST_NAMES, _MOST_GROUPS = 5, 12
_SHOWN = {
    "mass": "relevance in the region",
    "rank": "of the strongest pixels, in the region",
    "pointing": "strongest spot in the region",
    "iou_best": "overlap (IoU), best threshold",
}


def command(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="HDF5 file of `heatmaps`.", show_default=False)],
    regions: Annotated[
        Path,
        typer.Argument(
            metavar="REGIONS",
            help="COCO .json; Pascal VOC .xml or a folder of them; .csv (image,label,part,x1,y1,x2,y2 or polygon); or "
            "a folder of mask .png files named as the pictures.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write.")] = Path(
        "localisation"
    ),
    threshold: Annotated[
        float, typer.Option("--threshold", help="Share of the strongest colour from where on a heatmap counts as red.")
    ] = 0.2,
    smoothing: Annotated[
        float, typer.Option("--smoothing", help="Blur before that, as a share of the heatmap's edge.")
    ] = 0.02,
    margin: Annotated[
        float, typer.Option("--margin", help="Share of the region that must be red for the object to be shown.")
    ] = 0.5,
    factor: Annotated[
        float, typer.Option("--factor", help="A part carried the decision if so many times as dense as the rest.")
    ] = 3.0,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how well heatmaps lie on regions that people marked, and which part carried each decision.

    Names that are no class of the model count as parts, and so do COCO and CSV parts, and names such as "car/wheel".
    """
    from lrp_onnx.debug.localisation_report import localise_store

    with progress("Measuring") as advance:
        found = localise_store(
            store,
            regions,
            output,
            threshold=threshold,
            smoothing=smoothing,
            margin=margin,
            factor=factor,
            overwrite=overwrite,
            progress=advance,
        )
    if as_json:
        show_json({"folder": found.folder, **found.summary})
        return
    show_notes(found.notes)
    _print(found)


def _print(found: Localised) -> None:
    from rich.console import Console
    from rich.table import Table

    means: dict[str, dict[str, Any]] = {"all": found.summary["all"], **found.summary["by_decision"]}
    table = Table("", *(f"{name} ({one['images']})" for name, one in means.items()), box=None, pad_edge=False)
    for name, text in _SHOWN.items():
        table.add_row(text, *(_percent(one[name]) for one in means.values()))
    table.add_row("region's share of the picture (chance)", *(_percent(one["area"]) for one in means.values()))
    table.add_row("score, 0 to 1", *(f"{one['score_0_1']:.2f}" for one in means.values()))
    table.add_row("score, 0 to 3", *(f"{one['score_0_3']:.2f}" for one in means.values()))
    console = Console(highlight=False)
    Console(highlight=False, width=None if console.is_terminal else 100).print(table)
    sizes = ", ".join(f"{size} {number}" for size, number in found.summary["all"]["sizes"].items())
    print(f"red area: {sizes}")
    print("what carried the decisions:")
    groups = list(dict.fromkeys((row.group, row.decision) for row in found.parts))
    for group in groups[:_MOST_GROUPS]:
        rows = [row for row in found.parts if (row.group, row.decision) == group and row.carried]
        print(f"  {group[0]}, {group[1]}: {', '.join(f'{row.part} {row.carried}' for row in rows)}")
    if len(groups) > _MOST_GROUPS:
        print(f"  and {len(groups) - _MOST_GROUPS} more in parts.csv")
    skipped = tuple(f"{path} ({reason})" for path, reason in found.skipped.items())
    for names, what in (
        (found.without_region, "without a region"),
        (found.without_image, "with regions, but not in the store"),
        (skipped, "left out"),
    ):
        if names:
            more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
            print(f"{count(len(names), 'image')} {what}: {', '.join(names[:_MOST_NAMES])}{more}")
    print(f"{count(len(found.images), 'image')} -> {found.folder}")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
