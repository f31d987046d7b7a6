"""CSRGraph: a rectangular sparse matrix in CSR form, row = destination, column = source."""

from __future__ import annotations

import warnings
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from abkd_fast._checks import (
    FLOATS,
    INDICES,
    accumulation_dtype,
    check_finite,
    check_tensor,
    names,
)
from abkd_fast._csr import (
    CSRParts,
    Structure,
    check_count,
    check_pointers,
    check_range,
    index_dtype,
    lexsort,
    outside_inference,
    pointers,
)
from abkd_fast.memory import pick

if TYPE_CHECKING:
    import scipy.sparse


class CSRGraph(CSRParts):
    """A sparse matrix A [num_dst, num_src]; entry (i, j) is an edge from source j to row i.

    Rows are destinations, so ``spmm(graph, x)`` aggregates over incoming edges. A graph with
    ``value=None`` is unweighted: every edge counts 1. Indices are int32, or int64 where the
    number of edges or nodes needs it. Graphs are immutable; everything is checked once, on
    construction, and derived graphs (transpose, normalisations) are computed once and kept.

    Build one with :meth:`from_edge_index`, :meth:`from_csr` or another ``from_*`` method.
    """

    def __init__(self, structure: Structure, value: Tensor | None) -> None:
        """Internal: takes checked parts. Use a ``from_*`` method."""
        super().__init__(structure, value)
        self._derived: dict[str, CSRGraph] = {}
        # Weak: a cycle would keep the weights of every step until the garbage collector runs.
        self._transpose_of: weakref.ref[CSRGraph] | None = None

    # -- construction ---------------------------------------------------------------------

    @classmethod
    def from_csr(
        cls, rowptr: Tensor, col: Tensor, value: Tensor | None = None, num_src: int | None = None
    ) -> CSRGraph:
        """Check CSR arrays and copy the indices; weights are shared, so that they can be trained.

        Args:
            rowptr: [num_dst + 1] int32/int64; starts at 0, never decreases, ends at E.
            col: [E] int32/int64 source indices in [0, num_src).
            value: [E] float weights, or None for an unweighted graph.
            num_src: number of source nodes; default: num_dst (a square graph).

        Raises:
            ValueError: names the argument, the expectation and the value found.
        """
        check_tensor("rowptr", rowptr, dim=1, dtypes=INDICES)
        check_tensor("col", col, dim=1, dtypes=INDICES, device=rowptr.device)
        if rowptr.numel() == 0:
            raise ValueError("rowptr must hold num_dst + 1 entries, got 0; an empty graph has [0]")
        num_dst, num_edges = rowptr.numel() - 1, col.numel()
        num_src = num_dst if num_src is None else check_count("num_src", num_src)
        check_pointers(rowptr, num_edges)
        check_range("col", col, num_src, "num_src")
        if value is not None:
            check_tensor("value", value, dim=1, dtypes=FLOATS, device=rowptr.device)
            if value.numel() != num_edges:
                raise ValueError(f"value must be [E={num_edges}], got [{value.numel()}]")
            check_finite("value", value.detach())
        index = index_dtype(num_dst, num_src, num_edges)
        # Copies: a caller's later change would get past the checks that keep kernels in bounds.
        rowptr, col = (
            part.to(index, copy=True, memory_format=torch.contiguous_format)
            for part in (rowptr, col)
        )
        structure = Structure(rowptr, col, num_src)
        return cls(structure, None if value is None else value.contiguous())

    @classmethod
    def from_edge_index(
        cls,
        edge_index: Tensor,
        num_nodes: int | tuple[int, int],
        edge_weight: Tensor | None = None,
    ) -> CSRGraph:
        """Build from PyG's convention: ``edge_index[0]`` = source, ``edge_index[1]`` = destination.

        Duplicate edges are kept, as in PyG. Within a row, edges are sorted by source.

        Args:
            edge_index: [2, E] int32/int64.
            num_nodes: N, or (num_src, num_dst) for a bipartite graph.
            edge_weight: [E] float, or None.
        """
        check_tensor("edge_index", edge_index, dim=2, dtypes=INDICES)
        if edge_index.size(0) != 2:
            raise ValueError(
                f"edge_index must be [2, E], got {list(edge_index.shape)}; "
                "pass edge_index.t() if each row is one edge"
            )
        sizes = num_nodes if isinstance(num_nodes, tuple) else (num_nodes, num_nodes)
        num_src, num_dst = (check_count("num_nodes", size) for size in sizes)
        source, target = edge_index[0].long(), edge_index[1].long()
        check_range("edge_index[0]", source, num_src, "num_nodes")
        check_range("edge_index[1]", target, num_dst, "num_nodes")
        if edge_weight is not None:
            check_tensor("edge_weight", edge_weight, dim=1, dtypes=FLOATS, device=edge_index.device)
            if edge_weight.numel() != source.numel():
                raise ValueError(
                    f"edge_weight must be [E={source.numel()}], got [{edge_weight.numel()}]"
                )
        order = lexsort(target, source)
        rowptr = pointers(target, num_dst, torch.int64)
        value = None if edge_weight is None else edge_weight[order]
        return cls.from_csr(rowptr, source[order], value, num_src)

    @classmethod
    def from_scipy(cls, matrix: scipy.sparse.sparray | scipy.sparse.spmatrix) -> CSRGraph:
        """Build from a scipy sparse matrix [num_dst, num_src]; boolean matrices are unweighted."""
        if not hasattr(matrix, "tocsr"):
            raise ValueError(f"matrix must be a scipy sparse matrix, got {type(matrix).__name__}")
        csr: Any = matrix.tocsr()
        value = None if csr.dtype == bool else torch.as_tensor(csr.data.copy())
        if value is not None and not (value.is_floating_point() or value.is_complex()):
            value = value.to(torch.float32)
        return cls.from_csr(
            torch.as_tensor(csr.indptr.copy()),
            torch.as_tensor(csr.indices.copy()),
            value,
            csr.shape[1],
        )

    @classmethod
    def from_torch(cls, matrix: Tensor) -> CSRGraph:
        """Build from a torch sparse CSR or COO tensor [num_dst, num_src]."""
        if matrix.layout == torch.sparse_coo:
            matrix = matrix.coalesce().to_sparse_csr()
        if matrix.layout != torch.sparse_csr:
            raise ValueError(f"matrix must be sparse CSR or COO, got layout {matrix.layout}")
        value = matrix.values().clone()  # torch.compile takes no views of sparse tensors
        return cls.from_csr(matrix.crow_indices(), matrix.col_indices(), value, matrix.size(1))

    @classmethod
    def from_torch_sparse(cls, matrix: Any) -> CSRGraph:
        """Build from a ``torch_sparse.SparseTensor`` whose rows are destinations (PyG's adj_t)."""
        rowptr, col, value = matrix.csr()
        return cls.from_csr(rowptr, col, value, matrix.size(1))

    @classmethod
    def from_pyg(cls, data: Any) -> CSRGraph:
        """Build from a ``torch_geometric.data.Data`` with ``edge_index`` or ``adj_t``."""
        adj_t = getattr(data, "adj_t", None)
        if adj_t is not None:
            is_tensor = isinstance(adj_t, Tensor)
            return cls.from_torch(adj_t) if is_tensor else cls.from_torch_sparse(adj_t)
        if getattr(data, "edge_index", None) is None:
            raise ValueError(f"data must have edge_index or adj_t, got {data!r}")
        weight = getattr(data, "edge_weight", None)
        return cls.from_edge_index(data.edge_index, int(data.num_nodes), weight)

    # -- derived graphs -------------------------------------------------------------------

    @outside_inference
    def t(self) -> CSRGraph:
        """The transpose; ``g.t().t() is g``. Computed once, unless weights require grad."""
        origin = None if self._transpose_of is None else self._transpose_of()
        if origin is not None:
            return origin
        if "t" in self._derived:
            return self._derived["t"]
        structure, perm = self._structure.transpose()
        transposed = CSRGraph(structure, None if self.value is None else pick(self.value, perm))
        transposed._transpose_of = weakref.ref(self)
        return self._keep("t", transposed)

    def with_value(self, value: Tensor | None) -> CSRGraph:
        """The same edges with other weights [E]; shares indices and the cached transpose."""
        if value is not None:
            check_tensor("value", value, dim=1, dtypes=FLOATS, device=self.device)
            if value.numel() != self.num_edges:
                raise ValueError(f"value must be [E={self.num_edges}], got [{value.numel()}]")
        return CSRGraph(self._structure, value)

    def add_self_loops(self, fill_value: float = 1.0) -> CSRGraph:
        """Add an edge of weight ``fill_value`` to every node that has no self-loop.

        Existing self-loops keep their weight and duplicates of one are merged into the last, as
        in PyG's ``add_remaining_self_loops``. The graph must be square.
        """
        self._check_square("add_self_loops")
        row, col = self.row(), self.col.long()
        keep = row != col
        loops = torch.arange(self.num_dst, device=self.device)
        value = self.value
        if value is None and fill_value != 1.0:
            value = torch.ones(self.num_edges, device=self.device)
        if value is not None:
            loop_value = value.new_full((self.num_dst,), fill_value)
            loop_value[row[~keep]] = value[~keep]
            value = torch.cat([value[keep], loop_value])
        edge_index = torch.stack([torch.cat([col[keep], loops]), torch.cat([row[keep], loops])])
        return CSRGraph.from_edge_index(edge_index, self.num_dst, value)

    @outside_inference
    def gcn_norm(self) -> CSRGraph:
        """Symmetric normalisation D^-1/2 (A + I) D^-1/2, as in PyG; computed once as t().

        D is the diagonal of (weighted) row sums of A + I; self-loops as in
        :meth:`add_self_loops`. Rows of degree 0 or less give 0. (Kipf & Welling 2017, eq. 2)
        """
        if "gcn_norm" in self._derived:
            return self._derived["gcn_norm"]
        looped = self.add_self_loops()
        degree = looped._row_sums()
        scale = degree.pow(-0.5).masked_fill(degree <= 0, 0.0)
        value = scale[looped.row()] * scale[looped.col.long()]
        if looped.value is not None:
            value = (value * looped.value).to(looped.value.dtype)
        return self._keep("gcn_norm", looped.with_value(value))

    @outside_inference
    def row_norm(self) -> CSRGraph:
        """Divide every row by its sum, D^-1 A; rows that sum to 0 become 0. Kept as t()."""
        if "row_norm" in self._derived:
            return self._derived["row_norm"]
        total = self._row_sums()
        value = total.reciprocal().masked_fill(total == 0, 0.0)[self.row()]
        if self.value is not None:
            value = (value * self.value).to(self.value.dtype)
        return self._keep("row_norm", self.with_value(value))

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> CSRGraph:
        """Move to a device and cast the weights to a float ``dtype`` (indices keep theirs)."""
        if dtype is not None and dtype not in FLOATS:
            raise ValueError(f"dtype must be {names(FLOATS)}, got {names([dtype])}")
        same_device = device is None or torch.device(device) == self.device
        if same_device and (dtype is None or self.value is None or self.value.dtype == dtype):
            return self
        structure = self._structure
        if not same_device:
            structure = Structure(self.rowptr.to(device), self.col.to(device), self.num_src)
        value = None if self.value is None else self.value.to(device=device, dtype=dtype)
        return CSRGraph(structure, value)

    # -- other formats --------------------------------------------------------------------

    def to_edge_index(self) -> tuple[Tensor, Tensor | None]:
        """(edge_index [2, E] int64 in PyG's convention, edge_weight [E] or None)."""
        return torch.stack([self.col.long(), self.row()]), self.value

    def to_torch(self) -> Tensor:
        """A torch sparse CSR tensor; unweighted edges become 1."""
        parts = (self.rowptr, self.col, self._values_or_ones())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
            return torch.sparse_csr_tensor(*parts, size=self.shape, check_invariants=False)

    def to_scipy(self) -> scipy.sparse.csr_array:
        """A scipy CSR array on the CPU; unweighted edges become 1, 16-bit weights float32."""
        import scipy.sparse

        value = self._values_or_ones().detach()
        parts = (value.to(accumulation_dtype(value)), self.col, self.rowptr)
        return scipy.sparse.csr_array(tuple(part.cpu().numpy() for part in parts), shape=self.shape)

    def to_dense(self) -> Tensor:
        """[num_dst, num_src] with duplicates summed; for small graphs and tests."""
        values = self._values_or_ones()
        dense = values.new_zeros(self.shape)
        return dense.index_put((self.row(), self.col.long()), values, accumulate=True)

    # -- internal -------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_transpose_of": None}  # weak references are not pickled

    def _keep(self, name: str, graph: CSRGraph) -> CSRGraph:
        # Weights in training change in place; what was derived from them would be out of date.
        if self.value is None or not self.value.requires_grad:
            self._derived[name] = graph
        return graph
