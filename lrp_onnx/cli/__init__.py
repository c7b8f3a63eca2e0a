"""The command line `lrp-onnx`; one file a command, which parses, calls the library and prints."""

from lrp_onnx.cli.app import main

__all__ = ["main"]
