"""`python -m lrp_onnx` is the same as the console script `lrp-onnx`."""

from lrp_onnx.cli import main

if __name__ == "__main__":
    main()
