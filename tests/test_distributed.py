"""Several processes against one: losses, gradients and weights; real processes, real messages."""

import json
import re
from dataclasses import replace

import pytest
import torch
import torchrun
from distributed_run import CONFIG, build, default_dtype, fit

from abkd_fast._optimizer import make_optimizer
from abkd_fast.capture import Capture, Recorder, call_model
from abkd_fast.distributed import World
from abkd_fast.distributed.batches import RankBatches

QUICK = (
    "gcn-moment both parts float64",
    "gcnii-projection both parts float64",
    "gcn-moment both parts float32",
    "gcnii-projection both parts float32",
    "sage frozen parts float64",
    "sage-max pool parts float64",
    "mlp rows parts float64",
    "gcn-moment none parts float64",
    "sage both neighbors float64",
    "gcn-moment both clusters float64",
    "gcnii-projection both parts float64 recompute",
    "gcn-moment both parts float32 recompute",
    "sage both neighbors float64 recompute",
)
ROUNDED = "gcnii-projection both parts float32 bfloat16"
STUDENTS = ("gcn-moment", "gcn-projection", "gcnii-moment", "gcnii-projection")
SLOW = tuple(f"{name} both parts {dtype}" for name in STUDENTS for dtype in ("float64", "float32"))
BATCHES = tuple(f"gcn-moment both {name} float64" for name in ("neighbors", "clusters"))


def of_processes(size, cases, folder):
    """What every rank found."""
    out = folder / "found"
    torchrun.run(size, torchrun.HERE / "distributed_run.py", ",".join(cases), out)
    return [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(size)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return of_processes(2, (*QUICK, ROUNDED), tmp_path_factory.mktemp("two"))


def test_the_threads_of_a_group_end_with_it(tmp_path):
    torchrun.run(2, torchrun.HERE / "distributed_threads.py", tmp_path / "threads")
    for rank in range(2):
        before, inside, after = json.loads((tmp_path / f"threads.{rank}").read_text())
        assert set(inside) - set(before) and after == before


def assert_equal_gradients(found, expected, tolerance):
    """To the largest gradient of each parameter."""
    assert found.keys() == expected.keys() and len(found) >= 1
    for name, value in expected.items():
        error = (found[name] - value).abs().max() / value.abs().max().clamp_min(1e-30)
        assert float(error) <= tolerance, name


def assert_same_run(found, case):
    """float64: 1e-10 over 20 steps; float32: 1e-5 at the first."""
    expected = fit(case)
    tolerance, steps = (1e-10, 20) if "float64" in case else (1e-5, 1)
    assert len(found["records"]) == len(expected["records"]) == 20
    for step in range(steps):
        record, wanted = found["records"][step], expected["records"][step]
        assert record.keys() == wanted.keys()
        for name, value in wanted.items():
            assert record[name] == pytest.approx(value, rel=tolerance), (step, name)
        gradients = (run["gradients"][step] for run in (found, expected))
        assert_equal_gradients(*gradients, tolerance)
    if steps == 20:
        for name, value in expected["student"].items():
            torch.testing.assert_close(found["student"][name], value, rtol=0, atol=1e-10)
        if expected["dissimilarity"] is not None:
            dissimilarity = found["dissimilarity"], expected["dissimilarity"]
            torch.testing.assert_close(*dissimilarity, rtol=1e-9, atol=0)


@pytest.mark.parametrize("case", [case for case in QUICK if "parts" in case])
def test_parts_of_a_graph_equal_one_process(two, case):
    assert_same_run(two[0][case], case)


@pytest.mark.parametrize("case", (*QUICK, ROUNDED))
def test_ranks_hold_the_same_weights(two, case):
    first, second = (found[case]["student"] for found in two)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(first) > 0


def test_rounded_activations_over_parts(two):
    """A sum that another order changes by a bit may be rounded the other way: 2^-8 of a term."""
    found, expected = two[0][ROUNDED], fit(ROUNDED)
    assert_equal_gradients(found["gradients"][0], expected["gradients"][0], 2.0**-8)
    assert found["records"][0]["loss"] == pytest.approx(expected["records"][0]["loss"], rel=1e-5)


def test_aggregation_over_a_part(two):
    for found in two:
        assert len(found["halo"]) == 8
        for name, (mine, whole) in found["halo"].items():
            torch.testing.assert_close(mine, whole, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("layer", r"student must have layers that read a part of a graph, got GATConv \(convs.0\)"),
        ("norm", "got BatchNorm1d"),
        ("mask", "objective must be a mean over all nodes .* got ABKD with a mask"),
        ("capture", "capture_step must be False in several processes"),
        ("inductive", "data must be trained on as a whole, got inductive"),
        ("loader", "batches must be NeighborBatches or ClusterBatches"),
        ("few", "batches must have an item for each of 2 ranks, got 1"),
        ("empty part", "part must give each of 2 ranks a node"),
        ("edge_index", "cannot be given edge_index"),
        ("device", "HaloGraph must stay on cpu"),
    ],
)
def test_refuses_what_cannot_be_shared_out(two, what, message):
    for found in two:
        assert re.search(message, found["refused"][what])


class JointCapture(Capture):
    """A capture whose means are given."""

    joint = None

    @property
    def means(self):
        return self.joint


def joint_captures(run, recorder, batches):
    """Captures of the batches of one step; their means are those over all of their nodes."""
    captures = []
    for batch in batches:
        whole = recorder.collect(lambda data=batch.data: call_model(run.student, data))
        states = [state[: batch.batch_size] for state in whole.states]
        captures.append(JointCapture(states, whole.logits[: batch.batch_size], whole.names))
    sizes = torch.tensor([float(batch.batch_size) for batch in batches])
    own = [Capture(c.states, c.logits, c.names).means for c in captures]
    joint = [sum(w * m for w, m in zip(sizes, layer, strict=True)) / sizes.sum()
             for layer in zip(*own, strict=True)]  # fmt: skip
    for capture in captures:
        capture.joint, capture.share = joint, float(sizes.sum()) / run.data.num_nodes
    return captures, (sizes / sizes.sum()).tolist()


def accumulated(case, size, epochs):
    """The run of one process that makes every step on the batches of all ranks."""
    with default_dtype(torch.float64):
        run = build(case, epochs=epochs)
        per_rank = [
            RankBatches(run.batches, World(rank, size, torch.device("cpu"), [], 1.0))
            for rank in range(size)
        ]
        with torch.random.fork_rng(), Recorder(run.student) as recorder:
            torch.manual_seed(run.seed)
            run._setup(recorder)
            optimizer = make_optimizer(run.config, run.student, run.objective)
            run.student.train()
            for epoch in range(epochs):
                for batches in zip(*[share.epoch(epoch) for share in per_rank], strict=True):
                    optimizer.zero_grad()
                    loss_of_step(run, recorder, batches).backward()
                    optimizer.step()
    return run


def loss_of_step(run, recorder, batches):
    captures, weights = joint_captures(run, recorder, batches)
    buffers = {name: value.clone() for name, value in run.objective.named_buffers()}
    loss = 0.0
    for batch, capture, weight in zip(batches, captures, weights, strict=True):
        run.objective.load_state_dict(buffers, strict=False)  # running means move once a step
        rows = slice(batch.batch_size)
        mask = batch.data.train_mask[rows]
        share = float(mask.double().mean()) / run.batches.train_share
        ce = run.data.kind.loss(capture.logits, batch.data.y[rows], mask) if share else 0.0
        distance = run.objective(capture, run.teacher, batch.nodes[rows])
        loss = loss + weight * (run.objective.label_weight * share * ce + distance)
    return loss


def assert_same_batches(found, case, size, epochs):
    run = accumulated(case, size, epochs)
    expected = {f"student.{name}": p.grad for name, p in run.student.named_parameters()}
    expected |= {f"objective.{name}": p.grad for name, p in run.objective.named_parameters()}
    assert_equal_gradients(found["gradients"][-1], expected, 1e-10)


@pytest.mark.parametrize("case", [case for case in QUICK if "parts" not in case])
def test_shared_batches_equal_one_process_that_accumulates(two, case):
    assert_same_batches(two[0][case], case, 2, CONFIG.epochs)


def test_every_item_of_an_epoch_is_one_ranks():
    run = build("sage both neighbors float32")
    for size in (1, 2, 3, 7):
        world = World(0, size, torch.device("cpu"), [], 1.0)
        shares = [RankBatches(run.batches, replace(world, rank=rank)) for rank in range(size)]
        found = [list(share.epoch(2)) for share in shares]
        assert {len(part) for part in found} == {len(shares[0])}
        seeds = [b.nodes[: b.batch_size] for part in found for b in part]
        assert torch.equal(torch.cat(seeds).sort().values, torch.arange(240))
        sizes = [len(part) for part in seeds]
        assert max(sizes) - min(sizes) <= 1 and max(sizes) <= 30


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_distributed_equality(size, tmp_path):
    """GCN and GCNII, KD and ABKD, moment and projection form; both kinds of batches."""
    found = of_processes(size, SLOW + BATCHES, tmp_path)[0]
    for case in SLOW:
        assert_same_run(found[case], case)
    for case in BATCHES:
        assert_same_batches(found[case], case, size, CONFIG.epochs)
    assert len(found) == len(SLOW) + len(BATCHES) + 2
