"""Figures are legible, keep their layout and never vary from run to run."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrp_onnx.errors import DataError
from lrp_onnx.render import SheetItem, bar_strip, colour_bar, contact_sheet, heatmap_figure, png_bytes, save_png
from lrp_onnx.render.colours import colour_table
from lrp_onnx.render.figures import _fit, _width

RED_INK = (0xC6, 0x28, 0x28)


def _has_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((picture == np.array(colour, dtype=np.uint8)).all(axis=2).any())


def _grey(level: int = 90, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    return np.full((*size, 3), level, dtype=np.uint8)


def test_png_bytes_are_the_same_in_another_process() -> None:
    code = (
        "import numpy as np, hashlib; from lrp_onnx.render import heatmap_figure, png_bytes;"
        "r = np.linspace(-1, 1, 600).reshape(20, 30);"
        "print(hashlib.sha256(png_bytes(heatmap_figure(r, 'coffee'))).hexdigest())"
    )
    hashes = {subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout for _ in range(2)}
    assert len(hashes) == 1


def test_png_holds_the_picture_and_no_metadata(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    path = save_png(picture, tmp_path / "new" / "picture.png")
    with Image.open(path) as image:
        assert image.info == {}
        assert np.array_equal(np.asarray(image), picture)
    assert [each.name for each in path.parent.iterdir()] == ["picture.png"]
    chunks = png_bytes(picture)
    assert not any(name in chunks for name in (b"tIME", b"tEXt", b"iTXt", b"eXIf"))
    assert Image.open(io.BytesIO(chunks)).size == (7, 9)


def test_only_pictures_become_png() -> None:
    with pytest.raises(DataError, match="float64"):
        png_bytes(np.zeros((4, 4, 3)))


@pytest.mark.parametrize("vmax", [None, 0.0, 3.25e-7, 51.0])
@pytest.mark.parametrize("cmap", ["seismic", "viridis"])
def test_colour_bar_runs_from_the_strongest_colour_down(vmax: float | None, cmap: str) -> None:
    bar = colour_bar(200, vmax=vmax, cmap=cmap)
    table = colour_table(cmap).astype(int)
    assert bar.shape[0] == 200
    assert np.abs(bar[10, 8] - table[-1]).max() < 10
    assert np.abs(bar[-11, 8] - table[0]).max() < 10
    assert (bar[:, 20:] < 120).any()  # ticks have numbers


def test_colour_bar_is_wide_enough_for_its_numbers() -> None:
    bar = colour_bar(120, vmax=1.234e-25)
    assert (bar[:, -1] == 255).all()


def test_colour_bar_must_have_room() -> None:
    with pytest.raises(DataError, match="at least 40"):
        colour_bar(10, vmax=1.0)


def test_bars_rise_red_for_positive_and_hang_blue_for_negative_relevance() -> None:
    strip = bar_strip(np.array([1.0, -1.0]), height=100, width=200, percentile=100).astype(int)
    above, below = strip[25], strip[75]
    assert above[50].tolist() == [128, 0, 0]
    assert below[150].tolist() == [0, 0, 76]
    assert above[150].tolist() == below[50].tolist() == [255, 255, 255]


def test_bars_of_more_units_than_pixels_keep_the_strongest() -> None:
    relevance = np.full(10_000, 0.001)
    relevance[5_000] = -1.0
    strip = bar_strip(relevance, height=40, width=100, vmax=1.0)
    assert strip.shape == (40, 100, 3)
    assert (strip[30:, 45:55] == [0, 0, 76]).all(axis=2).any()


@pytest.mark.parametrize("relevance", [np.zeros((5, 5)), np.zeros(5), np.ones((1, 1)), np.ones((2, 900))])
def test_a_figure_is_drawn_for_relevance_of_any_extent(relevance: np.ndarray) -> None:
    figure = heatmap_figure(relevance, "a title that is much too long for so small a figure " * 5, height=100)
    assert figure.dtype == np.uint8
    assert figure.shape[0] < 200
    assert figure.shape[1] < 700


def test_a_figure_names_what_it_shows() -> None:
    relevance = np.zeros((8, 8))
    assert not np.array_equal(heatmap_figure(relevance, "one")[:30, :60], heatmap_figure(relevance, "two")[:30, :60])


def test_long_text_loses_its_middle_and_fits() -> None:
    name = "/features/stage3/block2/conv1/depthwise/Conv_output_0"
    cut = _fit(name, 15, 150)
    assert _width(cut, 15) <= 150
    assert cut.startswith("/feat")
    assert cut.endswith("put_0")
    assert _fit("short", 15, 150) == "short"


def test_text_that_the_font_lacks_is_not_drawn_as_boxes() -> None:
    assert _fit("Café", 15, 500) == "Cafe"
    assert _fit("猫 cat", 15, 500) == "? cat"


def test_wrong_samples_are_captioned_in_red_and_others_are_not() -> None:
    right = contact_sheet([SheetItem([_grey()], ["expected cat", "predicted cat 0.9"])])
    wrong = contact_sheet([SheetItem([_grey()], ["expected cat", "predicted dog 0.9"], wrong=True)])
    assert not _has_colour(right, RED_INK)
    assert _has_colour(wrong, RED_INK)


def test_a_sheet_shows_every_picture_of_every_item() -> None:
    levels = [10 * i for i in range(1, 13)]
    items = [SheetItem([_grey(a), _grey(b)], ["x"]) for a, b in zip(levels[::2], levels[1::2], strict=True)]
    sheet = contact_sheet(items, columns=4, cell=40)
    for level in levels:
        assert ((sheet == level).all(axis=2)).sum() >= 39 * 39


def test_columns_and_headings_set_the_layout() -> None:
    items = [SheetItem([_grey()], heading=name) for name in ("cat", "cat", "dog")]
    wide, narrow = contact_sheet(items, columns=3, cell=200), contact_sheet(items, columns=1, cell=200)
    assert wide.shape[0] < narrow.shape[0]
    assert wide.shape[1] > narrow.shape[1] or wide.shape[1] == 520
    without = contact_sheet([SheetItem([_grey()]) for _ in items], columns=3, cell=200)
    assert wide.shape[0] > without.shape[0] + 200  # the heading "dog" began a row of its own


def test_a_sheet_needs_items_and_pictures() -> None:
    with pytest.raises(DataError, match="needs items"):
        contact_sheet([])
    with pytest.raises(DataError, match="float64"):
        contact_sheet([SheetItem([np.zeros((4, 4, 3))])])
