"""A tiny data set in the raw Planetoid layout, with every irregularity the real ones have."""

import pickle
from collections import defaultdict

import numpy as np
import scipy.sparse

NUM_TRAIN, NUM_ALL = 6, 510  # training rows, rows of allx
TEST = [513, 510, 511, 514]  # out of order, and node 512 is missing
NUM_NODES = 515


def features(rows):
    """Row r has features 1 at columns r % 5 and (r + 1) % 5."""
    dense = np.zeros((len(rows), 5), np.float32)
    for i, row in enumerate(rows):
        dense[i, [row % 5, (row + 1) % 5]] = 1
    return scipy.sparse.csr_matrix(dense)


def onehot(rows):
    """Row r has class r % 3."""
    return np.eye(3, dtype=np.int32)[np.array(rows) % 3]


def parts():
    """What the files hold, by part."""
    everything = list(range(NUM_ALL))
    graph = defaultdict(list, {0: [1, 1, 0], 1: [0], 2: [513], 514: [3]})
    return {
        "allx": features(everything),
        "ally": onehot(everything),
        "tx": features(TEST),
        "ty": onehot(TEST),
        "y": onehot(everything[:NUM_TRAIN]),
        "graph": graph,
        "test.index": TEST,
    }


def write(folder, name, content):
    """Write the files ``ind.<name>.<part>``, the pickles as Python 2 did."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, value in content.items():
        file = folder / f"ind.{name}.{part}"
        if part == "test.index":
            file.write_text("".join(f"{node}\n" for node in value))
        else:
            file.write_bytes(old_names(pickle.dumps(value, protocol=2)))
    return folder


def old_names(content):
    """The same pickle with the module names of Python 2 and old scipy."""
    content = content.replace(b"cscipy.sparse._csr\n", b"cscipy.sparse.csr\n")
    return content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
