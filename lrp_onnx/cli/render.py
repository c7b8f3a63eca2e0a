"""`lrp-onnx render`: a heatmap store as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrp_onnx.cli.options import JsonOption, OverwriteOption
from lrp_onnx.cli.output import count, progress, show_json

NAME = "render"


def command(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="HDF5 file of `heatmaps`.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write.")] = Path("pictures"),
    images: Annotated[
        str,
        typer.Option(
            "--images", metavar="both|heatmap|overlay|none", help="Pictures per sample beside the contact sheets."
        ),
    ] = "both",
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            metavar="all|NAMES",
            help="Inner tensors of the store to draw too, separated by commas.",
            show_default=False,
        ),
    ] = None,
    cmap: Annotated[
        str, typer.Option("--cmap", help="Colour map: seismic, bwr, coldnhot, hot, gray, viridis.")
    ] = "seismic",
    percentile: Annotated[
        float, typer.Option("--percentile", help="Of |relevance|, where the colours saturate.")
    ] = 99.5,
    per_class: Annotated[
        bool, typer.Option("--per-class/--one-sheet", help="A contact sheet for each class, or one for all.")
    ] = True,
    limit: Annotated[int | None, typer.Option("--limit", help="Draw the first so many.", show_default=False)] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw heatmaps, overlays on the pictures, and contact sheets; open index.html to see them."""
    from lrp_onnx.render import render_store

    wanted = layers if layers in (None, "all") else [name.strip() for name in layers.split(",")]
    with progress("Drawing") as advance:
        result = render_store(
            store,
            output,
            images=images,
            layers=wanted,
            cmap=cmap,
            percentile=percentile,
            per_class=per_class,
            limit=limit,
            overwrite=overwrite,
            progress=advance,
        )
    if as_json:
        show_json(
            {
                "index": result.index,
                "sheets": result.sheets,
                "pictures": result.pictures,
                "without_image": result.without_image,
            }
        )
        return
    print(f"{count(len(result.pictures), 'picture')}, {count(len(result.sheets), 'contact sheet')} -> {result.index}")
    if result.without_image:
        print(f"{count(result.without_image, 'sample')} without a photograph: the image could not be read again")
