"""Variations of a data set on disk: pictures in class folders, and the manifest that says what was done to each."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from lrp_onnx import __version__
from lrp_onnx.data import Dataset, open_dataset
from lrp_onnx.data.dataset import reason_of
from lrp_onnx.data.sources import IMAGE_SUFFIXES
from lrp_onnx.debug.variations import ORIGINAL, RGB, Chosen, Matrix, Scene, Size, choose
from lrp_onnx.errors import DataError, OutputError
from lrp_onnx.files import written_whole
from lrp_onnx.inputs import sample_name
from lrp_onnx.preprocess import as_rgb
from lrp_onnx.render import SheetItem, contact_sheet, save_png

MANIFEST = "manifest.csv"
COLUMNS = ("image", "label", "source", "variation", "value", "width", "height", "homography")
_RECIPE = "lrp_onnx.variation"  # the text in a PNG that says what it was made of
_SHEET_IMAGES, _SHEET_CELL, _SHEET_COLUMNS = 3, 150, 6


@dataclass(frozen=True)
class VariedImages:
    """What `write_variations` did.

    Attributes
    ----------
    folder, manifest : pathlib.Path
    sheet : pathlib.Path
        All variations of the first image of up to three classes; beside the folder, which holds samples only.
    images : int
        Images that were varied.
    pictures, written : int
        Pictures in the manifest, originals among them, and those that this call had to make.
    failures : dict of str to str
        Path and reason of each image or mask that could not be used.
    notes : tuple of str
    """

    folder: Path
    manifest: Path
    sheet: Path
    images: int
    pictures: int
    written: int
    failures: dict[str, str]
    notes: tuple[str, ...]


def write_variations(
    images: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    variations: Sequence[str] | None = None,
    masks: str | os.PathLike[str] | None = None,
    backgrounds: str | os.PathLike[str] | None = None,
    longest: int = 1024,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> VariedImages:
    """Write variations of every image, and the image itself, as PNG files with a manifest.

    ``out/<class>/<image>--<variation>.png`` are the pictures, upright and 8-bit RGB. ``out/manifest.csv`` opens as a
    data set (columns image, label) and says of each picture its source, its variation and value, its width and height
    in pixels, and the homography from the original to it: nine numbers by rows, coordinates as in
    `Preprocess.geometry`. The same call gives the same files; one that was interrupted makes what is missing.

    Parameters
    ----------
    images : path-like
        Image folder, picture or manifest, as `open_dataset` reads them; no arrays.
    out : path-like
        Folder, new or written by an earlier call; not inside `images`.
    variations : sequence of str, optional
        As `choose` reads them; all by default, but those that need masks only with `masks`.
    masks : path-like, optional
        Folder with a mask for each image, at the image's path within `images`, any suffix: black around the object.
        An image without one has no variations that need it.
    backgrounds : path-like, optional
        Pictures to put behind objects; coloured shapes by default.
    longest : int
        Pictures with a longer edge are reduced to so many pixels first, originals too: models see less than that, and
        PNG files of many megapixels take seconds each.
    seed : int
        Of everything that is random, which is different for each image and variation.
    progress : callable, optional
        Called with (images done, images in all).

    Raises
    ------
    DataError
        When there are no images or not one can be read, or variations are named wrongly or need masks.
    OutputError
        When `out` holds something else, or cannot be written.
    """
    dataset = open_dataset(images)
    if dataset.array is not None:
        raise DataError(f"{dataset.root}: variations are made of picture files; save the array's rows as pictures")
    folder = Path(out).resolve()
    if dataset.root.is_dir() and folder.is_relative_to(dataset.root):
        raise OutputError(f"{folder} lies inside {dataset.root} and would become a part of it; name another folder")
    if longest < 1:
        raise DataError(f"longest edge is {longest}; expected a number of pixels")
    chosen = choose(variations)
    if masks is None:
        needy = [one for one in chosen if one.variation.needs_mask]
        if needy and variations is not None:
            raise DataError(f"variation {needy[0]} needs the place of the object; give a folder of masks")
        chosen = [one for one in chosen if one not in needy]
    behind = None if backgrounds is None else open_dataset(backgrounds)
    run = _Run(dataset, folder, chosen, _folder(masks), behind, longest, seed)
    try:
        return run.write(progress or (lambda done, total: None))
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error}); what is there is whole") from error


def _folder(masks: str | os.PathLike[str] | None) -> Path | None:
    if masks is not None and not Path(masks).is_dir():
        raise DataError(f"{masks}: no such folder of masks")
    return None if masks is None else Path(masks)


@dataclass(frozen=True, eq=False)
class _Source:
    """An image that was read: its pixels, its mask if there is one, and what both were read from as a digest."""

    name: str
    pixels: RGB
    mask: NDArray[np.bool_] | None
    digest: str

    @property
    def size(self) -> Size:
        return self.pixels.shape[1], self.pixels.shape[0]


class _Run:
    """One data set on its way into one folder."""

    def __init__(
        self,
        dataset: Dataset,
        folder: Path,
        chosen: Sequence[Chosen],
        masks: Path | None,
        backgrounds: Dataset | None,
        longest: int,
        seed: int,
    ) -> None:
        self.dataset, self.folder, self.chosen = dataset, folder, chosen
        self.masks, self.backgrounds, self.longest, self.seed = masks, backgrounds, longest, seed
        self.failures: dict[str, str] = {}
        self.written = self.without_mask = 0

    def write(self, progress: Callable[[int, int], None]) -> VariedImages:
        manifest = self.folder / MANIFEST
        if not manifest.is_file():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise OutputError(f"{self.folder} holds something else (no {MANIFEST}); name another folder")
            _write_manifest(manifest, [])  # by this the next call knows the folder, should this one be interrupted
        rows: list[tuple[object, ...]] = []
        shown: dict[str, list[SheetItem]] = {}
        progress(0, len(self.dataset))
        stems = _stems(self.dataset)
        for done, (sample, stem) in enumerate(zip(self.dataset.samples, stems, strict=True), start=1):
            source, label = self._read(sample.path), self._label(sample.label)
            if source is not None:
                items = shown.setdefault(label, []) if label not in shown and len(shown) < _SHEET_IMAGES else None
                for one, file, picture in self._varied(source, stem):
                    rows.append((file.relative_to(self.folder).as_posix(), label, source.name, *_account(one, source)))
                    if items is not None:
                        items.append(_item(file, picture, source, label, str(one or ORIGINAL)))
            progress(done, len(self.dataset))
        if not rows:
            first, reason = next(iter(self.failures.items()))
            raise DataError(f"{self.dataset.root}: not one image could be read; the first, {first}: {reason}")
        _write_manifest(manifest, rows)
        sheet = self.folder.with_name(f"{self.folder.name}-sheet.png")
        save_png(
            contact_sheet([i for items in shown.values() for i in items], columns=_SHEET_COLUMNS, cell=_SHEET_CELL),
            sheet,
        )
        images = sum(row[3] == ORIGINAL for row in rows)
        return VariedImages(
            self.folder, manifest, sheet, images, len(rows), self.written, self.failures, tuple(self._notes())
        )

    def _notes(self) -> Iterator[str]:
        if self.without_mask:
            yield f"without a mask, and so without variations that need one: {self.without_mask} of the images"
        if self.dataset.targets is not None:
            yield "the numbers to regress are not in the manifest: what moves a picture would change some of them"

    def _label(self, label: int | None) -> str:
        classes = self.dataset.classes
        return "" if label is None else classes[label] if classes is not None else str(label)

    def _read(self, path: str) -> _Source | None:
        name = sample_name(self.dataset, path)
        try:
            digest = sha256(Path(path).read_bytes()).hexdigest()
            with Image.open(path) as image:
                picture = as_rgb(image)
        except Exception as error:  # decoders raise anything on broken files
            self.failures[path] = reason_of(error)
            return None
        pixels = self._reduced(picture, Image.Resampling.LANCZOS)
        if self.masks is None:
            return _Source(name, pixels, None, digest)
        stem = self.masks / Path(name).with_suffix("").as_posix().lstrip("/")
        found = [file for suffix in IMAGE_SUFFIXES if (file := stem.with_name(stem.name + suffix)).is_file()]
        self.without_mask += not found
        if not found:
            return _Source(name, pixels, None, digest)
        try:
            mask = self._reduced(_read_mask(found[0], picture.size), Image.Resampling.NEAREST) > 0
            digest += sha256(found[0].read_bytes()).hexdigest()
        except Exception as error:
            self.failures[str(found[0])] = reason_of(error)
            return _Source(name, pixels, None, digest)
        return _Source(name, pixels, mask, digest)

    def _reduced(self, picture: Image.Image, how: Image.Resampling) -> NDArray[np.uint8]:
        share = self.longest / max(picture.size)
        if share < 1:
            wide, tall = (max(1, round(edge * share)) for edge in picture.size)
            picture = picture.resize((wide, tall), how)
        return np.asarray(picture)

    def _varied(self, source: _Source, stem: str) -> Iterator[tuple[Chosen | None, Path, RGB | None]]:
        """Each variation of a source, its file, and its picture if it had to be made; the original first, as None."""
        for one in (None, *self.chosen):
            if one is not None and one.variation.needs_mask and source.mask is None:
                continue
            path = self.folder / f"{stem}--{one or ORIGINAL}.png"
            # of an image by its name, so that it does not depend on the others; crc32 because hash() varies
            random = np.random.default_rng([self.seed, crc32(source.name.encode()), crc32(str(one).encode())])
            background, digest = None, ""
            if one is not None and one.variation.needs_mask and self.backgrounds is not None:
                background, digest = self._background(random)
            recipe = json.dumps([__version__, source.digest, self.longest, str(one), self.seed, digest])
            picture = None
            if _recipe_of(path) != recipe:
                picture = source.pixels
                if one is not None:
                    picture = one(picture, Scene(random, source.mask, background))
                _save(picture, path, recipe)
                self.written += 1
            yield one, path, picture

    def _background(self, random: np.random.Generator) -> tuple[RGB, str]:
        assert self.backgrounds is not None
        path = self.backgrounds.paths[random.integers(len(self.backgrounds))]
        try:
            with Image.open(path) as image:
                pixels = np.asarray(as_rgb(image))
            return pixels, sha256(pixels.tobytes()).hexdigest()
        except Exception as error:
            raise DataError(f"background {path} cannot be read: {reason_of(error)}; take it away or mend it") from error


def _account(one: Chosen | None, source: _Source) -> tuple[str, str, int, int, str]:
    """What the manifest says of a variation: name, value, width, height, homography."""
    if one is None:
        return ORIGINAL, "", *source.size, _written(np.eye(3))
    matrix, size = one.geometry(*source.size)
    return one.variation.name, "" if one.value is None else f"{one.value:g}", *size, _written(matrix)


def _written(matrix: Matrix) -> str:
    return " ".join(f"{number:.12g}" for number in (matrix / matrix[2, 2]).ravel())


def _stems(dataset: Dataset) -> list[str]:
    """Of each sample its path in the folder written, without suffix; with it where two samples differ in nothing else.

    Samples of a manifest, which may lie anywhere, come into a folder named after their class.
    """
    names = [sample_name(dataset, path) for path in dataset.paths]
    if not dataset.root.is_dir():
        classes = dataset.classes
        folders = ["" if s.label is None else classes[s.label] if classes else str(s.label) for s in dataset.samples]
        plain = [folder.replace("/", "_").replace("\\", "_").lstrip(".") for folder in folders]
        names = [str(PurePosixPath(folder, Path(name).name)) for folder, name in zip(plain, names, strict=True)]
    stems = [str(PurePosixPath(name).with_suffix("")) for name in names]
    often = Counter(stems)
    stems = [name if often[stem] > 1 else stem for name, stem in zip(names, stems, strict=True)]
    often = Counter(stems)
    return [f"{stem}-{row}" if often[stem] > 1 else stem for row, stem in enumerate(stems)]


def _read_mask(path: Path, size: Size) -> Image.Image:
    """A mask as a picture of 0 and 255."""
    with Image.open(path) as image:
        # one band is taken as numbers: a palette's first entry is the background, whatever its colour
        values = np.asarray(image)[..., None] if len(image.getbands()) == 1 else np.asarray(image.convert("RGB"))
    mask: NDArray[np.bool_] = np.any(values, axis=2)
    if mask.shape != size[::-1]:
        raise DataError(f"the mask is {mask.shape[::-1]} pixels large; its picture is {size}")
    if not mask.any():
        raise DataError("the mask is black throughout; expected the object in another colour")
    return Image.fromarray(mask.astype(np.uint8) * 255)


def _recipe_of(path: Path) -> str | None:
    """What a picture was made of; None when it is not there or not of this kind."""
    try:
        with Image.open(path) as image:
            return image.info.get(_RECIPE)
    except OSError:
        return None


def _save(picture: RGB, path: Path, recipe: str) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text(_RECIPE, recipe)
    with written_whole(path, overwrite=True) as new:
        Image.fromarray(picture).save(new, format="PNG", pnginfo=text, compress_level=4)


def _item(path: Path, picture: RGB | None, source: _Source, label: str, caption: str) -> SheetItem:
    if picture is None:
        with Image.open(path) as image:
            picture = np.asarray(image)
    heading = source.name if not label or source.name.startswith(f"{label}/") else f"{label}: {source.name}"
    small = Image.fromarray(picture)
    small.thumbnail((4 * _SHEET_CELL, _SHEET_CELL))
    return SheetItem([np.asarray(small)], [caption], heading=heading)


def _write_manifest(path: Path, rows: Sequence[tuple[object, ...]]) -> None:
    with written_whole(path, overwrite=True) as new, new.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(rows)
