"""Image folders, manifests, arrays and texts as one data set type."""

from lrp_onnx.data.dataset import Batch, Dataset, Sample, batches
from lrp_onnx.data.sources import IMAGE_SUFFIXES, open_dataset
from lrp_onnx.data.texts import open_texts

__all__ = ["IMAGE_SUFFIXES", "Batch", "Dataset", "Sample", "batches", "open_dataset", "open_texts"]
