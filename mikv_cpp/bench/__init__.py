"""Speed of caches side by side, and of attention alone: `python -m mikv_cpp.bench`."""
