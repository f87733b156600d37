# Everything runs in a virtual environment of its own, below .venv. It is made anew when pyproject.toml changes.
#
#   make PYTHON=python3.13 test                  another interpreter
#   make test PYTEST_ARGS='-k claims'            some of the tests
#   HYPOTHESIS_PROFILE=long make test            many more, and random, examples (see tests/conftest.py)
#   make crash-search N=100000 SEED=1            so many states, drawn from a seed of one's own

PYTHON ?= python3
VENV ?= .venv
JOBS ?= auto
N ?= 20000
SEED ?=
PYTEST_ARGS ?=

# Twice quiet: warnings about the configuration of the machine's own pip are not ours to print.
pip = $(VENV)/bin/python -m pip --quiet --quiet --disable-pip-version-check

.DELETE_ON_ERROR:
.PHONY: help demo test lint bench crash-search clean

help:
	@echo 'make demo          install into $(VENV) and show a tour on a real image'
	@echo 'make test          run the whole test suite'
	@echo 'make lint          check style, format and types'
	@echo 'make bench         measure, and print the figures'
	@echo 'make crash-search  search N=$(N) states that crashes may leave for one that lost something'
	@echo 'make clean         remove $(VENV) and everything else that was made'

demo: $(VENV)/.installed
	@PATH="$(abspath $(VENV))/bin:$$PATH" sh docs/tour.sh

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

bench: $(VENV)/.installed
	@set -e; for script in benchmarks/[!_]*.py; do echo "== $$script"; $(VENV)/bin/python "$$script"; done

crash-search: $(VENV)/.installed-dev
	$(VENV)/bin/python -m tests.reliability.crash_search $(N) $(if $(SEED),--seed $(SEED)) \
	    $(if $(filter-out auto,$(JOBS)),--jobs $(JOBS))

clean:
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name .git -prune -o -type d -name __pycache__ -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml
	@command -v '$(PYTHON)' >/dev/null || { \
	    echo 'snapctl needs Python 3.11 or newer: there is no $(PYTHON); try make PYTHON=...' >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "snapctl needs Python 3.11 or newer: $(PYTHON) is $$('$(PYTHON)' -V 2>&1); try make PYTHON=..." >&2; exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo 'snapctl needs the venv module of $(PYTHON); on Debian: apt-get install python3-venv' >&2; exit 1; }
	rm -rf $(VENV)
	'$(PYTHON)' -m venv $(VENV)
	$(pip) install --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(pip) install --editable '.[dev]'
	@touch $@
