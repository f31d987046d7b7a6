"""What a student's layers keep for the backward: less memory, and the same run where recomputed."""

import gc
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from activation_cases import CONFIG, MODELS, RECOMPUTE, Own, assert_same, run
from helpers import small_data
from step_cases import OBJECTIVES, ONECYCLE, StaticDistiller, build
from test_captured_step import assert_same_run
from test_resume import Stop
from torch import nn
from typed_data import typed_data

from abkd_fast import Distiller, accelerate, empty_cache, memory_reserved
from abkd_fast._activations import storing
from abkd_fast._backend import backend_of
from abkd_fast._captured_step import reason_against
from abkd_fast._recompute import layers_of
from abkd_fast.batches import ClusterBatches, NeighborBatches
from abkd_fast.capture import Recorder
from abkd_fast.nn import GCN, GCNII, RGCN
from abkd_fast.testing import random_graph

needs_extension = pytest.mark.skipif(
    backend_of("spmm")[0] != "cpu", reason=f"no C++ extension: {backend_of('spmm')[1]}"
)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_recomputed_losses_and_gradients_are_bit_equal(model):
    assert_same(run(model, CONFIG), run(model, RECOMPUTE))


def test_states_from_within_a_recomputed_layer():
    layers = {"student_layers": "attention.lin"}
    assert_same(run(Own, CONFIG, **layers), run(Own, RECOMPUTE, **layers))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_recomputing_beside_every_objective(objective):
    config = replace(ONECYCLE, epochs=5)
    results = [
        build(Distiller, "gcnii", objective, config=replace(config, activations=kind)).fit()
        for kind in (None, "recompute")
    ]
    assert_same_run(*results)


def test_recomputing_a_typed_student():
    data = typed_data()
    counts = data.relations.num_nodes

    def model():
        relations = data.relations.num_relations
        return RGCN(8, 5, 3, 3, counts, relations, embedded=("author",), dropout=0.3)

    found = [run(model, config, data=data, objective=False) for config in (CONFIG, RECOMPUTE)]
    assert_same(*found)


@pytest.mark.parametrize("activations", ["recompute", "bfloat16"])
@pytest.mark.parametrize("kind", ["neighbors", "clusters", "inductive", "sparse"])
def test_batches_inductive_and_sparse_data(kind, activations):
    data = small_data(sparse=kind == "sparse")
    data = data.inductive() if kind == "inductive" else data
    batches = {
        "neighbors": lambda: NeighborBatches(data, [3, 3], batch_size=20, seed=1),
        "clusters": lambda: ClusterBatches(data, 6, parts_per_batch=2, seed=1),
    }.get(kind, lambda: None)

    def model():
        return GCN(8, 4, 2, 3, dropout=0.3)

    chosen = replace(CONFIG, activations=activations)
    plain, stored = (
        run(model, config, data=data, batches=batches()) for config in (CONFIG, chosen)
    )
    if activations == "recompute":
        assert_same(plain, stored)
    else:
        last = [result.history[-1]["loss"] for result, _ in (plain, stored)]
        assert last[0] == pytest.approx(last[1], rel=0.05)


@pytest.mark.parametrize("model", ["gcn", "own"])
def test_recomputing_under_autocast(model):
    config = replace(CONFIG, autocast="bfloat16")
    plain = run(MODELS[model], config)
    assert_same(plain, run(MODELS[model], replace(config, activations="recompute")))


@pytest.mark.parametrize("model", ["gcnii", "gat", "drawing"])
def test_a_static_step_draws_the_seeds_again(model):
    plain = run(MODELS[model], CONFIG)
    assert_same(plain, run(MODELS[model], RECOMPUTE, kind=StaticDistiller))
    rounded = replace(CONFIG, activations="bfloat16")
    pair = [run(MODELS[model], rounded, kind=kind) for kind in (Distiller, StaticDistiller)]
    assert_same(*pair)


@pytest.mark.parametrize("activations", ["recompute", "bfloat16"])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, activations):
    config = replace(ONECYCLE, checkpoint_every=2, epochs=12, activations=activations)
    whole = build(Distiller, "gcnii", "kd+abkd", config=config).fit()
    with pytest.raises(KeyboardInterrupt):
        build(Distiller, "gcnii", "kd+abkd", config=config, out=tmp_path, callbacks=[Stop(7)]).fit()
    assert_same_run(build(Distiller, "gcnii", "kd+abkd", config=config, out=tmp_path).fit(), whole)


@pytest.mark.parametrize("name", ["GCN", "GraphSAGE", "GAT"])
@pytest.mark.parametrize("fast", [False, True], ids=["own", "accelerated"])
def test_recomputing_a_pyg_student(name, fast):
    """Accelerated: the first step multiplies by dense features, the others by sparse ones."""
    pyg = pytest.importorskip("torch_geometric.nn", reason="torch-geometric is not installed")
    data = small_data(num_nodes=1100, num_features=64)
    x = data.x * (torch.rand(data.x.shape) < 0.1)
    config = replace(CONFIG, epochs=3)

    def model():
        student = getattr(pyg, name)(64, 4, 2, 3, dropout=0.3)
        return accelerate(student) if fast else student

    plain, again = (
        run(model, replace(config, activations=kind), data=replace(data, x=x.clone()),
            objective=False)
        for kind in (None, "recompute")
    )  # fmt: skip
    assert_same(plain, again)


def test_what_counts_as_a_layer():
    def paths(model):
        found = layers_of(model)
        return [path for path, module in model.named_modules() if module in found]

    assert paths(GCNII(8, 4, 2, 3)) == ["lins.0", "lins.1", "convs.0", "convs.1"]
    assert paths(GCN(8, 4, 2, 3, norm="batch_norm")) == ["convs.0", "convs.1"]
    assert paths(Own()) == ["block.0", "attention", "last"]
    shared = nn.Linear(3, 3)
    assert layers_of(nn.Sequential(shared, nn.Sequential(shared))) == [shared]


class Counting(nn.Linear):
    """Changes a buffer whenever it runs."""

    def __init__(self):
        super().__init__(8, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def test_what_is_refused_by_name():
    data = small_data()
    with pytest.raises(ValueError, match="activations must be one of bfloat16, recompute, got 'c"):
        replace(CONFIG, activations="cpu")
    with pytest.raises(ValueError, match="must not be 'recompute' for Linear, which has no layers"):
        Distiller(None, nn.Linear(8, 3), data, config=RECOMPUTE)
    for activations in ("recompute", "bfloat16"):
        config = replace(CONFIG, activations=activations)
        compiled = nn.Sequential(torch.compile(nn.Linear(8, 3), backend="eager"))
        with pytest.raises(ValueError, match="None for a compiled student, got .* and 0;"):
            Distiller(None, compiled, data, config=config)
    with pytest.raises(ValueError, match="layers that change their buffers, got Counting; bfloat"):
        run(lambda: nn.Sequential(Counting()), RECOMPUTE, objective=False,
            forward=lambda model, data: model(data.x))  # fmt: skip
    assert "sets random generators back" in reason_against(None, RECOMPUTE)


def live_bytes(activations, recorded=False):
    """Of the results that a forward of a deep student leaves, in columns of 64 floats a node."""
    nodes = 500
    model = GCNII(16, 64, 64, 3, dropout=0.0)
    graph = random_graph(nodes, mean_degree=4, seed=0)
    x = torch.randn(nodes, 16)
    model(x, graph)  # normalises the graph
    gc.collect()
    empty_cache()
    before = memory_reserved()
    with Recorder(model, None if recorded else ()) as recorder, storing(activations, model):
        capture = recorder.run(x, graph)
    gc.collect()
    empty_cache()
    found = (memory_reserved() - before) / (4 * 64 * nodes)
    assert len(capture.states) == (64 if recorded else 0)
    capture.logits.sum().backward()
    return found


@needs_extension
def test_what_is_left_of_a_forward():
    """Every layer keeps S and its output; the first linear its output alone.

    Blocks of kept memory are up to an eighth larger than what they hold.
    """
    expected = {
        (None, False): 129,  # all
        ("bfloat16", False): 64.5,  # the same in half
        ("recompute", False): 65,  # inputs of layers
        (None, True): 129,
        ("bfloat16", True): 0.5 + 32 + 64,  # captured states stay what they are
        ("recompute", True): 65,
    }
    for (activations, recorded), columns in expected.items():
        found = live_bytes(activations, recorded)
        assert columns <= found <= 1.13 * columns + 1, (activations, recorded, found)


PEAK = """
import sys, torch
from abkd_fast import Distiller, TrainConfig, data
from abkd_fast.metrics import peak_bytes
from abkd_fast.nn import GCNII

graph = data.load("synthetic-dcsbm", num_nodes=3000)
student = GCNII(graph.num_features, 64, 64, graph.num_classes)
config = TrainConfig(epochs=1, activations=sys.argv[1] if len(sys.argv) > 1 else None)
Distiller(None, student, graph, config=config, callbacks=[]).fit()
print(peak_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_of_a_fresh_process_falls():
    """A student of 64 x 64: 128 columns of 64 floats a node, of which half go."""
    peaks = []
    for activations in ((), ("bfloat16",), ("recompute",)):
        command = [sys.executable, "-c", PEAK, *activations]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    columns = 3000 * 64 * 4
    assert peaks[0] - peaks[1] > 50 * columns and peaks[0] - peaks[2] > 50 * columns
