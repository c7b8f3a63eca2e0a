"""Pictures of kings and queens on chess boards, and masks that say where which part of the piece is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.hudd_chess.squares import BOARD, SHADES, SQUARE, Painter

CLASSES = ("king", "queen")
PARTS = ("top", "crown", "base")  # thirds of the piece's height, from above: a king's cross, or a queen's balls, first
SEEN = ("alpha", "wikipedia", "wisteria", "sakura")  # in training: flat pieces, of two drawings
NEW = ("uscf", "maestro", "symbol")  # shaded pieces, of another
PICTURE = 96  # pixels: a square and a half
NEIGHBOUR = 0.4  # share of the squares around that hold another piece
_SYMBOLS = {"king": "K", "queen": "Q"}
_OTHERS = "BNRP"


def write_boards(painter: Painter, folder: Path, name: str, themes: Sequence[str], count: int, seed: int) -> Path:
    """Write `count` pictures of each class to ``folder/name/<class>``, and their masks to ``folder/masks/<class>``.

    Theme (the end of a picture's name), colours and neighbours are random; so are rotation (to 10 degrees), scale (0.85
    to 1.15), shift (to 8 % of the picture) and brightness (0.8 to 1.2). A mask's value is the part, as ``names.csv``
    says. Returns the folder of pictures; one that is there stays.
    """
    pictures = folder / name
    if pictures.exists():
        return pictures
    random = np.random.default_rng(seed)
    for label in CLASSES:
        for place in (pictures, folder / "masks"):
            (place / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            theme = random.choice(list(themes)).item()
            picture, mask = _draw(painter, label, theme, random)
            file = f"{name}-{number:04d}-{theme}.png"
            picture.save(pictures / label / file)
            mask.save(folder / "masks" / label / file)
    write_names(folder / "masks", PARTS)
    return pictures


def write_names(folder: Path, parts: Sequence[str]) -> None:
    """Say which part each value of the masks in a folder is, counted from 1."""
    lines = ["value,part", *(f"{value},{part}" for value, part in enumerate(parts, start=1))]
    (folder / "names.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _draw(painter: Painter, label: str, theme: str, random: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    shade = random.choice(SHADES).item()
    board = painter.boards[theme, shade].copy()
    middle = BOARD // 2
    for row in range(middle - 1, middle + 2):
        for column in range(middle - 1, middle + 2):
            if (row, column) != (middle, middle) and random.random() < NEIGHBOUR:
                other = painter.pieces[theme, random.choice(["w", "b"]) + random.choice(list(_OTHERS))]
                board.paste(other, (column * SQUARE, row * SQUARE), other)
    piece = painter.pieces[theme, random.choice(["w", "b"]) + _SYMBOLS[label]]
    place = (middle * SQUARE, middle * SQUARE)
    board.paste(piece, place, piece)
    mask = Image.new("L", board.size)
    mask.paste(_parts(piece), place)
    to_board = _placement(random)
    how = Image.Transform.AFFINE
    shown = np.asarray(board.transform((PICTURE, PICTURE), how, to_board, Image.Resampling.BICUBIC))
    bright = np.clip(np.rint(shown * random.uniform(0.8, 1.2)), 0, 255).astype(np.uint8)
    return Image.fromarray(bright), mask.transform((PICTURE, PICTURE), how, to_board, Image.Resampling.NEAREST)


def _placement(random: np.random.Generator) -> tuple[float, ...]:
    """Pillow's coefficients, from the picture to the board."""
    angle, scale = math.radians(random.uniform(-10, 10)), random.uniform(0.85, 1.15)
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    x, y = (PICTURE * (0.5 + random.uniform(-0.08, 0.08)) for _ in range(2))
    middle = BOARD * SQUARE / 2
    return (cosine, -sine, middle - cosine * x + sine * y, sine, cosine, middle - sine * x - cosine * y)


def _parts(piece: Image.Image) -> Image.Image:
    """The number of the part at each pixel of a piece, 0 beside it."""
    opaque = np.asarray(piece)[..., 3] > 127
    rows = np.flatnonzero(opaque.any(axis=1))
    top, height = rows[0], rows[-1] + 1 - rows[0]
    of_row = (np.arange(len(opaque)) - top) * len(PARTS) // height + 1
    return Image.fromarray(np.where(opaque, of_row[:, None], 0).astype(np.uint8))
