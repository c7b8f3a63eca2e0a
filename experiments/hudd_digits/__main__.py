"""Does HUDD's choice of what to label improve a classifier of digits, and more than chance does?

Command: `python -m experiments.hudd_digits`, or with `--profile hudd`; README.md says what is compared and what came.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import mannwhitneyu

from experiments.hudd_digits.digits import split, train
from experiments.hudd_digits.loop import chosen_rows, classes_of, find_root_causes, improve
from lrp_onnx.hudd import verdict

APPROACHES = ("HUDD", "random", "failing")
HEADER = (
    "seed", "errors", "layer", "clusters", "labels", "wrong of them", "wrong of all", "trained on", "before", "HUDD",
    "random", "failing", "improved / worsened by HUDD",
)  # fmt: skip


def run_seed(seed: int, folder: Path, options: argparse.Namespace) -> np.ndarray:
    """Print a row of the table; gains in accuracy by approach and repetition, percentage points (3, repetitions)."""
    digits = split(folder, seed)
    graph = train(digits.training, seed)
    before, labels = classes_of(graph, digits.test), digits.test.labels
    failing = classes_of(graph, digits.improvement) != digits.improvement.labels
    causes = find_root_causes(graph, digits, np.flatnonzero(before != labels), folder, options.profile, options.factor)
    verdicts, rows = [], {}
    for repetition in range(options.repetitions):
        again = 100 * seed + repetition
        rows = chosen_rows(causes, failing, again)
        settings = {"epochs": options.epochs, "learning_rate": options.learning_rate, "patience": None}
        after = {name: improve(graph, digits, rows[name], again, **settings) for name in APPROACHES}
        verdicts.append([verdict(before, after[name], labels) for name in APPROACHES])
    accuracy = 100 * np.array([[one.accuracy_after for one in each] for each in verdicts]).T
    changed = [float(np.mean([len(getattr(each[0], what)) for each in verdicts])) for what in ("improved", "worsened")]
    start, labelled = 100 * verdicts[0][0].accuracy_before, causes.labelled
    print_row(
        seed,
        len(causes.wrong),
        causes.clustering.layer,
        len(causes.clustering.sizes),
        len(labelled),
        f"{failing[labelled].mean():.0%}",
        f"{failing.mean():.0%}",
        len(rows["HUDD"]),
        f"{start:.2f}",
        *(f"{mean:.2f}" for mean in accuracy.mean(axis=1)),
        "{:.0f} / {:.0f}".format(*changed),
    )
    return accuracy - start


def summarise(gains: np.ndarray) -> None:
    """Print mean and spread of the gains (seeds, 3, repetitions), and HUDD against each baseline."""
    of_seed = gains.mean(axis=2)
    print()
    print_row("approach", "gain, points", "spread over seeds", "seeds improved", "runs improved", "p", "A12 of HUDD")
    print_row(*["---"] * 7)
    for place, name in enumerate(APPROACHES):
        own, runs = of_seed[:, place], gains[:, place]
        statistic, p = mannwhitneyu(of_seed[:, 0], own)
        against = ("", "") if place == 0 else (f"{p:.3f} (U = {statistic:g})", f"{statistic / len(own) ** 2:.2f}")
        improved = (f"{(values > 0).sum()} of {values.size}" for values in (own, runs))
        print_row(name, f"{own.mean():+.2f}", f"{own.std(ddof=1):.2f}", *improved, *against)


def print_row(*cells: object) -> None:
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", choices=("default", "hudd"), default="default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--repetitions", type=int, default=3, help="retrainings of each approach a seed")
    parser.add_argument("--factor", type=float, default=2.0, help="images to label for each error of a cluster")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    options = parser.parse_args()
    torch.set_num_threads(1)  # so small a network is slower on more
    start = time.perf_counter()
    print_row(*HEADER)
    print_row(*["---"] * len(HEADER))
    gains = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            gains.append(run_seed(seed, Path(folder), options))
    summarise(np.array(gains))
    print(f"\n{options}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
