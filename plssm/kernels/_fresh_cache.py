"""Keeps numba's on-disk cache in step with the sources of the kernels.

numba recompiles a cached function when its own file changes. A compiled function also contains
those it calls from other files, so here any change of a file of this folder empties the cache.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from numba import njit

__all__ = ["drop_stale_cache"]

_STAMP = "plssm_kernels.sha256"


@njit(cache=True)
def _probe():
    """Tells where numba keeps the cache of this folder; never called."""
    return 0


def drop_stale_cache(sources: Path, cache: Path) -> bool:
    """Removes the index files of a cache that belongs to other sources.

    A cache that cannot be written to is left alone.

    Args:
        sources: Folder of the kernels' Python files.
        cache: Folder of the compiled functions.

    Returns:
        Whether the cache was emptied.
    """
    digest = hashlib.sha256()
    for path in sorted(sources.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    stamp, current = cache / _STAMP, digest.hexdigest()
    with contextlib.suppress(OSError):
        if stamp.is_file() and stamp.read_text() == current:
            return False
        cache.mkdir(parents=True, exist_ok=True)
        for index in cache.glob("*.nbi"):
            index.unlink(missing_ok=True)
        stamp.write_text(current)
        return True
    return False


drop_stale_cache(Path(__file__).parent, Path(_probe.stats.cache_path))
