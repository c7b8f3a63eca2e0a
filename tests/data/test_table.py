"""Tables are read as programs and spreadsheets write them."""

from __future__ import annotations

import numpy as np
import pytest

from lrp_onnx.data import batches, open_dataset
from lrp_onnx.data.table import read_table
from lrp_onnx.errors import DataError


@pytest.mark.parametrize(
    "text",
    [
        b"image,label\na.png,1\nb.png,\n",
        b'\xef\xbb\xbf"image";label\r\na.png ; 1\r\n\r\n;\r\nb.png;\r\n',
        b"image\tlabel\ra.png\t1\rb.png\t",
    ],
)
def test_marks_separators_line_ends_and_blank_lines_do_not_matter(tmp_path, text):
    (tmp_path / "t.csv").write_bytes(text)
    table = read_table(tmp_path / "t.csv")
    assert table.header == ("image", "label")
    assert [row for _, row in table.rows] == [{"image": "a.png", "label": "1"}, {"image": "b.png", "label": ""}]


def test_the_separator_is_the_first_even_where_names_hold_others(tmp_path):
    (tmp_path / "t.csv").write_text("image;score_hen, brood; score_cat, felis, domestic\na.png;0,5;0,25\n")
    table = read_table(tmp_path / "t.csv", {"image", "score_hen, brood", "none"})
    assert table.header == ("image", "score_hen, brood")
    assert table.rows == ((2, {"image": "a.png", "score_hen, brood": "0,5"}),)
    assert table.number("0,5") == 0.5
    assert np.isnan(table.number(""))


@pytest.mark.parametrize(("text", "said"), [(b"image\n\xff.png", "UTF-8"), (None, "cannot be read: No such file")])
def test_what_cannot_be_read_is_said(tmp_path, text, said):
    if text is not None:
        (tmp_path / "t.csv").write_bytes(text)
    with pytest.raises(DataError, match=said):
        read_table(tmp_path / "t.csv")


def test_an_empty_cell_is_a_target_that_is_not_known(tmp_path):
    (tmp_path / "m.csv").write_text("Image;Nose_X;Nose_Y\na.png;1,5;\nb.png;;2\n")
    dataset = open_dataset(tmp_path / "m.csv")
    np.testing.assert_array_equal(dataset.targets, [[1.5, np.nan], [np.nan, 2]])
    assert dataset.target_names == ("Nose_X", "Nose_Y")
    assert dataset.subset([1]).target_names == ("Nose_X", "Nose_Y")
    (tmp_path / "m.csv").write_text("image,label\na.png,cat\n")
    assert open_dataset(tmp_path / "m.csv").target_names is None


def test_samples_are_read_by_several_threads_in_order(tmp_path):
    values = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    values[[7, 8, 30]] = np.nan
    np.save(tmp_path / "x.npy", values)
    dataset = open_dataset(tmp_path / "x.npy")
    found = list(batches(dataset, None, 8))
    kept = [row for row in range(50) if row not in (7, 8, 30)]
    assert np.concatenate([batch.rows for batch in found]).tolist() == kept
    np.testing.assert_array_equal(np.concatenate([batch.inputs for batch in found]), values[kept])
    assert list(dataset.failures) == [f"{tmp_path / 'x.npy'}[{row}]" for row in (7, 8, 30)]
