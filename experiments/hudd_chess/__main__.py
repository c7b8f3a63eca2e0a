"""Do HUDD's clusters of a chess-piece classifier's errors show what went wrong with the pictures (HUDD's RQ1)?

Command: `python -m experiments.hudd_chess WHEELS`, with `--out` to keep what it made; README.md says what is in WHEELS,
what is measured and what came.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from experiments.hudd_chess.network import piece_classifier
from experiments.hudd_chess.squares import DRAWS, Painter, draw_parameters, neutral_parameters, write_squares
from experiments.hudd_chess.study import COMPOSITE, Scores, alternatives, describe, find_root_causes, score
from lrp_onnx.graph import Graph, load
from lrp_onnx.predictions import write_predictions

INSPECTED = 5  # pictures of a cluster that a person looks at, in the paper
WEIGHTS, THEMES = "chess_cv-0.7.2-py3-none-any.whl", "chessboard_image-1.1.6-py3-none-any.whl"
SCORES = (
    "clusters",
    "in no cluster",
    "explained",
    "without class",
    "by chance",
    "shifted",
    "images explained",
    "one class",
)


def run_seed(graph: Graph, painter: Painter, seed: int, folder: Path, options: argparse.Namespace) -> list[dict]:
    """Print a row for each profile; for each profile the scores of every layer, no cluster of which is called noise."""
    random = np.random.default_rng(seed)
    parameters = draw_parameters(painter, options.pictures, options.draw, random)
    manifest = write_squares(painter, parameters, folder / "pictures", random)
    tested = write_predictions(graph, manifest, folder / "results.csv")
    of_profile = []
    for profile in COMPOSITE:
        data = (manifest, tested.path, parameters, folder / profile)
        how = {"profile": profile, "reduce": options.reduce, "pictures": options.out is not None}
        causes = find_root_causes(graph, *data, **how)
        clustering, failing = causes.clustering, len(causes.predicted)
        inspected = sum(min(INSPECTED, size) for size in clustering.sizes.values())
        print_row(
            *(profile, seed, f"{tested.accuracy:.1%}", failing, clustering.layer),
            *as_text(score(causes, clustering.labels, seed)),
            *(inspected, f"{inspected / failing:.1%}"),
        )
        write_description(describe(causes), folder / profile / "causes.md")
        of_profile.append({name: score(causes, labels, seed) for name, labels in alternatives(causes).items()})
    return of_profile


def print_layers(profile: str, of_seed: list[dict[str, Scores]]) -> None:
    """Print a row a layer, mean over the seeds."""
    print()
    print_header(f"{profile}, nothing noise", *SCORES)
    for name in of_seed[0]:
        mean = Scores(*np.mean([scores[name] for scores in of_seed], axis=0))
        print_row(name, *as_text(mean))


def as_text(scores: Scores) -> list[str]:
    return [f"{scores.clusters:.3g}", *(f"{share:.0%}" for share in scores[1:])]


def write_description(rows: list[tuple[str, ...]], path: Path) -> None:
    header = ("cluster", "images", "most frequent", "varies at least 50 % less than over all errors")
    lines = (f"| {' | '.join(row)} |\n" for row in (header, ("---",) * len(header), *rows))
    path.write_text("".join(lines), encoding="utf-8")


def print_header(*cells: str) -> None:
    print_row(*cells)
    print_row(*["---"] * len(cells))


def print_row(*cells: object) -> None:
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheels", type=Path, help=f"folder with {WEIGHTS} and {THEMES}")
    parser.add_argument("--out", type=Path, help="new folder for pictures, heatmaps, clusters and their descriptions")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pictures", type=int, default=6000)
    parser.add_argument("--draw", choices=DRAWS, default=DRAWS[0], help="distribution of the parameters")
    parser.add_argument("--reduce", choices=("none", "channels", "spatial"), default="none", help="of heatmaps")
    parser.add_argument("--as-published", action="store_true", help="do not centre the logits")
    options = parser.parse_args()
    torch.set_num_threads(1)  # so small a network is slower on more
    start = time.perf_counter()
    graph = load(piece_classifier(options.wheels / WEIGHTS, centred=not options.as_published))
    painter = Painter(options.wheels / THEMES)
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary) / "chess"
        neutral = neutral_parameters(painter)
        manifest = write_squares(painter, neutral, out / "neutral", np.random.default_rng(0))
        tested = write_predictions(graph, manifest, out / "neutral.csv")
        print(f"{tested.correct} of {tested.samples} neutral pictures are correct\n")
        print_header("profile", "seed", "accuracy", "failing", "layer", *SCORES, "inspected", "of failing")
        of_seed = [run_seed(graph, painter, seed, out / f"seed{seed}", options) for seed in options.seeds]
    for profile, of_layers in zip(COMPOSITE, zip(*of_seed, strict=True), strict=True):
        print_layers(profile, list(of_layers))
    print(f"\n{options}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
