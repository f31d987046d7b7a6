"""A two-layer GCN on Cora in plain PyTorch Geometric (needs the extra [pyg]).

Run: python examples/pyg_gcn_cora.py [--accelerate] [--epochs 200]

Nothing but the line that ``--accelerate`` guards is of abkd_fast: PyG's layers, its Data object, a
training loop as in PyG's introduction. Cora comes from ABKD_DATA, or is downloaded.
"""

import argparse
import time

import torch
import torch.nn.functional as F
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv

import abkd_fast as af


class GCN(torch.nn.Module):
    """Two GCNConv layers with ReLU and dropout between them."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = GCNConv(num_features, 16)
        self.conv2 = GCNConv(16, num_classes)

    def forward(self, data: Data) -> torch.Tensor:
        """Log-probabilities of the classes."""
        h = self.conv1(data.x, data.edge_index).relu()
        h = F.dropout(h, training=self.training)
        return F.log_softmax(self.conv2(h, data.edge_index), dim=1)


def cora() -> Data:
    """The citation graph with its public split, as torch_geometric.datasets.Planetoid gives it."""
    found = af.data.load("cora")
    masks = {f"{split}_mask": getattr(found, f"{split}_mask") for split in ("train", "val", "test")}
    return Data(x=found.dense_x, edge_index=found.edge_index, y=found.y, **masks)


def main() -> None:
    """Train, and print the loss, the accuracy on the test nodes and the time of an epoch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--accelerate", action="store_true")
    parser.add_argument("--epochs", type=int, default=200)
    options = parser.parse_args()

    torch.manual_seed(0)
    data = cora()
    model = GCN(data.num_features, int(data.y.max()) + 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)

    if options.accelerate:
        af.accelerate(model)  # the added line

    start = time.perf_counter()
    model.train()
    for _ in range(options.epochs):
        optimizer.zero_grad()
        loss = F.nll_loss(model(data)[data.train_mask], data.y[data.train_mask])
        loss.backward()
        optimizer.step()
    seconds = time.perf_counter() - start

    model.eval()
    correct = model(data).argmax(dim=1)[data.test_mask] == data.y[data.test_mask]
    print(f"loss {loss.item():.4f}, {100 * correct.float().mean().item():.1f} % test, ", end="")
    print(f"{1e3 * seconds / options.epochs:.2f} ms an epoch")


if __name__ == "__main__":
    main()
