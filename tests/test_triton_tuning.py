"""Which block sizes are chosen, with the clock and the GPU replaced."""

import json

import pytest
import torch
from triton_cases import needs_triton

from abkd_fast import reference

pytestmark = needs_triton
DEFAULT, FAST, SLOW = (4, 4, 64, 1), (8, 2, 64, 1), (1, 8, 64, 4)


class OnGpu:
    """What tuning asks of a CUDA tensor."""

    device, dtype = torch.device("cuda"), torch.float32

    def size(self, _):
        return 64


@pytest.fixture
def tuning(monkeypatch, tmp_path):
    from abkd_fast.kernels import tuning

    times = {DEFAULT: 2.0, FAST: 1.0, SLOW: 3.0}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "some GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(tuning, "_time", lambda run: times[run.args[0]])
    tuning._table.cache_clear()
    yield tuning
    tuning._table.cache_clear()


def choose(tuning, x=None, degree=5.0):
    return tuning.tuned(
        "spmm", OnGpu() if x is None else x, degree, DEFAULT, [SLOW, FAST], lambda blocks: None
    )


def test_the_defaults_hold_unless_asked(tuning, monkeypatch, tmp_path):
    monkeypatch.delenv("ABKD_AUTOTUNE", raising=False)
    assert choose(tuning) == DEFAULT and list(tmp_path.iterdir()) == []
    monkeypatch.setenv("ABKD_AUTOTUNE", "1")
    assert choose(tuning, torch.ones(3, 64)) == DEFAULT  # not on a GPU
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose(tuning) == DEFAULT  # nothing may be timed within a capture


def test_the_fastest_is_kept_in_the_file_and_read_without_timing(tuning, monkeypatch, tmp_path):
    monkeypatch.setenv("ABKD_AUTOTUNE", "1")
    assert choose(tuning) == FAST
    (path,) = (tmp_path / "abkd_fast").iterdir()
    key = "spmm, some GPU, float32, 64 wide, 8 edges"
    assert path.name == "blocks.json" and json.loads(path.read_text()) == {key: list(FAST)}
    tuning._table.cache_clear()
    monkeypatch.delenv("ABKD_AUTOTUNE")
    monkeypatch.setattr(tuning, "_time", None)
    assert choose(tuning) == FAST
    assert choose(tuning, degree=100.0) == DEFAULT  # another class


def test_every_candidate_gives_the_right_sums():
    from abkd_fast.kernels import launch, spmm
    from abkd_fast.reference.spmm import op_spmm
    from abkd_fast.testing import assert_no_worse, sample_graph

    graph, x = sample_graph("isolated"), torch.randn(5, 6)
    exact = op_spmm(graph.rowptr, graph.col, None, x.double(), False)
    plain = op_spmm(graph.rowptr, graph.col, None, x, False)
    for block in launch.row_candidates(launch.row_blocks(x, 1.0, 0)):
        out = torch.empty(5, 6)
        operands = (graph.rowptr, graph.col, None, None, None)
        programs = -(-5 // block.rows)
        spmm._launch(operands, x, out, 3, block, False, programs)
        assert_no_worse(out, exact, plain)


@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_every_length_of_hubs_gives_the_right_results(reduce, monkeypatch):
    from abkd_fast import backend
    from abkd_fast.kernels import launch, spmm_extremum
    from abkd_fast.kernels import spmm as spmm_sum
    from abkd_fast.ops import spmm
    from abkd_fast.testing import assert_no_worse, sample_graph

    graph, x = sample_graph("hub"), torch.randn(5, 3)
    exact, plain = (reference.spmm(graph, t, reduce) for t in (x.double(), x))
    split = launch.row_candidates(launch.row_blocks(x, 60.0, 256))[:4]
    assert [block.chunk for block in split] == [256, 512, 1024, 2048]
    for block in (launch.row_blocks(x, 60.0, 16), *split):
        for module in (spmm_sum, spmm_extremum):
            monkeypatch.setattr(module, "row_blocks", lambda *_, block=block: block)
        with backend("triton"):
            assert_no_worse(spmm(graph, x, reduce), exact, plain)


def test_hubs_are_rows_far_above_the_mean():
    from abkd_fast.kernels.rows import chunk_size

    assert chunk_size(169_343, 2_315_598) == 256  # 14 edges a row
    assert chunk_size(2_449_029, 123_718_152) == 1024  # 51
    assert chunk_size(10, 5_000) == 256  # too few edges to wait for long rows
    assert chunk_size(0, 0) == 0 and chunk_size(9, 256) == 0 and chunk_size(9, 257) == 256


def test_candidates_that_a_gpu_has_no_room_for_are_passed_over(monkeypatch):
    from triton.runtime.errors import OutOfResources

    from abkd_fast.kernels import tuning

    def run(blocks):
        if blocks == SLOW:
            raise OutOfResources(2, 1, "shared memory")
        return blocks

    def bench(run, return_mode):
        return {DEFAULT: 2.0, FAST: 1.0}[run()]

    monkeypatch.setattr(tuning.triton.testing, "do_bench", bench)
    assert tuning.fastest(run, [SLOW, DEFAULT, FAST]) == FAST


def test_entries_of_an_earlier_version_are_measured_again(tuning, monkeypatch, tmp_path):
    key = "spmm, some GPU, float32, 64 wide, 8 edges"
    (tmp_path / "abkd_fast").mkdir()
    (tmp_path / "abkd_fast" / "blocks.json").write_text(json.dumps({key: [1, 2, 3]}))
    monkeypatch.delenv("ABKD_AUTOTUNE", raising=False)
    assert choose(tuning) == DEFAULT
    monkeypatch.setenv("ABKD_AUTOTUNE", "1")
    assert choose(tuning) == FAST
