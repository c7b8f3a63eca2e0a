"""A heatmap store of texts as a page: tokens coloured by their relevance, and a table of the numbers."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.errors import StoreError
from lrp_onnx.render.colours import colour_map, robust_max, to_rgb
from lrp_onnx.render.figures import number
from lrp_onnx.render.page import colours, page_template
from lrp_onnx.store import HeatmapStore

PAGE, TABLE = "index.html", "tokens.csv"
_CONTINUES, _BEGINS = "##", ("Ġ", "▁")  # how WordPiece, and byte-level BPE and SentencePiece, mark parts of words


@dataclass(frozen=True)
class Token:
    """One token on the page: what is shown, what is said of it, its colours, whether it begins a word."""

    text: str
    title: str
    paper: str
    ink: str
    begins: bool


@dataclass(frozen=True)
class Text:
    """One text on the page: where it is from, what is known of it, the largest |relevance|, its tokens."""

    name: str
    about: str
    scale: str
    wrong: bool
    tokens: tuple[Token, ...]


def render_texts(
    store: HeatmapStore,
    rows: Sequence[int],
    out: Path,
    *,
    cmap: str = "seismic",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `index.html` and `tokens.csv` into a folder; the page.

    Parameters
    ----------
    store : HeatmapStore
        With tokens.
    rows : sequence of int
        The texts to show, in this order.
    cmap
        As `to_rgb`; every text is scaled on its own, to its largest |relevance|.
    progress : callable (done, total), optional

    Raises
    ------
    StoreError
        Relevance is no number, or the folder cannot be written.
    """
    words, texts = store.tokens, list[Text]()
    assert words is not None
    captions = _Captions(store)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / TABLE).open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("text", "position", "token", "relevance"))
            for done, row in enumerate(rows, start=1):
                places = np.flatnonzero(words[row] != "")
                values = np.asarray(store.attribution[row], np.float64)[places]
                if not np.isfinite(values).all():
                    raise StoreError(f"{store.path}: row {row} holds NaN or infinite relevance; compute it in float64")
                shown = [str(word) for word in words[row][places]]
                name = captions.name(row)
                table.writerows((name, *line) for line in zip(places.tolist(), shown, map(_exact, values), strict=True))
                scale = robust_max(values, 100)
                tokens = _tokens(shown, values, scale, cmap)
                texts.append(Text(name, captions.about(row), number(scale), captions.wrong(row), tokens))
                if progress:
                    progress(done, len(rows))
        page = page_template("render/texts.html.j2").render(
            model=PurePosixPath(str(store.attrs["model"])).name,
            target=str(store.attrs["target"]),
            store=store.path.name,
            texts=texts,
            colours=colours(cmap),
            low="−max" if colour_map(cmap).signed else "0",
        )
        (out / PAGE).write_text(page, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error.strerror or error}; free space or name another folder") from error
    return out / PAGE


class _Captions:
    """What is said of each text."""

    def __init__(self, store: HeatmapStore) -> None:
        self.samples, self.classes = store.samples, store.classes or []
        sums = store.conservation
        self.explained = None if sums is None else sums[1][:, -1]
        # of a target with a name of its own, the class with the largest score is beside the point
        self.target = str(store.attrs["target"]) if ":" in str(store.attrs["target"]) else ""

    def name(self, row: int) -> str:
        return PurePosixPath(str(self.samples["path"][row]).replace("\\", "/")).name

    def wrong(self, row: int) -> bool:
        return int(self.samples["correct"][row]) == 0

    def about(self, row: int) -> str:
        label, predicted, target = (int(self.samples[name][row]) for name in ("label", "predicted", "target"))
        parts = [f"expected {self._class(label)}"] if label >= 0 else []
        if not self.target and predicted >= 0:
            parts.append(f"predicted {self._class(predicted)}")
            if target not in (predicted, -1):
                parts.append(f"explains {self._class(target)}")
        if self.explained is not None:
            parts.append(f"{self.target or 'explained value'} {number(float(self.explained[row]))}")
        return " · ".join(parts)

    def _class(self, index: int) -> str:
        return str(self.classes[index]) if 0 <= index < len(self.classes) else f"class {index}"


def _tokens(words: Sequence[str], values: NDArray[np.float64], scale: float, cmap: str) -> tuple[Token, ...]:
    paper = to_rgb(values[None], cmap=cmap, vmax=scale)[0]  # (T, 3)
    light = paper @ np.array([0.299, 0.587, 0.114]) > 140
    marked = any(word.startswith(_BEGINS) for word in words)
    result = []
    for place, word in enumerate(words):
        begins = word.startswith(_BEGINS) if marked else not word.startswith(_CONTINUES)
        shown = word.removeprefix(_CONTINUES).lstrip("".join(_BEGINS)) or word
        title = f"{word}: {values[place]:+.4g}"
        result.append(Token(shown, title, "#{:02x}{:02x}{:02x}".format(*paper[place]), _ink(light[place]), begins))
    return tuple(result)


def _ink(light: bool) -> str:
    return "#1f2328" if light else "#ffffff"


def _exact(value: float) -> str:
    return f"{value:.8g}"
