"""`lrp-onnx vary`: variations of pictures, and a manifest of what was done to each."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lrp_onnx.cli.options import JsonOption
from lrp_onnx.cli.output import count, progress, show_failures, show_json, show_notes

NAME = "vary"


def command(
    images: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGES",
            help="Folder of pictures (flat, or a sub-folder per class), a picture, or a CSV manifest (image,label).",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write.")] = Path("varied"),
    variation: Annotated[
        list[str] | None,
        typer.Option(
            "--variation",
            metavar="NAME[=VALUE]",
            help="Only this one, such as mirror or rotation=45, with its default values if none is given; repeatable. "
            "There are dark, bright, low-contrast, greyscale, sketch, cartoon, blur, noise, jpeg, rotation, mirror, "
            "perspective, tilt, crop, occlusion, clear-background, cluttered-background.",
            show_default=False,
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            "--masks",
            metavar="DIR",
            help="Masks at the paths of the images, black around the object; the two backgrounds need them.",
            show_default=False,
        ),
    ] = None,
    backgrounds: Annotated[
        Path | None,
        typer.Option(
            "--backgrounds",
            metavar="DIR",
            help="Pictures to clutter backgrounds with; coloured shapes by default.",
            show_default=False,
        ),
    ] = None,
    longest: Annotated[
        int, typer.Option("--longest", min=1, help="Reduce pictures with a longer edge to so many pixels first.")
    ] = 1024,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of noise, occlusion and clutter.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Make pictures darker, blurred, turned, covered and more, to find out what a model cannot stand.

    DIR/manifest.csv is what `test` and `heatmaps` then read as DATA, and `stability` turns their results into a table.
    Interrupted work goes on where it was when the same command runs again.
    """
    from lrp_onnx.debug.variation_images import write_variations

    with progress("Varying") as advance:
        made = write_variations(
            images,
            output,
            variations=variation or None,
            masks=masks,
            backgrounds=backgrounds,
            longest=longest,
            seed=seed,
            progress=advance,
        )
    if as_json:
        show_json(asdict(made))
        return
    show_notes(made.notes)
    show_failures(made.failures)
    already = made.pictures - made.written
    print(
        f"{count(made.images, 'image')}, {count(made.pictures, 'picture')}"
        + (f", {already} of them there already" if already else "")
        + f" -> {made.manifest}"
    )
    print(f"all variations at a glance: {made.sheet}")
