"""Heatmaps as TensorBoard images, by whichever library is there to write them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lrp_onnx.converters.coexist import order_imports
from lrp_onnx.errors import DataError
from lrp_onnx.render import png_bytes


class Board(Protocol):
    """Writes pictures, uint8 (H, W, 3) by tag, for TensorBoard to show."""

    def write(self, step: int, pictures: Mapping[str, NDArray[np.uint8]]) -> None: ...


def open_board(folder: Path) -> Board:
    """Write to event files in `folder`, by torch.utils.tensorboard or else by TensorFlow.

    Raises
    ------
    DataError
        Neither is installed.
    """
    order_imports()
    if find_spec("tensorboard"):
        return _TorchBoard(folder)
    if find_spec("tensorflow"):
        return _TensorFlowBoard(folder)
    raise DataError("tensorboard=True needs a library that writes its files: pip install tensorboard")


class _TorchBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def write(self, step: int, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        for tag, picture in pictures.items():
            self._writer.add_image(tag, picture, step, dataformats="HWC")
        self._writer.flush()


class _TensorFlowBoard:
    """TensorFlow's own image summary needs the tensorboard package; its writer takes the finished record without."""

    def __init__(self, folder: Path) -> None:
        import tensorflow as tf

        self._writer: Any = tf.summary.create_file_writer(str(folder))

    def write(self, step: int, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        import tensorflow as tf

        with self._writer.as_default():
            for tag, picture in pictures.items():
                height, width, _ = picture.shape
                image = tf.compat.v1.Summary.Image(
                    height=height, width=width, colorspace=3, encoded_image_string=png_bytes(picture)
                )
                value = tf.compat.v1.Summary.Value(tag=tag, image=image)
                record = tf.compat.v1.Summary(value=[value]).SerializeToString()
                tf.summary.experimental.write_raw_pb(record, step=step)
        self._writer.flush()
