"""Figures of a run: the attention map over training, and the learning curves, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from abkd_fast._checks import check_finite, check_tensor
from abkd_fast._layer_figure import draw_history, draw_map
from abkd_fast._storage import write_atomically
from abkd_fast.task import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe-Ito: told apart under every common colour blindness, and in print.
COLORS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dashed", "dotted", "dashdot")
SPLITS = {"train": "train", "val": "validation"}
NOT_A_LOSS = {"epoch", "step", "seed", "lr", "step_ms", "seconds", "test_acc"}
NOT_A_LOSS |= {f"{split}_{metric}" for split in SPLITS for metric in METRICS}
STYLE = {
    "axes.axisbelow": True,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "figure.dpi": 150,
    "font.size": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.columnspacing": 1.4,
    "legend.handlelength": 1.4,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}

History = Sequence[Mapping[str, Any]]


def attention_map(
    attention: Tensor,
    path: Path,
    *,
    history: Tensor | None = None,
    epochs: Sequence[int] | None = None,
    best_epoch: int | None = None,
    title: str,
    label: str = "attention",
) -> Path:
    """Draw a layer-pair map, and with a history how it came about, into a PNG file.

    Left: the map, teacher layers up, student layers across. Right, with a history of two epochs
    or more: one panel for each student layer with teacher layer against epoch, on the same
    colours; below, each student layer's share of the whole map and the mean teacher layer it
    attends to, sum_i i A_ij / sum_i A_ij. Of more than six student layers, six evenly spaced
    ones get a panel. Colours start at 0, so that a nearly uniform map looks uniform.

    Args:
        attention: [T, S] float, any device; entries >= 0.
        path: file to write; its folder is made, and an older file replaced in one step.
        history: [K, T, S] float, the map at K epochs, or None.
        epochs: K increasing epoch numbers of ``history``.
        best_epoch: the epoch of ``attention``, marked in the history.
        title: heading of the figure; drawn as it is, without mathematics.
        label: what an entry is, for the colour bar: "attention" or "dissimilarity".

    Returns:
        ``path``.

    Raises:
        ValueError: if shapes do not fit, an entry is negative or not finite, or epochs do not
            increase.
    """
    final = _layer_pairs("attention", attention, 2)
    past = None
    if history is not None and len(history) > 1:
        past = _layer_pairs("history", history, 3)
        if past.shape[1:] != final.shape:
            raise ValueError(
                f"history must be [K, {final.shape[0]}, {final.shape[1]}] as attention is, "
                f"got {list(past.shape)}; stack maps of the same run"
            )
        epochs = _check_epochs(epochs, len(past))
    from matplotlib import style

    # From "default", so that the style of the user's own session does not leak in.
    with style.context(["default", STYLE]):
        if past is None or epochs is None:
            figure = draw_map(final, label)
        else:
            figure = draw_history(final, past, np.asarray(epochs, float), best_epoch, label)
        return save(figure, title, path)


def curves(
    histories: Sequence[History],
    path: Path,
    title: str,
    *,
    best_epochs: Sequence[int] | None = None,
) -> Path:
    """Draw loss terms and accuracies against the epoch into a PNG file.

    Every scalar of the history that is neither an accuracy nor bookkeeping counts as a loss
    term. Thin lines are seeds, thick ones their mean over the epochs that all seeds reached (a
    mean over the survivors would jump whenever a seed stops early). The loss axis is
    logarithmic where all terms are positive and span more than a factor of 20.

    Args:
        histories: for each seed its epochs in order: dicts with "epoch", loss terms, and
            "train_acc" and "val_acc" (or another of task.METRICS) in percent. Missing or None
            entries are left out.
        path: file to write; its folder is made, and an older file replaced in one step.
        title: heading of the figure; drawn as it is, without mathematics.
        best_epochs: for each seed the epoch whose weights were kept, marked on its validation
            accuracy; None marks nothing.

    Returns:
        ``path``.

    Raises:
        ValueError: if there is no seed, a seed has no epoch, or the lengths differ.
    """
    if not histories or not all(histories):
        lengths = [len(history) for history in histories]
        raise ValueError(
            f"histories must hold one epoch or more for each seed, got lengths {lengths}; "
            "pass DistillResult.history of each run"
        )
    if best_epochs is not None and len(best_epochs) != len(histories):
        raise ValueError(
            f"best_epochs must have one entry for each of {len(histories)} histories, "
            f"got {len(best_epochs)}; pass None to mark nothing"
        )
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):
        figure = Figure(figsize=(10.5, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_losses(left, histories)
        _draw_accuracies(right, histories, best_epochs)
        for axes in (left, right):
            axes.set_xlabel("epoch")
            axes.grid(alpha=0.25, linewidth=0.6)
            axes.margins(x=0.01)
        return save(figure, title, path)


def save(figure: Figure, title: str, path: Path) -> Path:
    """Write a figure with a heading as PNG; an older file is replaced in one step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    # At the left, where a phone that shows part of the figure shows it.
    figure.suptitle(title, x=0.005, ha="left", fontsize=10, fontweight="bold", parse_math=False)
    path = Path(path)
    # The format is named, as the temporary file's suffix would mislead savefig.
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
    return path


def _layer_pairs(name: str, value: Tensor, dim: int) -> np.ndarray:
    """Return ``value`` as float64 [..., T, S] after checking it."""
    check_tensor(name, value, dim=dim)
    if value.numel() == 0:
        raise ValueError(f"{name} must have one entry or more, got shape {list(value.shape)}")
    check_finite(name, value)
    array: np.ndarray = value.detach().cpu().double().numpy()
    # Distances from an expanded square may come out a rounding error below 0.
    if array.min() < -1e-5 * array.max():
        raise ValueError(f"{name} must be >= 0, got {array.min():g}; pass weights or distances")
    return array.clip(min=0)


def _check_epochs(epochs: Sequence[int] | None, count: int) -> Sequence[int]:
    if epochs is None or len(epochs) != count:
        got = "None" if epochs is None else str(len(epochs))
        raise ValueError(f"epochs must have one entry for each of {count} maps, got {got}")
    if any(later <= earlier for earlier, later in zip(epochs, epochs[1:], strict=False)):
        raise ValueError(f"epochs must increase, got {list(epochs)}; sort the history by epoch")
    return epochs


def _series(history: History, key: str) -> dict[int, float]:
    """Return epoch -> value of one scalar, without its missing, None and non-finite entries."""
    rows = ((row["epoch"], row.get(key)) for row in history)
    return {
        epoch: float(value) for epoch, value in rows if value is not None and math.isfinite(value)
    }


def _loss_terms(histories: Sequence[History]) -> list[str]:
    """Return the keys of the loss terms: the total first, then in order of appearance."""
    keys = {
        key: None
        for history in histories
        for row in history
        for key, value in row.items()
        if key not in NOT_A_LOSS and isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    return sorted(keys, key=lambda key: key != "loss")


def _draw_seeds(
    axes: Axes, histories: Sequence[History], key: str, color: str, dash: str, name: str
) -> None:
    """Plot each seed of one scalar thin and their mean thick, or a single seed thick."""
    seeds = [series for history in histories if (series := _series(history, key))]
    if not seeds:
        return
    if len(seeds) > 1:
        for series in seeds:
            axes.plot(list(series), list(series.values()), color=color, linewidth=0.5, alpha=0.35)
    shared = sorted(set.intersection(*(set(series) for series in seeds)))
    mean = [float(np.mean([series[epoch] for series in seeds])) for epoch in shared]
    axes.plot(shared, mean, color=color, linestyle=dash, linewidth=1.3, label=name)


def _draw_losses(axes: Axes, histories: Sequence[History]) -> None:
    terms = _loss_terms(histories)
    for place, key in enumerate(terms):
        color, dash = COLORS[place % len(COLORS)], DASHES[place // len(COLORS) % len(DASHES)]
        name = {"loss": "total", "val_loss": "validation loss"}.get(key, key)
        _draw_seeds(axes, histories, key, color, dash, name)
    values = [v for key in terms for h in histories for v in _series(h, key).values()]
    logarithmic = bool(values) and 0 < 20 * min(values) < max(values)
    axes.set_yscale("log" if logarithmic else "linear")
    axes.set_ylabel("loss term (log scale)" if logarithmic else "loss term")
    _legend_above(axes)


def _draw_accuracies(
    axes: Axes, histories: Sequence[History], best_epochs: Sequence[int] | None
) -> None:
    keys = {key for history in histories for record in history for key in record}
    metric = next((metric for metric in METRICS if f"val_{metric}" in keys), "acc")
    for (split, name), color in zip(SPLITS.items(), (COLORS[5], COLORS[2]), strict=True):
        label = f"{name} {METRICS[metric]}"
        _draw_seeds(axes, histories, f"{split}_{metric}", color, "solid", label)
    if best_epochs is not None:
        kept = [
            (epoch, series[epoch])
            for history, epoch in zip(histories, best_epochs, strict=True)
            if epoch in (series := _series(history, f"val_{metric}"))
        ]
        axes.scatter(
            [epoch for epoch, _ in kept],
            [value for _, value in kept],
            s=34,
            marker="D",
            color=COLORS[1],
            edgecolor="white",
            linewidth=0.8,
            zorder=5,
            label="kept epoch" if len(histories) == 1 else "kept epoch of a seed",
        )
    axes.set_ylabel(f"{METRICS[metric]} (%)")
    _legend_above(axes)


def _legend_above(axes: Axes) -> None:
    """Put the legend between title and axes, where it can hide no data."""
    if not axes.get_legend_handles_labels()[0]:
        return
    legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, borderaxespad=0.2)
    for text in legend.get_texts():
        text.set_parse_math(False)
