"""How many architectures convert, are explained and conserve relevance; the table goes to docs/coverage-models.md.

Command: `make bench-coverage`, or `python -m experiments.coverage --family timm --only 'swin*' --jobs 1`.
Data: random input and random weights, seed 0. A process a model. A result is a line of JSON in the results file; what
is there already is not measured again unless `--again` says so, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from experiments.coverage.catalogue import FAMILIES
from experiments.coverage.measure import measure, send
from experiments.coverage.page import PAGE, page, summary

RESULTS = Path("build/coverage-models.jsonl")
PRELOADED = ["onnxruntime", "onnxscript", "timm", "torch.onnx", "torchvision"]  # slow to import, the same for all
Row = dict[str, Any]


def read(path: Path) -> dict[tuple[str, str], Row]:
    """Results by family and model; the last line of a model counts."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return {(row["family"], row["model"]): row for row in rows}


def run(family: str, name: str, limit: float) -> Row:
    """Measure in a process of its own, so that its memory is freed and a crash ends nothing else."""
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send, args=(sender, family, name), daemon=True)
    process.start()
    sender.close()
    row: Row = {"family": family, "model": name, "step": "process"}
    try:
        return receiver.recv() if receiver.poll(limit) else {**row, "crashed": f"took longer than {limit:.0f} s"}
    except EOFError:
        process.join()
        return {**row, "crashed": f"its process ended with exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def verdict(row: Row) -> str:
    """One word or the reason."""
    failed = row.get("refused") or row.get("crashed")
    return failed or ("conserves" if row["conserving"] else f"loses {row['lost']:.1e} in {row['worst']}")


def _measure_all(left: list[tuple[str, str]], options: argparse.Namespace, said: Callable[[str], None]) -> None:
    options.results.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with ThreadPoolExecutor(options.jobs) as pool, options.results.open("a") as file:
        pending = [pool.submit(run, *key, options.timeout) for key in left]
        for count, done in enumerate(as_completed(pending), 1):
            row = done.result()
            file.write(json.dumps(row) + "\n")
            file.flush()
            seconds = time.perf_counter() - start
            said(f"{count}/{len(left)} {seconds:.0f} s {row['family']} {row['model']}: {verdict(row)[:200]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--only", default="*", metavar="PATTERN", help="models whose name matches")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N models of each family")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="for one model")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--again", choices=("failed", "all"), help="measure what is there already, too")
    parser.add_argument("--one", nargs=2, metavar=("FAMILY", "MODEL"), help="measure one here and print its result")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one), indent=1))
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // options.jobs)))
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    known = read(options.results)
    left = []
    for family in options.family:
        names = [name for name in FAMILIES[family][0]() if fnmatchcase(name, options.only)]
        for name in names[: options.limit]:
            row = known.get((family, name))
            failed = row is not None and not row.get("conserving")
            if row is None or options.again == "all" or (options.again == "failed" and failed):
                left.append((family, name))
    _measure_all(left, options, lambda line: print(line, flush=True))
    rows = list(read(options.results).values())
    PAGE.write_text(page(rows))
    print("\n".join([*summary(rows), f"table: {PAGE}"]))


if __name__ == "__main__":
    main()
