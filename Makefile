# What a developer can do here. Every target sets up .venv by itself; all it needs is make and Python 3.11 or newer.
SHELL := /bin/bash
PY := .venv/bin/python
READY := .venv/.ready
ARGS ?=

# Most tests wait for servers and processes more than they compute.
WORKERS ?= $(shell $(PY) -c 'import os; print(2 * (os.cpu_count() or 1))')

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-endurance check format bench clean

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: $(READY) ## a workflow, a crash, and what survives it, in your terminal
	@.venv/bin/edda demo $(ARGS)

test: $(READY) ## all tests but the long ones, in parallel (ARGS="-k name" to choose)
	@$(PY) -m pytest -n $(WORKERS) --dist worksteal -m "not long" $(ARGS)

test-long: $(READY) ## the long ones: races, volumes
	@$(PY) -m pytest -n $(WORKERS) --dist worksteal -m "long and not endurance" $(ARGS)

test-endurance: $(READY) ## faults at every point and chaos, for minutes on each database
	@$(PY) -m pytest -n $(WORKERS) --dist worksteal -m endurance $(ARGS)

check: $(READY) ## lint, formatting, types, direction of imports
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

format: $(READY) ## let the formatter and the linter repair what they can
	@.venv/bin/ruff check --fix-only --quiet .
	@.venv/bin/ruff format .

bench: $(READY) ## throughput and latency on this machine
	@$(PY) -m tests.benchmarks $(ARGS)

clean: ## remove .venv and caches
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# Set up once, and again when the dependencies change. uv is used where it is installed, else venv and pip.
$(READY): pyproject.toml
	@echo "setting up .venv"
	@if command -v uv >/dev/null; then \
	  { [ -x $(PY) ] || uv venv --quiet --python '>=3.11' .venv; } && \
	  uv pip install --quiet --python $(PY) --editable '.[all]' --group dev; \
	else \
	  for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; python=; \
	  done; \
	  [ -n "$$python" ] || { echo "Python 3.11 or newer is needed, and none is on PATH." >&2; exit 1; }; \
	  { [ -x $(PY) ] || $$python -m venv .venv; } && \
	  { $(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip --upgrade >/dev/null; } && \
	  $(PY) -m pip install --quiet --upgrade 'pip>=25.1' && \
	  $(PY) -m pip install --quiet --editable '.[all]' --group dev; \
	fi
	@touch $@
