"""Distil PyTorch Geometric models on a PyG Data object (needs the extra [pyg]).

Run: python examples/pyg_models.py
"""

import torch
from torch_geometric.data import Data
from torch_geometric.nn import GCN

import abkd_fast as af


def as_pyg(data: af.GraphData) -> Data:
    """Stands for the Data object you already have."""
    return Data(
        x=data.dense_x,
        edge_index=data.edge_index,
        y=data.y,
        train_mask=data.train_mask,
        val_mask=data.val_mask,
        test_mask=data.test_mask,
    )


def main() -> None:
    """Train a PyG GCN, distil it into a smaller PyG GCN."""
    data = af.GraphData.from_pyg(as_pyg(af.data.load("digits")))
    torch.manual_seed(0)
    teacher = GCN(data.num_features, 64, num_layers=4, out_channels=data.num_classes, dropout=0.5)
    config = af.TrainConfig(epochs=100, patience=None)
    af.Distiller(None, teacher, data, config=config).fit()

    student = GCN(data.num_features, 8, num_layers=2, out_channels=data.num_classes)
    result = af.Distiller(
        teacher,
        student,
        data,
        objective=af.KD(alpha=0.9) + af.ABKD(beta=1.0, normalize="standardize"),
        config=config,
        teacher_layers="convs.[0-2]",
        student_layers="convs.0",
    ).fit()
    print(f"teacher {result.metrics['teacher']['test']:.1f} % test")
    print(f"student {result.metrics['student']['test']:.1f} % test, ", end="")
    print(f"{result.metrics['compression_ratio']:.1f} times smaller")


if __name__ == "__main__":
    main()
