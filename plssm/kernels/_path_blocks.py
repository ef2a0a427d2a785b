"""Block operations of Gaussian paths as ordinary compiled loops.

A finished step is kept as two blocks of padded rows (see `_blocks`): the lower triangular
I_t = L_t^-1, where L_t L_t' = S_t = U_tt - U_{t-1,t}' S_{t-1}^-1 U_{t-1,t}, and the transposed
gain H_t = U_{t,t+1}' S_t^-1. With them every solve is a product. Vectors and the blocks of arrays
that come from outside have tight rows.
"""

from __future__ import annotations

from plssm.kernels._compile import compiled

__all__ = [
    "ascend",
    "carry",
    "combine",
    "descend",
    "finish_diagonal",
    "gain",
    "place",
    "place_last",
    "pull",
    "subtract_outer",
    "subtract_symmetric",
    "weigh_order",
]


@compiled
def place_last(rows, here, diag, at, size):
    """Writes joint rows [U_tt | 0]."""
    m = len(size)
    s = (m + 3) // 4 * 8
    for i in range(m):
        for j in range(s):
            rows[here + i * s + j] = 0.0
        for j in range(m):
            rows[here + i * s + j] = diag[at + i * m + j]


@compiled
def place(rows, here, diag, at, off, off_at, size):
    """Writes joint rows [U_tt | U_{t,t+1}]."""
    m = len(size)
    w = (m + 3) // 4 * 4
    place_last(rows, here, diag, at, size)
    for i in range(m):
        for j in range(m):
            rows[here + i * 2 * w + w + j] = off[off_at + i * m + j]


@compiled(fastmath={"contract"})
def gain(out, io, rows, here, inverse, ii, size):
    """Writes H = C' I from joint rows [R | C]."""
    m = len(size)
    w = (m + 3) // 4 * 4
    for i in range(m * w):
        out[io + i] = 0.0
    for k in range(m):
        for i in range(m):
            x = rows[here + k * 2 * w + w + i]
            for j in range(k + 1):
                out[io + i * w + j] += x * inverse[ii + k * w + j]


@compiled(fastmath={"contract"})
def pull(z, iz, kept, ii, size):
    """Turns z into I'z."""
    m = len(size)
    w = (m + 3) // 4 * 4
    for k in range(m):
        x = z[iz + k]
        z[iz + k] = 0.0
        for j in range(k + 1):
            z[iz + j] += x * kept[ii + k * w + j]


@compiled(fastmath={"contract"})
def ascend(z, iz, iz_next, kept, ii, ig, size):
    """Turns z into I'z - H'z_next; without a next step, H is zero."""
    m = len(size)
    w = (m + 3) // 4 * 4
    pull(z, iz, kept, ii, size)
    if iz_next == iz:
        return
    for k in range(m):
        x = z[iz_next + k]
        for j in range(m):
            z[iz + j] -= x * kept[ig + k * w + j]


@compiled(fastmath={"contract"})
def descend(f, at, carried, ic, ic_before, kept, ii, ig_before, size):
    """Writes c = f - H_before c_before into `carried`, and I c in place of f."""
    m = len(size)
    w = (m + 3) // 4 * 4
    for i in range(m):
        x = f[at + i]
        for j in range(m):
            x -= kept[ig_before + i * w + j] * carried[ic_before + j]
        carried[ic + i] = x
    for i in range(m):
        x = 0.0
        for j in range(i + 1):
            x += kept[ii + i * w + j] * carried[ic + j]
        f[at + i] = x


@compiled(fastmath={"contract"})
def weigh_order(q, iq, kept, ii, f, i_f, xi, ix, running, ir, size):
    """Adds f_i (sum_{j<i} xi_j I_j + xi_i I_i / 2) / 2 to the rows of q; I_j are rows."""
    m = len(size)
    w = (m + 3) // 4 * 4
    for j in range(m):
        running[ir + j] = 0.0
    for i in range(m):
        x, y = 0.5 * f[i_f + i], xi[ix + i]
        for j in range(i + 1):
            row = y * kept[ii + i * w + j]
            q[iq + i * w + j] += x * (running[ir + j] + 0.5 * row)
            running[ir + j] += row


@compiled(fastmath={"contract"})
def combine(p, ip, kept, ii, q, iq, size):
    """Writes I'Q + Q'I into padded rows; both are lower triangular."""
    m = len(size)
    w = (m + 3) // 4 * 4
    for i in range(m):
        for j in range(m):
            total = 0.0
            for k in range(max(i, j), m):
                total += kept[ii + k * w + i] * q[iq + k * w + j]
                total += q[iq + k * w + i] * kept[ii + k * w + j]
            p[ip + i * w + j] = total


@compiled(fastmath={"contract"})
def carry(p, ip, ip_next, cross, ic, kept, ig, size):
    """Adds H' P_next H to P, and writes -2 H' P_next into tight rows."""
    m = len(size)
    w = (m + 3) // 4 * 4
    for i in range(m * m):
        cross[ic + i] = 0.0
    for k in range(m):
        for i in range(m):
            x = 2.0 * kept[ig + k * w + i]
            for j in range(m):
                cross[ic + i * m + j] -= x * p[ip_next + k * w + j]
    for i in range(m):
        for k in range(m):
            x = 0.5 * cross[ic + i * m + k]
            for j in range(i, m):
                p[ip + i * w + j] -= x * kept[ig + k * w + j]
        for j in range(i):
            p[ip + i * w + j] = p[ip + j * w + i]


@compiled(fastmath={"contract"})
def subtract_symmetric(p, ip, x, ix, y, iy, size):
    """Subtracts (x y' + y x') / 2 from padded rows."""
    m = len(size)
    w = (m + 3) // 4 * 4
    for i in range(m):
        a, b = 0.5 * x[ix + i], 0.5 * y[iy + i]
        for j in range(m):
            p[ip + i * w + j] -= a * y[iy + j] + b * x[ix + j]


@compiled(fastmath={"contract"})
def finish_diagonal(out, io, p, ip, x, ix, y, iy, size):
    """Writes P - (x y' + y x') / 2 into tight rows."""
    m = len(size)
    w = (m + 3) // 4 * 4
    for i in range(m):
        a, b = 0.5 * x[ix + i], 0.5 * y[iy + i]
        for j in range(m):
            out[io + i * m + j] = p[ip + i * w + j] - (a * y[iy + j] + b * x[ix + j])


@compiled(fastmath={"contract"})
def subtract_outer(out, io, x, ix, y, iy, size):
    """Subtracts x y' from tight rows."""
    m = len(size)
    for i in range(m):
        for j in range(m):
            out[io + i * m + j] -= x[ix + i] * y[iy + j]


@compiled(fastmath={"contract"})
def subtract_dots(out, io, x, ix, matrix, im, size):
    """Subtracts A x from a vector; A has tight rows."""
    m = len(size)
    for i in range(m):
        total = 0.0
        for j in range(m):
            total += matrix[im + i * m + j] * x[ix + j]
        out[io + i] -= total
