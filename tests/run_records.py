"""Records of runs that were never run, for plots and reports."""

import torch


def make_histories(epochs):
    return [
        [
            {
                "epoch": epoch,
                "loss": 2.0 / (epoch + 1),
                "ce": 1.0 / (epoch + 1),
                "abkd": 0.01 / (epoch + 1),
                "lr": 0.01,
                "step_ms": 3.0,
                "train_acc": 50.0 + epoch + seed,
                "val_acc": 40.0 + epoch + seed if epoch % 2 else None,
            }
            for epoch in range(count)
        ]
        for seed, count in enumerate(epochs)
    ]


def make_attention(steps=12, layers=64, width=4):
    scores = torch.randn(layers, width, generator=torch.Generator().manual_seed(0))
    times = torch.linspace(0, 2, steps)[:, None, None]
    return (times * scores).softmax(2), list(range(0, 10 * steps, 10))


def read_png(source):
    from matplotlib.image import imread

    image = imread(source, format="png")
    assert image.std() > 0.01
    return image.shape[1], image.shape[0]
