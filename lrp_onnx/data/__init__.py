"""Image folders, manifests and arrays as one data set type."""

from lrp_onnx.data.dataset import Batch, Dataset, Sample, batches
from lrp_onnx.data.sources import IMAGE_SUFFIXES, open_dataset

__all__ = ["IMAGE_SUFFIXES", "Batch", "Dataset", "Sample", "batches", "open_dataset"]
