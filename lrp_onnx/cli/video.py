"""`lrp-onnx video`: a clip through a model, frame by frame."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lrp_onnx.cli.options import (
    BiasOption,
    ClassesOption,
    CompositeOption,
    EpsOption,
    ExtensionsOption,
    GammaOption,
    HighOption,
    JsonOption,
    LowOption,
    Model,
    OverwriteOption,
    PreprocessOption,
    RuleOption,
    load_model,
    read_composite,
    run_extensions,
)
from lrp_onnx.cli.output import count, progress, show_json, show_notes, status

NAME = "video"
_MOST_LABELS = 5


def command(
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="Video file.", show_default=False)],
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write.")] = Path("video"),
    wanted: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="NAME",
            help="Find the frame in which this class (name or number) scores highest, and explain it; repeatable.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[int, typer.Option("--every", min=1, help="Only each so many-th frame.")] = 1,
    seconds: Annotated[
        str | None,
        typer.Option("--seconds", metavar="A:B", help="Only from A to B; either may be left out.", show_default=False),
    ] = None,
    smooth: Annotated[
        float,
        typer.Option("--smooth", min=0, help="Label each frame by the mean scores of the last so many seconds."),
    ] = 0.0,
    heatmaps: Annotated[bool, typer.Option("--heatmaps", help="Also a video of heatmaps over the frames.")] = False,
    heatmap_every: Annotated[
        int, typer.Option("--heatmap-every", min=1, help="Explain only each so many-th of these frames.")
    ] = 1,
    composite: CompositeOption = "epsilon-plus-flat",
    rule: RuleOption = None,
    extensions: ExtensionsOption = None,
    longest: Annotated[int, typer.Option("--longest", min=16, help="Longer edge of what is written, pixels.")] = 640,
    preprocess: PreprocessOption = None,
    classes: ClassesOption = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            min=1,
            help="Frames at a time. Left out: 8, or as many as can be explained in half the free memory.",
            show_default=False,
        ),
    ] = None,
    eps: EpsOption = None,
    gamma: GammaOption = None,
    bias: BiasOption = None,
    low: LowOption = None,
    high: HighOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Classify every frame of a clip: a table, a timeline, a video with labels, and by option one with heatmaps.

    DIR appears when all is done; interrupted work leaves nothing. Times are seconds from the clip's first frame.
    """
    run_extensions(extensions)
    rules = read_composite(composite, rule, eps=eps, gamma=gamma, bias=bias, low=low, high=high)
    with status(f"Loading {model}"):
        from lrp_onnx.debug.video import analyse_video, read_span
        from lrp_onnx.memory import keep_freed_memory

        keep_freed_memory()
        start, end = read_span(seconds)
        graph = load_model(model, preprocess, classes)
    with progress("Watching") as advance:
        result = analyse_video(
            clip,
            graph,
            output,
            classes=wanted or (),
            every=every,
            start=start,
            end=end,
            smooth=smooth,
            heatmaps=heatmaps,
            heatmap_every=heatmap_every,
            composite=rules,
            longest=longest,
            batch_size=batch_size,
            overwrite=overwrite,
            progress=advance,
        )
    if as_json:
        show_json(asdict(result))
        return
    show_notes(result.notes)
    explained = f", {result.explained} explained" if result.explained else ""
    print(
        f"{count(result.frames, 'frame')}{explained}, {result.frames / result.seconds:.1f} a second -> {result.folder}"
    )
    for name, frames in list(result.labels.items())[:_MOST_LABELS]:
        print(f"  {frames / result.frames:6.1%}  {name}")
    if len(result.labels) > _MOST_LABELS:
        print(f"  and {len(result.labels) - _MOST_LABELS} more labels (summary.json)")
    for peak in result.peaks:
        print(f"{peak.name}: highest score {peak.score:.3g} at {peak.time:.2f} s (frame {peak.frame})")
