"""The definition of mikv_cpp in plain NumPy: what FORMAT.md says, as code that runs.

It shares no code with the native library and is written to be read, not to be fast. Tests hold the native
kernels against it; nothing else in the package imports it.
"""
