# Everything a contributor or a first-time user runs. `make` alone explains itself.
# The virtual environment is .venv; demo installs into it only what the demo needs, lint and test add to it.
# Paths are relative throughout, so that a clone may live in a folder with spaces in its name.

SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
INSTALL := $(PIP) install --quiet --constraint constraints.txt
INPUTS := pyproject.toml constraints.txt
PYTEST_ARGS ?=
# Two files at a time; a file stays together, because its fixtures are dear. `make test WORKERS=0` runs one after the other.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

# The settings of another environment that would send an install somewhere else; indexes and proxies stay in force.
unexport PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT PYTHONPATH PYTHONHOME VIRTUAL_ENV
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo install lint format ruff types layers light-import test core adapters docs wheel-test wheel bench clean distclean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):[^#]*## (.*)/  \1\t\2/' | expand -t 18

demo: $(VENV)/.installed-demo ## tune a real keyword-spotting model to int8 (installs what it needs, under 3 minutes)
	$(BIN)/neural-tune run examples/keyword_spotting/job.yaml

install: $(VENV)/.installed-all ## install every extra and every tool into .venv

lint: ruff types layers light-import ## format, lint, types, import directions, light import

format: $(VENV)/.installed-dev ## rewrite the sources in the project's format
	$(BIN)/python -m ruff format .
	$(BIN)/python -m ruff check --fix .

ruff: $(VENV)/.installed-dev ## format (checked only) and lint
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .

types: $(VENV)/.installed-dev ## mypy --strict
	$(BIN)/python -m mypy

layers: $(VENV)/.installed-dev ## import-linter: which package may import which
	$(BIN)/lint-imports --no-cache

light-import: $(VENV)/.installed-dev ## `import neural_tune` loads no framework
	$(BIN)/python -m pytest -q tests/packaging/test_light_import.py

test: $(VENV)/.installed-all ## the whole test suite, with every framework
	$(PYTEST) $(PYTEST_ARGS)

core: $(VENV)/.installed-dev ## the tests that need no framework
	$(PYTEST) tests/core tests/strategies $(PYTEST_ARGS)

adapters: $(VENV)/.installed-all ## the tests of the framework adapters
	$(PYTEST) tests/adapters $(PYTEST_ARGS)

docs: $(VENV)/.installed-dev ## run every example of README.md and docs/
	$(BIN)/python -m pytest tests/packaging/test_docs.py $(PYTEST_ARGS)

wheel-test: $(VENV)/.installed-dev ## build sdist and wheel, install the wheel elsewhere, tune with it
	$(BIN)/python -m pytest tests/packaging/test_wheel.py $(PYTEST_ARGS)

wheel: $(VENV)/.installed-dev ## build the sdist and, from it, the wheel into dist/
	$(BIN)/python -m build --no-isolation

bench: $(VENV)/.installed-all ## measure the budgets of the design
	set -e; for script in benchmarks/*/bench_*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

clean: ## remove build outputs and caches
	rm -rf dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find neural_tune adapters strategies tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## the same, and .venv
	rm -rf $(VENV)

# The installations, each one a superset of the one before. A stamp is newer than what it was installed from, so a
# second run installs nothing; one level satisfies the lower ones.

$(VENV)/.tools: $(INPUTS)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"found Python {sys.version.split()[0]} as $(PYTHON), expected 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# The build backend goes in here, pinned, instead of into an isolated build environment whose versions nobody pins.
	$(INSTALL) --upgrade pip hatchling editables
	@touch $@

$(VENV)/.installed-demo: $(VENV)/.tools
	$(INSTALL) --no-build-isolation --editable ".[onnxruntime]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.tools
	$(INSTALL) --no-build-isolation --editable ".[onnxruntime]" --group dev
	@touch $(VENV)/.installed-demo $@

$(VENV)/.installed-all: $(VENV)/.tools
	$(INSTALL) --no-build-isolation --editable ".[all]" --group dev
	@touch $(VENV)/.installed-demo $(VENV)/.installed-dev $@
