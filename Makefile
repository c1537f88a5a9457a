# Two commands on a fresh machine: `make quickstart` and `make test`. Both do all set-up first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup quickstart test test-all lint format bench bench-peers vllm sglang clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable ".[dev]"
	touch $@

quickstart: setup ## distil the packaged demo teacher, with and without its knowledge, and compare
	$(BIN)/python -m kd_lightning.quickstart

test: setup ## the fast tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: setup ## with the slow ones
	$(BIN)/python -m pytest -m "not gpu" --timeout 1800

lint: setup ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

BENCH := .venv-bench
BENCHMARKS := loss memory accuracy step packing cache overhead server cross_checks on_policy_peers on_policy_stories drawing

bench-peers: $(BENCH)/.ready ## an environment with the peers that benchmarks are held against

$(BENCH)/.ready: benchmarks/peers.txt pyproject.toml constraints.txt
	test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install -qq --constraint constraints.txt --editable . accelerate
	$(BENCH)/bin/python -m pip install -qq --no-deps --requirement benchmarks/peers.txt
	touch $@

VLLM := .venv-vllm

vllm: $(VLLM)/.ready ## vLLM for processors beside the project: `make test-all` then runs against it

$(VLLM)/.ready: benchmarks/vllm.txt benchmarks/vllm_named.py pyproject.toml
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -qq torch==2.13.0
	$(VLLM)/bin/python -m pip install -qq --no-deps --requirement benchmarks/vllm.txt
	$(VLLM)/bin/python -m pip install -qq --constraint benchmarks/vllm.txt --editable ".[server]" pytest
	$(VLLM)/bin/python benchmarks/vllm_named.py
	touch $@

SGLANG := .venv-sglang

sglang: $(SGLANG)/.ready ## SGLang without its kernels beside the project: `make test-all` then runs against it

$(SGLANG)/.ready: benchmarks/sglang.txt
	test -x $(SGLANG)/bin/python || $(PYTHON) -m venv $(SGLANG)
	$(SGLANG)/bin/python -m pip install -qq torch==2.13.0
	$(SGLANG)/bin/python -m pip install -qq --no-deps --requirement benchmarks/sglang.txt
	touch $@

bench: bench-peers ## the benchmarks of a processor, one after the other, each beside its peers
	@for name in $(BENCHMARKS); do $(BENCH)/bin/python -m benchmarks.$$name $(ARGS) || exit 1; done

clean:
	rm -rf runs dist .mypy_cache .ruff_cache .pytest_cache
