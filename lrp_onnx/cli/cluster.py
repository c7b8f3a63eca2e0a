"""`lrp-onnx cluster`: root-cause clusters of the errors in a heatmap store."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrp_onnx.cli.options import JsonOption, OverwriteOption, SchedulerOption
from lrp_onnx.cli.output import count, show_json, show_notes, steps

if TYPE_CHECKING:
    from lrp_onnx.hudd.outputs import Clustered, ClusterSummary

NAME = "cluster"
_MOST_PAIRS = 3  # confusions shown for a cluster


def command(
    store: Annotated[
        Path,
        typer.Argument(metavar="STORE", help="HDF5 file of `heatmaps --errors … --layers all`.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write.")] = Path("clusters"),
    profile: Annotated[
        str,
        typer.Option(
            "--profile",
            metavar="default|hudd|features",
            help="How to cluster; hudd: as published; features: the images as a network sees them, for comparison.",
        ),
    ] = "default",
    k: Annotated[
        int | None, typer.Option("--k", help="Number of clusters; found by default.", show_default=False)
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            "--layer", metavar="NAME|input", help="Layer to cluster; the best by default.", show_default=False
        ),
    ] = None,
    linkage: Annotated[
        str, typer.Option("--linkage", metavar="ward|average|complete|single", help="How clusters merge.")
    ] = "ward",
    min_size: Annotated[
        int | None,
        typer.Option(
            "--min-size",
            help="Smaller clusters are noise; 2 by default, in profile hudd 1, in profile features 5.",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        str, typer.Option("--metric", metavar="euclidean|cosine", help="Distance between heatmaps.")
    ] = "euclidean",
    reduce: Annotated[
        str,
        typer.Option(
            "--reduce",
            metavar="none|channels|spatial",
            help="Compare heatmaps, or their sums per channel, or per position.",
        ),
    ] = "none",
    micro: Annotated[
        int | None,
        typer.Option(
            "--micro",
            metavar="N",
            help="Cluster N errors that stand for all, the others join them; 0: cluster all. 5000 above 20000 errors.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", metavar="cpu|cuda", help="Where to compute distances of heatmaps.")
    ] = "cpu",
    scheduler: SchedulerOption = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", metavar="FILE", help="Profile features: the ONNX model of the heatmaps.", show_default=False
        ),
    ] = None,
    backbone: Annotated[
        Path | None,
        typer.Option(
            "--backbone", metavar="FILE", help="Profile features: another network instead of it.", show_default=False
        ),
    ] = None,
    xlsx: Annotated[
        bool, typer.Option("--xlsx", help="Write the chosen layer's distances as a spreadsheet too.")
    ] = False,
    heatmaps: Annotated[
        bool, typer.Option("--heatmaps/--no-heatmaps", help="Show the heatmap beside each image.")
    ] = True,
    correct: Annotated[
        Path | None,
        typer.Option(
            "--correct",
            metavar="STORE",
            help="Heatmaps of images handled correctly, which the report holds against each cluster.",
            show_default=False,
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Group errors by the similarity of their heatmaps; look at a few images a cluster instead of at every failure.

    LayerX/ in the folder holds the images, a contact sheet and an animation of each cluster, and clusters.csv;
    report.html shows and explains them on one page.
    Interrupted work goes on where it was when the same command runs again.
    """
    from lrp_onnx.files import refuse_existing
    from lrp_onnx.hudd.outputs import cluster_store
    from lrp_onnx.hudd.report import write_report
    from lrp_onnx.store import HeatmapStore

    report = output / "report.html"
    refuse_existing(report, overwrite)
    if correct is not None:
        HeatmapStore(correct).close()  # what cannot be read should show before the work, not after it
    with steps() as advance:
        found = cluster_store(
            store,
            output,
            profile=profile,
            k=k,
            layer=layer,
            linkage=linkage,
            min_size=min_size,
            metric=metric,
            reduce=reduce,
            micro=micro,
            device=device,
            scheduler=scheduler,
            model=model,
            backbone=backbone,
            heatmaps=heatmaps,
            xlsx=xlsx,
            overwrite=overwrite,
            progress=advance,
        )
        write_report(report, output, store=store, correct=correct, overwrite=overwrite, progress=advance)
    if as_json:
        show_json(_as_data(found) | {"report": report})
        return
    show_notes(found.notes)
    _print(found)
    print(f"{report} shows and explains them")


def _as_data(found: Clustered) -> dict[str, Any]:
    clustering = found.clustering
    plain = ("profile", "layer", "how_layer", "linkage", "k", "how_k", "noise")
    scores = {name: vars(one) for name, one in clustering.layers.items()}
    columns = ("k", "how_k", "score", "silhouette", "weighted_distance", "wicd")
    return {
        "folder": found.folder,
        "chosen": found.chosen,
        **{name: getattr(clustering, name) for name in plain},
        "clusters": [asdict(one) for one in found.clusters],
        "layers": {name: {column: one[column] for column in columns} for name, one in scores.items()},
        "images": found.images,
        "inspected": found.inspected,
        "without_image": found.without_image,
        "spreadsheet": found.spreadsheet,
        "notes": found.notes,
    }


def _print(found: Clustered) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    clustering = found.clustering
    print(f"layer {clustering.layer} ({clustering.how_layer})")
    noise = clustering.k - len(clustering.medoids)
    some = f", {noise} of them noise" if noise else ""
    print(f"{count(clustering.k, 'cluster')}{some} ({clustering.how_k})")
    table = Table("cluster", "images", "silhouette", "medoid", "expected -> predicted", box=None, pad_edge=False)
    for column, overflow in (("medoid", "fold"), ("expected -> predicted", "fold")):
        next(c for c in table.columns if c.header == column).overflow = overflow  # type: ignore[assignment]
    for one in found.clusters:
        name = "noise" if one.medoid is None else str(one.cluster)
        medoid = "" if one.medoid is None else Path(one.medoid).name
        table.add_row(name, str(one.size), f"{one.silhouette:.2f}", Text(medoid), Text(_pairs(one)))
    console = Console(highlight=False)
    Console(highlight=False, width=None if console.is_terminal else 100).print(table)
    for reason in clustering.noise:
        print(f"noise: {reason}")
    clusters = [one for one in found.clusters if one.medoid is not None]
    if clusters:
        print(
            f"to inspect: {found.inspected} images (5 a cluster) instead of {found.images} failures, "
            f"{found.inspected / found.images:.1%}"
        )
    print(f"{found.chosen} holds the images, contact sheets and animations of each cluster")
    if found.spreadsheet:
        print(f"{found.spreadsheet} holds the distances of the layer")
    if found.without_image:
        print(f"{count(found.without_image, 'image')} could not be read again")


def _pairs(one: ClusterSummary) -> str:
    shown = ", ".join(
        f"{expected} -> {predicted} ({size})" for expected, predicted, size in one.confusions[:_MOST_PAIRS]
    )
    return shown + (f" and {len(one.confusions) - _MOST_PAIRS} more" if len(one.confusions) > _MOST_PAIRS else "")
