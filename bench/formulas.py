"""Operations and bytes of every op as formulas that a reader can check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import costs
from costs import Cost

Sizes = dict[str, int]
SUBSPACE = 64


@dataclass(frozen=True)
class Formula:
    """Operations and bytes of one op as a reader checks them; a test evaluates both.

    ``cost`` computes the same from sizes by name: N nodes, E edges, F width, C classes, D teacher
    width in all, S student width in all, L teacher layers.
    """

    op: str
    what: str
    flop: str
    moved: str
    cost: Callable[[Sizes], Cost]


FORMULAS = [
    Formula("spmm", "forward; the backward to x is the same product with the transposed graph",
            "2*E*F", "4*(N+1) + 8*E + 4*F*(E+N)",
            lambda n: costs.spmm(n["N"], n["E"], n["F"])),
    Formula("spmm max", "forward and backward to x",
            "4*E*F", "8*(N+1) + 20*E + 12*E*F + 12*N*F",
            lambda n: costs.spmm_extremum(n["N"], n["E"], n["F"], backward=True)),
    Formula("conv", "a GCNII layer F to F, forward and backward",
            "4*E*F + 6*N*F*F", "8*(N+1) + 16*E + 8*F*(E+N) + 28*N*F",
            lambda n: costs.conv(n["N"], n["E"], n["F"])),
    Formula("edge_attention", "a GAT layer F to F, forward and backward",
            "10*E*F + 6*N*F*F", "12*(N+1) + 12*E + 12*E*F + 52*N*F",
            lambda n: costs.edge_attention(n["N"], n["E"], n["F"], 1, n["F"], False)),
    Formula("edge_attention_v2", "a GATv2 layer F to F, forward and backward",
            "28*E*F + 12*N*F*F", "12*(N+1) + 12*E + 16*E*F + 76*N*F",
            lambda n: costs.edge_attention(n["N"], n["E"], n["F"], 1, n["F"], True)),
    Formula("neighbor_kl", "value and gradient, rbf, student and teacher F wide",
            "16*E*F", "8*(N+1) + 24*E + 16*N + 16*E*F + 28*N*F",
            lambda n: costs.neighbor_kl(n["N"], n["E"], n["F"])),
    Formula("relational", "one relation of an R-GCN layer F to F, forward and backward",
            "4*E*F + 6*N*F*F", "8*(N+1) + 8*E + 8*E*F + 12*N*F",
            lambda n: costs.relational(n["N"], n["E"], n["F"])),
    Formula("sample_neighbors", "E edges drawn for N nodes", "E", "16*N + 16*E",
            lambda n: costs.sample_neighbors(n["N"], n["E"])),
    Formula("neighborhood", "a search that finds N nodes and reads E weighted edges",
            "E", "24*N + 20*E", lambda n: costs.neighborhood(n["N"], n["E"])),
    Formula("select_rows", "N rows of E weighted entries", "0", "16*N + 16*E",
            lambda n: costs.select_rows(n["N"], n["E"])),
    Formula("dropout", "forward and backward of [N, F]", "2*N*F", "16*N*F",
            lambda n: costs.dropout(n["N"] * n["F"], backward=True)),
    Formula("segment_csr", "sum of E rows to N, forward and backward",
            "E*F", "16*(N+1) + 8*F*(E+N)",
            lambda n: costs.segment_csr(n["N"], n["E"], n["F"], 4, False, True)),
    Formula("linear", "F to C, forward and backward", "6*N*F*C", "12*N*(F+C)",
            lambda n: costs.linear(n["N"], n["F"], n["C"])),
    Formula("kl_div", "from labels, forward and backward", "11*N*C", "12*N*C + 16*N",
            lambda n: costs.kl_div(n["N"], n["C"], labels=True)),
    Formula("kl_div", "from a teacher's scores, forward and backward", "15*N*C", "20*N*C",
            lambda n: costs.kl_div(n["N"], n["C"])),
    Formula("teacher_moments", "L layers of D/L, once a teacher",
            "2*N*D*D/L", "4*N*D + 8*(D + D*D/L)",
            lambda n: costs.teacher_moments(n["N"], [n["D"] // n["L"]] * n["L"])),
    Formula("layer_pair", "moment form: loss and all gradients", "4*N*D*S", "4*N*D + 8*N*S",
            lambda n: costs.layer_pair(n["N"], n["D"], n["S"], 0, 4, 2)),
    Formula("layer_pair", f"projection form, subspace {SUBSPACE}: loss and all gradients",
            f"{4 * SUBSPACE}*N*D", "4*N*D + 8*N*S",
            lambda n: costs.layer_pair(n["N"], n["D"], n["S"], SUBSPACE, 4, 2)),
    Formula("pair_infonce", "one pair of layers, N rows: loss and both gradients",
            "6*N*N*F + N*N", "16*N*F", lambda n: costs.pair_infonce(n["N"], n["F"])),
]  # fmt: skip
