"""`lrp-onnx render`: a heatmap store as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrp_onnx.cli.options import JsonOption, OverwriteOption
from lrp_onnx.cli.output import count, progress, show_json
from lrp_onnx.errors import DataError

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
    class_mean: Annotated[
        bool,
        typer.Option(
            "--class-mean", help="Instead of samples: the heatmaps of each class, aligned and stacked into one."
        ),
    ] = False,
    by: Annotated[
        str,
        typer.Option(
            "--by",
            metavar="class|CLUSTERS",
            help="With --class-mean: stack by class, or by cluster (the folder or clusters.csv of `cluster`).",
        ),
    ] = "class",
    regions: Annotated[
        Path | None,
        typer.Option(
            "--regions",
            metavar="REGIONS",
            help="With --class-mean: where objects are, as `localise` reads them; by default where the relevance is.",
            show_default=False,
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw heatmaps, overlays on the pictures, and contact sheets; of texts, their tokens in colours. See index.html.

    With --class-mean: a generic heatmap of each class and its spread, all images, right and wrong ones; see sheet.png.
    """
    if class_mean:
        _class_means(store, output, by, regions, cmap, limit, overwrite, as_json)
        return
    if by != "class" or regions is not None:
        raise DataError("--by and --regions say how to stack heatmaps; use them with --class-mean")
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
                "texts": result.texts,
            }
        )
        return
    if result.texts:
        print(f"{count(result.texts, 'text')} with coloured tokens -> {result.index}")
        return
    print(f"{count(len(result.pictures), 'picture')}, {count(len(result.sheets), 'contact sheet')} -> {result.index}")
    if result.without_image:
        print(f"{count(result.without_image, 'sample')} without a photograph: the image could not be read again")


def _class_means(
    store: Path,
    output: Path,
    by: str,
    regions: Path | None,
    cmap: str,
    limit: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    from lrp_onnx.debug.class_mean import write_class_means

    with progress("Stacking") as advance:
        found = write_class_means(
            store, output, by=by, regions=regions, cmap=cmap, limit=limit, overwrite=overwrite, progress=advance
        )
    if as_json:
        show_json(vars(found))
        return
    for reason, images in found.left_out.items():
        print(f"{count(images, 'image')} left out: {reason}")
    print(f"{count(found.images, 'image')} in {count(len(found.pictures), 'group')} -> {found.sheet}")
