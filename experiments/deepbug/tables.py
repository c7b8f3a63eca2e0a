"""The study's tables, from what `judge` and `compare` left in their folders."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.deepbug.bench import COMPOSITE
from experiments.deepbug.boards import NEW
from lrp_onnx.debug.confusion import confusion
from lrp_onnx.debug.localisation import EVERYTHING
from lrp_onnx.debug.stability import ALL
from lrp_onnx.engine import DEFAULT_COMPOSITE

Row = dict[str, Any]
RULES = {"": COMPOSITE, "-default": DEFAULT_COMPOSITE}  # by the end of a folder's name


def scores(folders: Sequence[Path]) -> list[Row]:
    """A row a model, its rules and a set of pictures: scores, measures and both matrices of the study."""
    rows = []
    for folder in folders:
        for end, rules in RULES.items():
            images = _read(folder / f"localisation{end}" / "images.csv")
            for name, members in _sets(images).items():
                right = [image["decision"] == "right" for image in members]
                covered = [0.0 if one["size"] == EVERYTHING else float(one["covered"]) for one in members]
                macro, micro = (
                    confusion(right, [float(one["score_0_1"]) for one in members]),
                    confusion(right, covered),
                )
                measures = {key: _mean(members, key) for key in ("area", "mass", "rank", "pointing")}
                rows.append(
                    {
                        "model": folder.name,
                        "rules": rules,
                        "pictures": name,
                        "images": len(members),
                        "right": np.mean(right),
                        "score 0/1": _mean(members, "score_0_1"),
                        "score 0-3": _mean(members, "score_0_3"),
                        **measures,
                        **{f"macro {key.upper()}": getattr(macro, key) for key in ("tp", "fn", "fp", "tn")},
                        **{f"micro {key.upper()}": getattr(micro, key) for key in ("tp", "fn", "fp", "tn")},
                    }
                )
    return rows


def parts(folders: Sequence[Path]) -> list[Row]:
    """A row a model, class, decision and part: decisions that it carried, its share of picture and relevance."""
    rows = []
    for folder in folders:
        for row in _read(folder / "localisation" / "parts.csv"):
            if int(row["carried"]) or row["mass"]:
                numbers = {key: float(row[key]) if row[key] else None for key in ("area", "mass")}
                shown = {"class": row["group"], "decision": row["decision"], "part": row["part"]}
                counts = {"images": int(row["images"]), "carried": int(row["carried"]), "share": float(row["share"])}
                rows.append({"model": folder.name, **shown, **counts, **numbers})
    return rows


def variations(folders: Sequence[Path]) -> list[Row]:
    """A row a variation: of each model accuracy, likeness to the original's heatmap, score 0/1, decisions carried by
    the background."""
    rows: dict[str, Row] = {}
    for folder in folders:
        images: dict[str, list[Mapping[str, str]]] = {}
        for image in _read(folder / "varied-localisation" / "images.csv"):
            images.setdefault(Path(image["image"]).stem.split("--", 1)[1], []).append(image)
        for row in _read(folder / "stability" / "stability.csv"):
            if row["label"] == ALL:
                name, members = row["variation"], images[row["variation"]]
                rows.setdefault(name, {"variation": name, "images": int(row["images"])})
                rows[name] |= {
                    f"{folder.name} right": float(row["accuracy"]),
                    f"{folder.name} rank": float(row["rank"]),
                    f"{folder.name} score 0/1": _mean(members, "score_0_1"),
                    f"{folder.name} background": np.mean([one["carried_by"] == "background" for one in members]),
                }
    return list(rows.values())


def winners(pairs: Iterable[Path]) -> list[Row]:
    """A row a pair of models and group of varied pictures on which one is better beyond chance; and all pictures."""
    rows = []
    for pair in pairs:
        one, other = (model["name"] for model in json.loads((pair / "summary.json").read_text())["models"])
        names = {"A": one, "B": other, "": "–"}
        for row in _read(pair / "groups.csv"):
            if row["kind"] != "part" and (row["kind"] == "all" or row["winner"]):
                numbers = {"p": float(row["p"]), "same decision": float(row["same"]), "rank": float(row["rank"])}
                right = {"right A": float(row["accuracy_a"]), "right B": float(row["accuracy_b"])}
                group = row["name"] if row["kind"] != "all" else "all"
                rows.append({"A": one, "B": other, "group": group, **right, **numbers, "better": names[row["winner"]]})
    return rows


def faithfulness(folders: Sequence[Path]) -> list[Row]:
    """A row a model and its rules: what `evaluate` measured, and its judgement of the randomised weights."""
    wanted = {
        "flipping": ("loss_most", "loss_random"),
        "road": ("loss_most", "loss_random"),
        "randomisation": ("rank_first", "rank_all"),
    }
    rows = []
    for folder in folders:
        for end, rules in RULES.items():
            found = json.loads((folder / f"evaluation{end}" / "summary.json").read_text())["verdicts"]
            by_name = {verdict["metric"]: verdict for verdict in found}
            numbers = {f"{m} {key}": by_name[m]["numbers"][key] for m, keys in wanted.items() for key in keys}
            judged = {"follows the weights": by_name["randomisation"]["judgement"]}
            rows.append({"model": folder.name, "rules": rules, **numbers, **judged})
    return rows


def overfitting(folders: Mapping[str, Path]) -> list[Row]:
    """A row a measure over all classes of each check, and one with its verdict."""
    rows: list[Row] = []
    for name, folder in folders.items():
        verdict = json.loads((folder / "verdict.json").read_text())["finding"]["verdict"]
        rows.append({"trained on": name, "measure": f"**{verdict}**"})
        for row in _read(folder / "measures.csv"):
            if row["group"] == "all classes":
                numbers = {key: float(row[key]) for key in ("training_mean", "heldout_mean", "a12", "p_adjusted")}
                rows.append(
                    {"trained on": name, "measure": row["measure"], **numbers, "differs": "yes" * int(row["differs"])}
                )
    return rows


def write_table(name: str, rows: Sequence[Row], folder: Path) -> str:
    """Write ``folder/name.csv``; the same as Markdown."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows([_cell(row.get(column), ".6g") for column in columns] for row in rows)
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(column), ".3g") for column in columns] for row in rows)]
    return "\n".join([f"### {name}", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def _cell(value: Any, form: str) -> str:
    return "" if value is None else format(value, form) if isinstance(value, float) else str(value)


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _sets(images: Sequence[Mapping[str, str]]) -> dict[str, list[Mapping[str, str]]]:
    """Boards by whether their theme was there in training; photographs as one set."""
    sets: dict[str, list[Mapping[str, str]]] = {}
    for image in images:
        name = Path(image["image"]).stem
        board = name.startswith("test-")
        key = ("new themes" if name.endswith(NEW) else "themes of the training") if board else "photographs"
        sets.setdefault(key, []).append(image)
    return sets


def _mean(images: Sequence[Mapping[str, str]], key: str) -> float:
    known = [float(image[key]) for image in images if image[key]]
    return float(np.mean(known)) if known else float("nan")
