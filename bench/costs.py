"""What every op must compute and move at least: floating-point operations and bytes.

A multiply-add is two operations. Bytes are counted as if every array were read or written once a
pass, except the rows that a product with a graph gathers: one row an edge. Where the rows an op
touches stay in a cache, the gathers are served from there; ``touched`` says which cache that can
be. Indices take 4 bytes, pointers of segments and winners 8. N nodes, E edges, F features.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Of one call: operations, bytes moved, and distinct bytes of the pass that touches most."""

    flop: int
    moved: int
    touched: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flop + other.flop, self.moved + other.moved, max(self.touched, other.touched)
        )

    def __rmul__(self, times: int) -> Cost:
        return Cost(times * self.flop, times * self.moved, self.touched)

    def row(self) -> dict[str, float]:
        """As the JSON files have it."""
        return {
            "gflop": 1e-9 * self.flop,
            "gb": 1e-9 * self.moved,
            "touched_mb": 1e-6 * self.touched,
        }


def spmm(nodes: int, edges: int, width: int, size: int = 4, backward: bool = False) -> Cost:
    """A x with weights: 2 E F; graph 4 (N + 1) + 8 E, E + N rows. The backward costs it again."""
    graph = 4 * (nodes + 1) + 8 * edges
    row = width * size
    forward = Cost(2 * edges * width, graph + (edges + nodes) * row, graph + 2 * nodes * row)
    return 2 * forward if backward else forward


def spmm_extremum(
    nodes: int, edges: int, width: int, size: int = 4, index: int = 4, backward: bool = False
) -> Cost:
    """Largest or smallest message: E F products, E F comparisons; the graph, E + N rows.

    With the backward the forward writes its winners, N F indices. The backward reads the transposed
    graph and its permutation, and by an edge the winner and the gradient of its row; it writes dx.
    """
    forward = spmm(nodes, edges, width, size)
    if not backward:
        return forward
    winners = nodes * width * index
    rows = edges * width * (index + size) + nodes * width * size
    graph = 4 * (nodes + 1) + 8 * edges + index * edges
    touched = graph + winners + 2 * nodes * width * size
    forward += Cost(0, winners, forward.touched + winners)
    return forward + Cost(2 * edges * width, graph + rows, touched)


def conv(nodes: int, edges: int, width: int, backward: bool = True) -> Cost:
    """One GCNII layer F -> F, float32: A x, the residual, W, ReLU.

    Forward: 2 E F + 2 N F^2; the graph, E gathered rows, x_0, and S and out written.
    Backward: 2 E F + 4 N F^2 (dS = dz W^T, dW = S^T dz, A^T dS); the graph, E gathered rows, dout,
    out, S, and dS, dx, dx_0 written.
    """
    product = spmm(nodes, edges, width)
    rows, square = 4 * nodes * width, nodes * width * width
    cost = product + Cost(2 * square, 2 * rows, product.touched + 2 * rows)
    if backward:
        cost += product + Cost(4 * square, 5 * rows, product.touched + 4 * rows)
    return cost


def dropout(elements: int, size: int = 4, backward: bool = False) -> Cost:
    """Every element read and written; the mask is drawn, about 20 integer operations an element."""
    forward = Cost(elements, 2 * size * elements, 2 * size * elements)
    return 2 * forward if backward else forward


def segment_csr(
    segments: int, rows: int, width: int, size: int, winners: bool, backward: bool
) -> Cost:
    """One addition or comparison an element; rows read, segments written.

    Backward: segments read, rows written; a maximum also writes its winners, and reads them.
    """
    moved = 8 * (segments + 1) + (rows + segments) * width * size
    forward = Cost(rows * width, moved, moved)
    if not backward:
        return forward
    moved += 8 * segments * width if winners else 0
    return Cost(rows * width, 2 * moved, moved)


def layer_pair(nodes: int, teacher: int, student: int, r: int, size: int, passes: int) -> Cost:
    """Loss and gradients: the products that read the teacher, once a pass, and its bytes once.

    ``teacher`` and ``student`` are sums of widths. The moment form multiplies with the student's
    states, 2 N D_t D_s a pass (r = 0); the projection form with the teacher's maps, 2 N D_t r.
    Two passes: the gradient of the maps, or of the student's states, needs the second.
    """
    moved = nodes * (teacher * size + 2 * student * 4)
    return Cost(passes * 2 * nodes * teacher * (r or student), moved, moved)


def teacher_moments(nodes: int, widths: list[int], size: int = 4) -> Cost:
    """2 N d^2 a layer, in float64; the teacher read once, sums and second moments written."""
    moved = nodes * sum(widths) * size + 8 * sum(d + d * d for d in widths)
    return Cost(2 * nodes * sum(d * d for d in widths), moved, moved)


def linear(nodes: int, width: int, classes: int, backward: bool = True) -> Cost:
    """Dense h W: 2 N F C, three times with the backward; h, out, and their gradients."""
    passes = 3 if backward else 1
    moved = 4 * passes * nodes * (width + classes)
    return Cost(passes * 2 * nodes * width * classes, moved, moved)


def kl_div(
    nodes: int, classes: int, size: int = 4, labels: bool = False, backward: bool = True
) -> Cost:
    """Loss of class scores: a scaling, a maximum, an exponential, an addition a score.

    Against a distribution also an exponential and a multiply-add; the scores, and the target or the
    labels (8 bytes a row), read once. The backward reads both again, and writes the gradient: the
    same exponentials, a division, a difference, a scaling.
    """
    scores = nodes * classes
    target = 8 * nodes if labels else size * scores
    moved = size * scores + target
    forward = Cost((4 if labels else 7) * scores, moved, moved)
    if not backward:
        return forward
    moved += size * scores
    return forward + Cost((7 if labels else 8) * scores, moved, moved)


def gcnii(
    size: tuple[int, int], nodes: int, edges: int, first: Cost, classes: int, backward: bool
) -> Cost:
    """A model of ``size`` (layers, width): its first product, with X, then layers, and a linear.

    The backward of a first product with a sparse X is that of its weight: X^T dz, as many
    operations.
    """
    layers, width = size
    last = linear(nodes, width, classes, backward)
    return first + layers * conv(nodes, edges, width, backward) + last


def adam(parameters: int) -> Cost:
    """Parameter, gradient and two moments read, all but the gradient written; 12 operations."""
    return Cost(12 * parameters, 28 * parameters, 28 * parameters)


def edge_attention(
    nodes: int, edges: int, features: int, heads: int, width: int, mixed: bool
) -> Cost:
    """A GAT layer F -> H C (GATv2: ``mixed``), float32, forward and backward.

    Dense: x W three times (twice as many maps in GATv2). Edges: one gathered row of H C forward,
    and backward one at the destinations and one at the sources (two in GATv2, which gathers dout
    and W_r x); a multiply-add per feature and weighted sum, GATv2's scores on top in every pass.
    Arrays of N H C: W x written and read twice, out written, dout read, dW x written and read.
    """
    row = 4 * heads * width
    maps = linear(nodes, features, heads * width)
    gathers, terms = (4, 14) if mixed else (3, 5)
    passes = Cost(
        2 * terms * edges * heads * width,
        3 * (4 * (nodes + 1) + 4 * edges) + gathers * edges * row + 7 * nodes * row,
        2 * nodes * row,
    )
    return passes + (2 if mixed else 1) * maps


def neighbor_kl(nodes: int, edges: int, width: int) -> Cost:
    """Value and gradient of rbf similarities, student and teacher F wide, float32.

    Two passes, over the graph and over its transpose: by an edge two squared distances, 3 F each,
    and a row of the gradient, 2 F; one gathered row of each model, and in the second the four
    statistics of the edge's centre. Rows of both models once a pass; the gradient is written, then
    read and written.
    """
    row = 4 * width
    graph = 4 * (nodes + 1) + 4 * edges
    moved = 2 * (graph + 2 * row * (edges + nodes)) + 3 * row * nodes + 16 * (nodes + edges)
    return Cost(16 * edges * width, moved, graph + 3 * row * nodes + 16 * nodes)


def relational(nodes: int, edges: int, width: int) -> Cost:
    """R-GCN's layer F -> F, one relation, aggregated first, float32, forward and backward.

    Gathers: a row an edge each way. Products: S W, dout W^T, S^T dout; S is never written.
    """
    rows = 12 * nodes * width  # out, dout, dx
    moved = 8 * (nodes + 1) + 8 * edges + 8 * edges * width + rows
    return Cost(4 * edges * width + 6 * nodes * width**2, moved, rows)


def sample_neighbors(nodes: int, edges: int) -> Cost:
    """E edges drawn for N nodes: a number an edge; pointers and ids, columns and positions."""
    return Cost(edges, 16 * nodes + 16 * edges, 8 * nodes + 12 * edges)


def neighborhood(nodes: int, edges: int) -> Cost:
    """N nodes and E weighted edges of a search; columns, weights, positions: read and written."""
    return Cost(edges, 24 * nodes + 20 * edges, 12 * nodes + 8 * edges)


def select_rows(rows: int, edges: int) -> Cost:
    """Numbers and pointers of the rows, and their columns and weights, read and written."""
    return Cost(0, 16 * rows + 16 * edges, 4 * rows + 8 * edges)


def pair_infonce(rows: int, width: int, students: int = 1, teachers: int = 1) -> Cost:
    """Scores once and both gradients, an exponential a score; rows and gradients once, float32."""
    moved = 8 * (students + teachers) * rows * width
    return Cost(students * teachers * (6 * rows**2 * width + rows**2), moved, moved)
