"""`lrp-onnx assign`: the images of an improvement set that are worth a label."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lrp_onnx.cli.options import ClusteredStoreOption, JsonOption, OverwriteOption
from lrp_onnx.cli.output import count, show_json, steps

NAME = "assign"


def command(
    improvement: Annotated[
        Path,
        typer.Argument(
            metavar="IMPROVEMENT_STORE",
            help="HDF5 file of `heatmaps`, with the layer of the clusters.",
            show_default=False,
        ),
    ],
    clusters: Annotated[Path, typer.Option("--clusters", metavar="DIR", help="Folder of `cluster`.")] = Path(
        "clusters"
    ),
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write.")] = Path("UnsafeSet"),
    store: ClusteredStoreOption = None,
    factor: Annotated[
        float, typer.Option("--factor", help="A cluster selects at most so many times as many images as it has.")
    ] = 2.0,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Select the images that resemble a root-cause cluster: the unsafe set, the only one that a person has to label.

    Fill in the column "label" of unsafe.csv in the folder written.
    """
    from lrp_onnx.hudd.unsafe import ASIDE, assign_store

    with steps() as advance:
        found = assign_store(
            improvement, clusters, output, store=store, factor=factor, overwrite=overwrite, progress=advance
        )
    result = found.assignment
    if as_json:
        show_json(
            {
                "folder": found.folder,
                "table": found.table,
                "images": found.images,
                "selected": [asdict(one) for one in result.selected],
                "quotas": dict(result.quotas),
                "thresholds": None if result.thresholds is None else dict(result.thresholds),
                "too_far": result.too_far,
                "over_quota": result.over_quota,
                "explanation": result.explanation,
                "without_image": found.without_image,
                "labelled": found.labelled,
                "set_aside": found.set_aside,
            }
        )
        return
    print(result.explanation)
    for cluster, selected in found.selected.items():
        print(f"cluster {cluster}: {count(selected, 'image')} of at most {result.quotas[cluster]}")
    if found.labelled or found.set_aside:
        aside = f", {found.set_aside} of images not selected now (in {ASIDE})" if found.set_aside else ""
        print(f"kept {count(found.labelled + found.set_aside, 'label')}{aside}")
    if result.selected:
        print(f"fill in the column label of {found.table}")
    if found.without_image:
        print(f"{count(found.without_image, 'image')} could not be read again")
