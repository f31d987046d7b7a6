"""Operator schemas, and which implementation serves each: C++, Triton or plain torch.

Importing this module loads the extension ``abkd_fast._C``, whose import registers the kernels. An
installation without it gets the reference implementations on the CPU, and one line on stderr that
says why. ``ABKD_NO_EXTENSION=1`` asks for that.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from abkd_fast import _cuda
from abkd_fast._selection import BACKENDS as BACKENDS
from abkd_fast._selection import Selection

# What the operators are called with; csrc/library.cpp defines the same, and a test compares.
SCHEMAS = {
    "spmm": "(Tensor rowptr, Tensor col, Tensor? value, Tensor x, bool mean) -> Tensor",
    "sddmm": "(Tensor rowptr, Tensor col, Tensor a, Tensor b) -> Tensor",
    "spmm_extremum": (
        "(Tensor rowptr, Tensor col, Tensor? value, Tensor x, bool maximum, bool winners)"
        " -> (Tensor out, Tensor arg)"
    ),
    "spmm_extremum_dx": (
        "(Tensor rowptr_t, Tensor col_t, Tensor perm, Tensor? value, Tensor arg, Tensor dout)"
        " -> Tensor"
    ),
    "spmm_extremum_dvalue": (
        "(Tensor rowptr, Tensor col, Tensor x, Tensor arg, Tensor dout) -> Tensor"
    ),
    "dropout": "(Tensor x, float p, Tensor seed, int layer, int step) -> Tensor",
    "layer_pair_moment": (
        "(Tensor teacher, SymInt[] widths, Tensor[] states, Tensor? nodes, Tensor? weight,"
        " Tensor centre, Tensor g, Tensor row, Tensor products, Tensor attention,"
        " bool want_student) -> (Tensor cross, Tensor second, Tensor sum, Tensor dstates)"
    ),
    "layer_pair_projection": (
        "(Tensor teacher, SymInt[] widths, Tensor[] states, Tensor? nodes, Tensor? weight,"
        " Tensor centre, Tensor teacher_map, Tensor student_map, Tensor bias, Tensor attention,"
        " Tensor u, Tensor w, float scale, bool want_teacher_map, bool want_student)"
        " -> (Tensor squares, Tensor sums, Tensor cross, Tensor dstudent_map, Tensor dteacher_map,"
        " Tensor dstates)"
    ),
    "layer_pair_rows": "(Tensor rows, Tensor maps, SymInt[] widths) -> Tensor",
    "layer_pair_products": "(Tensor teacher_map, Tensor student_map, SymInt[] widths) -> Tensor",
    "layer_pair_moment_maps": (
        "(Tensor teacher_map, Tensor student_map, SymInt[] widths, SymInt[] student_widths,"
        " Tensor[] second, Tensor mean, Tensor rest, Tensor products, Tensor cross, float count,"
        " Tensor attention, Tensor offset, Tensor u, bool want_teacher_map, bool want_student)"
        " -> (Tensor square, Tensor inner, Tensor dteacher_map, Tensor cross_map)"
    ),
    "layer_pair_near": (
        "(Tensor teacher, SymInt[] widths, Tensor[] states, Tensor? nodes, Tensor? weight,"
        " Tensor teacher_centre, Tensor centre, Tensor teacher_map, Tensor student_map,"
        " Tensor offset, Tensor near) -> Tensor"
    ),
    "conv": (
        "(Tensor rowptr, Tensor col, Tensor? value, Tensor x, Tensor? weight, Tensor? bias,"
        " Tensor? x_0, float alpha, float beta, bool relu, bool aggregate_first, bool keep_mixed,"
        " float p, Tensor? seed, int layer, int step) -> (Tensor out, Tensor sums, Tensor mixed)"
    ),
    "conv_backward": (
        "(Tensor? rowptr_t, Tensor? col_t, Tensor? value_t, Tensor dout,"
        " Tensor? dsums, Tensor? out, Tensor? features, Tensor? weight, float alpha, float beta,"
        " float p, Tensor? seed, int layer, int step, bool aggregate_first, bool want_x,"
        " bool want_weight, bool want_x_0)"
        " -> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dx_0)"
    ),
    "kl_div": (
        "(Tensor logits, Tensor target, Tensor? mask, float temperature)"
        " -> (Tensor loss, Tensor correct)"
    ),
    "kl_div_backward": (
        "(Tensor dloss, Tensor logits, Tensor target, Tensor? mask, float temperature) -> Tensor"
    ),
    "pair_infonce": (
        "(Tensor student, Tensor teacher, Tensor weight, float temperature, bool want_student,"
        " bool want_teacher) -> (Tensor dissimilarity, Tensor dstudent, Tensor dteacher)"
    ),
    "linear": "(Tensor x, Tensor weight, Tensor? bias, bool relu) -> Tensor",
    "linear_backward": (
        "(Tensor dout, Tensor? out, Tensor x, Tensor weight, bool want_x, bool want_weight)"
        " -> (Tensor dx, Tensor dweight_t, Tensor dbias)"
    ),
    "edge_attention": (
        "(Tensor rowptr, Tensor col, Tensor x, Tensor? x_dst, Tensor att_src, Tensor? att_dst,"
        " Tensor? score_edge, float negative_slope, float p, Tensor? seed, int layer, int step)"
        " -> (Tensor out, Tensor stats, Tensor score_src, Tensor score_dst)"
    ),
    "edge_attention_backward": (
        "(Tensor rowptr, Tensor col, Tensor rowptr_t, Tensor col_t, Tensor perm, Tensor dout,"
        " Tensor x, Tensor? x_dst, Tensor att_src, Tensor? att_dst, Tensor? score_edge, Tensor"
        " stats, Tensor score_src, Tensor score_dst, float negative_slope, float p, Tensor?"
        " seed, int layer, int step, bool want_edge) -> (Tensor dx, Tensor dx_dst, Tensor"
        " datt_src, Tensor datt_dst, Tensor dscore_edge)"
    ),
    "edge_attention_v2": (
        "(Tensor rowptr, Tensor col, Tensor x, Tensor x_dst, Tensor att, float negative_slope,"
        " float p, Tensor? seed, int layer, int step) -> (Tensor out, Tensor stats)"
    ),
    "edge_attention_v2_backward": (
        "(Tensor rowptr, Tensor col, Tensor rowptr_t, Tensor col_t, Tensor perm, Tensor dout,"
        " Tensor x, Tensor x_dst, Tensor att, Tensor stats, float negative_slope, float p,"
        " Tensor? seed, int layer, int step) -> (Tensor dx, Tensor dx_dst, Tensor datt)"
    ),
    "neighbor_kl": (
        "(Tensor rowptr, Tensor col, Tensor? rowptr_t, Tensor? col_t, Tensor? perm,"
        " Tensor student, Tensor? teacher, Tensor? log_target, int similarity, float offset,"
        " int power) -> (Tensor loss, Tensor dstudent)"
    ),
    "neighbor_log_softmax": (
        "(Tensor rowptr, Tensor col, Tensor x, int similarity, float offset, int power) -> Tensor"
    ),
    "empty_output": "(Tensor like, SymInt[] size) -> Tensor",
    "transposed": "(Tensor x) -> Tensor",
    "pick": "(Tensor values, Tensor index) -> Tensor",
    "sample_neighbors": (
        "(Tensor rowptr, Tensor col, Tensor nodes, int[] num_neighbors, bool replace, Tensor seed,"
        " int step) -> (Tensor n_id, Tensor local_rowptr, Tensor local_col, Tensor e_id)"
    ),
    "neighborhood": (
        "(Tensor rowptr, Tensor col, Tensor? value, Tensor nodes, int num_hops, Tensor positions)"
        " -> (Tensor n_id, Tensor sizes, Tensor local_rowptr, Tensor local_col, Tensor local_value)"
    ),
    "select_rows": (
        "(Tensor rowptr, Tensor col, Tensor? value, Tensor rows) -> (Tensor, Tensor, Tensor)"
    ),
    "segment_csr": "(Tensor src, Tensor indptr, bool mean) -> Tensor",
    "segment_csr_extremum": (
        "(Tensor src, Tensor indptr, bool maximum, bool winners) -> (Tensor out, Tensor arg)"
    ),
    "segment_csr_expand": "(Tensor out, Tensor indptr, SymInt size) -> Tensor",
    "segment_csr_extremum_dsrc": "(Tensor arg, Tensor dout, Tensor indptr, SymInt size) -> Tensor",
    "relational": (
        "(Tensor[] stack, Tensor[] stack_t, SymInt[] pairs, SymInt[] pairs_t, SymInt[] roots,"
        " Tensor x, Tensor? x_root, Tensor weight, Tensor? root, Tensor? bias, bool mean,"
        " bool relu, SymInt[] orders) -> Tensor"
    ),
    "relational_backward": (
        "(Tensor[] stack, Tensor[] stack_t, Tensor? value_t, SymInt[] pairs, SymInt[] pairs_t,"
        " SymInt[] roots, Tensor dout, Tensor? out, Tensor x, Tensor? x_root, Tensor weight,"
        " Tensor? root, bool mean, SymInt[] orders, bool want_x, bool want_x_root,"
        " bool want_weight, bool want_root, bool want_bias)"
        " -> (Tensor dx, Tensor dx_root, Tensor dweight, Tensor droot, Tensor dbias)"
    ),
}

# Operators that need no kernel of ours on a GPU: what torch runs instead.
BY_TORCH = {
    "transposed": "torch's strided copy; weights are all that is transposed",
    "pick": "torch's index_select",
    "empty_output": "torch's allocator keeps memory",
    "layer_pair_rows": "float64 products without nodes, by cuBLAS",
    "layer_pair_products": "float64 products without nodes, by cuBLAS",
    "layer_pair_moment_maps": "float64 products without nodes, by cuBLAS",
    "sample_neighbors": "batches are drawn on the host, beside training; elsewhere by definition",
    "neighborhood": "queries of single nodes are answered on the host; elsewhere by definition",
    "select_rows": "rows of sparse features are copied on the host; elsewhere by definition",
}

_library = torch.library.Library("abkd_fast", "FRAGMENT")


def _load() -> tuple[str | None, str]:
    """(instruction set of the loaded kernels or None, why)."""
    if os.environ.get("ABKD_NO_EXTENSION") == "1":
        return None, "ABKD_NO_EXTENSION=1 is set; unset it"
    try:
        extension = importlib.import_module("abkd_fast._C")
    except ImportError as error:
        reason = str(error).splitlines()[0]
        return (
            None,
            f"{reason}; install a C++ compiler and run `pip install --no-build-isolation .`",
        )
    return extension.isa, f"C++ extension, {extension.isa} kernels"


_isa, _why = _load()
if _isa is None:
    print(f"abkd_fast: using plain torch, which is slower: {_why}", file=sys.stderr)

if os.environ.get("ABKD_NO_EXTENSION") != "1":
    _cuda.load()
_selection = Selection("abkd_fast", _isa is not None, _why)


def register(name: str, reference: Callable[..., object], fake: Callable[..., object]) -> None:
    """Register an operator: ``reference`` where no kernel serves, and the shape rule ``fake``."""
    if not hasattr(torch.ops.abkd_fast, name):
        _library.define(name + SCHEMAS[name])
    torch.library.register_fake(f"abkd_fast::{name}", fake, lib=_library)
    _selection.add(name, reference)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Within the context, every op that the back end has is served by it, the others as before.

    For tests, comparisons and benchmarks. The choice holds for the whole process (the backward of
    CUDA tensors runs in threads of its own) and for graphs that are compiled already; no other
    thread may run ops while it changes. ``backend_of`` tells what serves an op within the context.

    Args:
        name: ``"cpu"`` (C++), ``"triton"`` (a GPU, or ``TRITON_INTERPRET=1`` in the environment
            before the first use), ``"cuda"`` (C++) or ``"reference"`` (plain torch).

    Raises:
        ValueError: unknown, or not available here; says why.
    """
    _selection.push(name)
    try:
        yield
    finally:
        _selection.pop()


def backend_of(op_name: str, device: str = "cpu") -> tuple[str, str]:
    """Which back end serves an op, and why.

    Args:
        op_name: an op of ``abkd_fast.ops``, such as ``"spmm"``, or an operator of ``SCHEMAS``.
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        ``("cpu", why)``, ``("triton", why)`` or ``("cuda", why)`` for kernels, ``("torch", why)``
        for an op that is written in torch operations, or ``("reference", why)`` for the plain
        definition.
    """
    operator, kind = _operator_of(op_name), torch.device(device).type
    if kind not in ("cpu", "cuda"):
        return "reference", f"no kernel for {device}"
    name, why = _selection.serving(operator, kind)
    if operator != op_name and name == "reference":
        return "torch", "one pass over node blocks, in torch matrix products"
    if kind == "cuda" and name == "reference" and op_name in BY_TORCH:
        return "torch", BY_TORCH[op_name]
    return name, why


def has_backend(op_name: str, name: str) -> tuple[bool, str]:
    """Whether a back end of :func:`backend` has an op on some device, and why."""
    operator = _operator_of(op_name)
    devices = ("cpu",) if name == "cpu" else ("cuda", "cpu")
    found = [_selection.available(operator, name, device) for device in devices]
    return max(found, key=lambda entry: entry[0])


def _operator_of(op_name: str) -> str:
    """The operator that does the work of an op of ``abkd_fast.ops``."""
    if op_name in SCHEMAS:
        return op_name
    parts = [name for name in SCHEMAS if name.startswith(f"{op_name}_")]  # Python joins them
    module = f"abkd_fast.reference.{op_name}"
    if not parts or not op_name.isidentifier() or importlib.util.find_spec(module) is None:
        raise ValueError(f"op_name must be an op of abkd_fast.ops, got {op_name!r}")
    return parts[0]
