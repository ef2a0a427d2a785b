"""Compiled kernels on float64 numpy arrays; nothing is compiled when a module is imported.

Each kernel is compiled at its first call for a size and kept in numba's on-disk cache, so that a
later process loads it in a fraction of a second.
"""
