"""Distil your own plain PyTorch modules; nothing of theirs has to change.

Run: python examples/own_models.py
"""

import torch
from torch import nn

import abkd_fast as af


class DenseGCN(nn.Module):
    """A user's GCN: ``forward`` names its arguments, the Distiller binds them by name."""

    def __init__(self, in_channels: int, width: int, num_layers: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(in_channels, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(num_layers))
        self.decoder = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        """Mean over neighbours and self, linear, ReLU."""
        source, target = edge_index
        degree = torch.bincount(target, minlength=len(x)).add(1).unsqueeze(1)
        h = self.encoder(x).relu()
        for block in self.blocks:
            h = block((h + torch.zeros_like(h).index_add(0, target, h[source])) / degree).relu()
        return self.decoder(h)


def main() -> None:
    """Train a teacher on labels, distil it, print both accuracies."""
    data = af.data.load("digits")
    torch.manual_seed(0)
    teacher = DenseGCN(data.num_features, 64, 4, data.num_classes)
    config = af.TrainConfig(epochs=200, patience=None)
    af.Distiller(None, teacher, data, config=config).fit()

    student = DenseGCN(data.num_features, 8, 2, data.num_classes)
    result = af.Distiller(
        teacher,
        student,
        data,
        objective=af.KD(alpha=0.9) + af.ABKD(beta=1.0, normalize="standardize"),
        config=config,
        teacher_layers="blocks.*",
        student_layers="blocks.*",
    ).fit()
    print(f"teacher {result.metrics['teacher']['test']:.1f} % test")
    print(f"student {result.metrics['student']['test']:.1f} % test, ", end="")
    print(f"{result.metrics['compression_ratio']:.1f} times smaller")
    print(f"attention [teacher layers, student layers]:\n{result.attention}")


if __name__ == "__main__":
    main()
