"""The demonstration runs from nothing to pictures, and says what to install when it cannot."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from lrp_onnx.demo import photos as demo
from lrp_onnx.errors import DataError
from lrp_onnx.store import HeatmapStore

installed = all(find_spec(name) for name in demo.PACKAGES)
needs_packages = pytest.mark.skipif(not installed, reason="needs the packages of the extra 'photos'")


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "fer" else find_spec("sys"))
    with pytest.raises(DataError, match=r"needs fer; .*lrp-onnx\[photos\]"):
        demo.run_photos(tmp_path / "out", say=print)
    assert not (tmp_path / "out").exists()


@needs_packages
def test_imagenet_names_are_short_and_distinct() -> None:
    names = demo.imagenet_classes()
    assert len(set(names)) == len(names) == 1000
    assert {"espresso", "tabby", "tripod"} < set(names)


@pytest.mark.slow
@needs_packages
def test_both_models_see_what_is_there_and_their_pictures_are_drawn(tmp_path: Path) -> None:
    said: list[str] = []
    imagenet, emotions = demo.run_photos(tmp_path, said.append)
    coffee = next(sample for sample in imagenet["samples"] if sample["image"].endswith("coffee.png"))
    assert coffee["predicted"] == "espresso"
    assert coffee["score"] == pytest.approx(0.95, abs=0.02)
    astronaut = next(sample for sample in emotions["samples"] if sample["image"] == "astronaut.png")
    assert astronaut["predicted"] == "happy"
    assert astronaut["score"] > 0.99
    for result in (imagenet, emotions):
        assert result["difference"] < 1e-4
        assert result["layers"] > 30
        assert all(Path(path).is_file() for path in (result["index"], *result["sheets"]))
        assert any(str(result["index"]) in line for line in said)
        with HeatmapStore(result["store"]) as store:
            assert store.complete
            assert len(store.done) == len(result["samples"])
