"""Time spmm against every sparse product that is installed, on real graphs, values checked first.

    ABKD_DATA=data python bench/bench_spmm.py [--datasets cora pubmed] [--widths 16 64 256]

Every side multiplies the same GCN-normalised graph (float32 weights) by the same features: ours,
torch.sparse.mm (int32 and int64 indices), torch's CSR product, scipy, and, where installed,
torch_sparse.matmul (its caches filled) and torch_scatter.segment_csr over gathered messages. Sides
take turns, so a slow spell of the machine meets all of them; medians are printed in milliseconds
with their ratio to ours; the JSON file has p20, p50, p80 and n. Graphs that are not registered data
sets are read from ABKD_DATA too, and left out where they are missing.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import costs
import numpy as np
import scipy.io
import scipy.sparse
import torch
from harness import graph_options, machine_limits, take_turns, write_json
from torch import Tensor

from abkd_fast import CSRGraph, data
from abkd_fast.metrics import quantiles
from abkd_fast.ops import spmm

DATASETS = ["cora", "pubmed", "amazon-photo", "coauthor-cs"]
FILES = {  # graphs without features or labels of ours
    "facebook-pagepage": "facebook-pagepage/facebook_edges.csv",
    "ogbn-arxiv": "ogbn-arxiv/adj_full.npz",
    "p2p-Gnutella31": "snap-mtx/p2p-Gnutella31.mtx",
}
MESSAGES_BYTES = 10**9  # torch_scatter's gathered messages may be so large
Side = Callable[[Tensor], Tensor]


def load_graph(name: str, root: Path | None) -> CSRGraph | None:
    """A registered data set's graph, or one of FILES, symmetrised; None where it is missing."""
    if name not in FILES:
        return data.load(name, root=root).graph
    path = Path(root or os.environ.get("ABKD_DATA", ".")) / FILES[name]
    if not path.exists():
        return None
    if path.suffix == ".csv":
        pairs = np.loadtxt(path, dtype=np.int64, delimiter=",", skiprows=1)
        size = int(pairs.max()) + 1
        found = scipy.sparse.coo_array((np.ones(len(pairs)), tuple(pairs.T)), (size, size))
    else:
        found = scipy.io.mmread(path) if path.suffix == ".mtx" else scipy.sparse.load_npz(path)
    found = scipy.sparse.csr_array(found)
    row, col = ((found + found.T) != 0).nonzero()
    return CSRGraph.from_edge_index(torch.from_numpy(np.stack([row, col])).long(), found.shape[0])


def load_graphs(names: list[str], root: Path | None) -> Iterator[tuple[str, CSRGraph]]:
    """(name, graph) of those that are found; says which are not."""
    for name in names:
        graph = load_graph(name, root)
        if graph is None:
            print(f"{name}: not found, left out")
        else:
            yield name, graph


def sides(graph: CSRGraph) -> dict[str, Side]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls sparse CSR a beta feature
        matrix = graph.to_torch()
    scipy_matrix = graph.to_scipy()
    rowptr, col, value = graph.rowptr.long(), graph.col.long(), graph.value
    size = (graph.num_dst, graph.num_src)
    # On large graphs the gradient of torch.sparse.mm with a reduction is wrong for int32 indices.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wide = torch.sparse_csr_tensor(rowptr, col, value, size)
    found: dict[str, Side] = {
        "abkd_fast": lambda x: spmm(graph, x),
        "torch.sparse.mm": lambda x: torch.sparse.mm(matrix, x, "sum"),
        "torch.sparse.mm int64": lambda x: torch.sparse.mm(wide, x, "sum"),
        "csr @ x": lambda x: matrix @ x,
        "scipy": lambda x: torch.from_numpy(scipy_matrix @ x.numpy()),
    }
    if importlib.util.find_spec("torch_sparse") is not None:
        from torch_sparse import SparseTensor, matmul

        sparse = SparseTensor(rowptr=rowptr, col=col, value=value, sparse_sizes=size)
        sparse = sparse.fill_cache_()
        found["torch_sparse"] = lambda x: matmul(sparse, x)
    if importlib.util.find_spec("torch_scatter") is not None:
        from torch_scatter import segment_csr

        found["torch_scatter"] = lambda x: segment_csr(x[col] * value[:, None], rowptr)
    return found


def forward_backward(side: Side) -> Side:
    def step(x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        side(leaf).backward(x)
        assert leaf.grad is not None
        return leaf.grad

    return step


def check(runs: dict[str, Side], graph: CSRGraph, x: Tensor, backward: bool) -> list[str]:
    """The peers whose values are wrong; ours being wrong is an error."""
    matrix = graph.to_scipy().astype("float64")
    expected = torch.from_numpy((matrix.T if backward else matrix) @ x.double().numpy())
    wrong = []
    for name, run in runs.items():
        found = run(x).double()
        if name == "abkd_fast":
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        elif not torch.allclose(found, expected, atol=1e-4, rtol=1e-4):
            wrong.append(name)
    return wrong


def main() -> None:
    widths = [16, 32, 64, 128, 256, 512]
    options = graph_options(__doc__, [*DATASETS, *FILES], widths, "spmm")
    limits, rows = machine_limits(), []
    for name, graph in load_graphs(options.datasets, options.root):
        graph = graph.gcn_norm()
        graph.t()
        all_sides = sides(graph)
        sizes = graph.num_dst, graph.num_edges
        print(f"{name}: {graph}")
        for width in options.widths:
            x = torch.randn(graph.num_src, width)
            for backward in (False, True):
                runs = dict(all_sides)
                if 4 * graph.num_edges * width > MESSAGES_BYTES:
                    runs.pop("torch_scatter", None)
                if backward:
                    runs = {n: forward_backward(s) for n, s in runs.items() if n != "scipy"}
                wrong = check(runs, graph, x, backward)
                calls = {n: partial(run, x) for n, run in runs.items() if n not in wrong}
                # Short turns of several calls: what a peer leaves behind, such as threads that
                # still spin, meets the first call only.
                times = take_turns(calls, options.rounds, turn_seconds=0.05)
                ours = times["abkd_fast"]["median_ms"]
                what = "forward+backward" if backward else "forward"
                cells = [
                    f"{n} {t['median_ms']:.3f} ms ({t['median_ms'] / ours:.2f}x)"
                    for n, t in times.items()
                ]
                cells += [f"{n} wrong, left out" for n in wrong]
                print(f"  F={width:<4} {what:<17}" + "  ".join(cells), flush=True)
                rows.append(
                    dict(zip(("nodes", "edges"), sizes, strict=True))
                    | {"dataset": name}
                    | {"width": width, "what": what}
                    | costs.spmm(*sizes, width, backward=backward).row()
                    | {"wrong": wrong}
                    | {"ms": {n: quantiles(t["samples_ms"]) for n, t in times.items()}}
                )
    write_json(options.out, machine=limits, rows=rows)


if __name__ == "__main__":
    main()
