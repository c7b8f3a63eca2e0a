"""The exceptions that this project raises on purpose; each message says what, where and what to do."""

from __future__ import annotations


class LrpOnnxError(Exception):
    """Base of all errors that a user can cause and mend; the command line prints it as one line, exit code 2."""


class ModelError(LrpOnnxError):
    """The model file cannot be read, is not valid ONNX, or holds values that cannot be used (NaN weights)."""


class UnsupportedOpError(LrpOnnxError):
    """A node on the relevance path has no forward meaning, or no rule; then `op_type` says for which op."""

    def __init__(self, message: str, *, op_type: str | None = None) -> None:
        super().__init__(message)
        self.op_type = op_type


class RuleError(LrpOnnxError):
    """A rule or composite was named, parameterised or applied wrongly."""


class TargetError(LrpOnnxError):
    """The target or the seed does not fit the model's output."""


class ConversionError(LrpOnnxError):
    """A framework model could not be converted, or the ONNX model computes something else."""


class DataError(LrpOnnxError):
    """Images, manifests, arrays or preprocessing do not fit each other or the model."""


class StoreError(LrpOnnxError):
    """A heatmap store cannot be created, opened, resumed or read as asked."""


class OutputError(LrpOnnxError):
    """A result file exists already or cannot be written."""
