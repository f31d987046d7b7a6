"""Layers of every kind for the tests of conv."""

import torch

from abkd_fast import reference

NAMES = ("x", "weight", "bias", "x_0")

# in, out, options: every order of the products, residual or not, and no transform at all.
LAYERS = {
    "gcn-narrow": (7, 3, {"bias": True, "act": "relu", "p": 0.3}),
    "gcn-wide": (3, 7, {"bias": True, "act": "relu", "p": 0.3}),
    "gcn-scores": (64, 7, {"bias": True}),
    "gcn-aggregate-first": (20, 16, {"order": "aggregate_first", "act": "relu"}),
    "gcnii": (33, 33, {"residual": 0.1, "beta": 0.3, "act": "relu", "p": 0.5}),
    "gcnii-narrow": (4, 4, {"residual": 0.4, "beta": 0.7, "act": "relu"}),
    "gcn-square": (4, 4, {"bias": True, "p": 0.3, "order": "aggregate_first"}),
    "gcnii-plain": (64, 64, {"residual": 0.1, "beta": 0.05, "bias": True}),
    "identity-mix": (16, 16, {"beta": 0.3, "p": 0.2, "act": "relu"}),
    "one": (1, 1, {"residual": 0.5, "beta": 0.2, "act": "relu"}),
    "very-wide": (300, 130, {"act": "relu", "bias": True, "p": 0.5}),
    "no-transform": (37, 37, {"weight": False, "bias": True, "act": "relu", "p": 0.4}),
    "residual-only": (5, 5, {"residual": 1.0, "beta": 0.0}),
}


def leaves(graph, width, width_out, options, dtype=torch.float64, seed=0):
    """(x, weight, bias, x_0) as leaves or None, and the other arguments of conv."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "x": (graph.num_src, width),
        "weight": (width, width_out) if options.get("weight", True) else None,
        "bias": (width_out,) if "bias" in options else None,
        "x_0": (graph.num_dst, width) if "residual" in options else None,
    }
    tensors = [
        None
        if shape is None
        else torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes.values()
    ]
    rest = {key: options[key] for key in ("beta", "act", "p", "order") if key in options}
    if "residual" in options:
        rest["alpha"] = options["residual"]
    return tensors, rest | {"seed": 77, "layer": 2, "step": 1}


def results(layer, graph, tensors, rest):
    """[out, sums, dx, ...] for gradients of both outputs that the case's shapes determine."""
    x, weight, bias, x_0 = tensors
    if layer is reference.conv:
        rest = {key: value for key, value in rest.items() if key != "order"}
    out, sums = layer(graph, x, weight, bias, x_0=x_0, **rest)
    generator = torch.Generator().manual_seed(1)
    dout = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    dsums = torch.randn(sums.shape, generator=generator, dtype=torch.float64).to(sums.dtype)
    given = [t for t in tensors if t is not None]
    return [out.detach(), sums.detach(), *torch.autograd.grad((out, sums), given, (dout, dsums))]


def cast(tensors, dtype):
    return [None if t is None else t.detach().to(dtype).requires_grad_() for t in tensors]


def labels(tensors):
    return ["out", "sums", *(f"d{n}" for n, t in zip(NAMES, tensors, strict=True) if t is not None)]
