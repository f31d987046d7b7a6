"""The memory plan against the peak of whole runs, and what it says when a run cannot fit."""

import json
import subprocess
import sys

import pytest
import torch
from helpers import small_data

from abkd_fast import GraphData, TeacherCache, _machine, memory_plan
from abkd_fast import plan as plans
from abkd_fast._machine import format_bytes
from abkd_fast.cli import main
from abkd_fast.nn import GCN, GCNII, MLP

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.9, "1 KB"),
        (22_400_000_000, "22.4 GB"),
        (5e15, "5e+03 TB"),
    ],
)
def test_format_bytes(size, text):
    assert format_bytes(size) == text


@linux_only
def test_this_machine():
    """In a process of its own: in a large one the heap has room for the block."""
    code = """if True:
        import torch
        from abkd_fast._machine import host_memory, resident_bytes
        held = resident_bytes()
        block = torch.ones(10**7)
        print(resident_bytes() - held, resident_bytes(), host_memory())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown, resident, memory = map(int, done.stdout.split())
    assert 39e6 < grown < 60e6
    assert 4e7 < resident < memory


def parts(**options):
    teacher = GCNII(8, 600, 10, 3)
    (plan,) = memory_plan(small_data(), GCN(8, 5, 3, 3), teacher, **options)
    return plan


def test_what_storage_and_dtype_change():
    whole, half = parts(), parts(dtype=torch.bfloat16)
    assert whole.parts["teacher states"] == 60 * 6000 * 4 == 2 * half.parts["teacher states"]
    disk = parts(storage="mmap")
    assert disk.parts["teacher states"] == 0
    needed = [plan.total - plan.parts["held now"] for plan in (disk, whole)]  # what is held grows
    assert needed[0] < needed[1]
    assert parts(teacher_layers="convs.[0-4]").parts["teacher states"] == 60 * 3000 * 4
    names = [name for name, _ in sorted(whole.parts.items(), key=lambda part: -part[1])]
    text = str(whole)
    assert text.startswith(f"memory needs {format_bytes(whole.total)}, have ")
    assert [name for name in names if name in text] == sorted(
        (name for name in names if name in text), key=text.index
    )


def test_what_activations_change():
    data = small_data()
    student = GCNII(8, 64, 10, 3)
    column = 4 * 60  # bytes of one number a node
    widest, hidden = 64 * column, (64 * 11 + 3) * column
    expected = {
        (None, False): 2 * hidden,
        ("bfloat16", False): hidden + 4 * widest,
        ("recompute", False): hidden + 2 * widest,
        (None, True): 2 * hidden,
        ("bfloat16", True): hidden + hidden // 2 + 4 * widest,  # states are compared in float32
        ("recompute", True): hidden + 2 * widest,
    }
    for (activations, distilled), size in expected.items():
        teacher = GCNII(8, 6, 4, 3) if distilled else None
        (plan,) = memory_plan(data, student, teacher, activations=activations)
        assert plan.parts["student states"] == size
    with pytest.raises(ValueError, match="activations must be one of bfloat16, recompute, got 'x'"):
        memory_plan(data, student, activations="x")


def test_a_cache_that_is_there_is_not_counted_again():
    data = small_data()
    teacher = GCNII(8, 600, 10, 3)
    cache = TeacherCache.build(teacher, data)
    (plan,) = memory_plan(data, MLP(8, 5, 3, 3), cache)
    assert "teacher states" not in plan.parts and "teacher run" not in plan.parts
    (alone,) = memory_plan(data, MLP(8, 5, 3, 3))
    assert alone.parts["student states"] == plan.parts["student states"] == 2 * 4 * 60 * 13


@pytest.mark.parametrize(
    ("layer", "width"),
    [
        (torch.nn.Linear(7, 5), 5),
        (torch.nn.ReLU(), 0),
        (torch.nn.Sequential(torch.nn.Embedding(100, 6), torch.nn.ReLU()), 6),
    ],
)
def test_width_of_any_layer(layer, width):
    assert plans.layer_width(layer) == width


def test_width_of_heads():
    class Heads(torch.nn.Module):
        out_channels, heads, concat = 8, 4, True

    assert plans.layer_width(Heads()) == 32
    Heads.concat = False
    assert plans.layer_width(Heads()) == 8


def test_a_run_that_cannot_fit_is_refused_before_it_starts(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(plans, "host_memory", lambda: 10**6)
    message = (
        r"memory must hold the run, got: memory needs .* [MG]B, have 1 MB \(.*\); "
        r'keep the teacher\'s states on disk \(storage="mmap", --cache.storage mmap\); or in bf'
    )
    with pytest.raises(ValueError, match=message):
        parts().check()
    with pytest.raises(ValueError, match="run the student's layers again .*activations recompute"):
        parts(storage="mmap").check()
    with pytest.raises(ValueError, match="use a machine with more"):
        parts(storage="mmap", activations="recompute").check()
    with pytest.raises(SystemExit) as stop:
        main(["distill", "--out", str(tmp_path / "out"), "--teachers", str(tmp_path / "teachers")])
    assert stop.value.code == 1
    assert "memory must hold the run" in capsys.readouterr().err
    assert not (tmp_path / "teachers").exists()


def test_the_command_shows_the_plan_and_keeps_the_cache_on_disk(tmp_path, capsys):
    common = ["--train.epochs", "3", "--teacher-train.epochs", "3", "--teacher", "gcnii-3x8"]
    folders = ["--out", str(tmp_path / "out"), "--teachers", str(tmp_path / "teachers")]
    cache = ["--cache.storage", "mmap", "--cache.dtype", "bfloat16"]
    common += ["--train.activations", "bfloat16", "--teacher-train.activations", "recompute"]
    main(["distill", *common, *folders, *cache])
    assert capsys.readouterr().out.count("memory needs ") == 2  # the teacher's training, this run
    path = tmp_path / "out" / "teacher-cache.safetensors"
    config = json.loads((tmp_path / "out" / "metrics.json").read_text())["config"]
    assert config["train"]["activations"] == "bfloat16"
    assert config["teacher_train"]["activations"] == "recompute"
    kept = TeacherCache.load(path)
    assert kept.states.dtype == torch.bfloat16 and kept.widths == [8, 8, 8]
    written = path.stat().st_mtime_ns
    main(["distill", *common, *folders, *cache])
    assert path.stat().st_mtime_ns == written


RUN = """
import sys, tempfile, torch
from abkd_fast import ABKD, KD, Distiller, TeacherCache, TrainConfig, data, memory_plan
from abkd_fast.metrics import peak_bytes
from abkd_fast.nn import ModelSpec

nodes, teacher, student, storage, *activations = sys.argv[1:]
activations = activations[0] if activations else None
graph = data.load("synthetic-dcsbm", num_nodes=int(nodes))
graph.fingerprint()
student, teacher = (
    None if s == "none" else ModelSpec.parse(s).build(graph.num_features, graph.num_classes)
    for s in (student, teacher)
)
(plan,) = memory_plan(graph, student, teacher, storage=storage, activations=activations)
held = plan.parts["held now"]
objective = None
with tempfile.TemporaryDirectory() as folder:
    if teacher is not None:
        path = folder + "/cache" if storage == "mmap" else None
        teacher = TeacherCache.build(teacher, graph, storage=storage, path=path)
        objective = KD() + ABKD()
    config = TrainConfig(epochs=2, activations=activations)
    Distiller(teacher, student, graph, objective, config=config, callbacks=[]).fit()
print(plan.total, peak_bytes(), held)
"""
RUNS = [("30000", "gcnii-16x64", "gcnii-4x8", "memory")]
SLOW_RUNS = [
    ("100000", "gcnii-16x64", "gcnii-4x8", "mmap"),
    ("100000", "gcn-3x256", "gcn-3x128", "mmap"),
    ("30000", "gcnii-64x64", "gcnii-4x4", "memory"),
    ("100000", "none", "gcnii-16x64", "memory"),
    ("50000", "none", "gcnii-16x64", "memory", "recompute"),
    ("50000", "none", "gcnii-16x64", "memory", "bfloat16"),
    ("50000", "gcnii-4x32", "gcnii-16x64", "memory", "bfloat16"),
]


@linux_only
@pytest.mark.parametrize(
    "run", [*RUNS, *(pytest.param(run, marks=pytest.mark.slow) for run in SLOW_RUNS)]
)
def test_the_plan_against_the_peak_of_a_fresh_process(run):
    command = [sys.executable, "-c", RUN, *run]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    planned, peak, held = map(int, done.stdout.split())
    assert peak > held + 40e6, "the run is too small to show anything"
    assert planned / 1.5 < peak < 1.5 * planned


def test_features_in_csr_count_their_transpose():
    dense, sparse = small_data(), small_data(sparse=True)
    assert isinstance(sparse, GraphData)
    (one,), (two,) = (memory_plan(d, MLP(8, 5, 3, 3)) for d in (dense, sparse))
    assert two.parts["graph"] > one.parts["graph"]


@pytest.mark.parametrize(
    ("line", "mount", "limit", "used", "cached"),
    [
        ("0::/job/step", "", "memory.max", "memory.current", "inactive_file"),
        (
            "7:cpu,memory:/job/step",
            "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ],
)
def test_limits_of_a_jobs_control_groups_count(
    tmp_path, monkeypatch, line, mount, limit, used, cached
):
    """A step within a job of 10,000 bytes, of which 4,000 are taken, 500 by files."""
    job = tmp_path / mount / "job"
    (job / "step").mkdir(parents=True)
    (job / limit).write_text("10000\n")
    (job / used).write_text("4000\n")
    (job / "memory.stat").write_text(f"anon 3500\n{cached} 500\n")
    (job / "step" / limit).write_text("max\n")
    (tmp_path / "own").write_text(f"3:pids:/elsewhere\n{line}\n")
    monkeypatch.setattr(_machine, "_MOUNT", tmp_path)
    monkeypatch.setattr(_machine, "_OWN", tmp_path / "own")
    assert _machine._left_in_groups() == [6500]
    (job / "step" / limit).write_text("300\n")  # and nothing said of what is used
    assert sorted(_machine._left_in_groups()) == [300, 6500]
