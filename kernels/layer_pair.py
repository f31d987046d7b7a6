"""Launchers of layer_pair's kernels, named and called as the ops of ``_backend.SCHEMAS``.

layer_pair_rows, layer_pair_products and layer_pair_moment_maps are not here on purpose: they are
float64 products of [D, r] and [D, C] matrices without nodes, which the torch twins that serve
them (ops._layer_pair_maps) hand to cuBLAS, one batched product per run of equal widths. A kernel
of ours would save launches, not time: float64 tensor cores are already what they run on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from abkd_fast.kernels import _layer_pair_blocks as blocks
from abkd_fast.kernels import _layer_pair_projection as kernels
from abkd_fast.kernels._layer_pair_blocks import NodeRows, layer_table
from abkd_fast.kernels._layer_pair_moment import layer_pair_moment as layer_pair_moment
from abkd_fast.kernels.launch import MOST_REGISTERS


class _Config(NamedTuple):
    """Block sizes of the projection form."""

    rows: int
    depth: int  # of a step of a projection
    columns: int  # of a teacher's layer
    two: bool  # tiles of that many columns at a time
    student_columns: int
    subspace: int
    students: int
    warps: int
    stages: int

    def student_options(self, **others: int) -> dict[str, int]:
        """Launch options of a kernel on the student's side."""
        warps = 8 if self.student_columns * self.subspace >= 2048 else 4
        rows = min(self.rows, 32)
        sizes = {"BLOCK_N": rows, "BLOCK_R": self.subspace, "num_stages": self.stages}
        return sizes | others | {"num_warps": warps}


def _config(
    given: NodeRows, widths: list[int], num_columns: tuple[int, int], want_map: bool
) -> _Config:
    """Block sizes that do not spill, no wider than the widest layer.

    From sm_90 on, operands wait in shared memory and leave registers for larger tiles.

    Args:
        given: the nodes.
        widths: of the teacher's layers.
        num_columns: S, r.
        want_map: whether the gradient of a map takes registers.
    """

    def block(size: int, most: int, least: int = 16) -> int:
        return min(max(triton.next_power_of_2(size), least), most)

    students, r = block(num_columns[0], 1024, 1), num_columns[1]
    width, student_width = max(widths), max(given.student_widths)
    if given.states.dtype == torch.float64:
        sizes = (16, 16, 16, False, 16, 16)
        return _Config(*sizes, students, warps=4, stages=1)
    # Rows that cannot be read in vectors take registers for addresses.
    aligned = blocks.alignment([*widths, r, given.teacher.stride(0)])
    subspace = block(r, 64 if aligned > 1 else 32)
    student_columns = block(student_width, 64 if aligned > 1 else 32)
    major = blocks.capability(given.teacher.device)
    columns = block(width, 128 if aligned > 1 else 64)
    two = aligned > 4 and want_map and major >= 9 and width > columns
    rows = 16 if aligned == 1 else 64 if major == 9 and not want_map else 32
    depth = 16 if aligned < 8 else 32
    sizes = (rows, depth, columns, two, student_columns, subspace)
    warps = 8 if rows < 64 and columns * subspace >= 2048 else 4
    return _Config(*sizes, students, warps=warps, stages=1 if two else 2)


class _Projection:
    """What the kernels of a call share."""

    def __init__(
        self,
        given: NodeRows,
        widths: list[int],
        maps: tuple[Tensor, Tensor],
        attention: Tensor,
        wanted: tuple[bool, bool],
    ) -> None:
        self.given, self.wanted, self.attention = given, wanted, attention.contiguous()
        self.teacher_map, self.student_map = (x.contiguous() for x in maps)
        self.layers, self.students = attention.shape
        self.align = blocks.alignment(widths)
        self.r, device = self.teacher_map.size(1), attention.device
        self.config = c = _config(given, widths, (self.students, self.r), wanted[0])
        tile = c.columns * (1 + c.two) if wanted[0] else max(widths)
        self.tiles = layer_table(tuple(widths), tile, device)
        self.student_tiles = layer_table(given.student_widths, c.student_columns, device)
        self.student_layers = layer_table(given.student_widths, max(given.student_widths), device)
        self.r_tiles = triton.cdiv(self.r, c.subspace)
        self.chunk_rows = given.chunk_rows(len(self.tiles) * self.r_tiles, c.rows)
        row = self.r * max(self.layers if wanted[1] else 0, self.students)
        self.pass_rows = given.pass_rows(row, self.chunk_rows)
        pairs = self.layers + self.students
        self.lengths = [
            self.r_tiles * pairs,  # squares
            self.r_tiles * self.layers * self.students,  # cross
            pairs * self.r,  # sums
            self.student_map.numel() if wanted[1] else 0,  # dstudent_map
            self.teacher_map.numel() if wanted[0] else 0,  # dteacher_map
        ]
        chunks = triton.cdiv(given.num_rows, self.chunk_rows)
        self.parts = given.states.new_empty(chunks, sum(self.lengths))
        self.s = given.states.new_empty(self.students, self.pass_rows, self.r)
        self.p = given.states.new_empty(self.layers if wanted[1] else 0, self.pass_rows, self.r)
        self.dstates = given.gradient(wanted[1])

    def run_pass(self, first_row: int, bias: Tensor, u: Tensor, w: Tensor, scaled: Tensor) -> None:
        """All stages on rows first_row to first_row + pass_rows."""
        given, c, (want_map, want_student) = self.given, self.config, self.wanted
        rows = min(self.pass_rows, given.num_rows - first_row)
        chunks = triton.cdiv(rows, self.chunk_rows)
        shared = {
            "first_row": first_row, "num_rows": given.num_rows, "pass_rows": self.pass_rows,
            "r": self.r, "nodes": given.nodes,
        }  # fmt: skip
        summed = shared | {
            "parts": self.parts, "size": self.parts.size(1), "chunk_rows": self.chunk_rows
        }  # fmt: skip
        states = {
            "states": given.states, "centre": given.centre, "columns": given.states.size(1),
            "ALIGN": blocks.alignment(given.student_widths),
        }  # fmt: skip
        project = summed | states | {
            "weight": given.weight, "maps": self.student_map, "tiles": self.student_layers,
            "s": self.s, "layers": self.students, "teachers": self.layers,
        }  # fmt: skip
        options = c.student_options(BLOCK_K=c.depth)
        blocks.launch(
            kernels.states_kernel, chunks * self.students * self.r_tiles, project, options
        )
        teacher = summed | {
            "teacher": given.teacher, "stride_n": given.teacher.stride(0),
            "stride_d": given.teacher.stride(1), "weight": given.weight, "bias": bias, "u": u,
            "maps": self.teacher_map, "attention": self.attention, "tiles": self.tiles,
            "s": self.s, "p_out": self.p, "num_tiles": len(self.tiles), "layers": self.layers,
            "students": self.students, "maps_at": sum(self.lengths[:4]),
            "ALIGN": self.align,
            "WANT_MAP": want_map, "WANT_P": want_student, "TWO": c.two,
        }  # fmt: skip
        options = {
            "BLOCK_N": c.rows, "BLOCK_K": c.depth, "BLOCK_D": c.columns, "BLOCK_R": c.subspace,
            "BLOCK_S": c.students, "num_warps": c.warps, "num_stages": c.stages,
        }  # fmt: skip
        if given.states.dtype == torch.float64:
            options["maxnreg"] = MOST_REGISTERS
        blocks.launch(
            kernels.teacher_kernel, chunks * len(self.tiles) * self.r_tiles, teacher, options
        )
        if want_student:
            self._pull_back(rows, shared, summed | states, w, scaled)

    def _pull_back(
        self,
        rows: int,
        shared: dict[str, Any],
        summed: dict[str, Any],
        w: Tensor,
        scaled: Tensor,
    ) -> None:
        """gs, dstudent_map and dstates of one pass."""
        c, num_tiles = self.config, len(self.student_tiles)
        nodes = {"nodes": shared["nodes"]}
        combine = {k: v for k, v in shared.items() if k != "nodes"} | {
            "s": self.s, "p": self.p, "attention": self.attention, "w": w,
            "weight": self.given.weight, "layers": self.layers, "students": self.students,
            "layer_size": self.pass_rows * self.r,
        }  # fmt: skip
        block = max(1024 // c.students, 32)
        options = {"BLOCK": block, "BLOCK_S": c.students, "num_warps": 4}
        blocks.launch(kernels.combine_kernel, triton.cdiv(rows * self.r, block), combine, options)
        tiles = {"tiles": self.student_tiles, "num_tiles": num_tiles, "gs": self.s}
        options = c.student_options(BLOCK_D=c.student_columns)
        chunks = triton.cdiv(rows, self.chunk_rows)
        maps = summed | tiles | {"maps_at": sum(self.lengths[:3])}
        blocks.launch(kernels.maps_kernel, chunks * num_tiles * self.r_tiles, maps, options)
        gradient = shared | nodes | tiles | {
            "maps": scaled, "dstates": self.dstates, "columns": self.dstates.size(1),
            "ALIGN": summed["ALIGN"],
        }  # fmt: skip
        programs = triton.cdiv(rows, options["BLOCK_N"]) * num_tiles
        blocks.launch(kernels.gradient_kernel, programs, gradient, options)

    def sums(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Squares, sums, cross, dstudent_map and dteacher_map; float64."""
        total = blocks.reduce_parts(self.parts).split(self.lengths)
        return (
            total[0].view(self.r_tiles, -1).sum(0),
            total[2].view(-1, self.r).clone(),
            total[1].view(self.r_tiles, self.layers, self.students).sum(0),
            total[3].view(-1, self.r).clone(),
            total[4].view(-1, self.r).clone(),
        )


def layer_pair_projection(
    teacher: Tensor,
    widths: list[int],
    states: list[Tensor],
    nodes: Tensor | None,
    weight: Tensor | None,
    centre: Tensor,
    teacher_map: Tensor,
    student_map: Tensor,
    bias: Tensor,
    attention: Tensor,
    u: Tensor,
    w: Tensor,
    scale: float,
    want_teacher_map: bool,
    want_student: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Launch the projection form; arguments as in ops._layer_pair_passes.projection_pass.

    The teacher may also be float16. Work 4 n D r on tensor cores, 2 n D r without dteacher_map;
    the teacher is read from memory once. A layer wider than 128 (256 from sm_90 on) is projected
    once for each so many columns of its map's gradient, by programs that run side by side and so
    find its rows in the second-level cache.
    """
    given = NodeRows.of(teacher, states, nodes, weight, centre)
    wanted = (want_teacher_map, want_student)
    run = _Projection(given, widths, (teacher_map, student_map), attention, wanted)
    # A float argument of a kernel would be rounded to float32.
    rows = [row.contiguous() for row in (bias, u, w, run.student_map * scale)]
    for first_row in range(0, given.num_rows, run.pass_rows):
        run.run_pass(first_row, *rows)
    squares, sums, cross, dstudent_map, dteacher_map = run.sums()
    return squares, sums, cross, dstudent_map, dteacher_map, run.dstates
