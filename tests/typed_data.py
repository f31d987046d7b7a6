"""A small typed classification problem: papers to classify, authors with no features."""

import torch
from helpers import small_data

from abkd_fast import RelationalGraph
from abkd_fast.data import GraphData


def typed_data(features=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    data = small_data(seed)
    if not features:
        index = data.edge_index
        relations = RelationalGraph.from_relations(
            {"entity": 60}, {("entity", "near", "entity"): index}
        )
        parts = {"relations": relations.with_reverse()}
        return _replaced(data, x=None, **parts)
    writes = torch.stack([torch.randint(9, (150,), generator=generator), torch.arange(150) % 60])
    is_in = torch.stack([torch.arange(60), data.y])
    relations = RelationalGraph.from_relations(
        {"paper": 60, "author": 9, "topic": 3},
        {("author", "writes", "paper"): writes, ("paper", "is-in", "topic"): is_in},
    )
    other = {"topic": torch.randn(3, 8, generator=generator)}
    return _replaced(data, relations=relations.with_reverse(), other_x=other)


def _replaced(data, **parts):
    given = {name: getattr(data, name) for name in ("x", "graph", "y")}
    given |= {f"{split}_mask": getattr(data, f"{split}_mask") for split in ("train", "val", "test")}
    return GraphData(**{**given, **parts}, name="typed")
