"""layer_pair over a teacher in a mapped file, read in blocks of rows, against one in memory."""

import pytest
import torch
from layer_pair_cases import FORMS, leaves, random_problem, requiring, results, run_form

from abkd_fast import backend
from abkd_fast._mapped import map_tensor, mapped_file
from abkd_fast._staging import blocks_on
from abkd_fast.ops import _layer_pair_stream as stream
from abkd_fast.ops import layer_pair, teacher_moments

NODES = 333
WIDTHS, STUDENT_WIDTHS, R = [5, 3, 8], [4, 2], 6
# Nodes a block: few, some that leave a rest, all but one, all, more than there are.
BLOCKS = [7, 37, NODES - 1, NODES, 10 * NODES]


@pytest.fixture
def mapped(tmp_path):
    """A copy of a tensor in a file, an odd number of elements behind its start."""

    def write(x):
        path = tmp_path / f"{x.dtype}{tuple(x.shape)}"
        head = 5 * x.element_size()
        path.write_bytes(b"\xff" * head + x.contiguous().view(torch.uint8).numpy().tobytes())
        return map_tensor(path, head, x.shape, x.dtype)

    return write


def block_of(monkeypatch, nodes):
    monkeypatch.setattr(stream, "block_rows", lambda given: nodes)


def assert_same(streamed, resident, rtol):
    for name, value in resident.items():
        torch.testing.assert_close(
            streamed[name], value, rtol=rtol, atol=rtol * float(value.abs().max()), msg=name
        )


@pytest.mark.parametrize("rows", BLOCKS)
@pytest.mark.parametrize("form", FORMS)
def test_blocks_give_what_one_pass_gives(mapped, monkeypatch, form, rows):
    problem = random_problem(NODES, WIDTHS, STUDENT_WIDTHS, R)
    op = run_form(form)
    given = {
        "plain": {},
        "shift": {"shift": torch.randn(sum(WIDTHS)).double()},
        "mask": {"mask": torch.rand(NODES) < 0.2},
        "few": {"mask": torch.arange(NODES) % 100 == 99},
        "weight": {"weight": torch.rand(NODES).double()},
    }
    file = mapped(problem["teacher"])
    block_of(monkeypatch, rows)
    for options in given.values():
        streamed = results(op, problem | {"teacher": file}, **options)
        assert_same(streamed, results(op, problem, **options), 1e-12)
        again = results(op, problem | {"teacher": file}, **options)
        assert all(torch.equal(streamed[name], again[name]) for name in streamed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_float32_and_bfloat16(mapped, monkeypatch, form, dtype):
    problem = random_problem(NODES, WIDTHS, STUDENT_WIDTHS, R)
    problem = requiring(problem | {"teacher": problem["teacher"].to(dtype)}, torch.float32)
    file = mapped(problem["teacher"])
    block_of(monkeypatch, 50)
    streamed = results(run_form(form), problem | {"teacher": file})
    assert_same(streamed, results(run_form(form), problem), 1e-5)


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_pairs_that_nearly_coincide(mapped, monkeypatch, name):
    """They are summed without expanding the square, which takes blocks of its own."""
    problem = random_problem(NODES, [4, 4], [4, 4], R)
    with torch.no_grad():
        teacher, states = problem["teacher"], problem["student_states"]
        states[0].copy_(teacher[:, :4] + 1e-6 * states[0])
        problem["student_maps"][0].copy_(problem["teacher_maps"][0])
    file = mapped(problem["teacher"])
    block_of(monkeypatch, 40)
    try:
        chosen = backend(name)
        chosen.__enter__()
    except ValueError as error:
        pytest.skip(str(error))
    try:
        for options in ({}, {"mask": torch.arange(NODES) % 3 > 0}):
            resident = results(layer_pair, problem, **options)
            assert resident["D"][0, 0] < 1e-9 < resident["D"][0, 1]
            streamed = results(layer_pair, problem | {"teacher": file}, **options)
            assert_same(streamed, resident, 1e-12)
    finally:
        chosen.__exit__(None, None, None)


def test_gradients_that_nobody_asks_for(mapped, monkeypatch):
    problem = random_problem(NODES, WIDTHS, STUDENT_WIDTHS, R, grad=False)
    file = mapped(problem["teacher"])
    block_of(monkeypatch, 40)
    for form in FORMS:
        for wanted in ("teacher_maps", "student_states", "attention"):
            names = [name for name in leaves(problem) if name.startswith(wanted)]
            parts = [leaves(problem)[name].requires_grad_() for name in names]
            both = []
            for teacher in (file, problem["teacher"]):
                loss, _ = run_form(form)(**problem | {"teacher": teacher})
                both.append(dict(zip(names, torch.autograd.grad(loss, parts), strict=True)))
            assert_same(*both, 1e-12)
            for part in parts:
                part.requires_grad_(False)


@pytest.mark.parametrize("block", [1, 100, 2048])
def test_moments_of_a_mapped_teacher(mapped, block):
    teacher = torch.randn(NODES, sum(WIDTHS))
    file = mapped(teacher)
    for options in ({}, {"mask": torch.rand(NODES) < 0.5}, {"weight": torch.rand(NODES)}):
        got = teacher_moments(file, WIDTHS, **options, block=block)
        expected = teacher_moments(teacher, WIDTHS, **options, block=block)
        assert torch.equal(got.mean, expected.mean) and got.count == expected.count
        assert all(map(torch.equal, got.second, expected.second))


def test_a_mapped_tensor_is_known_by_its_views_and_forgotten_with_them(mapped):
    x = mapped(torch.arange(30000.0).view(-1, 3))
    view = x[5:]
    file = mapped_file(view)
    assert file is not None and file is mapped_file(x)
    assert mapped_file(x.clone()) is None and mapped_file(torch.ones(3)) is None
    file.drop(view[100:200])
    file.drop(x[:0])
    assert torch.equal(x, torch.arange(30000.0).view(-1, 3))
    empty = mapped(torch.empty(0, 3))
    assert empty.shape == (0, 3) and mapped_file(empty) is None


def test_pages_of_a_block_are_dropped_behind_it(mapped):
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[2])  # pages of files and of shared memory

    x = mapped(torch.ones(2**20, 16))  # 64 MiB
    spans = [slice(start, start + 2**16) for start in range(0, 2**20, 2**16)]
    before, most, total = resident(), 0, 0.0
    for block in blocks_on(x, spans, x.device):
        total += float(block.sum())
        most = max(most, resident() - before)
    assert total == x.numel()
    assert most < 2 * 1024 + 256  # two blocks of 4 MiB and what is read around them
