"""Small data sets in exactly OGB's layout, and what to tell the ``ogb`` package of them."""

import gzip
import zipfile

import numpy as np

TYPES = {"author": 12, "paper": 20, "venue": 3}
TRIPLETS = {("author", "writes", "paper"): 40, ("paper", "cites", "paper"): 30}


def write_csv(path, table, header=None):
    """A gzipped table without header, as pandas writes OGB's; empty field = no label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [",".join("" if value != value else str(value) for value in row) for row in table]
    text = "\n".join(([",".join(header)] if header else []) + rows) + "\n"
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def _split(folder, count):
    order = np.random.permutation(count)
    parts = {"train": order[: count // 2], "valid": order[count // 2 : -2], "test": order[-2:]}
    for name, nodes in parts.items():
        write_csv(folder / f"{name}.csv.gz", nodes[:, None])


def _finish(folder):
    (folder / "processed").mkdir()
    (folder / "RELEASE_v1.txt").write_text("")
    return folder


def one_graph(folder, nodes=30, edges=60):
    """Node task: features, years, labels, split/time."""
    raw = folder / "raw"
    write_csv(raw / "edge.csv.gz", np.random.randint(0, nodes, (edges, 2)))
    write_csv(raw / "num-node-list.csv.gz", [[nodes]])
    write_csv(raw / "num-edge-list.csv.gz", [[edges]])
    write_csv(raw / "node-feat.csv.gz", np.random.randn(nodes, 5).round(6))
    write_csv(raw / "node_year.csv.gz", np.random.randint(2010, 2020, (nodes, 1)))
    write_csv(raw / "node-label.csv.gz", np.random.randint(0, 4, (nodes, 1)))
    _split(folder / "split" / "time", nodes)
    return _finish(folder)


def one_graph_npz(folder, nodes=30, edges=60):
    """The same as OGB's binary form."""
    raw = folder / "raw"
    raw.mkdir(parents=True)
    np.savez_compressed(
        raw / "data.npz",
        edge_index=np.random.randint(0, nodes, (2, edges)),
        num_nodes_list=np.array([nodes]),
        num_edges_list=np.array([edges]),
        node_feat=np.random.randn(nodes, 5).astype(np.float32),
        node_year=np.random.randint(2010, 2020, (nodes, 1)),
    )
    np.savez_compressed(raw / "node-label.npz", node_label=np.random.randint(0, 4, (nodes, 1)))
    _split(folder / "split" / "time", nodes)
    return _finish(folder)


def molecules(folder, graphs=9, tasks=2):
    """Graph task: integer features, labels with gaps, split/scaffold."""
    raw = folder / "raw"
    nodes, edges = np.random.randint(2, 7, graphs), np.random.randint(0, 6, graphs)
    lines = [np.random.randint(0, n, (e, 2)) for n, e in zip(nodes, edges, strict=True)]
    write_csv(raw / "edge.csv.gz", np.concatenate(lines))
    write_csv(raw / "num-node-list.csv.gz", nodes[:, None])
    write_csv(raw / "num-edge-list.csv.gz", edges[:, None])
    write_csv(raw / "node-feat.csv.gz", np.random.randint(0, 9, (nodes.sum(), 9)))
    write_csv(raw / "edge-feat.csv.gz", np.random.randint(0, 4, (edges.sum(), 3)))
    labels = np.random.randint(0, 2, (graphs, tasks)).astype(float)
    labels[0] = np.nan
    labels[2, 1] = np.nan
    write_csv(raw / "graph-label.csv.gz", labels)
    _split(folder / "split" / "scaffold", graphs)
    return _finish(folder)


def typed(folder):
    """Node task on three node types and two relations, as ogbn-mag."""
    raw = folder / "raw"
    write_csv(raw / "num-node-dict.csv.gz", [list(TYPES.values())], header=list(TYPES))
    write_csv(raw / "triplet-type-list.csv.gz", list(TRIPLETS))
    for (source, name, target), count in TRIPLETS.items():
        relation = raw / "relations" / f"{source}___{name}___{target}"
        ends = [np.random.randint(0, TYPES[kind], count) for kind in (source, target)]
        write_csv(relation / "edge.csv.gz", np.stack(ends, 1))
        write_csv(relation / "num-edge-list.csv.gz", [[count]])
        write_csv(relation / "edge_reltype.csv.gz", np.full((count, 1), len(name)))
    papers = TYPES["paper"]
    write_csv(raw / "node-feat" / "paper" / "node-feat.csv.gz", np.random.randn(papers, 4).round(5))
    write_csv(raw / "node-feat" / "paper" / "node_year.csv.gz", np.full((papers, 1), 2017))
    marks = [[kind == "paper" for kind in TYPES]]
    write_csv(raw / "nodetype-has-label.csv.gz", marks, header=list(TYPES))
    labels = np.random.randint(0, 4, (papers, 1))
    write_csv(raw / "node-label" / "paper" / "node-label.csv.gz", labels)
    write_csv(folder / "split" / "time" / "nodetype-has-split.csv.gz", marks, header=list(TYPES))
    _split(folder / "split" / "time" / "paper", papers)
    return _finish(folder)


def typed_npz(folder):
    """Two node types in OGB's binary form."""
    raw = folder / "raw"
    raw.mkdir(parents=True)
    edges = np.stack([np.random.randint(0, 12, 40), np.random.randint(0, 20, 40)])
    np.savez(raw / "num_nodes_dict.npz", author=np.array([12]), paper=np.array([20]))
    np.savez(raw / "num_edges_dict.npz", author___writes___paper=np.array([40]))
    np.savez(raw / "edge_index_dict.npz", author___writes___paper=edges)
    np.savez(raw / "node_feat_dict.npz", paper=np.random.randn(20, 4).astype(np.float32))
    np.savez(raw / "node-label.npz", paper=np.random.randint(0, 4, (20, 1)))
    split = folder / "split" / "time"
    marks = [[False, True]]
    write_csv(split / "nodetype-has-split.csv.gz", marks, header=["author", "paper"])
    _split(split / "paper", 20)
    return _finish(folder)


def archive(folder, path, top):
    """``folder`` as OGB zips it: everything under one folder ``top``."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                target.write(file, f"{top}/{file.relative_to(folder)}")
    return path


def meta(folder, **facts):
    """OGB's meta_dict: the column of master.csv for a data set of one's own."""
    return {
        "dir_path": str(folder),
        "version": 1,
        "download_name": folder.name,
        "num tasks": 1,
        "num classes": 4,
        "eval metric": "acc",
        "task type": "multiclass classification",
        "url": "",
        "add_inverse_edge": "False",
        "has_node_attr": "True",
        "has_edge_attr": "False",
        "split": "time",
        "additional node files": "None",
        "additional edge files": "None",
        "is hetero": "False",
        "binary": "False",
    } | facts
