"""Graphs as PyG's layers take them, and the comparison of accelerated layers with PyG's."""

import warnings

import pytest
import torch

from abkd_fast import CSRGraph, accelerated, acceleration

N = 12
TOLERANCE = dict(rtol=1e-5, atol=1e-5)


def edge_index(kind="usual"):
    """[2, E] on N nodes; node N - 1 is isolated."""
    generator = torch.Generator().manual_seed(7)
    edges = torch.randint(N - 1, (2, 40), generator=generator)
    edges = edges[:, edges[0] != edges[1]]
    loops = torch.tensor([[2, 2, 5], [2, 2, 5]])  # one of them twice
    return {
        "usual": edges,
        "self loops": torch.cat([loops[:, :1], edges, loops[:, 1:]], 1),
        "duplicates": torch.cat([edges, edges[:, :9]], 1),
        "empty": edges[:, :0],
    }[kind]


KINDS = ["usual", "self loops", "duplicates", "empty"]


def edge_weight(edges, dtype=torch.float32, requires_grad=False):
    generator = torch.Generator().manual_seed(8)
    weight = torch.rand(edges.size(1), generator=generator, dtype=torch.float64) + 0.1
    return weight.to(dtype).requires_grad_(requires_grad)


def matrix(layout, edges, weight=None, size=(N, N)):
    """The same graph as an adjacency matrix, row = destination; duplicates are summed."""
    if layout == "torch_sparse":
        sparse = pytest.importorskip("torch_sparse", reason="torch-sparse is not installed")
        return sparse.SparseTensor(
            row=edges[1], col=edges[0], value=weight, sparse_sizes=size
        ).coalesce()
    values = torch.ones(edges.size(1)) if weight is None else weight
    coo = torch.sparse_coo_tensor(edges.flip(0), values, size, check_invariants=True).coalesce()
    return {
        "csr graph": lambda: CSRGraph.from_torch(coo),
        "coo": lambda: coo,
        "csr": coo.to_sparse_csr,
        "csc": coo.to_sparse_csc,
    }[layout]()


def outcome(model, args, kwargs, inputs):
    """Output and every gradient, those of the parameters last."""
    out = model(*args, **kwargs)
    wanted = [t for t in (*inputs, *model.parameters()) if t.requires_grad]
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    grads = torch.autograd.grad((out * weight).sum(), wanted, materialize_grads=True)
    return [out.detach(), *grads]


def leaves(args, kwargs):
    """The dense tensors among the arguments that can have a gradient."""
    flat = [t for arg in (*args, *kwargs.values()) for t in (arg if type(arg) is tuple else [arg])]
    dense = [t for t in flat if isinstance(t, torch.Tensor) and t.layout == torch.strided]
    return [t for t in dense if t.requires_grad]


def assert_parity(model, *args, theirs=None, **kwargs):
    """Accelerated, ``model`` gives PyG's outputs and gradients; twice, the second from the cache.

    ``theirs`` are the arguments for PyG where it does not take these.
    """
    inputs = leaves(args, kwargs)
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        # Of PyG and of torch_sparse.
        warnings.filterwarnings("ignore", "Converting sparse tensor to CSR", UserWarning)
        warnings.filterwarnings("ignore", "Sparse invariant checks", UserWarning)
        expected = outcome(model, theirs or args, kwargs, inputs)
    with accelerated(model):
        assert not acceleration(model).left and acceleration(model).replaced
        for _ in range(2):
            torch.set_rng_state(state)
            for a, b in zip(outcome(model, args, kwargs, inputs), expected, strict=True):
                torch.testing.assert_close(a, b, **TOLERANCE)
