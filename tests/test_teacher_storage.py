"""Teacher caches on disk: built layer by layer, read in place, and what memory that takes."""

import gc
import os
import signal
import subprocess
import sys
import weakref

import pytest
import torch
from helpers import small_data

from abkd_fast import ABKD, KD, Distiller, TeacherCache, TrainConfig
from abkd_fast import _teacher_file as teacher_file
from abkd_fast.nn import GCNII, MLP
from abkd_fast.ops import _layer_pair_stream as stream

DTYPES = [torch.bfloat16, torch.float32, torch.float64]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return GCNII(8, 6, 3, 3)


def build(teacher, path, data=None, **options):
    data = small_data() if data is None else data
    return TeacherCache.build(teacher, data, storage="mmap", path=path, **options)


def assert_same(cache, other):
    assert torch.equal(cache.states, other.states) and cache.states.dtype == other.states.dtype
    assert cache.widths == other.widths and cache.fingerprint == other.fingerprint
    assert (cache.parameters, cache.data) == (other.parameters, other.data)
    assert torch.equal(cache.logits, other.logits)
    torch.testing.assert_close(cache.moments.mean, other.moments.mean, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(cache.moments.second, other.moments.second, rtol=1e-13, atol=1e-15)
    assert cache.moments.count == other.moments.count


@pytest.mark.parametrize("block", [1, 700, 10**6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_holds_what_memory_holds(teacher, tmp_path, monkeypatch, dtype, block):
    monkeypatch.setattr(teacher_file, "_BLOCK_BYTES", block)
    path = tmp_path / "new" / "cache.safetensors"
    teacher.train()
    expected = TeacherCache.build(teacher, small_data(), dtype=dtype)
    cache = build(teacher, path, dtype=dtype)
    assert teacher.training
    assert_same(cache, expected)
    assert (cache.storage, expected.storage) == ("mmap", "memory")
    assert cache.streamed and not expected.streamed
    for storage in ("mmap", "memory"):
        loaded = TeacherCache.load(path, storage)
        assert_same(loaded, expected)
        assert loaded.storage == storage
    assert os.listdir(path.parent) == ["cache.safetensors"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_file_is_a_plain_safetensors_file(teacher, tmp_path, dtype):
    from safetensors.torch import load_file

    path = tmp_path / "cache.safetensors"
    built = build(teacher, path, dtype=dtype)
    tensors = load_file(path)
    assert torch.equal(tensors["states"], built.states)
    assert torch.equal(tensors["logits"], built.logits)
    assert torch.equal(tensors["second.2"], built.moments.second[2])
    content = path.read_bytes()
    built.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == content
    TeacherCache.load(path, "memory").save(path)
    assert path.read_bytes() == content


def test_scores_alone_and_one_layer(teacher, tmp_path):
    path = tmp_path / "cache.safetensors"
    scores = build(teacher, path, layers=())
    assert scores.num_layers == 0 and scores.states.shape == (60, 0)
    assert torch.equal(TeacherCache.load(path).logits, scores.logits)
    one = build(MLP(8, 6, 2, 3), path)
    assert one.widths == [6] and TeacherCache.load(path).fingerprint == one.fingerprint


def test_cached_builds_on_disk_and_is_reused(teacher, tmp_path):
    path, data = tmp_path / "cache.safetensors", small_data()
    first = TeacherCache.cached(path, teacher, data, dtype=torch.bfloat16)
    assert first.storage == "mmap"
    written = path.stat().st_mtime_ns
    again = TeacherCache.cached(path, teacher, data, storage="memory", dtype=torch.bfloat16)
    assert again.storage == "memory" and path.stat().st_mtime_ns == written
    assert_same(again, first)
    other = TeacherCache.cached(path, teacher, small_data(seed=1), dtype=torch.bfloat16)
    assert not torch.equal(other.states, again.states)
    assert torch.equal(first.states, again.states)  # the file it is mapped from is still there
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    for storage in ("mmap", "memory"):
        with pytest.raises(ValueError, match=r"cache\.safetensors must have sha256 .* is damaged"):
            TeacherCache.cached(
                path, teacher, small_data(seed=1), storage=storage, dtype=torch.bfloat16
            )


def test_rejects(teacher, tmp_path):
    data, path = small_data(), tmp_path / "cache.safetensors"
    with pytest.raises(ValueError, match="storage must be one of memory, pinned, mmap, got 'disk'"):
        TeacherCache.build(teacher, data, storage="disk")
    for options in ({"storage": "mmap"}, {"path": path}):
        with pytest.raises(ValueError, match='path must be given with storage="mmap" alone'):
            TeacherCache.build(teacher, data, **options)
    with torch.no_grad():
        teacher.convs[1].weight1[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"convs\.1 must be finite, got 60 NaN"):
        build(teacher, path)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="storage must be memory or mmap without a GPU"):
            TeacherCache.build(teacher, data, storage="pinned")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="could not write .*/file/cache"):
        build(GCNII(8, 6, 3, 3), tmp_path / "file" / "cache.safetensors")
    assert os.listdir(tmp_path) == ["file"]


class Layered(torch.nn.Module):
    """Linear layers; ``change`` is done to what each of them returns."""

    def __init__(self, change):
        super().__init__()
        self.lins = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))
        self.change = change

    def forward(self, x):
        for lin in self.lins:
            x = self.change(lin(x))
        return x[:, :3]


def test_states_changed_in_place_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'lins\.0' must not be changed in place"):
        build(Layered(torch.relu_), tmp_path / "c", layers="lins.*")


def test_no_more_states_are_alive_than_the_teacher_needs(tmp_path):
    alive, most = [], []

    def watch(x):
        alive.append(weakref.ref(x))
        most.append(sum(state() is not None for state in alive))
        return x

    gc.disable()
    try:
        cache = build(Layered(watch), tmp_path / "c", layers="lins.*")
    finally:
        gc.enable()
    assert cache.num_layers == 4 and max(most) <= 2


KILLED = """
import sys, torch
sys.path.insert(0, {tests!r})
from helpers import small_data
from abkd_fast import TeacherCache, _teacher_file
from abkd_fast.nn import GCNII
rows = _teacher_file.tensor_bytes
def slow(x):
    if {where!r} == "writing" and x.shape == (60, 18):
        print("ready", flush=True)
        sys.stdin.read()
    return rows(x)
_teacher_file.tensor_bytes = slow
def forward(model, data):
    out = model(data.x, data.graph)
    if {where!r} == "running":
        print("ready", flush=True)
        sys.stdin.read()
    return out
torch.manual_seed(0)
TeacherCache.build(GCNII(8, 6, 3, 3), small_data(), storage="mmap", path={path!r}, forward=forward)
"""


@pytest.mark.parametrize("where", ["running", "writing"])
def test_a_killed_build_leaves_no_cache_and_no_old_one_harmed(teacher, tmp_path, where):
    from pathlib import Path

    path = tmp_path / "cache.safetensors"
    build(teacher, path, small_data(seed=4))
    before = path.read_bytes()
    script = KILLED.format(tests=str(Path(__file__).parent), where=where, path=str(path))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
    assert path.read_bytes() == before
    left = [name for name in os.listdir(tmp_path) if name != path.name]
    assert all(name.startswith(".cache.safetensors.") for name in left) and len(left) <= 1
    assert_same(
        TeacherCache.cached(path, teacher, small_data()), TeacherCache.build(teacher, small_data())
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"normalize": "standardize"}, {"normalize": "rows"}, {"pool": True}, {"nodes": "train"}],
)
def test_distillation_from_a_mapped_cache(teacher, tmp_path, monkeypatch, options):
    """Loss, attention and student as from memory."""
    data = small_data()
    monkeypatch.setattr(stream, "block_rows", lambda given: 11)
    mask = data.train_mask if options.pop("nodes", None) else None
    results = []
    for cache in (
        TeacherCache.build(teacher, data),
        build(teacher, tmp_path / "c"),
        build(teacher, tmp_path / "c"),
    ):
        torch.manual_seed(1)
        student = GCNII(8, 4, 2, 3)
        objective = KD() + ABKD(mask=mask, **options)
        config = TrainConfig(epochs=5)
        fit = Distiller(cache, student, data, objective, config=config, callbacks=[]).fit()
        results.append([r["loss"] for r in fit.history] + [float(fit.attention.sum())])
    assert results[1] == results[2]
    torch.testing.assert_close(
        torch.tensor(results[1]), torch.tensor(results[0]), rtol=1e-5, atol=1e-6
    )


def test_batches_take_rows_of_a_mapped_cache(teacher, tmp_path):
    expected, cache = TeacherCache.build(teacher, small_data()), build(teacher, tmp_path / "c")
    for nodes in (torch.tensor([5, 59, 0, 5]), torch.empty(0, dtype=torch.int64)):
        rows = cache.rows(nodes)
        assert torch.equal(rows, expected.states[nodes]) and rows.dtype == torch.float32
    assert torch.equal(cache.moments_of(None).mean, expected.moments.mean)
    mask = torch.rand(60) < 0.5
    assert torch.equal(cache.moments_of(mask).mean, expected.moments_of(mask).mean)


STEP = """
import sys, torch
from abkd_fast import ABKD, Distiller, TeacherCache, TrainConfig, data
from abkd_fast.metrics import peak_bytes as peak
from abkd_fast.nn import GCN

def train(cache, graph):
    student = GCN(graph.num_features, 8, 3, graph.num_classes)
    Distiller(cache, student, graph, ABKD(), config=TrainConfig(epochs=3), callbacks=[]).fit()

torch.manual_seed(0)
nodes, layers, width = 40_000, 32, 64  # 328 MB of states
small = data.load("synthetic-dcsbm", num_nodes=1_000)  # loads the libraries that a run takes
train(TeacherCache.build(GCN(small.num_features, 4, 3, small.num_classes), small), small)
graph = data.load("synthetic-dcsbm", num_nodes=nodes)
teacher = GCN(graph.num_features, width, layers + 1, graph.num_classes)
with torch.no_grad():
    teacher.eval()(graph.x, graph.graph)
graph.fingerprint()
before = peak()
if sys.argv[1] == "mmap":
    cache = TeacherCache.build(teacher, graph, storage="mmap", path=sys.argv[2])
else:
    cache = TeacherCache.build(teacher, graph)
built = peak()
train(cache, graph)
print(cache.states.nbytes, built - before, peak() - before)
"""


@pytest.mark.slow
@linux_only
def test_memory_of_a_cache_on_disk(tmp_path):
    """Peak resident size of a fresh process, the least of five with the cache on disk.

    Pages of mapped files count too, and the system maps as many ahead as it likes: up to 120 MB.
    """
    figures: dict[str, list[list[int]]] = {"mmap": [], "memory": []}
    for storage in ("mmap",) * 5 + ("memory",):
        done = subprocess.run(
            [sys.executable, "-c", STEP, storage, str(tmp_path / "cache")],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        figures[storage].append([int(figure) for figure in done.stdout.split()])
    size, built, trained = map(min, zip(*figures["mmap"], strict=True))
    ((_, _, in_memory),) = figures["memory"]
    layer = size / 32
    # Beyond what the teacher needs: a layer on its way to the disk, buffers.
    assert built < 2 * layer + 100e6 < size
    assert trained < size / 2
    assert in_memory - trained > size  # the states are what disk saves
