import math

import numpy as np
import pytest
import torch
from run_records import make_attention, make_histories, read_png

from abkd_fast import _layer_figure, plots

# -- summaries by hand ------------------------------------------------------------------------


def test_summaries_by_hand():
    past = np.array([[[1.0, 0.0], [0.5, 0.0], [0.5, 0.0]], [[0.0, 1.0], [0.25, 0.75], [1.0, 0.0]]])
    share, depth = _layer_figure._summaries(past)
    np.testing.assert_allclose(share, [[100, 0], [125 / 3, 175 / 3]])
    np.testing.assert_allclose(depth, [[1.75, math.nan], [2.8, 2.5 / 1.75]])


def test_edges_are_half_way():
    edges = _layer_figure._edges(np.array([0.0, 10.0, 30.0]))
    assert edges.tolist() == [-5, 5, 20, 40]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [0]), (6, [0, 1, 2, 3, 4, 5]), (16, [0, 3, 6, 9, 12, 15]), (64, [0, 13, 25, 38, 50, 63])],
)
def test_spread_keeps_the_ends(count, expected):
    assert _layer_figure.spread(count, 6) == expected


def test_loss_terms_leave_bookkeeping_out():
    assert plots._loss_terms(make_histories([3])) == ["loss", "ce", "abkd"]


# -- figures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "width"), [(64, 4), (3, 2), (16, 16), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_map_with_history(tmp_path, layers, width, dtype):
    history, epochs = make_attention(5, layers, width)
    history = history.to(dtype)
    path = plots.attention_map(
        history[3], tmp_path / "a.png", history=history, epochs=epochs, best_epoch=30, title="$x_1"
    )
    assert read_png(path) == (1575, 990)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def test_map_alone(tmp_path):
    attention, epochs = make_attention(1)
    path = tmp_path / "deep" / "d.png"
    plots.attention_map(
        attention[0], path, history=attention, epochs=epochs, title="d", label="dissimilarity"
    )
    assert read_png(path) == (750, 900)


def test_curves_of_seeds_of_different_length(tmp_path):
    histories = make_histories([10, 4])
    histories[0][2]["loss"] = math.nan
    path = plots.curves(histories, tmp_path / "c.png", "$", best_epochs=[7, 3])
    assert read_png(path) == (1575, 630)
    assert read_png(plots.curves(histories[:1], tmp_path / "c.png", "one")) == (1575, 630)


def test_curves_of_one_epoch(tmp_path):
    assert read_png(plots.curves(make_histories([1]), tmp_path / "c.png", "")) == (1575, 630)


def test_figures_leave_the_style_alone(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.curves(make_histories([3]), tmp_path / "c.png", "")
    assert dict(matplotlib.rcParams) == before


A, EPOCHS = torch.full((3, 2), 0.5), [0, 1]


@pytest.mark.parametrize(
    ("attention", "more", "message"),
    [
        (A[0], {}, "attention must have 2 dimension"),
        (A[:0], {}, r"attention must have one entry or more, got shape \[0, 2\]"),
        (A - 1, {}, "attention must be >= 0, got -0.5"),
        (A * math.nan, {}, "attention must be finite"),
        (A, {"history": torch.ones(2, 3, 3), "epochs": EPOCHS}, r"history must be \[K, 3, 2\]"),
        (A, {"history": torch.stack([A, A])}, "epochs must have one entry .* 2 maps, got None"),
        (A, {"history": torch.stack([A, A]), "epochs": [3, 3]}, r"epochs must increase"),
    ],
)
def test_attention_map_rejects(tmp_path, attention, more, message):
    with pytest.raises(ValueError, match=message):
        plots.attention_map(attention, tmp_path / "a.png", title="", **more)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("histories", "best", "message"),
    [
        ([], None, r"histories must hold one epoch or more for each seed, got lengths \[\]"),
        ([*make_histories([2]), []], None, r"got lengths \[2, 0\]"),
        (make_histories([2, 2]), [1], "best_epochs must have one entry for each of 2"),
    ],
)
def test_curves_rejects(tmp_path, histories, best, message):
    with pytest.raises(ValueError, match=message):
        plots.curves(histories, tmp_path / "c.png", "", best_epochs=best)
