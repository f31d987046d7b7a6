"""Relational graph convolution of Schlichtkrull et al."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from abkd_fast import ops
from abkd_fast.relational_graph import RelationalGraph


class RGCNConv(nn.Module):
    r"""X'_i = act(X_i W_root + sum_r mean_{j in N_r(i)} X_j W_r + b).   (arXiv 1703.06103, eq. 2)

    Parameter names, shapes and default initialisation are those of
    ``torch_geometric.nn.RGCNConv``, whose state_dict loads.

    Args:
        in_channels: width of x, or (of the sources, of the destinations); the number of nodes
            where x is None.
        out_channels: width of the output.
        num_relations: R.
        num_bases: B: W_r = sum_b comp_rb weight_b; None = a weight for every relation.
        num_blocks: W_r is block-diagonal with so many blocks; None = it is not.
        aggr: "mean", or "add" or "sum".
        root_weight: add X_i W_root.
        is_sorted: accepted for compatibility; the graph is sorted already.
        bias: add a bias.
        act: "none" or "relu".

    Raises:
        ValueError: an option of PyG's is not supported (aggr="max", other MessagePassing ones).
    """

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        num_relations: int,
        num_bases: int | None = None,
        num_blocks: int | None = None,
        aggr: str = "mean",
        root_weight: bool = True,
        is_sorted: bool = False,
        bias: bool = True,
        act: str = "none",
        **unsupported: Any,
    ) -> None:
        super().__init__()
        if aggr not in ("mean", "add", "sum"):
            raise ValueError(f"aggr must be one of mean, add, sum, got {aggr!r}")
        if unsupported:
            raise ValueError(
                f"options of RGCNConv must be among PyG's own, got {', '.join(unsupported)}; "
                "those of MessagePassing are not supported"
            )
        widths = in_channels if isinstance(in_channels, tuple) else (in_channels, in_channels)
        _check_decomposition(num_bases, num_blocks, widths[0], out_channels)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_relations, self.num_bases, self.num_blocks = num_relations, num_bases, num_blocks
        self.aggr, self.is_sorted, self.act = aggr, is_sorted, act
        shape: tuple[int, ...] = (num_bases or num_relations, widths[0], out_channels)
        if num_blocks is not None:
            blocks = (widths[0] // num_blocks, out_channels // num_blocks)
            shape = (num_relations, num_blocks, *blocks)
        self.weight = nn.Parameter(torch.empty(shape))
        self.comp = nn.Parameter(torch.empty(num_relations, num_bases)) if num_bases else None
        self.root = nn.Parameter(torch.empty(widths[1], out_channels)) if root_weight else None
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform in the last two dimensions, zero bias."""
        for weight in (self.weight, self.comp, self.root):
            if weight is not None:
                glorot(weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(
        self,
        x: Tensor | tuple[Tensor | None, Tensor] | None,
        graph: RelationalGraph,
        targets_only: bool = False,
    ) -> Tensor:
        """Return [N, out_channels].

        Args:
            x: [N, in_channels] floats; None, where nodes have no features and W_r [N, out] is
                looked up; or (x of the sources, x of the destinations).
            graph: see :meth:`RelationalGraph.from_edge_type` for PyG's edge_index and edge_type.
            targets_only: compute the nodes of the graph's first type alone.
        """
        x, x_root = x if isinstance(x, tuple) else (x, None)
        for part in (x, x_root):
            if part is not None and not part.is_floating_point():
                raise ValueError(
                    f"x must hold float features or be None, got {part.dtype}; node indices as "
                    "x are not supported"
                )
        return ops.relational(
            graph,
            x,
            self.weight,
            self.root,
            self.bias,
            x_root=x_root if self.root is not None else None,
            comp=self.comp,
            aggr="mean" if self.aggr == "mean" else "sum",
            act=self.act,
            targets_only=targets_only,
        )

    def extra_repr(self) -> str:
        """Widths, relations and activation."""
        act = "" if self.act == "none" else f", act={self.act}"
        widths = f"{self.in_channels}, {self.out_channels}"
        return f"{widths}, num_relations={self.num_relations}{act}"


def glorot(weight: Tensor) -> None:
    """Glorot-uniform with the last two dimensions as fan in and fan out, as PyG draws it."""
    bound = (6 / max(weight.size(-2) + weight.size(-1), 1)) ** 0.5
    nn.init.uniform_(weight, -bound, bound)


def _check_decomposition(
    num_bases: int | None, num_blocks: int | None, width: int, width_out: int
) -> None:
    if num_bases is not None and num_blocks is not None:
        raise ValueError("num_bases and num_blocks must not both be given; leave one out")
    for name, value in (("num_bases", num_bases), ("num_blocks", num_blocks)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be >= 1 or None, got {value}")
    if num_blocks is not None and (width % num_blocks or width_out % num_blocks):
        raise ValueError(
            f"num_blocks must divide in_channels={width} and out_channels={width_out}, "
            f"got {num_blocks}"
        )
