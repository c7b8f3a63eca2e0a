"""Preprocessing as data: how a picture becomes the array that a model takes, and how to show that array again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from lrp_onnx.errors import DataError

METADATA_KEY = "lrp_onnx.preprocess"
LETTERBOX_GREY = 114  # the padding that the YOLO family was trained with, where letterboxing comes from

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "area": Image.Resampling.BOX,
}
CHOICES: dict[str, tuple[str, ...]] = {
    "resize": ("stretch", "shortest-edge", "letterbox"),
    "filter": tuple(FILTERS),
    "layout": ("NCHW", "NHWC"),
    "colour": ("RGB", "BGR", "L"),
}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

PRESETS: dict[str, dict[str, Any]] = {
    # torchvision's classification weights: Resize(256), CenterCrop(224), ToTensor, Normalize
    "imagenet": {"resize": "shortest-edge", "crop": 0.875, "mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    # the three modes of keras.applications.imagenet_utils.preprocess_input
    "keras-caffe": {"layout": "NHWC", "colour": "BGR", "range": (0, 255), "mean": (103.939, 116.779, 123.68)},
    "keras-tf": {"layout": "NHWC", "range": (-1, 1)},
    "keras-torch": {"layout": "NHWC", "mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    "unit": {},
    "efficientnet-lite": {
        "resize": "shortest-edge",
        "crop": 0.875,
        "filter": "bicubic",
        "range": (0, 255),
        "mean": (127,),
        "std": (128,),
    },
}


@dataclass(frozen=True)
class Preprocess:
    """What happens to a picture before the model: resize, crop, colour order, scale, normalise.

    A grey value v in 0..255 becomes ``(low + v / 255 * (high - low) - mean) / std``.

    Attributes
    ----------
    size : (int, int)
        Height and width of the model's input, pixels; one int means square.
    resize : {"stretch", "shortest-edge", "letterbox"}
        "stretch" ignores the aspect ratio. "shortest-edge" keeps it: the smallest picture that covers ``size / crop``,
        then its centre. "letterbox" keeps it too: the largest picture that fits, centred on grey 114.
    filter : {"bilinear", "bicubic", "nearest", "lanczos", "box", "area"}
        Resampling filter of Pillow, antialiased; "area" is another name of "box".
    crop : float
        For "shortest-edge": the part of the resized picture's short edge that the centre crop keeps, 0 < crop <= 1.
        Resize to 256 then crop to 224 is 224 / 256 = 0.875.
    layout : {"NCHW", "NHWC"}
        Where the model wants the channels.
    colour : {"RGB", "BGR", "L"}
        Order of the channels, or one grey channel.
    range : (float, float)
        What 0 and 255 become before `mean` and `std`.
    mean, std : tuple of float
        Per channel, in the order of `colour` and in units of `range`; one value holds for all channels.

    Raises
    ------
    DataError
        When a field has a value that it cannot have.
    """

    size: tuple[int, int] = (224, 224)
    resize: str = "stretch"
    filter: str = "bilinear"
    crop: float = 1.0
    layout: str = "NCHW"
    colour: str = "RGB"
    range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise DataError(f"preprocess: {name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        size = _numbers("size", (self.size, self.size) if isinstance(self.size, int) else self.size, (2,))
        if any(edge < 1 or edge != int(edge) for edge in size):
            raise DataError(f"preprocess: size is {self.size!r}; expected height and width, positive integers")
        (crop,) = _numbers("crop", (self.crop,), (1,))
        if not 0 < crop <= 1:
            raise DataError(f"preprocess: crop is {self.crop!r}; expected a part of the short edge, 0 < crop <= 1")
        low, high = _numbers("range", self.range, (2,))
        if low == high:
            raise DataError(f"preprocess: range is {self.range!r}; expected two different values for 0 and 255")
        mean, std = (_numbers(name, getattr(self, name), (1, self.channels)) for name in ("mean", "std"))
        if min(std) <= 0:
            raise DataError(f"preprocess: std is {self.std!r}; expected values above 0")
        normal = {"size": (int(size[0]), int(size[1])), "crop": crop, "range": (low, high), "mean": mean, "std": std}
        for name, value in normal.items():
            object.__setattr__(self, name, value)  # the way into a frozen dataclass

    @property
    def channels(self) -> int:
        """Number of channels of the model's input, 1 or 3."""
        return 1 if self.colour == "L" else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the model's input without batch, in the model's layout."""
        return (self.channels, *self.size) if self.layout == "NCHW" else (*self.size, self.channels)

    @cached_property
    def _table(self) -> np.ndarray:
        """The value of each of the 256 grey levels in each channel, float32 (channels, 256)."""
        low, high = self.range
        scaled = low + np.arange(256) / 255 * (high - low)
        table = (scaled - np.array(self.mean)[:, None]) / np.array(self.std)[:, None]
        return np.broadcast_to(table, (self.channels, 256)).astype(np.float32)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Turn a picture of any size and mode into the model's input.

        Parameters
        ----------
        image : PIL.Image.Image
            See `as_rgb` for how orientation, transparency and deep colour are treated.

        Returns
        -------
        numpy.ndarray
            float32, shape `self.shape`: (C, H, W) or (H, W, C), no batch.

        Raises
        ------
        DataError
            When the picture's values have no defined 8-bit meaning.
        """
        return self.of_pixels(np.asarray(self._resize(as_rgb(image))))

    def of_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Turn a picture that is resized and cropped already into the model's input.

        Parameters
        ----------
        pixels : numpy.ndarray
            uint8 (H, W, 3), RGB, of height and width `self.size`.

        Returns
        -------
        numpy.ndarray
            float32, shape `self.shape`.
        """
        if self.colour == "L":
            pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
        elif self.colour == "BGR":
            pixels = pixels[..., ::-1]
        planes = np.empty((self.channels, *self.size), np.float32)
        for channel, table in enumerate(self._table):
            np.take(table, pixels[..., channel], out=planes[channel], mode="clip")  # clips nothing, and is the fastest
        return planes if self.layout == "NCHW" else np.ascontiguousarray(np.moveaxis(planes, 0, -1))

    def geometry(self, width: int, height: int) -> np.ndarray:
        """Where the points of a picture come to lie in the model's input.

        Coordinates are continuous: the pixel in column i and row j covers i..i+1 and j..j+1, so its centre is
        (i + 0.5, j + 0.5), and the whole picture covers 0..width and 0..height. Points of the picture that the crop
        takes away land outside the input; letterbox padding is what no point of the picture lands on.

        Parameters
        ----------
        width, height : int
            Size of the upright picture, pixels (`as_rgb` applies the EXIF orientation).

        Returns
        -------
        numpy.ndarray
            float64 (3, 3): ``matrix @ (x, y, 1)`` of the picture is (x, y, 1) of the input; its inverse leads back.
        """
        (wide, tall), (left, top) = self._placement(width, height)
        return np.array([[wide / width, 0, left], [0, tall / height, top], [0, 0, 1]], dtype=np.float64)

    def _placement(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Width and height that a picture is resized to, and the input's column and row that its corner comes to."""
        rows, columns = self.size
        if self.resize == "stretch":
            return (columns, rows), (0, 0)
        if self.resize == "letterbox":  # as PIL.ImageOps.pad, but never without a pixel
            wide, tall = columns, rows
            if width / height > columns / rows:
                tall = max(1, round(height / width * columns))
            else:
                wide = max(1, round(width / height * rows))
            return (wide, tall), (round((columns - wide) / 2), round((rows - tall) / 2))
        # The long edge is truncated and the crop's corner rounded as torchvision does, to agree pixel for pixel.
        tall, wide = round(rows / self.crop), round(columns / self.crop)
        if tall * width >= wide * height:
            wide = max(wide, tall * width // height)
        else:
            tall = max(tall, wide * height // width)
        return (wide, tall), (-round((wide - columns) / 2), -round((tall - rows) / 2))

    def _resize(self, image: Image.Image) -> Image.Image:
        size, corner = self._placement(*image.size)
        fitted = Image.new("RGB", self.size[::-1], (LETTERBOX_GREY,) * 3)
        fitted.paste(image.resize(size, FILTERS[self.filter]), corner)
        return fitted

    def inverse(self, array: np.ndarray) -> np.ndarray:
        """Show what the model saw.

        Parameters
        ----------
        array : numpy.ndarray
            One model input without batch, shape `self.shape`.

        Returns
        -------
        numpy.ndarray
            uint8 (H, W, 3), RGB; values outside the range are clipped.
        """
        if array.shape != self.shape:
            raise DataError(f"preprocess: cannot show an array of shape {array.shape}; expected {self.shape}")
        pixels = np.moveaxis(array, 0, -1) if self.layout == "NCHW" else array
        low, high = self.range
        grey = (pixels.astype(np.float64) * self.std + self.mean - low) * 255 / (high - low)
        shown = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
        if self.colour == "BGR":
            shown = shown[..., ::-1]
        return np.ascontiguousarray(np.broadcast_to(shown, (*self.size, 3)))

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest value that each channel can have after preprocessing, float32 (C,) each."""
        return self._table.min(axis=1), self._table.max(axis=1)

    def to_json(self) -> str:
        """Return the JSON text that `from_json` reads and that model metadata and stores keep."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | Mapping[str, Any]) -> Preprocess:
        """Read `to_json`'s text, or the same as a mapping.

        Fields left out keep their defaults, or what one of `PRESETS` says that stands under "preset".

        Raises
        ------
        DataError
            When the text is no JSON object, or names a field that does not exist.
        """
        try:
            values = json.loads(text) if isinstance(text, str) else dict(text)
        except ValueError as error:
            raise DataError(f"preprocess: not valid JSON ({error}): {text!r}") from error
        if not isinstance(values, dict):
            raise DataError(f"preprocess: expected a JSON object, got {text!r}")
        return cls._from_fields(values)

    @classmethod
    def for_input(cls, said: Preprocess | Mapping[str, Any], shape: Sequence[int | str | None]) -> Preprocess:
        """What `said` means for one model: a size that it leaves out is that of the model's input.

        Parameters
        ----------
        said : Preprocess or mapping
            A mapping as `from_json` reads it.
        shape : sequence of int, str or None
            The model's input shape without batch.

        Raises
        ------
        DataError
            As `from_json`.
        """
        if isinstance(said, Preprocess):
            return said
        plain = cls.from_json(said)
        if "size" in said or len(shape) != 3:
            return plain
        channels, *size = shape if plain.layout == "NCHW" else (shape[2], *shape[:2])
        if channels not in (plain.channels, None) or not all(isinstance(edge, int) for edge in size):
            return plain
        return cls.from_json({**said, "size": size})

    @classmethod
    def _from_fields(cls, values: Mapping[str, Any]) -> Preprocess:
        if "preset" in values:
            return cls.preset(str(values["preset"]), **{key: value for key, value in values.items() if key != "preset"})
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise DataError(f"preprocess: no field {name!r}; there are {', '.join(known)}")
        return cls(**values)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Preprocess | None:
        """Read an ONNX model's metadata; None when it does not say how to preprocess."""
        text = metadata.get(METADATA_KEY)
        return None if text is None else cls.from_json(text)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Preprocess:
        """One of `PRESETS`, with fields changed by keyword, such as ``size=299``.

        Raises
        ------
        DataError
            When there is no such preset or field.
        """
        if name not in PRESETS:
            raise DataError(f"preprocess: no preset {name!r}; there are {', '.join(PRESETS)}")
        return cls._from_fields({**PRESETS[name], **changes})

    @classmethod
    def from_input_shape(cls, shape: Sequence[int | str | None]) -> Preprocess:
        """Guess for a model that says nothing: stretch to its size, scale to 0..1, channels where 1 or 3 of them are.

        Parameters
        ----------
        shape : sequence of int, str or None
            The model's input shape with batch; a dynamic dimension is a str or None.

        Raises
        ------
        DataError
            When layout, size or colour cannot be told from the shape.
        """
        layout = guess_layout(shape)
        channels, height, width = shape[1:] if layout == "NCHW" else (shape[3], shape[1], shape[2])
        if channels == 4:
            raise DataError(
                f"model input {_show(shape)} has 4 channels, which pictures do not give; pass the data as a .npy array"
            )
        if not isinstance(height, int) or not isinstance(width, int):
            raise DataError(
                f"model input {_show(shape)} leaves the picture's size open; say it in the preprocessing, such as "
                '{"size": 224}'
            )
        return cls(size=(height, width), layout=layout, colour="L" if channels == 1 else "RGB")


def guess_layout(shape: Sequence[int | str | None]) -> str:
    """Tell "NCHW" from "NHWC" by where a batch of pictures has 1, 3 or 4 channels.

    Raises
    ------
    DataError
        When the shape does not have 4 dimensions, or both or neither place could be the channels.
    """
    first, last = (len(shape) == 4 and shape[axis] in (1, 3, 4) for axis in (1, -1))
    if first == last:
        raise DataError(
            f"cannot tell the picture layout of a model input of shape {_show(shape)}: expected 1, 3 or 4 channels "
            "as the second or the last of 4 dimensions; say the layout in the preprocessing, or pass a .npy array"
        )
    return "NCHW" if first else "NHWC"


def as_rgb(image: Image.Image) -> Image.Image:
    """Bring a picture of any kind to upright 8-bit RGB.

    The EXIF orientation is applied; transparent parts show a white background; palettes are looked up; 16-bit values
    are scaled to 8 bit; floating-point values must lie in 0..1; of an animation the current (first) frame is taken.

    Raises
    ------
    DataError
        For 32-bit integers beyond 16 bit, or floating-point values outside 0..1: their scale is not known.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return _eight_bit(image).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    highest = 1.0 if image.mode == "F" else 65535.0
    # written so that NaN fails too
    if not (values.min() >= 0 and values.max() <= highest):
        raise DataError(
            f"picture values {values.min():g} to {values.max():g} in Pillow mode {image.mode!r}: "
            f"expected 0 to {highest:g}; save it as an 8- or 16-bit picture"
        )
    return Image.fromarray(np.rint(values / highest * 255).astype(np.uint8))


def _numbers(name: str, values: Any, lengths: tuple[int, ...]) -> tuple[float, ...]:
    """`values` as finite floats, as many as one of `lengths` says; a single number counts as one."""
    try:
        numbers = tuple(float(value) for value in np.atleast_1d(values))
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) not in lengths or not np.all(np.isfinite(numbers)):
        wanted = " or ".join(str(length) for length in sorted(set(lengths)))
        raise DataError(f"preprocess: {name} is {values!r}; expected {wanted} finite number(s)")
    return numbers


def _show(shape: Sequence[int | str | None]) -> str:
    return "(" + ", ".join("?" if dim is None else str(dim) for dim in shape) + ")"
