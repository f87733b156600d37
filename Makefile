# Everything runs in a virtual environment of its own, below .venv. It is made anew when pyproject.toml changes; when
# snapctl/_native.c does, that is compiled again.
#
#   make PYTHON=python3.13 test                  another interpreter
#   make test PYTEST_ARGS='-k claims'            some of the tests
#   HYPOTHESIS_PROFILE=long make test            many more, and random, examples (see tests/conftest.py)
#   make crash-search N=100000 SEED=1            one of the searches (docs/reliability.md), longer than by default
#   make crash-search LIVE=1                     the same for containers that many clients use at once
#   make crash-search LOG=1                      the same for what is flushed to logs
#   make bench BENCH_ARGS='--only pause'         some of the measurements (docs/performance.md)

PYTHON ?= python3
VENV ?= .venv
JOBS ?= auto
N ?=
SECONDS ?=
SEED ?=
LIVE ?=
LOG ?=
QUICK ?=
BENCH_ARGS ?=
PYTEST_ARGS ?=

# Twice quiet: warnings about the configuration of the machine's own pip are not ours to print.
pip = $(VENV)/bin/python -m pip --quiet --quiet --disable-pip-version-check

.DELETE_ON_ERROR:
.PHONY: help demo test lint bench crash-search fault-search kill-loop serve-kill-loop serve-load bit-rot \
    fuzz mutation-check golden clean

help:
	@echo 'make demo            install into $(VENV) and show a tour on a real image'
	@echo 'make test            run the whole test suite'
	@echo 'make lint            check style, format and types'
	@echo 'make bench           measure, print the figures and write docs/performance.md; QUICK=1 to try it'
	@echo 'make crash-search    search N states that crashes may leave for one that lost something'
	@echo 'make fault-search    let every system call of a workload fail, in every way'
	@echo 'make kill-loop       kill N writers, and look for what they had reported'
	@echo 'make serve-kill-loop kill N servers, and look for what they had acknowledged'
	@echo 'make serve-load      keep a server busy for SECONDS, compare everything, and measure'
	@echo 'make bit-rot         damage a container in N ways, and compare what is told with what is lost'
	@echo 'make fuzz            open forged containers for SECONDS'
	@echo 'make mutation-check  break the lines that matter most, and see that tests fail'
	@echo 'make golden          make the golden files anew, after a change of the format'
	@echo 'make clean           remove $(VENV) and everything else that was made'

demo: $(VENV)/.installed
	@PATH="$(abspath $(VENV))/bin:$$PATH" sh docs/tour.sh

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

bench: $(VENV)/.installed
	$(VENV)/bin/python -m benchmarks $(if $(QUICK),--quick) $(BENCH_ARGS)

crash-search: $(VENV)/.installed-dev
	$(VENV)/bin/python -m tests.reliability.crash_search $(or $(N),20000) $(if $(LIVE),--live) $(if $(LOG),--log) $(if $(SEED),--seed $(SEED)) \
	    $(if $(filter-out auto,$(JOBS)),--jobs $(JOBS))

fault-search: $(VENV)/.installed-dev
	$(VENV)/bin/python -m tests.reliability.fault_search

kill-loop: $(VENV)/.installed-dev
	$(VENV)/bin/python -m tests.reliability.kill_loop $(or $(N),300) $(SEED)

serve-kill-loop: $(VENV)/.installed-dev
	$(VENV)/bin/python -m tests.reliability.serve_kill_loop $(or $(N),40) $(SEED)

serve-load: $(VENV)/.installed-dev
	$(VENV)/bin/python -m tests.reliability.serve_load $(or $(SECONDS),180)

bit-rot: $(VENV)/.installed-dev
	$(VENV)/bin/python -m tests.reliability.bit_rot $(or $(N),3000) $(if $(SEED),--seed $(SEED))

fuzz: $(VENV)/.installed-dev
	$(VENV)/bin/python -m tests.reliability.fuzz $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))

mutation-check: $(VENV)/.installed-dev
	$(VENV)/bin/python -m tests.reliability.mutation_check

golden: $(VENV)/.installed-dev
	$(VENV)/bin/python -m tests.golden.make

clean:
	rm -rf $(VENV) build dist snapctl/_native.*.so .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name .git -prune -o -type d -name __pycache__ -exec rm -rf {} +

$(VENV)/.made: pyproject.toml
	@command -v '$(PYTHON)' >/dev/null || { \
	    echo 'snapctl needs Python 3.11 or newer: there is no $(PYTHON); try make PYTHON=...' >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "snapctl needs Python 3.11 or newer: $(PYTHON) is $$('$(PYTHON)' -V 2>&1); try make PYTHON=..." >&2; exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo 'snapctl needs the venv module of $(PYTHON); on Debian: apt-get install python3-venv' >&2; exit 1; }
	rm -rf $(VENV)
	'$(PYTHON)' -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.made hatch_build.py snapctl/_native.c
	$(pip) install --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.made | $(VENV)/.installed
	$(pip) install --editable '.[dev]'
	@touch $@
