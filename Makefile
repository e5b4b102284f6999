# Two commands do everything on a fresh machine: `make reproduce` and `make test`.
# Each installs what it needs into .venv first, and not again until the lock or pyproject changes.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs/tales
ARGS ?=
# Processes of the test suite, each with one thread; a process takes about 2 GB.
WORKERS ?= logical

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TOKENIZERS_PARALLELISM := false
# Threads that spin while they wait slow small models fifteenfold on a busy machine.
export OMP_WAIT_POLICY := PASSIVE
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: help reproduce test lint bench figures docs clean

help:
	@echo "make reproduce   the whole story on the embedded model: DPO, figures, ledger (OUT=runs/tales)"
	@echo "make test        the test suite"
	@echo "make lint        ruff and mypy"
	@echo "make bench       ratios against the floor and other libraries, into figures/benchmarks.json"
	@echo "make figures     copy the PNGs and tables of OUT into figures/"
	@echo "make docs        the documentation site, into build/site"
	@echo "make clean       remove environments and caches (runs are kept)"

# torch goes first and alone: with it in place no later requirement asks for another build.
$(VENV)/installed: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "dsteer_tl needs Python 3.11 or newer, found %d.%d: set PYTHON=…" % sys.version_info[:2]'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[images,peft,judge,export,test,lint,docs]'
	@touch $@

reproduce: $(VENV)/installed
	$(BIN)/dsteer reproduce --preset tales --out $(OUT) $(ARGS)

test: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 4 --dist loadfile $(ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Other libraries pin other versions of transformers: an environment of their own.
.venv-bench/installed: tests/benchmarks/alternatives.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet "$$(grep '^torch==' tests/benchmarks/alternatives.txt)"
	.venv-bench/bin/python -m pip install --quiet --requirement tests/benchmarks/alternatives.txt
	@touch $@

bench: $(VENV)/installed .venv-bench/installed
	$(BIN)/python -m pytest tests/benchmarks $(ARGS)
	$(BIN)/python -m tests.benchmarks.gpu --out figures/benchmarks.json
	$(BIN)/python analyses/benchmarks.py
	$(BIN)/python analyses/scaling_arithmetic.py docs/scaling.md figures/benchmarks.json

figures: $(VENV)/installed
	$(BIN)/python analyses/publish_figures.py $(OUT) figures

# Material announces its own successor on every build; nothing here depends on it.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --site-dir build/site

clean:
	rm -rf $(VENV) .venv-* build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
