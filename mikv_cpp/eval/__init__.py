"""Measuring what a compressed cache costs: `python -m mikv_cpp.eval --help`."""
