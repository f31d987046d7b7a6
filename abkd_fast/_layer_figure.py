"""Drawing of a layer-pair map [T, S] and of its history; abkd_fast.plots checks and saves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

MAX_PANELS = 6
MAX_ANNOTATED = 40


def draw_map(final: np.ndarray, label: str) -> Figure:
    from matplotlib.figure import Figure

    layers, width = final.shape
    size = (min(3.2 + 0.45 * width, 10.5), min(max(2.6, 1.6 + 0.3 * layers), 6.0))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    mesh = _heat(axes, final, max(final.max(), 1e-12))
    figure.colorbar(mesh, ax=axes, label=label)
    return figure


def draw_history(
    final: np.ndarray,
    past: np.ndarray,
    epochs: np.ndarray,
    best_epoch: int | None,
    label: str,
) -> Figure:
    """Draw the map [T, S], its K-epoch history [K, T, S] and two summaries of the history."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    layers, width = final.shape
    chosen = spread(width, MAX_PANELS)  # student layers that get a panel
    colors = colormaps["viridis"](np.linspace(0, 0.88, len(chosen)))
    top = max(final.max(), past.max(), 1e-12)
    figure = Figure(figsize=(10.5, 6.6), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(3.7, 2.5))
    upper, lower = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])

    ratios = (max(1.3, 0.35 * len(chosen)), *([1.0] * len(chosen)))
    panels = upper.subplots(1, 1 + len(chosen), sharey=True, width_ratios=ratios)
    mesh = _heat(panels[0], final, top)
    panels[0].set_title("kept map" if best_epoch is None else f"kept map, epoch {best_epoch}")
    for axes, j in zip(panels[1:], chosen, strict=True):
        borders = _edges(epochs), np.arange(layers + 1) + 0.5
        axes.pcolormesh(*borders, past[:, :, j].T, vmin=0, vmax=top)
        axes.set_title(f"student layer {j + 1}" if len(chosen) < 5 else f"student {j + 1}")
        axes.set_xlabel("epoch")
        axes.tick_params(left=False)
        axes.locator_params(axis="x", nbins=3, integer=True)
    upper.colorbar(mesh, ax=panels, label=label, aspect=30, pad=0.01)

    share, depth = lower.subplots(1, 2)
    shares, depths = _summaries(past)
    for color, j in zip(colors, chosen, strict=True):
        share.plot(epochs, shares[:, j], color=color, label=f"student layer {j + 1}")
        depth.plot(epochs, depths[:, j], color=color)
    share.axhline(100 / width, color="0.5", linestyle="dashed", linewidth=1)
    share.set_ylabel(f"share of {label} (%)")
    depth.set_ylabel("mean teacher layer")
    handles = share.get_legend_handles_labels()[0]
    lower.legend(handles=handles, loc="outside upper center", ncols=len(chosen))
    for axes in (share, depth):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.margins(x=0)
    if best_epoch is not None:
        for axes, color in [*((axes, "white") for axes in panels[1:]), (share, "0"), (depth, "0")]:
            axes.axvline(best_epoch, color=color, linestyle="dotted", linewidth=1)
    return figure


def _summaries(past: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each student layer's share in percent and mean teacher layer, both [K, S]."""
    mass = past.sum(1)  # [K, S]
    whole = mass.sum(1, keepdims=True)
    moment = np.einsum("kts,t->ks", past, np.arange(1, past.shape[1] + 1))
    nothing = np.full_like(mass, np.nan)
    share = 100 * np.divide(mass, whole, out=nothing.copy(), where=whole > 0)
    return share, np.divide(moment, mass, out=nothing, where=mass > 0)


def _heat(axes: Axes, values: np.ndarray, top: float) -> QuadMesh:
    layers, width = values.shape
    mesh = axes.pcolormesh(
        np.arange(width + 1) + 0.5, np.arange(layers + 1) + 0.5, values, vmin=0, vmax=top
    )
    axes.set_xlabel("student layer")
    axes.set_ylabel("teacher layer")
    for axis, count, most in ((axes.xaxis, width, 8), (axes.yaxis, layers, 16)):
        stride = math.ceil(count / most)
        first = 1 if stride < 3 else stride  # 1, 3, 5, ... or 1, 4, 8, ...
        axis.set_ticks(sorted({1, *range(first, count + 1, stride)}))
    if values.size <= MAX_ANNOTATED:
        for (i, j), value in np.ndenumerate(values):
            ink = "white" if value < 0.6 * top else "black"
            words = "≈0" if 0 < value < 0.005 * top else f"{value:.2g}"
            axes.text(j + 1, i + 1, words, ha="center", va="center", color=ink, size=7)
    return mesh


def spread(count: int, most: int) -> list[int]:
    """Return all of range(count), or ``most`` of it evenly spaced, ends included."""
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]


def _edges(centres: np.ndarray) -> np.ndarray:
    """Return the [K + 1] borders of cells around K increasing centres."""
    middle = (centres[1:] + centres[:-1]) / 2
    first, last = 2 * centres[0] - middle[0], 2 * centres[-1] - middle[-1]
    return np.concatenate(([first], middle, [last]))
