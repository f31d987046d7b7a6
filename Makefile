# Each target sets up what it needs in .venv; the second run is immediate.
PYTHON ?= python3
# Another package index for torch, for example the one that has its smaller CPU-only wheels.
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: setup demo test test-slow sanitize fuzz bench bench-peers bench-registry bench-targets bench-all study-small gpu-check lint format clean

setup: $(READY)

$(VENV)/torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt pip setuptools wheel ninja numpy
	$(BIN)/pip install -q -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	touch $@

$(READY): $(VENV)/torch pyproject.toml setup.py $(SOURCES)
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/abkd-fast distill --dataset digits --teacher gcnii-16x64 --student gcnii-4x4 --out runs/demo
	mkdir -p report && cp runs/demo/report/index.html report/index.html
	@echo "open report/index.html"

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal

test-slow: $(READY)
	$(BIN)/pytest -m slow

sanitize: $(READY)
	.ci/sanitize $(BIN)

fuzz: $(READY)
	$(BIN)/python tests/fuzz_csr.py

# Every op against what is installed, a few minutes; bench-peers builds torch-scatter and
# torch-sparse first; bench-all renews bench/results and the docs, but for the registry
# (bench-registry), the large runs (bench_growth_ops, bench_arxiv, bench_mag) and processes
# (bench_distributed).
bench: $(READY)
	$(BIN)/abkd-fast bench --quick --out runs/bench.json

$(VENV)/peers: $(READY)
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[peers]'
	touch $@

bench-peers: $(VENV)/peers
	$(BIN)/abkd-fast bench --quick --out runs/bench.json

# Every op, graph, width and type against every peer: the JSON and the figure that are committed.
bench-registry: $(VENV)/peers
	$(BIN)/abkd-fast bench --graphs tiny --only '*/float32' --no-samples \
		--out $$($(BIN)/python bench/machines.py)/registry.json
	$(BIN)/abkd-fast bench --memory fastest --no-samples --keep \
		--out $$($(BIN)/python bench/machines.py)/registry.json
	$(BIN)/python bench/write_docs.py

# What the table of targets in docs/benchmarks.md is written from.
bench-targets: $(VENV)/peers
	$(BIN)/python bench/bench_layer_pair.py
	$(BIN)/python bench/bench_step.py
	$(BIN)/python bench/bench_conv.py
	$(BIN)/python bench/bench_spmm.py
	$(BIN)/python bench/bench_latency.py
	$(BIN)/python bench/bench_growth.py
	$(BIN)/python bench/bench_growth_ops.py
	$(BIN)/python bench/write_docs.py
	$(BIN)/python bench/targets.py

bench-all: $(VENV)/peers
	$(BIN)/python bench/bench_spmm.py
	$(BIN)/python bench/bench_segment.py
	$(BIN)/python bench/bench_dropout.py
	$(BIN)/python bench/bench_rows.py
	$(BIN)/python bench/bench_conv.py
	$(BIN)/python bench/bench_edge_attention.py
	$(BIN)/python bench/bench_neighbor_kl.py
	$(BIN)/python bench/bench_relational.py
	$(BIN)/python bench/bench_sample_neighbors.py
	$(BIN)/python bench/bench_reorder.py
	$(BIN)/python bench/bench_accelerate.py
	$(BIN)/python bench/bench_layer_pair.py
	$(BIN)/python bench/bench_pair_infonce.py
	$(BIN)/python bench/bench_step.py
	$(BIN)/python bench/bench_growth.py
	$(BIN)/python bench/bench_latency.py
	$(BIN)/python bench/bench_serve.py
	$(BIN)/python bench/write_docs.py

# One table of a study, from Cora under $$ABKD_DATA or downloaded: runs/small/tables.md.
study-small: $(READY)
	mkdir -p runs && cp docs/study/small.toml runs/small.toml
	OMP_NUM_THREADS=1 $(BIN)/abkd-fast study runs/small.toml

# On a machine with an NVIDIA GPU, with PYTHON's own packages: no virtual environment, no network.
gpu-check:
	$(PYTHON) bench/gpu_check.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(SOURCES)
	! grep -rnE '^\s*(import|from) kernels\b' --include='*.py' .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

clean:
	rm -rf build dist *.egg-info report abkd_fast/*.so $(READY)
