# Every target makes .venv first, once, with what the project needs.
#   make serve    serve a model (CONFIG=configs/demo.yaml, PORT=8000)
#   make test     lint, types and all tests
#   make check    lint, types and the fast tests
#   make bench    measure a server that runs on PORT
#   make clean    remove .venv and caches

SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
CONFIG ?= configs/demo.yaml
PORT ?= 8000
BENCH ?=

BIN := .venv/bin
STAMP := .venv/installed
PIP := $(BIN)/pip --disable-pip-version-check install -qq -c constraints/cpu.txt
# One thread for each engine: more of them than cores slow each other down.
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/pytest
# So many tests at a time, each in a process that takes from the others' when it has none left.
JOBS ?= 2
PARALLEL := -n $(JOBS) --dist worksteal

.PHONY: help serve test check lint types bench clean

help:
	@sed -n '2,6s/^# *//p' Makefile

$(STAMP): pyproject.toml constraints/cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "pdray needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
	       "name another with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
	@echo "installing torch into .venv (about a minute the first time) ..."
	@$(PIP) "$$(grep '^torch==' constraints/cpu.txt)"
	@echo "installing pdray and its dependencies into .venv (about 3 minutes the first time) ..."
	@$(PIP) -e '.[demo,dev,bench]'
	@touch $(STAMP)
	@echo "installed"

serve: $(STAMP)
	@exec $(BIN)/pdray serve $(CONFIG) --port $(PORT)

lint: $(STAMP)
	@echo "ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP)
	@echo "mypy"
	@$(BIN)/mypy

check: lint types
	@echo "fast tests"
	@$(PYTEST) $(PARALLEL) -m "not slow and not ray and not gpu"

# The fast tests first: a mistake should show within the first minutes. pytest ends with 5 where
# it ran no test, and so does make, with an error.
test: check
	@echo "slow tests"
	@$(PYTEST) $(PARALLEL) -m "slow and not ray and not gpu"
	@echo "tests on a local Ray"
	@$(PYTEST) -m "ray and not gpu"

bench: $(STAMP)
	@$(BIN)/python -m benchmarks.serving --base-url http://127.0.0.1:$(PORT) $(BENCH)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
