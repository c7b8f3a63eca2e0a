"""Benchmarks: ratios measured in one run, so that a busy machine slows all contenders alike."""
