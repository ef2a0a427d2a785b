"""Assembly of chain blocks for hinges that are the states themselves, with explicit vectors."""

from __future__ import annotations

from plssm.kernels._emit import Emitter
from plssm.kernels._vector_blocks import joint, operation, part, tight

__all__ = ["assemble_gated"]


def _assemble_gated(e: Emitter, here, base_at, gates_at, slope_at, information_at):
    """Writes the rows [S + information + J'QJ | -J'Q] for J = A + W diag(d); see `_blocks`."""
    rows, base, information = joint(e, here), joint(e, base_at), tight(e, information_at)
    one, other, both = (joint(e, e.at(gates_at, k * e.m * 8 * e.vectors)) for k in range(3))
    slopes = [part(e, slope_at, c) for c in range(e.vectors)]
    for i in range(e.m):
        x = e.splat(e.pick(slopes[i // 4], i % 4))
        for c in range(2 * e.vectors):
            value = e.load_row(base, i, c)
            factor = e.load_row(both, i, c)
            if c < e.vectors:
                value = e.add(value, e.load_row(information, i, c))
                value = e.more(value, slopes[c], e.load_row(one, i, c))
                factor = e.more(e.load_row(other, i, c), slopes[c], factor)
            e.store_row(e.more(value, x, factor), rows, i, c)


assemble_gated = operation(_assemble_gated)
