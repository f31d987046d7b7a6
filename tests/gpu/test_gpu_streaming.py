"""A teacher that streams from host memory: same results, copies beside the kernels."""

import pytest
import torch
from layer_pair_cases import FORMS, leaves, random_problem, requiring, results, run_form

from abkd_fast import ABKD, KD, Distiller, TeacherCache, TrainConfig, memory_plan
from abkd_fast._mapped import mapped_file
from abkd_fast._staging import blocks_on, copy_stream
from abkd_fast.data import load
from abkd_fast.nn import GCNII
from abkd_fast.ops import _layer_pair_stream as stream
from abkd_fast.ops import layer_pair, teacher_moments
from abkd_fast.testing import assert_no_worse

NODES, WIDTHS, STUDENT_WIDTHS, R = 3001, [16, 8, 33], [4, 5], 12
STORAGES = ["memory", "pinned", "mmap"]
GPU = torch.device("cuda", 0)


def stored(teacher, storage, folder):
    """The same rows in one kind of host memory."""
    if storage == "pinned":
        return teacher.pin_memory()
    if storage == "memory":
        return teacher
    pytest.importorskip("safetensors")
    path = folder / f"cache-{teacher.dtype}"
    TeacherCache.from_states([teacher], dtype=teacher.dtype).save(path)
    mapped = TeacherCache.load(path).states
    assert mapped_file(mapped) is not None
    return mapped


def on_gpu(problem):
    """The same problem with everything but the teacher on the GPU."""

    def move(value):
        return value.detach().cuda().requires_grad_()

    lists = {k: [move(v) for v in problem[k]] for k in ("student_states", "student_maps")}
    lists["teacher_maps"] = [move(v) for v in problem["teacher_maps"]]
    return problem | lists | {"attention": move(problem["attention"])}


def moments_on_gpu(teacher, options):
    on_host = {name: value.cpu() for name, value in options.items() if name != "shift"}
    found = teacher_moments(teacher, WIDTHS, **on_host)
    second = [matrix.cuda() for matrix in found.second]
    return type(found)(found.mean.cuda(), second, found.count)


def choices(dtype):
    return {
        "plain": {},
        "shift": {"shift": torch.randn(sum(WIDTHS), dtype=dtype).cuda()},
        "mask": {"mask": (torch.rand(NODES) < 0.3).cuda()},
        "weight": {"weight": torch.rand(NODES, dtype=dtype).cuda()},
    }


@pytest.mark.parametrize("rows", [1000, 777, NODES, 1])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("form", FORMS)
def test_streamed_is_resident_in_float64(monkeypatch, tmp_path, form, storage, rows):
    if rows == 1 and storage != "pinned":
        pytest.skip("3001 launches say no more about other memory")
    monkeypatch.setattr(stream, "block_rows", lambda given: rows)
    problem = on_gpu(random_problem(NODES, WIDTHS, STUDENT_WIDTHS, R))
    teacher = problem["teacher"]
    host = stored(teacher, storage, tmp_path)
    for options in choices(torch.float64).values():
        op = run_form(form, moments_on_gpu(teacher, options))
        resident = results(op, problem | {"teacher": teacher.cuda()}, **options)
        streamed = results(op, problem | {"teacher": host}, **options)
        again = results(op, problem | {"teacher": host}, **options)
        for name, value in resident.items():
            atol = 1e-12 * float(value.abs().max())
            torch.testing.assert_close(streamed[name], value, rtol=1e-12, atol=atol, msg=name)
            assert torch.equal(streamed[name], again[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("form", FORMS)
def test_float32_and_bfloat16(monkeypatch, tmp_path, form, storage, dtype):
    monkeypatch.setattr(stream, "block_rows", lambda given: 700)
    exact = random_problem(NODES, WIDTHS, STUDENT_WIDTHS, R)
    exact = exact | {"teacher": exact["teacher"].to(dtype)}
    plain = requiring(exact, torch.float32)
    expected = results(run_form(form), requiring(exact, torch.float64))
    on_cpu = results(run_form(form), plain)
    host = stored(plain["teacher"], storage, tmp_path)
    op = run_form(form, moments_on_gpu(plain["teacher"], {}))
    problem = on_gpu(plain) | {"teacher": host}
    streamed = results(op, problem)
    for name, value in expected.items():
        assert_no_worse(streamed[name].cpu(), value, on_cpu[name], name)
    again = results(op, problem)
    assert all(torch.equal(streamed[name], again[name]) for name in streamed)


def test_pairs_that_nearly_coincide(monkeypatch):
    monkeypatch.setattr(stream, "block_rows", lambda given: 700)
    problem = random_problem(NODES, [4, 4], [4, 4], R)
    with torch.no_grad():
        problem["student_states"][0].copy_(problem["teacher"][:, :4])
        problem["student_maps"][0].copy_(problem["teacher_maps"][0])
    problem = on_gpu(problem)
    resident = results(layer_pair, problem | {"teacher": problem["teacher"].cuda()})
    streamed = results(layer_pair, problem)
    for name, value in resident.items():
        torch.testing.assert_close(streamed[name], value, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("storage", STORAGES)
def test_blocks_arrive_as_they_are_and_buffers_are_not_overwritten(tmp_path, storage):
    """The kernels that read a block are held up; the next copies must not touch it."""
    x = stored(torch.arange(70_000 * 64, dtype=torch.float32).view(-1, 64), storage, tmp_path)
    spans = [slice(start, min(start + 9000, 70_000)) for start in range(0, 70_000, 9000)]
    sums = []
    for block in blocks_on(x, spans, GPU):
        torch.cuda._sleep(20_000_000)
        sums.append(block.double().sum())
    for span, total in zip(spans, sums, strict=True):
        assert float(total) == float(x[span].double().sum())


@pytest.mark.parametrize("storage", STORAGES)
def test_the_next_block_is_copied_while_kernels_run(tmp_path, storage):
    x = stored(torch.randn(40_000, 64), storage, tmp_path)
    blocks = blocks_on(x, [slice(0, 20_000), slice(20_000, 40_000)], GPU)
    next(blocks)
    copied = torch.cuda.Event()
    torch.cuda._sleep(2_000_000_000)  # about a second of the current stream
    busy = torch.cuda.Event()
    busy.record()
    copied.record(copy_stream(GPU))
    copied.synchronize()
    assert not busy.query(), "the second block had to wait for the current stream"
    blocks.close()
    torch.cuda.synchronize()


def test_streams_on_the_stream_that_is_current():
    problem = on_gpu(random_problem(NODES, WIDTHS, STUDENT_WIDTHS, R))
    expected = results(run_form("projection", moments_on_gpu(problem["teacher"], {})), problem)
    op = run_form("projection", moments_on_gpu(problem["teacher"], {}))
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        got = results(op, problem)
    side.synchronize()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_a_cache_larger_than_the_memory_it_may_take(tmp_path):
    """1 GiB of states through 512 MiB of the GPU."""
    nodes, width, layers = 2**18, 64, 16
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    teacher = torch.randn(nodes, width * layers)
    given = {
        "widths": [width] * layers,
        "student_states": [torch.randn(nodes, 8) for _ in range(2)],
        "attention": torch.full((layers, 2), 0.5),
        "teacher_maps": [torch.randn(width, 16) for _ in range(layers)],
        "student_maps": [torch.randn(8, 16) for _ in range(2)],
    }
    expected = results(layer_pair, requiring(given | {"teacher": teacher}, torch.float32))
    problem = on_gpu(given | {"teacher": teacher.pin_memory()})
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**29) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            teacher.cuda()
        streamed = results(layer_pair, problem)
        streamed = {name: value.cpu() for name, value in streamed.items()}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    for name, value in expected.items():
        atol = 1e-4 * float(value.abs().max())
        torch.testing.assert_close(streamed[name], value, rtol=1e-4, atol=atol, msg=name)


def test_gathered_rows_and_leaves(tmp_path):
    problem = random_problem(NODES, WIDTHS, STUDENT_WIDTHS, R)
    assert len(leaves(problem)) == 1 + 2 * len(STUDENT_WIDTHS) + len(WIDTHS)
    states = problem["teacher"].float()
    nodes = torch.tensor([5, 3000, 0, 5], device="cuda")
    for storage in STORAGES:
        host = stored(states, storage, tmp_path)
        cache = TeacherCache(host, WIDTHS, None, "x").to("cuda", stream=True)
        assert cache.streamed and cache.device == GPU and cache.storage == storage
        assert torch.equal(cache.rows(nodes).cpu(), states[nodes.cpu()])
        assert cache.moments.mean.device == GPU
    resident = TeacherCache(states, WIDTHS, None, "x").to("cuda")
    assert not resident.streamed and torch.equal(resident.rows(nodes).cpu(), states[nodes.cpu()])


def test_states_that_do_not_fit_stream_and_say_so(monkeypatch, capsys):
    from abkd_fast import _teacher_states

    cache = TeacherCache.from_states([torch.randn(1000, 250)])
    monkeypatch.setattr(_teacher_states, "device_memory", lambda device: (10**6, 2 * 10**6))
    streamed = cache.to("cuda")
    assert streamed.streamed
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "the teacher's states (1 MB) stream from host memory to cuda:0" in told
    assert "which has 1 MB free" in told


@pytest.mark.parametrize("options", [{}, {"normalize": "standardize"}, {"normalize": "rows"}])
@pytest.mark.parametrize("storage", ["pinned", "mmap"])
def test_distillation(monkeypatch, tmp_path, storage, options):
    monkeypatch.setattr(stream, "block_rows", lambda given: 333)
    data = load("synthetic-dcsbm", num_nodes=2000).to("cuda")
    torch.manual_seed(0)
    teacher = GCNII(data.num_features, 32, 4, data.num_classes).cuda()
    path = tmp_path / "cache" if storage == "mmap" else None
    resident = TeacherCache.build(teacher, data)
    host = TeacherCache.build(teacher, data, storage=storage, path=path)
    streamed = host.to("cpu").to("cuda", stream=True)
    histories = []
    for cache in (resident, streamed, streamed):
        torch.manual_seed(1)
        student = GCNII(data.num_features, 8, 2, data.num_classes).cuda()
        objective = KD() + ABKD(mask=data.train_mask, **options)
        config = TrainConfig(epochs=4)
        run = Distiller(cache, student, data, objective, config=config, callbacks=[])
        histories.append([record["loss"] for record in run.fit().history])
    assert histories[1] == histories[2]
    torch.testing.assert_close(
        torch.tensor(histories[1]), torch.tensor(histories[0]), rtol=1e-4, atol=1e-5
    )


def test_plans_of_host_and_gpu():
    data = load("synthetic-dcsbm", num_nodes=2000).to("cuda")
    teacher = GCNII(data.num_features, 32, 4, data.num_classes).cuda()
    host, gpu = memory_plan(data, teacher, teacher)
    assert (host.where, gpu.where) == ("memory", "cuda:0")
    assert gpu.parts["teacher states"] == 2000 * 128 * 4 and not host.parts["teacher states"]
    assert 0 < gpu.total < gpu.available
