# `make demo` and `make test` need Python 3.11 or newer and nothing else: each sets up .venv for itself, once.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two workers with one thread each: most tests are too small to share a thread pool well.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test fast lint types docs check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.ready-demo ## train, optimize, quantize, build and measure two small networks; writes demo-artifacts/
	$(BIN)/python -m demo --out demo-artifacts

test: $(VENV)/.ready-all ## run every test
	$(PYTEST)

fast: $(VENV)/.ready-all ## run the tests that take less than ten seconds each
	$(PYTEST) -m "not slow"

lint: $(VENV)/.ready-all ## ruff, and what may import what
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-cache

types: $(VENV)/.ready-all ## mypy, strict
	$(BIN)/mypy -p eqsat_deploy -p eqsat_rewrites -p eqsat_extraction

docs: $(VENV)/.ready-all ## build the documentation into docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -b html docs docs/_build/html

check: lint types docs test ## what CI checks

clean: ## remove the virtual environment, the demo's artifacts and the documentation
	rm -rf $(VENV) demo-artifacts docs/_build docs/notebooks

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed; name one with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# An installation is redone when pyproject.toml is newer than it.
$(VENV)/.ready-%: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[$(EXTRAS_$*)]'
	@touch $@

EXTRAS_demo := demo
EXTRAS_all := demo,dev,docs,onnxruntime,serve,notebooks
