"""The results as a page of docs: counts by family, what is refused and why, then a line a model."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.coverage.catalogue import FAMILIES
from experiments.coverage.measure import PARAMETERS, TOLERANCE

PAGE = Path(__file__).parents[2] / "docs" / "coverage-models.md"
TITLES = {
    "transformers": "Hugging Face transformers, from configuration",
    "torchvision": "torchvision classification",
    "segmentation": "torchvision segmentation",
    "detection": "torchvision detection: backbone and heads",
    "keras": "keras.applications",
    "timm": "timm, one of each module",
}
HEAD = f"""# Which architectures convert, are explained and conserve relevance

Written by `make bench-coverage` ([experiments/coverage](../experiments/coverage)); random weights and a random picture
or sentence (seed 0), the smallest picture that the architecture runs on, batch 1.

- **converted**: the exporter's model agrees with the framework in ONNX Runtime (relative difference in the table);
  in float64 where it says so: these random networks make a rounding error large, so that float32 decides the result.
- **explained**: every node between input and output has a rule, and relevance is finite. Composite `epsilon` with
  `bias="ignore"` and `eps={PARAMETERS["eps"]:g}`, float64, target: the highest output.
- **conserving**: every node hands on the relevance that arrives or says who has it, to {TOLERANCE:g} of the sum of its
  absolute values, and inputs and ledger together have all of the seed.
- **reached**: relevance of the inputs, relative to the seed. **absorbed**: what the ledger names: the `softmax` rule,
  whose formula (AttnLRP) absorbs, and constants that are parts of tensors, such as class tokens.
"""


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A table of counts by family."""
    lines = ["| family | measured | converted | explained | conserving |", "| --- | --- | --- | --- | --- |"]
    for family in FAMILIES:
        own = [row for row in rows if row["family"] == family]
        counts = [sum(key in row for row in own) for key in ("difference", "reached")]
        conserving = sum(bool(row.get("conserving")) for row in own)
        measured = f"{len(own)} of {len(FAMILIES[family][0]())}"
        lines.append(f"| {TITLES[family]} | {measured} | {counts[0]} | {counts[1]} | {conserving} |")
    return lines


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The page in Markdown."""
    import onnxruntime
    import torch

    processors = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in processors.read_text().splitlines() if "model name" in line]
    processor = f"{len(models)} x {models[0]}; " if models else ""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}"
    parts = [HEAD, *summary(rows), f"\n{processor}{versions}.\n"]
    failures = [row for row in rows if "reached" not in row or not row["conserving"]]
    if failures:
        parts.append("## Short of the goal\n")
        parts += [f"- {row['family']} `{row['model']}`: {_reason(row)}" for row in sorted(failures, key=_place)]
    for family in FAMILIES:
        own = sorted((row for row in rows if row["family"] == family), key=_place)
        parts += [f"\n## {TITLES[family]}\n", *_table(own)] if own else []
    return "\n".join(parts) + "\n"


def _place(row: dict[str, Any]) -> tuple[int, str]:
    return list(FAMILIES).index(row["family"]), row["model"].lower()


def _reason(row: dict[str, Any]) -> str:
    if "reached" in row:
        return f"{row['worst']} loses {row['lost']:.1e} of what arrives; not accounted for: {row['closing']:.1e}"
    kind = "refused" if "refused" in row else "failed"
    text = row.get("refused") or row.get("crashed") or ""
    return f"{kind} at {row['step']}: {text[:300]}"


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| model | input | difference | nodes | largest loss | reached | absorbed | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        size = " ".join("x".join(map(str, shape)) for shape in row.get("size", ()))
        seconds = f"{row['convert_s']:.0f} + {row['explain_s']:.1f}" if "explain_s" in row else "–"
        difference = _difference(row) if "difference" in row else "–"
        told = ["–"] * 4
        if "reached" in row:
            told = [
                str(row["nodes"]),
                f"{row['lost']:.0e}",
                _share(row["reached"]),
                _share(sum(row["absorbed"].values())),
            ]
        lines.append(f"| {' | '.join([row['model'], size, difference, *told, seconds])} |")
    return lines


def _difference(row: dict[str, Any]) -> str:
    exactly = any("rounding errors large" in note for note in row["notes"])
    return f"{row['difference']:.0e}{' (float64)' if exactly else ''}"


def _share(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.0e}"
