"""DeepBug's study: where do a small CNN, AlexNet, VGG-16 and EfficientNet-Lite0 look, and where does each one fail?

Command: `python -m experiments.deepbug WHEELS`, with `--out` to keep what it made and to go on after an interruption;
README.md says what is in WHEELS, what is measured and what came.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import onnx

from experiments.deepbug import clips, tables
from experiments.deepbug.bench import COMPOSITE, Bench, compare, judge, make_bench
from experiments.deepbug.boards import NEW, SEEN, write_boards
from experiments.deepbug.networks import RECIPES, Recipe, train
from experiments.deepbug.photographs import efficientnet, opencv_data, write_photographs
from experiments.deepbug.pictures import write_pictures
from experiments.hudd_chess.squares import Painter
from lrp_onnx.debug.overfitting_report import write_overfitting
from lrp_onnx.heatmaps import compute_heatmaps

THEMES = "chessboard_image-1.1.6-py3-none-any.whl"
RESULTS = Path(__file__).parent
FEW = {30: 50, 8: 100}  # training pictures a class, and epochs until a model knows them by heart


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


def trained(name: str, recipe: Recipe, pictures: Path, folder: Path, seed: int) -> Path:
    path = folder / f"{name}.onnx"
    if not path.exists():
        onnx.save(train(recipe, pictures, seed, lambda line: say(f"{name}, {line}")), path)
    return path


def few_of(pictures: Path, folder: Path, count: int) -> Path:
    """The first so many pictures of each class."""
    for label in pictures.iterdir():
        (folder / label.name).mkdir(parents=True, exist_ok=True)
        for file in sorted(label.iterdir())[:count]:
            (folder / label.name / file.name).write_bytes(file.read_bytes())
    return folder


def check_overfitting(
    models: dict[str, tuple[Path, Path]], heldout: Path, masks: Path, folder: Path
) -> dict[str, Path]:
    """Compare each model on pictures that it was trained on with others of the same kind."""
    found = {}
    for name, (model, seen) in models.items():
        found[name] = folder / model.stem
        if found[name].exists():
            continue
        stores = [folder / f"{model.stem}-{kind}.h5" for kind in ("training", "heldout")]
        for pictures, store in zip((seen, heldout), stores, strict=True):
            compute_heatmaps(model, pictures, store, composite=COMPOSITE, target="label", overwrite=True)
        write_overfitting(stores[0], stores[1], found[name], regions=masks)
        say(f"overfitting of {model.stem}")
    return found


def boards(wheels: Path, out: Path, seed: int) -> list[str]:
    """The three networks trained on chess boards; the tables."""
    painter, data = Painter(wheels / THEMES), out / "boards"
    training = write_boards(painter, data, "train", SEEN, 800, seed)
    test = write_boards(painter, data, "test", SEEN + NEW, 120, seed + 1)
    heldout = write_boards(painter, data, "heldout", SEEN, 120, seed + 2)
    probe = write_boards(painter, data, "probe", SEEN, 20, seed + 3)
    bench = make_bench(test, data / "masks", probe, data / "masks", data)
    folders = []
    for name, recipe in RECIPES.items():
        model = trained(name, recipe, training, out, seed)
        judge(model, bench, out / name, 5, say)
        folders.append(out / name)
    for one, other in combinations(folders, 2):
        compare(one, other, bench, out, say)
    models = {"1,600 pictures": (out / "custom-cnn.onnx", few_of(training, out / "training-120", 120))}
    for count, epochs in FEW.items():
        few, recipe = few_of(training, out / f"training-{count}", count), replace(RECIPES["custom-cnn"], epochs=epochs)
        models[f"{2 * count} pictures"] = trained(f"custom-cnn-{2 * count}", recipe, few, out, seed), few
    checked = check_overfitting(models, heldout, data / "masks", out / "overfitting")
    write_pictures(folders, bench, RESULTS)
    pairs = [out / f"{one.name}-{other.name}" for one, other in combinations(folders, 2)]
    return [
        tables.write_table("boards-scores", tables.scores(folders), RESULTS),
        tables.write_table("boards-parts", tables.parts(folders), RESULTS),
        tables.write_table("boards-variations", tables.variations(folders), RESULTS),
        tables.write_table("boards-winners", tables.winners(pairs), RESULTS),
        tables.write_table("boards-faithfulness", tables.faithfulness(folders), RESULTS),
        tables.write_table("boards-overfitting", tables.overfitting(checked), RESULTS),
    ]


def photographs(opencv: Path, out: Path) -> list[str]:
    """The pre-trained network on photographs and clips; the tables."""
    data, model, folder = out / "photographs", out / "efficientnet-lite0.onnx", out / "efficientnet-lite0"
    if not data.exists():
        write_photographs(data, opencv)
    if not model.exists():
        onnx.save(efficientnet(), model)
    pictures, masks = data / "pictures", data / "masks"
    bench: Bench = make_bench(pictures, masks, pictures, masks, data)
    judge(model, bench, folder, 10, say)
    watched = clips.watch(model, opencv / "vtest.avi", out / "clips", ["gown"], say)
    return [
        tables.write_table("photographs-scores", tables.scores([folder]), RESULTS),
        tables.write_table("photographs-parts", tables.parts([folder]), RESULTS),
        tables.write_table("photographs-variations", tables.variations([folder]), RESULTS),
        tables.write_table("photographs-faithfulness", tables.faithfulness([folder]), RESULTS),
        tables.write_table("clips-peaks", clips.find_peaks(model, pictures, out / "clips", say), RESULTS),
        tables.write_table("clips-vtest", watched, RESULTS),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, help=f"folder with {THEMES}")
    parser.add_argument("--out", type=Path, help="folder for all that is made; what is there is not made again")
    parser.add_argument("--opencv", type=Path, help="OpenCV's sample data; by default where Debian's opencv-doc has it")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        written = photographs(opencv_data(options.opencv), out) + boards(options.wheels, out, options.seed)
    print("\n".join(["", *written, f"{time.perf_counter() - start:.0f} s"]))


if __name__ == "__main__":
    main()
