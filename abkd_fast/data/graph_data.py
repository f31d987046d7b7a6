"""GraphData: a graph with features, labels and a split, checked once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from abkd_fast._binding import bind_arguments
from abkd_fast._checks import FLOATS, check_finite, check_tensor
from abkd_fast._csr import tensor_bytes
from abkd_fast._first_hop import aggregate_features
from abkd_fast.graph import CSRGraph
from abkd_fast.relational_graph import RelationalGraph

_SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class GraphData:
    """A node-classification data set: one graph, N nodes, fixed train/val/test masks.

    Everything is checked on construction, and what follows from the parts (edge_index, adj_t,
    aggregated_x, the fingerprint) is computed once and kept: treat the tensors as frozen, and use
    :func:`dataclasses.replace` to change a part.

    Args:
        x: [N, F] float features, dense, or a CSRGraph [N, F] with weights for sparse ones; None
            for typed nodes without features.
        graph: [N, N] adjacency, row = destination, without added self-loops.
        y: [N] int64 labels; a negative label means unlabelled and is allowed outside the masks.
        train_mask: [N] bool.
        val_mask: [N] bool.
        test_mask: [N] bool.
        name: shown in tables and stored in metrics.
        synthetic: whether the data were generated, not measured.
        relations: a typed graph around these nodes, which are its first type; ``graph`` then is
            what objectives that compare neighbourhoods use.
        other_x: node type -> [n, F] features of the other types that have any.

    Raises:
        ValueError: names the part, the expectation and the value found.
    """

    x: Tensor | CSRGraph | None
    graph: CSRGraph
    y: Tensor
    train_mask: Tensor
    val_mask: Tensor
    test_mask: Tensor
    name: str = "data"
    synthetic: bool = False
    relations: RelationalGraph | None = None
    other_x: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.graph, CSRGraph):
            found = type(self.graph).__name__
            raise ValueError(f"graph must be a CSRGraph, got {found}; use CSRGraph.from_*")
        if self.graph.num_dst != self.graph.num_src:
            raise ValueError(f"graph must be square, got {self.graph.shape}")
        if self.num_nodes == 0:
            raise ValueError("graph must have at least one node, got 0")
        self._check_relations()
        if self.x is not None:
            self._check_features(self.x)
        check_tensor("y", self.y, dim=1, dtypes=[torch.int64], device=self.graph.device)
        self._check_length("y", self.y.numel())
        self._check_masks()

    def _check_relations(self) -> None:
        if self.relations is None:
            if self.x is None or self.other_x:
                raise ValueError("relations must be given where x is None or there is other_x")
            return
        first = next(iter(self.relations.num_nodes.items()))
        if first[1] != self.num_nodes:
            raise ValueError(
                f"relations must have the N={self.num_nodes} nodes of graph as its first type, "
                f"got {first[1]} of type {first[0]!r}"
            )
        for kind, x in self.other_x.items():
            if kind == first[0] or kind not in self.relations.num_nodes:
                raise ValueError(f"other_x must be of other node types, got {kind!r}")
            check_tensor(f"other_x[{kind!r}]", x, dim=2, dtypes=FLOATS, device=self.graph.device)
            expected = [self.relations.num_nodes[kind], self.num_features]
            if list(x.shape) != expected:
                raise ValueError(f"other_x[{kind!r}] must be {expected} as x, got {list(x.shape)}")
            check_finite(f"other_x[{kind!r}]", x)

    def _check_features(self, x: Tensor | CSRGraph) -> None:
        if isinstance(x, CSRGraph):
            if x.value is None:
                raise ValueError(
                    "x must have weights, got an unweighted CSRGraph; use "
                    "x.with_value(torch.ones(x.num_edges))"
                )
            if x.device != self.graph.device:
                raise ValueError(f"x must be on {self.graph.device}, got {x.device}")
            self._check_length("x", x.num_dst)
            check_finite("x.value", x.value)
        else:
            check_tensor("x", x, dim=2, dtypes=FLOATS, device=self.graph.device)
            self._check_length("x", x.size(0))
            check_finite("x", x)
        if self.num_features == 0:
            raise ValueError("x must have at least one feature, got 0")

    def _check_length(self, name: str, length: int) -> None:
        if length != self.num_nodes:
            raise ValueError(f"{name} must have N={self.num_nodes} rows as the graph, got {length}")

    def _check_masks(self) -> None:
        for split, mask in self._masks():
            name = f"{split}_mask"
            check_tensor(name, mask, dim=1, dtypes=[torch.bool], device=self.graph.device)
            self._check_length(name, mask.numel())
            if not bool(mask.any()):
                raise ValueError(f"{name} must select at least one node, got an empty mask")
            unlabelled = (mask & (self.y < 0)).nonzero()
            if len(unlabelled):
                node = int(unlabelled[0])
                raise ValueError(
                    f"y must be >= 0 on {name}, got {int(self.y[node])} at node {node}; "
                    "leave unlabelled nodes out of the masks"
                )
        for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
            masks = dict(self._masks())
            both = (masks[first] & masks[second]).nonzero()
            if len(both):
                raise ValueError(
                    f"{first}_mask and {second}_mask must not overlap, got {len(both)} common "
                    f"nodes, the first is {int(both[0])}"
                )

    def _masks(self) -> list[tuple[str, Tensor]]:
        return list(zip(_SPLITS, (self.train_mask, self.val_mask, self.test_mask), strict=True))

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.graph.num_dst

    @property
    def num_features(self) -> int:
        """F; N for nodes without features, which are looked up."""
        if self.x is None:
            return self.num_nodes
        return self.x.num_src if isinstance(self.x, CSRGraph) else self.x.size(1)

    @cached_property
    def num_classes(self) -> int:
        """Largest label + 1."""
        return int(self.y.max()) + 1

    @cached_property
    def edge_index(self) -> Tensor:
        """[2, E] int64, source then destination, in the order of ``graph``'s edges."""
        return self.graph.to_edge_index()[0]

    @cached_property
    def adj_t(self) -> Tensor:
        """[N, N] torch sparse CSR tensor, row = destination; unweighted edges are 1."""
        return self.graph.to_torch()

    @cached_property
    def dense_x(self) -> Tensor | None:
        """[N, F] features as one dense tensor; sparse ones are expanded once and kept."""
        return self.x.to_dense() if isinstance(self.x, CSRGraph) else self.x

    @cached_property
    def aggregated_x(self) -> Tensor | CSRGraph | None:
        """A_hat x in the form of x; None where it would not pay or x is not fixed.

        The first layer of a :class:`abkd_fast.nn.GCN` needs it in every forward pass that drops
        nothing. Dense features of up to 1 GiB are aggregated, and held twice from then on; sparse
        ones where A_hat x has at most as many entries as x and A_hat together.
        """
        if self.x is None:
            return None
        return aggregate_features(self.graph.gcn_norm(), self.x)

    def arguments(self, model: torch.nn.Module) -> tuple[Any, ...]:
        """The arguments of ``model.forward``, found by the names of its parameters.

        ``x`` gets the features (sparse ones as stored if the model also takes ``graph`` or is one
        of ours, else dense), ``graph`` the CSRGraph, ``edge_index`` [2, E], ``edge_weight`` [E],
        ``adj_t`` or ``adj`` a torch sparse CSR tensor, ``aggregated_x`` the property of that name.
        Other parameters keep their defaults.

        Raises:
            ValueError: a parameter without default has none of these names.
        """
        return bind_arguments(self, model)

    def to(self, device: torch.device | str) -> GraphData:
        """The same data on another device."""
        x = None if self.x is None else self.x.to(device)
        graph, y = self.graph.to(device), self.y.to(device)
        rest: dict[str, Any] = {f"{split}_mask": m.to(device) for split, m in self._masks()}
        rest |= {
            "relations": None if self.relations is None else self.relations.to(device),
            "other_x": {kind: value.to(device) for kind, value in self.other_x.items()},
        }
        return GraphData(x, graph, y, name=self.name, synthetic=self.synthetic, **rest)

    def fingerprint(self) -> str:
        """SHA-256 over graph, x, y and the split: equal data have equal fingerprints."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(self.graph.fingerprint().encode())
        if isinstance(self.x, CSRGraph):
            digest.update(self.x.fingerprint().encode())
        elif self.x is not None:
            digest.update(f"{self.x.dtype}{list(self.x.shape)}".encode())
            digest.update(tensor_bytes(self.x))
        if self.relations is not None:
            digest.update(self.relations.fingerprint().encode())
        for kind, x in sorted(self.other_x.items()):
            digest.update(f"{kind} {x.dtype} {list(x.shape)}".encode())
            digest.update(tensor_bytes(x))
        for part in (self.y, *(mask for _, mask in self._masks())):
            digest.update(tensor_bytes(part))
        return digest.hexdigest()

    @classmethod
    def from_pyg(cls, data: Any, *, name: str = "data", split: int = 0) -> GraphData:
        """Wrap a ``torch_geometric.data.Data`` with x, edge_index or adj_t, y and masks.

        Args:
            data: the object; ``y`` may be [N] or [N, 1].
            name: shown in tables and stored in metrics.
            split: the column to use where masks are [N, number of splits].

        Raises:
            ValueError: names a missing or malformed part.
        """
        parts: dict[str, Any] = {
            part: getattr(data, part, None) for part in ("x", "y", *_mask_names())
        }
        missing = [part for part, value in parts.items() if value is None]
        if missing:
            raise ValueError(
                f"data must have x, y, {', '.join(_mask_names())}, got no {', '.join(missing)}; "
                "for a random split use torch_geometric.transforms.RandomNodeSplit"
            )
        x, y = parts["x"], parts["y"]
        if isinstance(x, Tensor) and x.layout != torch.strided:
            x = CSRGraph.from_torch(x)
        if isinstance(y, Tensor) and y.dim() == 2 and y.size(1) == 1:
            y = y.squeeze(1)
        masks = {mask: _column(mask, parts[mask], split) for mask in _mask_names()}
        return cls(x=x, graph=CSRGraph.from_pyg(data), y=y, name=name, **masks)

    def __repr__(self) -> str:
        """Sizes and split."""
        form = "sparse" if isinstance(self.x, CSRGraph) else "none" if self.x is None else "dense"
        counts = "/".join(str(int(mask.sum())) for _, mask in self._masks())
        return (
            f"GraphData({self.name}, num_nodes={self.num_nodes}, num_edges={self.graph.num_edges}, "
            f"num_features={self.num_features} ({form}), num_classes={self.num_classes}, "
            f"split={counts})"
        )


def _mask_names() -> list[str]:
    return [f"{split}_mask" for split in _SPLITS]


def _column(name: str, mask: Any, split: int) -> Any:
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return mask
    if not 0 <= split < mask.size(1):
        raise ValueError(f"split must lie in [0, {mask.size(1)}) for {name}, got {split}")
    return mask[:, split].contiguous()
