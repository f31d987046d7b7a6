"""The projection form's pass over the nodes, one read of the teacher.

With p_i = t_i M_i + bias_i and s_j = h~_j N_j, the stages of a pass over some rows are

    states    s_j, and sums of s_j and |s_j|^2                            a program per layer j
    teacher   p_i, sums of p_i, |p_i|^2 and <p_i, s_j>, dM_i = t_i^T gp_i     ... per layer i
    combine   gs_j = v (gamma_j s_j - sum_i A_ij p_i + w_j), in place of s_j
    maps      dN_j = h~_j^T gs_j
    gradient  dh_j = gs_j (scale N_j)^T

and of all that grows with the nodes only s, gs and, where the states want a gradient, p of the
rows of one pass are stored. The subspace goes by in tiles of BLOCK_R columns, over which all of
it is a sum or separable. A layer wider than BLOCK_D is projected once per BLOCK_D columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from abkd_fast.kernels._layer_pair_blocks import find_nodes, load_states, load_weight, product


@triton.jit
def load_tile(tiles, tile, ALIGN: tl.constexpr):
    """Layer, first column, its end, and first column of the tile; see layer_table.

    All columns are multiples of ALIGN, which lets rows be read in vectors of that many.
    """
    at = tiles + tile * 4
    first = tl.multiple_of(tl.load(at + 1), ALIGN)
    last = tl.multiple_of(tl.load(at + 2), ALIGN)
    return tl.load(at), first, last, tl.multiple_of(tl.load(at + 3), ALIGN)


@triton.jit
def load_map(maps, columns, end, q, r):
    """Rows ``columns`` [K] and columns q [R'] of a map [., r]; 0 beyond."""
    at = columns[:, None] * r + q[None, :]
    return tl.load(maps + at, mask=(columns < end)[:, None] & (q < r)[None, :], other=0.0)


@triton.jit
def states_kernel(
    states, centre, nodes, weight, maps, tiles, s, parts,  # [N, C], [C], [C, r], [S, rows, r]
    first_row, num_rows, chunk_rows, pass_rows, columns, layers, teachers, r, size,
    ALIGN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """s = h~ N, and its sums over a chunk: parts is [chunks, r tiles and kinds]; see Parts."""
    pid = tl.program_id(0).to(tl.int64)
    r_tile = pid // layers % tl.cdiv(r, BLOCK_R)
    chunk = pid // layers // tl.cdiv(r, BLOCK_R)
    layer, first, last, _ = load_tile(tiles, pid % layers, ALIGN)
    q = r_tile * BLOCK_R + tl.arange(0, BLOCK_R)
    dtype: tl.constexpr = s.dtype.element_ty
    square, total = tl.zeros([BLOCK_R], dtype), tl.zeros([BLOCK_R], dtype)
    end = tl.minimum(first_row + (chunk + 1) * chunk_rows, num_rows)
    for start in range(first_row + chunk * chunk_rows, end, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N).to(tl.int64)
        mask = rows < end
        node = find_nodes(nodes, rows, mask)
        projected = tl.zeros([BLOCK_N, BLOCK_R], dtype)
        for k in range(first, last, BLOCK_K):
            at = k + tl.arange(0, BLOCK_K)
            h = load_states(states, columns, centre, node, mask, at, last)
            projected -= product(h, load_map(maps, at, last, q, r))
        projected = -projected
        offs = (layer * pass_rows + rows - first_row)[:, None] * r + q[None, :]
        tl.store(s + offs, projected, mask=mask[:, None] & (q < r)[None, :])
        weighted = projected * load_weight(weight, rows, mask, dtype)[:, None]
        total += tl.sum(weighted, 0)
        square += tl.sum(weighted * projected, 0)
    out = parts + (first_row // chunk_rows + chunk) * size
    pairs = teachers + layers
    tl.store(out + r_tile * pairs + teachers + layer, tl.sum(square))
    out += tl.cdiv(r, BLOCK_R) * (pairs + teachers * layers)
    tl.store(out + (teachers + layer) * r + q, total, mask=q < r)


@triton.jit
def _project(teacher, stride_d, node_offs, mask, maps, first, last, q, r, dtype: tl.constexpr,
             BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr):  # fmt: skip
    """-t M, [BLOCK_N, BLOCK_R], of one layer: columns first to last."""
    out = tl.zeros([BLOCK_N, BLOCK_R], dtype)
    for start in range(first, last, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        at = mask[:, None] & (k < last)[None, :]
        t = tl.load(teacher + node_offs[:, None] + k[None, :] * stride_d, mask=at, other=0.0)
        out -= product(t, load_map(maps, k, last, q, r))
    return out


@triton.jit
def _score(p, residual, v, cross, s, attention, rows, mask, q, pass_rows, students, r,
           BLOCK_S: tl.constexpr):  # fmt: skip
    """Residual plus sum_j A_j (p - s_j), and cross [BLOCK_S] plus the sums of v p s_j.

    The difference of each pair is taken, so that where they coincide nothing cancels later.
    """
    indices = tl.arange(0, BLOCK_S)
    for j in range(0, students):
        offs = (j * pass_rows + rows)[:, None] * r + q[None, :]
        s_j = tl.load(s + offs, mask=mask[:, None] & (q < r)[None, :], other=0.0)
        residual += tl.load(attention + j).to(p.dtype) * (p - s_j)
        cross = tl.where(indices == j, cross + tl.sum(tl.sum(p * s_j, 1) * v), cross)
    return residual, cross


@triton.jit
def _pull_back(dmap, teacher, stride_d, node_offs, mask, d, last, gp):
    """dmap [D', R'] less t^T gp, for columns d of one layer."""
    at = mask[:, None] & (d < last)[None, :]
    t = tl.load(teacher + node_offs[:, None] + d[None, :] * stride_d, mask=at, other=0.0)
    return dmap - product(tl.trans(t), gp)


@triton.jit
def _store_map(out, dmap, d, last, q, r):
    """out[d, q] = -dmap."""
    at = (d < last)[:, None] & (q < r)[None, :]
    tl.store(out + d[:, None] * r + q[None, :], -dmap, mask=at)


@triton.jit
def teacher_kernel(
    teacher, stride_n, stride_d, nodes, weight, maps, bias, u, attention, tiles, s, p_out, parts,
    first_row, num_rows, chunk_rows, pass_rows, num_tiles, layers, students, r, maps_at, size,
    ALIGN: tl.constexpr, WANT_MAP: tl.constexpr, WANT_P: tl.constexpr, TWO: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """p, its sums over a chunk, and dM = t^T gp for BLOCK_D columns of one teacher layer.

    teacher [N, D]; maps [D, r]; bias, u [T, r]; attention [T, S] f64; s, p_out [., pass rows, r].
    """
    pid = tl.program_id(0).to(tl.int64)
    layer, first, last, column = load_tile(tiles, pid % num_tiles, ALIGN)
    r_tiles = tl.cdiv(r, BLOCK_R)
    r_tile = pid // num_tiles % r_tiles
    chunk = pid // num_tiles // r_tiles
    leads = (column == first).to(tl.int64)  # sums and p come from a layer's first tile
    q = r_tile * BLOCK_R + tl.arange(0, BLOCK_R)
    d = column + tl.arange(0, BLOCK_D)
    j = tl.arange(0, BLOCK_S)
    dtype: tl.constexpr = s.dtype.element_ty
    attention += layer * students
    b = tl.load(bias + layer * r + q, mask=q < r, other=0.0)
    u_row = tl.load(u + layer * r + q, mask=q < r, other=0.0)
    square, total = tl.zeros([BLOCK_N], dtype), tl.zeros([BLOCK_R], dtype)
    cross = tl.zeros([BLOCK_S], dtype)
    low, high = tl.zeros([BLOCK_D, BLOCK_R], dtype), tl.zeros([BLOCK_D, BLOCK_R], dtype)
    end = tl.minimum(first_row + (chunk + 1) * chunk_rows, num_rows)
    own_end, own_students, own_r = end * leads, students * leads, r * leads
    for start in range(first_row + chunk * chunk_rows, end, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N).to(tl.int64)
        mask = rows < end
        offs = find_nodes(nodes, rows, mask) * stride_n
        v = load_weight(weight, rows, mask, dtype)
        p = b[None, :] - _project(teacher, stride_d, offs, mask, maps, first, last, q, r, dtype,
                                  BLOCK_N, BLOCK_K, BLOCK_R)  # fmt: skip
        total += tl.sum(p * v[:, None], 0)
        square += tl.sum(p * p, 1) * v
        gp = tl.zeros([BLOCK_N, BLOCK_R], dtype) + u_row[None, :]
        gp, cross = _score(p, gp, v, cross, s, attention, rows - first_row, mask, q, pass_rows,
                           students, r, BLOCK_S)  # fmt: skip
        if WANT_P:
            at = (layer * pass_rows + rows - first_row)[:, None] * r + q[None, :]
            tl.store(p_out + at, p, mask=(rows < own_end)[:, None] & (q < r)[None, :])
        if WANT_MAP:
            gp *= v[:, None]
            low = _pull_back(low, teacher, stride_d, offs, mask, d, last, gp)
            if TWO:
                high = _pull_back(high, teacher, stride_d, offs, mask, d + BLOCK_D, last, gp)
    out = parts + (first_row // chunk_rows + chunk) * size
    tl.store(out + r_tile * (layers + students) + layer, tl.sum(square), mask=leads > 0)
    out_cross = out + r_tiles * (layers + students) + (r_tile * layers + layer) * students
    tl.store(out_cross + j, cross, mask=j < own_students)
    out_sum = out + r_tiles * (layers + students + layers * students) + layer * r
    tl.store(out_sum + q, total, mask=q < own_r)
    if WANT_MAP:
        _store_map(out + maps_at, low, d, last, q, r)
        if TWO:
            _store_map(out + maps_at, high, d + BLOCK_D, last, q, r)


@triton.jit
def combine_kernel(
    s, p, attention, w, weight,  # [S, rows, r], [T, rows, r], [T, S] f64, [S, r], [n]
    first_row, num_rows, pass_rows, layers, students, r, layer_size,
    BLOCK: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """s_j = v (sum_i A_ij (s_j - p_i) + w_j): BLOCK elements of all j a program."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # of [rows, r]
    rows = first_row + e // r
    mask = rows < tl.minimum(first_row + pass_rows, num_rows)
    j = tl.arange(0, BLOCK_S)
    dtype: tl.constexpr = s.dtype.element_ty
    at = (j < students)[:, None] & mask[None, :]
    offs = j[:, None].to(tl.int64) * layer_size + e[None, :]
    own = tl.load(s + offs, mask=at, other=0.0)
    out = tl.load(w + j[:, None] * r + (e % r)[None, :], mask=at, other=0.0)
    p_offs = e
    for i in range(0, layers):
        a = tl.load(attention + i * students + j, mask=j < students, other=0.0)
        p_i = tl.load(p + p_offs, mask=mask, other=0.0)
        out += a.to(dtype)[:, None] * (own - p_i[None, :])
        p_offs += layer_size
    tl.store(s + offs, load_weight(weight, rows, mask, dtype)[None, :] * out, mask=at)


@triton.jit
def maps_kernel(
    states, centre, nodes, tiles, gs, parts,  # [N, C], [C], [n], [S, rows, r], [chunks, size]
    first_row, num_rows, chunk_rows, pass_rows, num_tiles, columns, r, maps_at, size,
    ALIGN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """parts[maps_at:] = h~^T gs over a chunk, for BLOCK_D columns of one student layer."""
    pid = tl.program_id(0).to(tl.int64)
    layer, _, last, column = load_tile(tiles, pid % num_tiles, ALIGN)
    r_tiles = tl.cdiv(r, BLOCK_R)
    q = pid // num_tiles % r_tiles * BLOCK_R + tl.arange(0, BLOCK_R)
    chunk = pid // num_tiles // r_tiles
    d = column + tl.arange(0, BLOCK_D)
    dmap = tl.zeros([BLOCK_D, BLOCK_R], gs.dtype.element_ty)
    end = tl.minimum(first_row + (chunk + 1) * chunk_rows, num_rows)
    for start in range(first_row + chunk * chunk_rows, end, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N).to(tl.int64)
        mask = rows < end
        node = find_nodes(nodes, rows, mask)
        h = load_states(states, columns, centre, node, mask, d, last)
        offs = (layer * pass_rows + rows - first_row)[:, None] * r + q[None, :]
        g = tl.load(gs + offs, mask=mask[:, None] & (q < r)[None, :], other=0.0)
        dmap -= product(tl.trans(h), g)
    out = parts + (first_row // chunk_rows + chunk) * size + maps_at
    at = (d < last)[:, None] & (q < r)[None, :]
    tl.store(out + d[:, None] * r + q[None, :], -dmap, mask=at)


@triton.jit
def gradient_kernel(
    nodes, maps, tiles, gs, dstates,  # [n], [C, r], as above, [N, C]
    first_row, num_rows, pass_rows, num_tiles, columns, r,
    ALIGN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """dstates = gs N^T: BLOCK_N rows and BLOCK_D columns of one student layer a program."""
    pid = tl.program_id(0).to(tl.int64)
    layer, _, last, column = load_tile(tiles, pid % num_tiles, ALIGN)
    d = column + tl.arange(0, BLOCK_D)
    rows = first_row + pid // num_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = rows < tl.minimum(first_row + pass_rows, num_rows)
    dtype: tl.constexpr = gs.dtype.element_ty
    total = tl.zeros([BLOCK_N, BLOCK_D], dtype)
    for start in range(0, r, BLOCK_R):
        q = start + tl.arange(0, BLOCK_R)
        offs = (layer * pass_rows + rows - first_row)[:, None] * r + q[None, :]
        g = tl.load(gs + offs, mask=mask[:, None] & (q < r)[None, :], other=0.0)
        total -= product(g, tl.trans(load_map(maps, d, last, q, r)))
    node = find_nodes(nodes, rows, mask)
    at = mask[:, None] & (d < last)[None, :]
    tl.store(dstates + node[:, None] * columns + d[None, :], -total, mask=at)
