# `make` lists the targets. PYTHON chooses the interpreter that .venv is made with; all paths are relative, so the
# checkout may lie in a folder whose name has spaces.
PYTHON ?= python3
# pytest processes; each computes with one torch thread
JOBS ?= 2
# torch threads of the demo: a fixed number, for the same arithmetic on every machine
THREADS ?= 2
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format bench wheel clean

help:  ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1|\2/p' Makefile | while IFS='|' read -r name text; do printf '%-14s%s\n' "$$name" "$$text"; done

venv: $(STAMP)  ## make .venv with the tested set (constraints.txt), the package in editable form

$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "hf_rm needs Python 3.11 or newer, and PYTHON=$(PYTHON) is not ($$("$(PYTHON)" --version 2>&1 | head -n 1))." >&2; \
		echo "Name another one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
		exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar off --constraint constraints.txt --editable '.[test,dev]' 2>&1
	@touch $(STAMP)

# Every value that accelerate would otherwise guess, and warn about, is given; --cpu also skips a user's own default config.
# Threads that wait sleep: where something else has one of two cores, spinning ones take each other's time (13 times slower).
demo: venv  ## train and run the Sudoku demo on the CPU
	OMP_WAIT_POLICY=passive $(BIN)/accelerate launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		--num_cpu_threads_per_process $(THREADS) recipes/sudoku.py --config recipes/configs/sudoku-demo.yaml $(ARGS) 2>&1

test: venv  ## run the tests (one file: make test ARGS=tests/test_project.py)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(ARGS)

lint: venv  ## ruff, the formatting and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv  ## mend the formatting and what ruff can mend itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: venv  ## run every benchmark, one after the other
	@set -e; for script in benchmarks/[!_]*.py; do echo "== $$script"; $(BIN)/python "$$script" $(ARGS); done

wheel: venv  ## build the wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation 2>&1

clean:  ## remove builds and caches; .venv and outputs/ stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +
