"""The latency report: its numbers, table, figures and page; and `abkd-fast profile`."""

import html
import io
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from rich.console import Console
from torch import nn

from abkd_fast import data, latency
from abkd_fast._trained import model_path
from abkd_fast.cli import main
from abkd_fast.latency.figures import _cdf
from abkd_fast.latency.page import bandwidth, beside_rows, milliseconds, print_report, write_report
from abkd_fast.latency.subjects import FORMS, FULL, ONE, WORST
from abkd_fast.metrics import count_parameters, split_scores
from abkd_fast.model_file import ModelFile, save_model
from abkd_fast.nn import ModelSpec

HOSTILE = "<script>alert(1)</script>&\"'"


def save(path, spec, graph, dataset=None):
    torch.manual_seed(0)
    model = ModelSpec.parse(spec).build(graph.num_features, graph.num_classes)
    about = ModelFile(
        spec,
        graph.num_features,
        graph.num_classes,
        {},
        dataset or graph.name,
        graph.fingerprint(),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(path, model, about)
    return model.eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, report of a teacher and two students on digits)."""
    folder, graph = tmp_path_factory.mktemp("latency"), data.load("digits")
    save(folder / "teacher.safetensors", "gcnii-3x16", graph)
    for name in ("a", "b"):
        save(folder / name / "seed0" / "student.safetensors", "gcn-2x8", graph)
    subjects = latency.load_subjects([folder / "a", folder / "b"], folder)
    subjects[1].name = HOSTILE
    report = latency.profile(subjects, graph, samples=20, seconds=0.2, batch=8, clients=(1,))
    write_report(report, folder / "out", "abkd-fast profile <b>")
    return folder, report


def test_time_that_is_no_op_is_beside_the_latency(run):
    _, report = run
    cells = dict(beside_rows(report))["time in ops of an eager pass"]
    for cell, model in zip(cells, report["models"], strict=True):
        spent, whole, calls = re.fullmatch(r"(\S+) of (\S+) ms, (\d+) calls", cell).groups()
        assert int(calls) == sum(op["calls"] for op in model["ops"]) >= 2
        assert float(spent) == pytest.approx(sum(op["ms"] for op in model["ops"]), rel=0.01)
        assert float(whole) == pytest.approx(model["queries"][FULL]["eager"]["p50"], rel=0.01)


def test_forms_that_fail_are_left_out_with_the_reason():
    graph = data.load("digits")
    model = ModelSpec.parse("gcn-2x8").build(graph.num_features, graph.num_classes).eval()
    subject = latency.Subject("gcn", "student", model)
    forms = ("torch-export", "cuda_graph")
    report = latency.profile([subject], graph, forms=forms, samples=5, seconds=0.1, clients=(1,))
    (row,) = report["models"]
    assert set(row["queries"][FULL]) == {"eager", "torch-export"}
    assert row["queries"][FULL]["torch-export"]["compile"] > 0
    for kind in (ONE, WORST):
        assert set(row["queries"][kind]) == {"server", "torch-export"}
        assert row["queries"][kind]["torch-export"]["n"] >= 3
    assert row["left_out"]["cuda_graph"].startswith("inputs must be one tuple with CUDA tensors")


def test_models_in_training_are_timed_in_eval_mode():
    graph = data.load("digits")
    model = ModelSpec.parse("gcn-2x8").build(graph.num_features, graph.num_classes).train()
    modes = []
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    subject = latency.Subject("gcn", "student", model)
    latency.profile([subject], graph, samples=3, seconds=0.1, clients=(1,))
    assert modes and not any(modes) and model.training


def test_a_model_that_does_not_run_is_named_at_once():
    graph = data.load("digits")
    model = ModelSpec.parse("gcn-2x8").build(graph.num_features + 1, graph.num_classes).eval()
    with pytest.raises(ValueError, match="64"):
        latency.profile([latency.Subject("gcn", "student", model)], graph, samples=3, seconds=0.1)


def test_the_report_holds_what_was_measured(run):
    folder, report = run
    graph = data.load("digits")
    teacher, student, other = report["models"]
    assert [model["role"] for model in report["models"]] == ["teacher", "student", "student"]
    assert [model["name"] for model in (teacher, other)] == ["gcnii-3x16", "gcn-2x8 #2"]
    model, _ = latency.load_subjects([folder / "a"], None)[0].model, None
    assert student["parameters"] == count_parameters(model)
    with torch.no_grad():
        scores = split_scores(model(graph.x, graph.graph), graph)
    assert student["accuracy"]["test"] == pytest.approx(scores["test"])
    assert set(student["queries"]) == {FULL, ONE, WORST, "8 nodes"}
    assert set(student["queries"][FULL]) == {"eager", "flat"}
    assert student["queries"][ONE]["server"]["n"] > 0 and student["server"]["hops"] == 2
    for forms in student["queries"].values():
        for row in forms.values():
            assert len(row["samples_ns"]) == row["n"] and row["cold_cache"] > 0
            assert row["p99"] is None and row["left_out"]["p99"].startswith("needs 662 samples")
    assert all(row["cold"] > 0 for row in student["queries"][FULL].values())
    assert student["queries"][ONE]["server"]["cold"] is None  # building it ran the model
    assert report["sweep_bytes"] > 0 and student["copy_bytes"] == max(
        1_000_000, student["moved_bytes"]
    )
    norm = graph.graph.gcn_norm()
    assert student["memory_bytes"]["weights"] == 4 * student["parameters"]
    assert student["memory_bytes"]["graph"] == sum(
        part.nbytes for part in (norm.rowptr, norm.col, norm.value)
    )
    assert student["memory_bytes"]["features"] == graph.x.nbytes
    assert {"csr", "gcn_norm", "transpose"} == set(report["graph_prepare_ms"])
    assert report["dataset"]["degree"]["max"] == graph.graph.degree_stats().max
    assert report["environment"]["threads"] == torch.get_num_threads()
    assert student["throughput"][0]["clients"] == 1


def test_files_are_written_and_the_json_reads_back(run):
    folder, report = run
    assert json.loads((folder / "out" / "latency.json").read_text()) == report
    for name in ("cdf", "layers", "pareto"):
        assert (folder / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


class Page(HTMLParser):
    """Tags, and every address in attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.attributes = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.append(name)
            if name in ("src", "href", "srcset", "action", "data", "poster", "background"):
                self.addresses.append(value)


def test_the_page_loads_nothing_runs_nothing_and_escapes_names(run):
    text = (run[0] / "out" / "latency.html").read_text()
    page = Page(text)
    assert page.addresses and all(address.startswith("data:") for address in page.addresses)
    assert not {"script", "iframe", "object", "embed", "base", "b"} & set(page.tags)
    assert not [name for name in page.attributes if name.startswith("on")]
    assert not re.search(r"https?://|@import|url\(", text)
    assert "default-src 'none'" in text
    assert HOSTILE not in text and "&lt;script&gt;alert(1)" in text
    assert "abkd-fast profile &lt;b&gt;" in text


def test_the_table_names_every_query_and_model(run, capsys):
    print_report(run[1])
    shown = capsys.readouterr().out
    for part in (FULL, ONE, WORST, "8 nodes", "gcnii-3x16, eager", "gcn-2x8 #2, server", "p99"):
        assert part in shown
    assert max(map(len, shown.splitlines())) <= 80
    for model in run[1]["models"]:
        assert f"{model['name']}: {model['file']}" in shown.replace("\n", "")
    assert re.search(r"of [\d.]+\s+GB/s", shown)
    wide = Console(width=132, file=io.StringIO())
    print_report(run[1], wide)
    shown = wide.file.getvalue()
    head = next(line for line in shown.splitlines() if "ms of a query" in line)
    assert head.replace("┃", "").split()[4:] == (
        ["p50", "p90", "p95", "p99", "min", "IQR", "n", "first", "cold", "caches"]
    )
    for model in run[1]["models"]:
        assert bandwidth(model).split(",")[0] in shown


def test_the_page_shows_files_copies_and_cold_caches(run):
    text = html.unescape((run[0] / "out" / "latency.html").read_text())
    for model in run[1]["models"]:
        assert f"{model['name']}: <code>{model['file']}</code>" in text
        assert bandwidth(model) in text
    assert '<th scope="col">Cold caches</th>' in text
    sample = run[1]["models"][0]["queries"][FULL]["eager"]
    assert f"<td>{milliseconds(sample['cold_cache'])}</td>" in text


def test_every_form_has_a_line_of_its_own(run):
    """Six forms and more: none is left out of the figure, and no two look the same."""
    row = run[1]["models"][0]["queries"][FULL]["eager"]
    model = {"name": "x", "queries": {FULL: dict.fromkeys(FORMS, row)}}
    figure = _cdf([model])
    (axes,) = figure.axes
    assert len({str(line.get_linestyle()) + str(line._dash_pattern) for line in axes.lines}) == 6
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["x", *FORMS]
    assert axes.get_legend() is None


class FeaturesAlone(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        return self.linear(x)


class Indexed(FeaturesAlone):
    def forward(self, x, edge_index):
        sources, targets = edge_index[0], edge_index[1]
        scores = super().forward(x)
        return scores.index_add(0, targets, scores[sources])


class Weighted(FeaturesAlone):
    def forward(self, x, graph, edge_weight):
        return super().forward(x) * edge_weight.sum()


class Nothing(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (FeaturesAlone, None),
        (Nothing, None),
        (Indexed, "model must run on the features and the graph of a neighbourhood, got TypeError"),
        (Weighted, "model must take x, or x and a graph, and nothing else"),
    ],
)
def test_models_of_your_own_get_the_whole_report(make, reason, tmp_path, capsys):
    graph, subject = data.load("digits"), latency.Subject("mine", "student", make())
    report = latency.profile([subject], graph, samples=3, seconds=0.05, clients=(1,))
    print_report(report)
    shown = " ".join(capsys.readouterr().out.split())
    text = html.unescape(write_report(report, tmp_path).read_text())
    (row,) = report["models"]
    assert row["queries"][FULL]["eager"]["n"] >= 3
    if reason is None:
        assert row["queries"][ONE]["server"]["n"] >= 3 and row["server"]["hops"] == 0
    else:
        assert not row["queries"][ONE] and row["server"]["left_out"].startswith(reason)
        assert f"mine answers no node queries: {reason}" in shown and reason in text
        assert "server" not in row["prepare_ms"]


def test_write_report_rejects_another_format(tmp_path):
    with pytest.raises(ValueError, match="report must have format 2, got 7"):
        write_report({"format": 7}, tmp_path)


def test_model_path_takes_files_runs_and_the_best_seed(tmp_path):
    graph = data.load("digits")
    with pytest.raises(ValueError, match="student must be a model file or the folder of a run"):
        model_path(tmp_path)
    for seed in range(2):
        save(tmp_path / f"seed{seed}" / "student.safetensors", "gcn-2x4", graph)
    assert model_path(tmp_path).parent.name == "seed0"
    metrics = {"seeds": [0, 1], "student": {"val": {"values": [80.0, 81.0]}}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    file = tmp_path / "seed1" / "student.safetensors"
    assert model_path(tmp_path) == file and model_path(file) == file


def test_profile_in_the_shell(tmp_path, capsys):
    graph = data.load("digits")
    save(tmp_path / "teacher.safetensors", "gcnii-2x8", graph)
    save(tmp_path / "run" / "seed0" / "student.safetensors", "gcn-2x4", graph)
    flags = ["--samples", "3", "--seconds", "0.1", "--clients", "1", "--out", str(tmp_path / "out")]
    main(["profile", str(tmp_path / "run"), str(tmp_path), *flags])
    assert "gcn-2x4, server" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "latency.json").read_text())
    assert [model["name"] for model in report["models"]] == ["gcnii-2x8", "gcn-2x4"]
    assert (tmp_path / "out" / "latency.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "a student must be given"),
        (["a", "b", "c"], 2, "profile takes STUDENT"),
        (["nowhere"], 1, "student must be a model file or the folder of a run"),
        (["a", "--samples", "0"], 2, "samples must be >= 1"),
        (["a", "--seconds", "nan"], 2, "seconds must be finite and > 0, got nan"),
        (["a", "--seconds", "inf"], 2, "seconds must be finite and > 0, got inf"),
        (["a", "--forms", "fast"], 2, "forms must be one of eager, flat, compile, torch-"),
        (["a", "--forms", "cuda_graph"], 2, "device must be cuda for the form cuda_graph, got cpu"),
    ],
)
def test_profile_says_what_is_wrong(arguments, code, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["profile", *arguments])
    assert stopped.value.code == code
    assert message in re.sub(r"[\s│]+", " ", capsys.readouterr().err)


def test_data_must_fit_the_model(tmp_path, capsys):
    graph = data.load("digits")
    save(tmp_path / "own.safetensors", "gcn-2x4", graph, dataset="my own")
    with pytest.raises(SystemExit) as stopped:
        main(["profile", str(tmp_path / "own.safetensors")])
    assert stopped.value.code == 2
    assert "dataset must be given: 'my own'" in capsys.readouterr().err
