"""The same work on many processes and machines, by Dask: parts of a data set side by side, each into a file of its own.

A scheduler is named by "local:N", for N processes of this machine, or by its address, "tcp://host:8786". Workers must
have lrp-onnx installed and see the data and the output under the same paths as this process.
"""

from lrp_onnx.distributed.distances import segments_on
from lrp_onnx.distributed.heatmaps import explain_on
from lrp_onnx.distributed.predictions import predict_on
from lrp_onnx.distributed.scheduler import connect

__all__ = ["connect", "explain_on", "predict_on", "segments_on"]
