import base64
import io
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from rich.console import Console
from run_records import make_attention, make_histories, read_png

from abkd_fast import report


def stat(values):
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std, "n": len(values), "values": values}


def make_metrics(num_seeds=3, teacher=True, name="cora", synthetic=False):
    test = [80.25, 81.5, 79.75][:num_seeds]
    return {
        "format": 1,
        "dataset": {"name": name, "num_nodes": 2708, "num_edges": 10556}
        | {"num_features": 1433, "num_classes": 7, "synthetic": synthetic},
        "teacher": {
            "model": "gcnii-64x64",
            "parameters": 354375,
            "train": stat([100.0]),
            "val": stat([82.4]),
            "test": stat([84.7]),
        }
        if teacher
        else None,
        "student": {
            "model": "gcnii-4x4",
            "parameters": 5835,
            "train": stat([98.5, 97.25, 99.0][:num_seeds]),
            "val": stat([78.5, 79.0, 77.5][:num_seeds]),
            "test": stat(test),
        },
        "objective": "kd+abkd" if teacher else "none",
        "compression_ratio": 354375 / 5835 if teacher else None,
        "step_ms": {"p50": 3.25, "p20": 3.125, "p80": 4.5, "n": 1234},
        "peak_bytes": 512 * 2**20,
        "seeds": list(range(num_seeds)),
        "best_epoch": [7, 5, 9][:num_seeds],
        "epochs": [10, 8, 10][:num_seeds],
        "environment": {
            "python": "3.11.2",
            "torch": "2.13.0",
            "abkd_fast": "0.1",
            "backend": "cpu",
        },
        "config": {"lr": 0.01, "patience": None, "kd": {"alpha": 0.9}},
        "command": "abkd-fast distill --dataset cora --seeds 0 1 2",
        "created": "2026-11-20T10:00:00Z",
    }


class Page(HTMLParser):
    """Everything of a page that a check may ask for."""

    VOID = {"meta", "link", "img"}

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.stack = [], [], []
        self.feed(html)
        self.close()
        self.plain = re.sub(r"\s+", " ", "".join(self.text))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if "style" not in self.stack:
            self.text.append(data)

    def find(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def write(folder, metrics, **maps):
    path = report.write_report(folder, metrics, make_histories(metrics["epochs"]), **maps)
    assert path == folder / "report" / "index.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.stack == []
    return page


# -- by hand ----------------------------------------------------------------------------------


def test_map_tables_by_hand():
    tables = report._map_tables(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert tables["cells"] == [[1, 0], [1, 0]]
    assert tables["evenness"] == 0
    share, depth, peak = tables["students"][0]
    assert (share, depth, peak) == (100, 1.5, 1)
    assert tables["students"][1][0] == 0
    assert all(math.isnan(value) for value in tables["students"][1][1:])
    assert report._map_tables(torch.full((5, 3), 1 / 3))["evenness"] == pytest.approx(1)
    assert report._map_tables(torch.ones(5, 1))["evenness"] is None


# -- terminal ---------------------------------------------------------------------------------


def printed(metrics):
    console = Console(file=io.StringIO(), width=100)
    report.print_summary(metrics, console)
    return console.file.getvalue()


def test_summary_puts_teacher_beside_student():
    text = printed(make_metrics(name="[red]cora"))
    for cell in ("[red]cora", "354,375", "5,835", "60.7×", "84.70 (n = 1)", "3.25", "512"):
        assert cell in text
    assert re.search(r"test accuracy \(%\) +│ +84.70 \(n = 1\) │ +80.50 ± 0.90 \(n = 3\)", text)


def test_summary_without_teacher():
    text = printed(make_metrics(num_seeds=1, teacher=False))
    assert "80.25 (n = 1)" in text
    assert not any(word in text for word in ("teacher", "compression", "±", "None"))


def test_print_summary_writes_to_stdout(capsys):
    report.print_summary(make_metrics())
    assert "gcnii-64x64" in capsys.readouterr().out


# -- page -------------------------------------------------------------------------------------


def test_report_holds_everything(tmp_path):
    history, epochs = make_attention()
    metrics = make_metrics()
    maps = {"attention": history[7], "attention_history": history, "attention_epochs": epochs}
    page = write(tmp_path, metrics, **maps, dissimilarity=1 - history[7])

    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"attention.png", "curves.png", "dissimilarity.png", "report/index.html"}
    assert (
        "On cora, gcnii-4x4 is distilled from gcnii-64x64: it is 60.7× smaller, with 5,835 "
        "parameters instead of 354,375, and reaches a test accuracy of 80.50 ± 0.90 % (n = 3). "
        "Its teacher reaches 84.70 % (n = 1), 4.20 points more."
    ) in page.plain
    expected = ["98.25 ± 0.90 (n = 3)", "78.33 ± 0.76 (n = 3)", "100.00 (n = 1)", "82.40 (n = 1)"]
    expected += ["3.25 ms", "p20 3.12, p80 4.50, 1,234 steps", "512 MiB", "2,708", "10,556"]
    values = [metrics["student"][split]["values"] for split in ("train", "val", "test")]
    expected += [f"{value:.2f}" for value in sum(values, [])]
    expected += [f"{value:.4f}" for value in history[7].flatten().tolist()]
    expected += [metrics["command"], "kd.alpha", "0.9", "none", "3.11.2", metrics["created"]]
    assert [words for words in expected if words not in page.plain] == []
    assert "last one trained for seed 2:" in page.plain
    assert "Seed 1, the best on validation." in page.plain
    assert "comes from 1 trained model" in page.plain
    assert "synthetic. Its" not in page.plain

    images = page.find("img")
    sizes = [(int(image["width"]), int(image["height"])) for image in images]
    assert sizes == [(1050, 420), (1050, 660), (500, 600)]
    for image in images:
        prefix, data = image["src"].split(",")
        assert prefix == "data:image/png;base64" and len(image["alt"]) > 20
        width, height = read_png(io.BytesIO(base64.b64decode(data)))
        assert (width / 1.5, height / 1.5) == (int(image["width"]), int(image["height"]))


def test_page_loads_nothing_and_is_accessible(tmp_path):
    history, epochs = make_attention()
    page = write(tmp_path, make_metrics(), attention=history[0])
    addresses = [a[key] for _, a in page.tags for key in ("src", "href", "srcset") if key in a]
    assert addresses and all(address.startswith("data:") for address in addresses)
    html = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|url\(", html)
    assert page.find("script") == []
    assert page.find("html") == [{"lang": "en"}]
    assert all(attrs["scope"] in ("row", "col") for attrs in page.find("th"))
    assert len(page.find("caption")) == len(page.find("table")) == 6
    assert all(image["alt"] for image in page.find("img"))
    assert len(page.find("h1")) == 1


def test_names_are_escaped(tmp_path):
    name = '<script>alert("1")</script> & $x_1$'
    metrics = make_metrics(name=name)
    metrics["teacher"]["model"] = "<img src=https://example.org/x.png>"
    page = write(tmp_path, metrics)
    assert page.find("script") == []
    assert len(page.find("img")) == 1
    assert name in page.plain and metrics["teacher"]["model"] in page.plain


@pytest.mark.parametrize("synthetic", [False, True])
def test_one_seed_without_teacher_and_attention(tmp_path, synthetic):
    page = write(tmp_path, make_metrics(1, teacher=False, synthetic=synthetic))
    assert not (tmp_path / "attention.png").exists()
    assert (
        "On cora, gcnii-4x4 with 5,835 parameters reaches a test accuracy of 80.25 % (n = 1)."
    ) in page.plain
    assert ("The data are synthetic" in page.plain) is synthetic
    assert "There is one seed" in page.plain and "learned from labels alone." in page.plain
    assert not any(word in page.plain for word in ("Teacher", "Attention", "None", "nan"))


def test_teacher_known_by_its_states_alone(tmp_path):
    metrics = make_metrics() | {"objective": "none", "compression_ratio": None}
    metrics["teacher"]["parameters"] = None
    metrics["step_ms"] = {"p50": math.nan, "p20": math.nan, "p80": math.nan, "n": 0}
    page = write(tmp_path, metrics)
    assert "is trained without distillation, beside gcnii-64x64: it reaches" in page.plain
    assert not any(word in page.plain for word in ("smaller", "compression", "nan", "None"))
    assert "– ms" in page.plain


def test_a_student_layer_without_attention_has_no_mean_layer(tmp_path):
    page = write(tmp_path, make_metrics(), attention=torch.tensor([[0.0, 0.0], [0.0, 2.0]]))
    assert re.search(r"mean teacher layer ?–2.0", page.plain)
    assert "nan" not in page.plain


def test_a_failed_report_leaves_the_old_one(tmp_path, monkeypatch):
    write(tmp_path, make_metrics())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, make_metrics(name="other"))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "metrics must have format 1, got 2"),
        ({"command": None}, "metrics must have the keys dataset.* lacks command;"),
        ({"seeds": [0, 1]}, r"histories must have one entry for each seed \[0, 1\], got 3"),
    ],
)
def test_rejects_metrics(tmp_path, change, message):
    metrics = make_metrics() | change
    metrics = {key: value for key, value in metrics.items() if key != "command" or value}
    with pytest.raises(ValueError, match=message):
        report.write_report(tmp_path, metrics, make_histories([2, 2, 2]))
    assert list(tmp_path.iterdir()) == []


def test_import_stays_light():
    code = (
        "import sys, abkd_fast.report\n"
        "heavy = {'matplotlib', 'jinja2', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
