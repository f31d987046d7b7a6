"""Every 16-bit float survives a load and a store; float32 is rounded as torch rounds it."""

import pytest
import torch

from abkd_fast import CSRGraph, ops

SIXTEEN_BITS = [torch.bfloat16, torch.float16]
WIDTHS = [1, 2, 4, 8, 16, 23]  # every vector of every instruction set
# Just below, at and just above the middle between neighbours in either format.
LOW_HALVES = [0, 1, 0x0FFF, 0x1000, 0x1001, 0x1FFF, 0x3000, 0x5000, 0x7FFF, 0x8000, 0x8001, 0xFFFF]


def one_edge_a_row(value):
    rows = torch.arange(len(value) + 1)
    graph = CSRGraph.from_csr(rows, torch.zeros(len(value), dtype=torch.int64), num_src=1)
    return graph.with_value(value)


def assert_same_numbers(out, expected):
    same = (out == expected) | (out.isnan() & expected.isnan())
    assert out.dtype == expected.dtype and bool(same.all()), (~same).nonzero()[:4].tolist()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_every_16_bit_float_is_kept(dtype, width):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    x = x[: len(x) // width * width].view(-1, width)
    rows = torch.arange(len(x) + 1)
    assert_same_numbers(ops.spmm(CSRGraph.from_csr(rows, rows[:-1]), x), x)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_float32_is_rounded_to_nearest_even(dtype, width):
    high = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16
    value = torch.cat([high | low for low in LOW_HALVES]).view(torch.float32)
    out = ops.spmm(one_edge_a_row(value), torch.ones(1, width, dtype=dtype))
    assert_same_numbers(out, value.to(dtype)[:, None].expand(-1, width))
