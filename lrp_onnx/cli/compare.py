"""`lrp-onnx compare`: two models on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrp_onnx.cli.options import JsonOption, OverwriteOption, SmoothOption
from lrp_onnx.cli.output import count, progress, show_json, show_notes

if TYPE_CHECKING:
    from lrp_onnx.debug.comparison import Comparison

NAME = "compare"
_MOST_NAMES, _MOST_GROUPS = 5, 12


def command(
    a: Annotated[Path, typer.Argument(metavar="A", help="HDF5 file of `heatmaps`, first model.", show_default=False)],
    b: Annotated[
        Path, typer.Argument(metavar="B", help="The same of the second model, on the same images.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write.")] = Path(
        "comparison"
    ),
    regions: Annotated[
        Path | None,
        typer.Option(
            "--regions",
            metavar="REGIONS",
            help="Marked objects and parts, as `localise` reads them: which model looks at which part.",
            show_default=False,
        ),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest",
            metavar="FILE",
            help="manifest.csv of `vary`, when the images are variations: who stands which.",
            show_default=False,
        ),
    ] = None,
    smooth: SmoothOption = 2.0,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare two models on the same images: who is right where, how alike heatmaps are, where both differ most.

    Images are matched by path, classes by name. Open report.html to see it.
    """
    from lrp_onnx.debug.comparison import compare_stores

    with progress("Comparing") as advance:
        found = compare_stores(
            a,
            b,
            output,
            regions=regions,
            manifest=manifest,
            smooth=smooth,
            overwrite=overwrite,
            progress=advance,
        )
    if as_json:
        show_json({"folder": found.folder, **found.summary})
        return
    show_notes(found.notes)
    _print(found)


def _print(found: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table

    print(f"A: {found.names[0]}, B: {found.names[1]}")
    table = Table(
        "", "images", "A right", "B right", "only A", "only B", "adj. p", "winner", "same", "rank", "cosine", box=None,
        pad_edge=False,
    )  # fmt: skip
    for row in found.groups[:_MOST_GROUPS]:
        table.add_row(
            row.name if row.kind == "all" else f"{row.kind} {row.name}",
            str(row.images),
            *(_percent(value) for value in (row.accuracy_a, row.accuracy_b)),
            str(row.only_a),
            str(row.only_b),
            "-" if row.q is None else f"{row.q:.2g}",
            row.winner or "-",
            _percent(row.same),
            *("-" if value != value else f"{value:.2f}" for value in (row.rank, row.cosine)),
        )
    console = Console(highlight=False)
    Console(highlight=False, width=None if console.is_terminal else 110).print(table)
    if len(found.groups) > _MOST_GROUPS:
        print(f"  and {len(found.groups) - _MOST_GROUPS} more in groups.csv")
    for part in found.parts:
        shares = "" if part.p is None else f"relevance {part.mass_a:.0%} in A, {part.mass_b:.0%} in B; "
        print(f"{part.part}: {shares}carried {part.carried_a} decisions of A, {part.carried_b} of B")
    for model, paths in (("A", found.only_a), ("B", found.only_b)):
        if paths:
            more = f" and {len(paths) - _MOST_NAMES} more" if len(paths) > _MOST_NAMES else ""
            print(f"{count(len(paths), 'image')} in {model} alone: {', '.join(paths[:_MOST_NAMES])}{more}")
    print(f"{count(len(found.images), 'image')} -> {found.report}")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
