"""Ops run on the current stream, and a captured graph replays them."""

import pytest
import torch

from abkd_fast.ops import conv, dropout, kl_div, linear, spmm
from abkd_fast.testing import random_graph

NODES, WIDTH = 2000, 64


def make_graph():
    graph = random_graph(NODES, mean_degree=30, power_law=True, dtype=torch.float32).to("cuda")
    graph.t()
    return graph


def calls(graph):
    """By name, functions of x: every op that reads the graph, forward and backward."""
    weight = torch.randn(WIDTH, WIDTH, device="cuda") / 8
    x_0 = torch.randn(NODES, WIDTH, device="cuda")
    options = {"x_0": x_0, "alpha": 0.1, "beta": 0.3, "act": "relu", "p": 0.4}
    seed = torch.tensor(5)

    def gradient(function):
        def run(x):
            leaf = x.detach().requires_grad_()
            (dx,) = torch.autograd.grad(function(leaf), leaf, x)
            return dx

        return run

    def scores_gradient(loss):
        def run(x):
            leaf = x.detach().requires_grad_()
            (dx,) = torch.autograd.grad(loss(leaf), leaf)
            return dx

        return run

    found = {r: (lambda x, r=r: spmm(graph, x, r)) for r in ("sum", "mean", "max", "min")}
    found["conv"] = lambda x: conv(graph, x, weight, seed=seed, **options)[0]
    found |= {f"{name} backward": gradient(run) for name, run in list(found.items())}
    found["linear"] = lambda x: linear(x, weight, act="relu")
    found["linear backward"] = gradient(found["linear"])
    found["dropout"] = lambda x: dropout(x, 0.3, seed)
    labels = torch.arange(NODES, device="cuda") % WIDTH
    for name, target in (("labels", labels), ("teacher", x_0.log_softmax(1))):
        found[f"kl_div {name}"] = lambda x, target=target: kl_div(x, target, labels > 9)[0]
        found[f"kl_div {name} backward"] = scores_gradient(found[f"kl_div {name}"])
    return found


NAMES = [*("sum", "mean", "max", "min", "conv"), "dropout"]
NAMES += [f"{name} backward" for name in NAMES[:-1]]
NAMES += ["linear", "linear backward"]
NAMES += [f"kl_div {kind}{way}" for kind in ("labels", "teacher") for way in ("", " backward")]


@pytest.mark.parametrize("name", NAMES)
def test_ops_run_on_the_current_stream(backend, name):
    run = calls(make_graph())[name]
    fresh = torch.randn(NODES, WIDTH, device="cuda")
    expected = run(fresh)  # compiles what there is to compile
    x = torch.zeros_like(fresh)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # an op on another stream would read zeros meanwhile
        x.copy_(fresh)
        out = run(x)
    stream.synchronize()
    assert torch.equal(out, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_captured_graph_replays_what_eager_computes(backend, name):
    run = calls(make_graph())[name]
    x = torch.randn(NODES, WIDTH, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run(x)
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        out = run(x)
    for _ in range(2):
        x.copy_(torch.randn(NODES, WIDTH))
        captured.replay()
        assert torch.equal(out, run(x))


def test_cuda_kernels_read_a_seed_on_the_device_at_every_replay():
    ops = torch.ops.abkd_fast
    x = torch.ones(1000, 8, device="cuda")
    seed = torch.tensor(1, device="cuda")
    ops.dropout_cuda(x, 0.5, seed, 0, 0)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        out = ops.dropout_cuda(x, 0.5, seed, 0, 0)
    for key in (1, 2, 3):
        seed.fill_(key)
        captured.replay()
        assert torch.equal(out, ops.dropout_cuda(x, 0.5, torch.tensor(key), 0, 0))
