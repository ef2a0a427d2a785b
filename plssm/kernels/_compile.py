"""The decorator of the compiled kernels: numba, with an on-disk cache that notices every edit."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from numba import njit
from numba.core.caching import FunctionCache

__all__ = ["compiled"]

_IMPORT = re.compile(r"from plssm\.kernels(?:\.(\w+) import| import (\w+))")


@functools.cache
def _fingerprint(path: str) -> str:
    """Returns a hash of a kernel's source file and of the kernel files that it imports."""
    folder = Path(path).parent
    found, waiting = {}, [Path(path).stem]
    while waiting:
        name = waiting.pop()
        source = folder / f"{name}.py"
        if name in found or not source.exists():
            continue
        found[name] = source.read_text(encoding="utf-8")
        waiting += [module or member for module, member in _IMPORT.findall(found[name])]
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()


class _SourceCache(FunctionCache):
    """Cache whose entries belong to one state of the sources.

    numba looks only at the file of the function itself, not at the functions that it calls.
    """

    def _index_key(self, sig, codegen):
        key = super()._index_key(sig, codegen)
        return (*key, _fingerprint(self._py_func.__code__.co_filename))


def compiled(function: Callable | None = None, **options) -> Callable:
    """Compiles a kernel at its first call for each size, and keeps it on disk.

    Args:
        function: The kernel.
        **options: Further options of `numba.njit`.

    Returns:
        The compiled kernel, which runs without the interpreter lock; a decorator when no function
        is given.
    """

    def decorate(function: Callable) -> Callable:
        kernel = njit(cache=True, nogil=True, error_model="numpy", **options)(function)
        kernel._cache = _SourceCache(function)
        return kernel

    return decorate if function is None else decorate(function)
