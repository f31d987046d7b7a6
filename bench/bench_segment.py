"""Time segment_csr against the segment reductions that are installed, values checked first.

    ABKD_DATA=data python bench/bench_segment.py [--datasets pubmed] [--widths 16 64]

Random rows, one an edge, are reduced by destination: the degrees are those of real graphs with
self-loops. Sides: ours; torch_scatter.segment_csr, where installed; torch.segment_reduce; and
torch's scatters (index_add for sum and mean, scatter_reduce for max and min). Sides take turns. A
peer whose values or gradients are wrong is named and not timed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial

import costs
import numpy as np
import torch
from bench_spmm import load_graphs
from harness import graph_options, machine_limits, take_turns, write_json
from torch import Tensor

from abkd_fast.metrics import quantiles
from abkd_fast.ops import segment_csr

REDUCTIONS = ("sum", "mean", "max", "min")
DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}  # relative, in norm
Side = Callable[[Tensor], Tensor]
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]


def sides(indptr: Tensor, reduce: str) -> dict[str, Side]:
    degrees = indptr.diff()
    row = torch.arange(len(degrees)).repeat_interleave(degrees)

    def scatter(src: Tensor) -> Tensor:
        out = src.new_zeros(len(degrees), src.size(1))
        if reduce in ("max", "min"):
            index = row.unsqueeze(1).expand_as(src)
            return out.scatter_reduce(0, index, src, f"a{reduce}", include_self=False)
        total = out.index_add(0, row, src)
        return total / degrees.unsqueeze(1) if reduce == "mean" else total

    found: dict[str, Side] = {
        "abkd_fast": lambda src: segment_csr(src, indptr, reduce),
        "torch.segment_reduce": lambda src: torch.segment_reduce(
            src, reduce, lengths=degrees, unsafe=True
        ),
        "torch scatter": scatter,
    }
    if importlib.util.find_spec("torch_scatter") is not None:
        import torch_scatter

        found["torch_scatter"] = lambda src: torch_scatter.segment_csr(src, indptr, reduce=reduce)
    return found


def forward(side: Side, src: Tensor, dout: Tensor) -> tuple[Tensor, Tensor | None]:
    return side(src), None


def forward_backward(side: Side, src: Tensor, dout: Tensor) -> tuple[Tensor, Tensor | None]:
    leaf = src.detach().requires_grad_()
    out = side(leaf)
    out.backward(dout)
    return out.detach(), leaf.grad


def is_right(
    out: Tensor, gradient: Tensor | None, src: Tensor, dout: Tensor, indptr: Tensor, reduce: str
) -> bool:
    """Whether both are what float64 gives; ties of an extremum may share its gradient."""

    def near(found: Tensor, expected: Tensor) -> bool:
        error = float((found.double() - expected).norm() / expected.norm())
        return error <= TOLERANCE[src.dtype]

    def reduced(rows: Tensor, by: np.ufunc) -> Tensor:
        return torch.from_numpy(by.reduceat(rows.double().numpy(), indptr[:-1].numpy(), axis=0))

    degrees = indptr.diff()
    by = {"max": np.maximum, "min": np.minimum}.get(reduce, np.add)
    expected = reduced(src, by) / (degrees.unsqueeze(1) if reduce == "mean" else 1)
    if not near(out, expected):
        return False
    if gradient is None:
        return True
    if reduce in ("max", "min"):
        losers = src.double() != expected.repeat_interleave(degrees, 0)
        return near(reduced(gradient, np.add), dout.double()) and not gradient[losers].any()
    each = dout.double() / (degrees.unsqueeze(1) if reduce == "mean" else 1)
    return near(gradient, each.repeat_interleave(degrees, 0))


def measure(
    indptr: Tensor, width: int, dtype: torch.dtype, reduce: str, backward: bool, rounds: int
) -> dict[str, object]:
    """One case: check all sides, time those that are right."""
    rows, segments = int(indptr[-1]), len(indptr) - 1
    src, dout = torch.randn(rows, width).to(dtype), torch.randn(segments, width).to(dtype)
    step: Callable[..., tuple[Tensor, Tensor | None]] = forward_backward if backward else forward
    calls, wrong = {}, []
    for name, side in sides(indptr, reduce).items():
        if is_right(*step(side, src, dout), src, dout, indptr, reduce):
            calls[name] = partial(step, side, src, dout)
        elif name == "abkd_fast":
            raise SystemExit(f"abkd_fast is wrong: {reduce}, {dtype}, width {width}")
        else:
            wrong.append(name)
    times = take_turns(calls, rounds, turn_seconds=0.05)
    winners = reduce in ("max", "min")
    cost = costs.segment_csr(segments, rows, width, src.element_size(), winners, backward)
    return {
        "reduce": reduce, "dtype": str(dtype).removeprefix("torch."), "width": width,
        "what": "forward+backward" if backward else "forward", "wrong": wrong,
        "ms": {name: quantiles(found["samples_ms"]) for name, found in times.items()},
    } | cost.row()  # fmt: skip


def main() -> None:
    datasets = ["pubmed", "amazon-photo", "ogbn-arxiv"]
    options = graph_options(__doc__, datasets, [16, 64], "segment")
    limits, rows = machine_limits(), []
    for name, graph in load_graphs(options.datasets, options.root):
        indptr = graph.add_self_loops().rowptr.long()
        cases = [(w, d, r, b) for w in options.widths for d in DTYPES for r in REDUCTIONS
                 for b in (False, True)]  # fmt: skip
        for width, dtype, reduce, backward in cases:
            row = measure(indptr, width, dtype, reduce, backward, options.rounds)
            ours = row["ms"]["abkd_fast"]["p50"]
            cells = [
                f"{n} {t['p50']:.3f} ms ({t['p50'] / ours:.2f}x)" for n, t in row["ms"].items()
            ]
            cells += [f"{n} wrong, left out" for n in row["wrong"]]
            case = f"{name} {width} {row['dtype']} {reduce} {row['what']}: "
            print(case + "  ".join(cells), flush=True)
            rows.append({"dataset": name, "rows": int(indptr[-1]), "segments": graph.num_dst} | row)
    write_json(options.out, threads=options.threads, machine=limits, rows=rows)


if __name__ == "__main__":
    main()
