"""The report: whole and honest in every state of a case, safe with any name, readable without anything else."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lrp_onnx.errors import DataError, OutputError, StoreError
from lrp_onnx.hudd import cluster_store
from lrp_onnx.hudd.report import write_report
from lrp_onnx.hudd.report.contrast import differences, mean_heatmaps
from lrp_onnx.hudd.report.steps import chance_of_change
from lrp_onnx.preprocess import Preprocess
from lrp_onnx.store import HeatmapStore, LayerInfo, StoreSpec

SIZE = 18
LAYER = "/conv/out"
MODEL_SHA256 = "0a" * 32
VOID = {"meta", "img", "br", "path", "circle"}
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A heatmap store with pictures; images of one cause have alike inner heatmaps, `field` is where relevance lies."""

    def make(causes: Any, name: str = "errors", field: tuple[int, int] | None = None, **changes: Any) -> Path:
        causes = np.asarray(causes)
        count, random = len(causes), np.random.default_rng(len(causes))
        correct = changes.pop("correct", 0)
        shape = changes.get("input_shape", (3, SIZE, SIZE))
        predicted = np.arange(count) % 3
        paths = [tmp_path / name / f"{row}.png" for row in range(count)]
        fields: dict[str, Any] = {
            "paths": [str(path) for path in paths],
            "index": np.arange(count),
            "labels": predicted if correct else (predicted + 1) % 3,
            "input_shape": shape,
            "outputs": 3,
            "layers": {LAYER: LayerInfo((8,), "conv", "Conv", 1)},
            "model": "net.onnx",
            "model_sha256": MODEL_SHA256,
            "composite": '{"name": "epsilon", "nodes": {}}',
            "target": "predicted",
            "seed": "logit",
            "preprocess": Preprocess(size=(SIZE, SIZE)).to_json(),
            "classes": ["cat", "dog", "élan"],
        } | changes
        for path in map(Path, fields["paths"]):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(path)
        relevance = random.normal(size=(count, *shape))
        if field is not None:
            third = SIZE // 3
            place = (..., *(slice(third * at, third * (at + 1)) for at in field))
            relevance[place] += 5 * random.random((count, 1, 1, 1))
        centres = 9 * np.random.default_rng(7).normal(size=(60, 8))
        with HeatmapStore.create(tmp_path / f"{name}.h5", StoreSpec(**fields)) as store:
            store.write(
                np.arange(count),
                attribution=relevance * random.lognormal(0, 2, count).reshape(-1, *[1] * len(shape)),
                prediction=np.eye(3)[predicted],
                predicted=np.full(count, -1) if fields.get("target_values") is not None else predicted,
                correct=np.full(count, correct),
                loss=np.arange(count) / 4,
                target=predicted,
                layers={LAYER: centres[causes] + 0.1 * random.normal(size=(count, 8))} if fields["layers"] else {},
            )
            store.finish()
        return tmp_path / f"{name}.h5"

    return make


@pytest.fixture(autouse=True)
def no_gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders, sheets and animations take most of the time of clustering, and the report reads none of them."""
    monkeypatch.setattr("lrp_onnx.hudd.outputs.write_gallery", lambda *_: 0)


CAUSES = [0] * 12 + [1] * 8 + [2] * 4


class _Page(HTMLParser):
    """What a browser would make of a page: its text, tags with attributes, and whether every tag is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.tags, self._open, self._hidden = "", [], [], False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self._open
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data + (" " if self._open[-1:] in (["td"], ["th"], ["li"], ["h3"]) else "")

    def of(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def report(make: Make, tmp_path: Path) -> Callable[..., _Page]:
    """The page about the clusters of a store, options as `write_report` takes them."""

    def report(store: Path, *, case: str = "case", found: dict[str, Any] | None = None, **options: Any) -> _Page:
        if not (tmp_path / case).exists():
            cluster_store(store, tmp_path / case, **(found or {}))
        return _Page(write_report(tmp_path / "report.html", tmp_path / case, overwrite=True, **options))

    return report


def write_results(path: Path, wrong: int, right: int) -> Path:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file, delimiter=";")
        table.writerow(["image", "label", "predicted", "correct", "loss"])
        table.writerows([f"{row}.png", "cat", "dog", int(row >= wrong), "0,5"] for row in range(wrong + right))
    return path


def write_unsafe(folder: Path, labels: list[str], selected: int = 3, **changes: Any) -> Path:
    folder.mkdir()
    chosen = [
        {"image": f"/i/{n}.png", "cluster": 1, "distance": 0.25 * (n + 1), "rank": n + 1, "choice": 1}
        for n in range(selected)
    ]
    values = {
        "format": "lrp-onnx-unsafe-set",
        "format_version": 1,
        "images": 40,
        "layer": LAYER,
        "factor": 2.0,
        "profile": "default",
        "quotas": {"1": 24, "2": 16, "3": 8},
        "thresholds": {"1": 0.875, "2": 0.5, "3": 0.5},
        "too_far": 37,
        "over_quota": 0,
        "explanation": f"{selected} of 40 images selected & more",
        "selected": chosen,
    }
    (folder / "assignment.json").write_text(json.dumps(values | changes))
    with (folder / "unsafe.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["image", "label"], *([one["image"], label] for one, label in zip(chosen, labels, strict=True))]
        )
    return folder


def write_retraining(path: Path, verdict: dict[str, Any] | None, **changes: Any) -> Path:
    values = {
        "format": "lrp-onnx-retraining",
        "model": {"path": "net.onnx", "sha256": MODEL_SHA256},
        "retrained": {"path": "better/net2.onnx", "sha256": "0b" * 32},
        "settings": {"epochs": 2, "optimizer": "sgd"},
        "training_images": 100,
        "labelled_images": 3,
        "balanced_images": 6,
        "validation_images": 20,
        "history": [
            {"epoch": 0, "training_loss": None, "training_accuracy": None, "loss": 0.9, "accuracy": 0.5},
            {"epoch": 1, "training_loss": 0.7, "training_accuracy": 0.6, "loss": 0.8, "accuracy": 0.75},
        ],
        "best_epoch": 1,
        "stopped": "patience",
        "difference": 1e-7,
        "route": "onnx2torch",
        "notes": [],
        "verdict": verdict,
    }
    path.write_text(json.dumps(values | changes))
    return path


VERDICT = {
    "images": 200,
    "measure": "accuracy",
    "before": 0.88,
    "after": 0.915,
    "better": True,
    "loss_before": None,
    "loss_after": None,
    "improved": [f"/t/{n}.png" for n in range(9)],
    "worsened": ["/t/gone.png", "/t/lost.png"],
    "clusters": [{"cluster": 1, "size": 12, "correct_before": 0, "correct_after": 7, "improved": 7, "worsened": 0}],
}


def test_the_page_needs_nothing_else_and_can_be_read_aloud(make: Make, report: Any, tmp_path: Path) -> None:
    page = report(
        make(CAUSES),
        correct=make([3] * 30, "correct", correct=1),
        results=write_results(tmp_path / "r.csv", 24, 176),
        unsafe=write_unsafe(tmp_path / "unsafe", ["cat", "", ""]),
        retraining=write_retraining(tmp_path / "retraining.json", VERDICT),
    )
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"}
    assert page.of("img") and all(one["src"].startswith("data:image/") and one["alt"] for one in page.of("img"))
    assert page.of("svg") and all(one["role"] == "img" and one["aria-label"] for one in page.of("svg"))
    assert not re.search(r"url\(|@import|https?://", page.source)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {one["href"] for one in page.of("a")} <= {f"#{name}" for name in ids}
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_the_summary_says_what_failed_what_to_inspect_and_what_changed(make: Make, report: Any, tmp_path: Path) -> None:
    page = report(
        make(CAUSES),
        results=write_results(tmp_path / "r.csv", 24, 176),
        unsafe=write_unsafe(tmp_path / "unsafe", ["cat", "", ""]),
        retraining=write_retraining(tmp_path / "retraining.json", VERDICT),
    )
    assert "handles 176 of 200 test images correctly and fails on 24." in page.text
    assert "they form 3 clusters. The largest has 12 images, 50.0% of the failures, most often" in page.text
    assert "14 images instead of 24 failures, 58.3%" in page.text  # 5 + 5 + 4
    assert "3 resemble a cluster and were selected for labelling (7.5%); 1 of them has a label" in page.text
    assert "from 88.00% to 91.50%: 9 images became right, 2 wrong" in page.text
    assert "The retrained model is better than the original." in page.text


def test_without_later_steps_only_the_clusters_are_reported(make: Make, report: Any) -> None:
    page = report(make(CAUSES))
    assert "24 failures of the model net.onnx were analysed" in page.text
    for word in ("Unsafe set", "Retraining", "Held against", "Contrast."):
        assert word not in page.text
    assert page.text.count("Medoid") == 3


@pytest.mark.parametrize("without", ["preprocess", "classes"])
def test_names_are_shown_as_they_are_and_never_become_markup(
    make: Make, report: Any, tmp_path: Path, without: str
) -> None:
    name = "<b>&'\"{{ 7 * 7 }}.png"
    page = report(
        make(
            [0] * 5,
            paths=[str(tmp_path / f"{row}" / name) for row in range(5)],
            model="<i>.onnx",
            classes=None if without == "classes" else ["<u>cat", "dog & co", "élan"],
            **({"preprocess": None} if without == "preprocess" else {}),
        ),
        found={"k": 1},
        title="<h6>A & B",
        parameters={"<s>": "</td>&amp;"},
        retraining=write_retraining(
            tmp_path / "retraining.json", VERDICT | {"worsened": ["/t/<em>.png"]}, notes=["<q>", "&lt;"]
        ),
    )
    for shown in (name, "<i>.onnx", "<h6>A & B", "<s>", "</td>&amp;", "<em>.png", "<q>", "&lt;"):
        assert shown in page.text
    assert ("<u>cat" in page.text) == (without != "classes")
    assert not {tag for tag, _ in page.tags} & {"i", "u", "h6", "s", "q"}


def test_mean_heatmaps_are_those_of_a_plain_loop_whatever_the_block(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(3)
    strata = random.integers(0, 3, 24)
    weights = {5: {0: 0.25, 2: 0.75}, 9: {1: 1.0}}
    with HeatmapStore(make(CAUSES)) as store:
        rows = np.arange(24)
        whole = mean_heatmaps(store, rows, strata, weights)
        monkeypatch.setattr("lrp_onnx.render.unit_heatmaps._BLOCK_BYTES", 1)
        singly = mean_heatmaps(store, rows, strata, weights)
        pictures = store.attribution[:].astype(float).sum(axis=1)
    units = [picture / np.abs(picture).sum() for picture in pictures]
    corner = [np.abs(unit[:6, 12:]).sum() for unit in units]
    for group, of_stratum in weights.items():
        values = sum(w * np.mean([units[r] for r in rows if strata[r] == s], axis=0) for s, w in of_stratum.items())
        share = sum(w * np.mean([corner[r] for r in rows if strata[r] == s]) for s, w in of_stratum.items())
        spread = [(w, np.array([corner[r] for r in rows if strata[r] == s])) for s, w in of_stratum.items()]
        deviation = np.sqrt(sum(w**2 * one.var(ddof=1) / len(one) for w, one in spread))
        for found in (whole[group], singly[group]):
            np.testing.assert_allclose(found.values, values, atol=1e-12)
            np.testing.assert_allclose(found.shares.sum(), 1)
            np.testing.assert_allclose(found.shares[2], share)
            np.testing.assert_allclose(found.deviations[2], deviation)
            assert found.images == sum(len(one) for _, one in spread)


def test_pictures_larger_than_a_page_shows_keep_their_relevance(make: Make) -> None:
    with HeatmapStore(make([0, 0], input_shape=(1, 300, 520), preprocess=None)) as store:
        mean = mean_heatmaps(store, np.arange(2), np.zeros(2, dtype=np.int64), {0: {0: 1.0}})[0]
        pictures = store.attribution[:].astype(float)[:, 0]
    assert mean.values.shape == (100, 174)
    cells = np.pad(pictures, ((0, 0), (0, 0), (0, 2)))[:, 3:6, 519:522].sum(axis=(1, 2))
    padded = np.pad(pictures, ((0, 0), (0, 0), (0, 2))).reshape(2, 100, 3, 174, 3).sum(axis=(2, 4))
    scale = np.abs(padded).sum(axis=(1, 2))
    np.testing.assert_allclose(mean.values[1, 173], (cells / scale).mean())


def test_where_relevance_differs_is_said_when_it_was_measured(make: Make, report: Any) -> None:
    page = report(make([0] * 20, field=(0, 2)), found={"k": 1}, correct=make([3] * 60, "correct", correct=1))
    assert "Held against 60 images handled correctly of the expected class cat, dog or élan" in page.text
    found = re.search(r"relevance of the cluster lies more at the top right \((\d+)% against (\d+)%\)", page.text)
    assert found
    assert int(found[1]) > 15 > 12 > int(found[2]) > 9
    means = [one["src"] for one in page.of("img") if one["alt"].startswith("heatmap, ")]
    own, other, difference = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))).astype(int)[:6, 12:].mean(axis=(0, 1))
        for uri in means
    )
    for red in (own, difference):
        assert red[0] - red[2] > 100
    assert abs(other[0] - other[2]) < 50


def test_chance_is_not_called_a_difference(make: Make, report: Any) -> None:
    page = report(make([0] * 20), found={"k": 1}, correct=make([3] * 60, "correct", correct=1))
    assert "in none of the nine fields" in page.text
    assert "lies more" not in page.text


def test_of_too_few_images_nothing_is_said(make: Make, report: Any) -> None:
    page = report(make([0] * 4, field=(0, 2)), found={"k": 1}, correct=make([3] * 60, "correct", correct=1))
    assert "With 4 images on one side, fewer than 5, nothing is said about where relevance differs." in page.text


def test_chance_differences_come_as_rarely_as_promised() -> None:
    random, named = np.random.default_rng(0), 0

    class Drawn:
        def __init__(self, count: int) -> None:
            shares = random.dirichlet(np.ones(9) / 2, count)
            self.images, self.shares = count, shares.mean(axis=0)
            self.deviations = shares.std(axis=0, ddof=1) / np.sqrt(count)

    for _ in range(400):
        named += bool(differences(Drawn(8), Drawn(50)))  # type: ignore[arg-type]
    assert named <= 12  # 1 % would be 4


def test_classes_without_a_correct_image_are_named(make: Make, report: Any) -> None:
    some = make([3] * 30, "correct", correct=1, labels=np.zeros(30, dtype=int))
    page = report(make([0] * 9), found={"k": 1}, correct=some)
    assert (
        "Held against 30 images handled correctly of the expected class cat; of dog or élan there is none." in page.text
    )
    none = make([3] * 30, "none", correct=1, labels=np.zeros(30, dtype=int))
    page = report(make([0] * 9, "dogs", labels=np.ones(9, dtype=int)), case="dogs_case", found={"k": 1}, correct=none)
    assert "There is no correctly handled image of the expected class dog to hold it against." in page.text


def test_what_does_not_belong_together_is_refused(make: Make, report: Any, tmp_path: Path) -> None:
    errors = make(CAUSES)
    refused = pytest.raises(DataError, match=r"differ in model_sha256, shape of the input")
    with refused:
        report(errors, correct=make([3], "c1", correct=1, model_sha256="ff" * 32, input_shape=(3, 6, 6)))
    with pytest.raises(DataError, match="none of its 2 images with a heatmap is known to be handled correctly"):
        report(errors, correct=make([3, 3], "c2"))
    with pytest.raises(DataError, match=r"retraining\.json: is of another model"):
        other = {"path": "x.onnx", "sha256": "ff" * 32}
        report(errors, retraining=write_retraining(tmp_path / "retraining.json", None, model=other))
    with pytest.raises(DataError, match="was selected by other clusters"):
        report(errors, unsafe=write_unsafe(tmp_path / "u1", ["", "", ""], layer="fc"))
    with pytest.raises(DataError, match="was selected by other clusters"):
        report(errors, unsafe=write_unsafe(tmp_path / "u2", ["", "", ""], quotas={"1": 23}))
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "text, said",
    [
        ("{}", "'format' is missing"),
        ("[]", "expected a JSON object"),
        ("{", "is not JSON"),
        ('{"format": "lrp-onnx-clusters"}', "format lrp-onnx-clusters"),
        ('{"format": "lrp-onnx-retraining", "model": {}}', "'path' is missing"),
    ],
)
def test_a_damaged_record_is_one_line(make: Make, report: Any, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=re.escape(said)) as refused:
        report(make(CAUSES), retraining=tmp_path / "x.json")
    assert "x.json" in str(refused.value) and "\n" not in str(refused.value)


def test_results_without_verdicts_are_refused(make: Make, report: Any, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("image,label\n1.png,cat\n")
    with pytest.raises(DataError, match="no column 'correct'"):
        report(make(CAUSES), results=tmp_path / "r.csv")


def test_heatmaps_that_are_not_finite_are_named(make: Make, report: Any) -> None:
    broken = make([3] * 6, "correct", correct=1)
    import h5py

    with h5py.File(broken, "r+") as file:
        file["attribution"][4, 0, 0, 0] = np.nan
    with pytest.raises(StoreError, match=r"row 4 \(.*4\.png\) holds NaN"):
        report(make(CAUSES), correct=broken)


def test_images_that_are_gone_are_reported_by_their_heatmaps(make: Make, report: Any, tmp_path: Path) -> None:
    store = make(CAUSES)
    there = report(store)
    for picture in (tmp_path / "errors").iterdir():
        picture.unlink()
    page = report(store)
    shown = [sum(one["alt"].startswith(word) for one in page.of("img")) for word in ("image ", "heatmap of ")]
    assert shown == [0, 14]
    assert page.text.count("its image could not be read") == 14
    assert sum(one["alt"].startswith("image ") for one in there.of("img")) == 14


@pytest.mark.parametrize("shape", [(7,), (4, 1, 30)])
def test_what_is_no_picture_is_shown_as_bars(make: Make, report: Any, shape: tuple[int, ...]) -> None:
    options: dict[str, Any] = {"input_shape": shape, "preprocess": None}
    page = report(make(CAUSES, **options), correct=make([3] * 30, "correct", correct=1, **options))
    assert len([one for one in page.of("img") if one["alt"].startswith("heatmap, ")]) == 9
    assert page.text.count("Held against 30 images") == 3
    assert "nine fields" not in page.text and "3 × 3" not in page.text and "image could not be read" not in page.text


def test_regression_has_losses_and_no_classes(make: Make, report: Any, tmp_path: Path) -> None:
    targets = np.linspace(0, 1, 24)[:, None]
    verdict = VERDICT | {"measure": "within threshold", "loss_before": 0.5, "loss_after": 0.25}
    page = report(
        make(CAUSES, target_values=targets, labels=None, classes=None),
        correct=make([3] * 30, "correct", correct=1, target_values=np.ones((30, 1)), labels=None, classes=None),
        retraining=write_retraining(tmp_path / "retraining.json", verdict),
    )
    assert "Held against 30 images handled correctly." in page.text
    assert "mean 1.375, largest 2.75" in page.text  # losses 0, 0.25, …, 2.75 of the first twelve
    assert "within the threshold" in page.text and "mean loss" in page.text
    assert "Expected → predicted" not in page.text and "class" not in page.text.lower()


def test_noise_is_counted_and_its_reasons_given(make: Make, report: Any) -> None:
    page = report(make([*CAUSES, 5]), found={"k": 4})
    assert "1 image fits no cluster" in page.text
    assert "with the 1 image of no cluster looked at one by one, 15 or 60.0%" in page.text
    assert "1 image(s), fewer than 2" in page.text


def test_the_unsafe_set_is_told_by_cluster(make: Make, report: Any, tmp_path: Path) -> None:
    page = report(make(CAUSES), unsafe=write_unsafe(tmp_path / "unsafe", ["cat", " ", ""]))
    assert "3 of 40 images selected & more. 1 of 3 selected images has a label." in page.text
    assert "1 24 3 0.875 0.25 0.75" in page.text
    assert "2 16 0 0.5 – –" in page.text


def test_an_unsafe_set_without_images_or_thresholds_is_reported(make: Make, report: Any, tmp_path: Path) -> None:
    unsafe = write_unsafe(tmp_path / "unsafe", [], selected=0, thresholds=None, images=0)
    page = report(make(CAUSES), unsafe=unsafe)
    assert "0 of 0 selected images have a label" in page.text.replace(
        "0 of 0 selected images", "0 of 0 selected images"
    )
    assert "(the threshold)" not in page.text
    assert "1 24 0 – –" in page.text


def test_retraining_is_told_overall_by_cluster_and_by_example(make: Make, report: Any, tmp_path: Path) -> None:
    seen = tmp_path / "t" / "7.png"
    seen.parent.mkdir()
    Image.new("RGB", (SIZE, SIZE), "red").save(seen)
    verdict = VERDICT | {"worsened": [str(seen), "/t/lost.png"]}
    page = report(
        make(CAUSES),
        results=write_results(tmp_path / "r.csv", 3, 9),
        retraining=write_retraining(tmp_path / "retraining.json", verdict),
    )
    assert "accuracy, 200 images 88.00% 91.50% +3.50 points" in page.text
    assert "probability 0.06543 (exact McNemar test)" in page.text
    assert "1 12 0 7 7 0 none 188 176 176 2 2" in page.text
    assert [one["alt"] for one in page.of("img") if one["alt"].startswith("image 7.png")][-1:] == ["image 7.png"]
    assert "7.pngexpected cat" in page.text and "lost.png" in page.text
    assert "Training ended when no better epoch had come for a while" in page.text
    labels = [one["aria-label"] for one in page.of("svg")]
    assert "loss, for epoch 0 to 1; at 1 training: 0.7, validation: 0.8" in labels
    assert "accuracy, for epoch 0 to 1; at 1 training: 0.6, validation: 0.75" in labels


def test_retraining_without_a_test_or_without_gain_is_said(make: Make, report: Any, tmp_path: Path) -> None:
    errors = make(CAUSES)
    page = report(errors, retraining=write_retraining(tmp_path / "retraining.json", None, best_epoch=0))
    assert "retrained, but not yet compared with the original on a test set" in page.text
    assert "No epoch was better on the validation images than the original weights" in page.text
    same = VERDICT | {"after": 0.88, "better": False, "improved": [], "worsened": [], "clusters": []}
    page = report(errors, retraining=write_retraining(tmp_path / "retraining.json", same))
    assert "The retrained model is not better than the original." in page.text
    assert "Images that retraining made wrong" not in page.text


@pytest.mark.parametrize("improved, worsened, chance", [(0, 0, 1.0), (5, 5, 1.0), (9, 1, 22 / 1024), (0, 4, 2 / 16)])
def test_the_chance_of_a_change_is_the_exact_mcnemar_test(improved: int, worsened: int, chance: float) -> None:
    assert chance_of_change(improved, worsened) == pytest.approx(chance)


@pytest.mark.parametrize(
    "profile, curves",
    [
        ("default", ["weighted intra-cluster distance", "mean silhouette"]),
        ("hudd", ["WICD", "derivative of WICD", "mean silhouette"]),
    ],
)
def test_the_curves_that_decided_are_drawn(make: Make, report: Any, profile: str, curves: list[str]) -> None:
    page = report(make(CAUSES), found={"profile": profile})
    drawn = [one["aria-label"].split(", for number of clusters k")[0] for one in page.of("svg")]
    assert drawn == curves
    assert f"{LAYER} (chosen)" in page.text
    assert any(one["alt"].startswith("dendrogram") for one in page.of("img"))


def test_clusters_of_features_are_told_as_such(make: Make, report: Any, tmp_path: Path) -> None:
    store = make(CAUSES)
    report(store)
    chosen = tmp_path / "case" / "LayerX"
    saved = json.loads((chosen / "clustering.json").read_text())
    changes = {"profile": "features", "how_layer": "activations of RELU in net.onnx"}
    (chosen / "clustering.json").write_text(json.dumps(saved | changes))
    scores = (chosen / "scores.csv").read_text().splitlines()
    (chosen / "scores.csv").write_text("\n".join(scores[:2]))  # one number of clusters is no curve
    page = report(store)
    assert "Grouped by what a network makes of the images (its features), they form 3 clusters" in page.text
    assert "Features of the failures (activations of RELU in net.onnx) were compared" in page.text
    assert not page.of("svg")
    assert any(one["alt"] == "how the clusters were found" for one in page.of("img"))


def test_hashes_sizes_parameters_and_versions_are_those_of_the_files(make: Make, report: Any, tmp_path: Path) -> None:
    results = write_results(tmp_path / "r.csv", 24, 176)
    (tmp_path / "extra.bin").write_bytes(b"x" * 1234)
    page = report(
        make(CAUSES), results=results, files={"my file": tmp_path / "extra.bin"}, parameters={"test: loss": None}
    )
    for name, path in {
        "my file": tmp_path / "extra.bin",
        "r.csv": results,
        "scores.csv": tmp_path / "case" / "LayerX" / "scores.csv",
    }.items():
        content = path.read_bytes()
        assert f"{name} {len(content):,} {hashlib.sha256(content).hexdigest()}" in page.text
    assert f"net.onnx, as explained {MODEL_SHA256}" in page.text
    assert "heatmaps: composite of rules epsilon " in page.text
    assert "test: loss –" in page.text
    assert re.search(r"numpy \d+\.\d+", page.text)
    with pytest.raises(DataError, match=r"gone\.bin: cannot be read"):
        report(tmp_path / "errors.h5", files={"gone": tmp_path / "gone.bin"})


def test_a_report_is_replaced_only_when_asked(make: Make, tmp_path: Path) -> None:
    cluster_store(make(CAUSES), tmp_path / "case")
    (tmp_path / "r.html").write_text("mine")
    with pytest.raises(OutputError, match="use --overwrite"):
        write_report(tmp_path / "r.html", tmp_path / "case")
    assert (tmp_path / "r.html").read_text() == "mine"
    assert write_report(tmp_path / "r.html", tmp_path / "case", overwrite=True) == tmp_path / "r.html"
    assert "Why net.onnx fails" in (tmp_path / "r.html").read_text()


def test_progress_ends_where_it_said(make: Make, report: Any) -> None:
    told: list[tuple[str, int, int]] = []
    correct = make([3] * 30, "correct", correct=1)
    report(make(CAUSES), correct=correct, progress=lambda *step: told.append(step))
    assert [step for step in told if step[0] == "Averaging"][-1] == ("Averaging", 54, 54)
    assert [step for step in told if step[0] == "Showing"][-1] == ("Showing", 3, 3)


@pytest.mark.slow
def test_many_clusters_are_folded_and_stay_small(make: Make, report: Any, tmp_path: Path) -> None:
    causes = np.repeat(np.arange(20), 6)
    page = report(
        make(causes, input_shape=(3, 224, 224), preprocess=Preprocess(size=(224, 224)).to_json()),
        found={"k": 20},
        correct=make([3] * 30, "correct", correct=1, input_shape=(3, 224, 224), preprocess=Preprocess().to_json()),
    )
    folded = ["open" not in one for one in page.of("details") if one.get("class") == "cluster"]
    assert folded == [False] * 12 + [True] * 8
    assert (tmp_path / "report.html").stat().st_size < 10e6


def test_the_report_reads_the_format_that_retraining_writes() -> None:
    from lrp_onnx.hudd import improve
    from lrp_onnx.hudd.report import steps

    assert steps.FORMAT == improve.FORMAT
