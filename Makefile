# make course   opens the course          make test   runs every test
# Another Python: make PYTHON=python3.12 course

PYTHON  = python3
VENV    = .venv
RUN     = $(VENV)/bin/python -m
STAMP   = $(VENV)/.installed
BEGUN   = $(VENV)/.installing
EXTRAS ?= dev
PINS   ?= constraints.txt
TESTS  ?= tests course
LESSONS = $(sort $(wildcard course/[0-9]*.py))
WORKERS = $(shell test `getconf _NPROCESSORS_ONLN` -gt 1 && echo 2 || echo 1)

# Two processes at once, one thread each: with more they slow each other down many times over.
# numba would set torch's number of threads too, through the OpenMP that they share.
ONE_THREAD = OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1

# The environments of `make matrix`, the lock, and measurements are made here; git ignores it.
BUILD = build
PYTHONS ?= python3.11 python3.12 python3.13
TORCH = 2.13.0

.PHONY: help course test parity lessons format bench lock matrix clean venv
help:
	@echo "make course    set up, get the data, and open the course in JupyterLab"
	@echo "make test      set up, and run every test"
	@echo "make parity    compare our models with scvi-tools, in an environment of its own"
	@echo "make lessons   run course/*.py anew into their notebooks (LESSONS=course/01_x.py: one)"
	@echo "make format    put the code into the house's form"
	@echo "make bench     measure speed and memory beside scvi-tools (BENCH=--quick: see it run)"
	@echo "make lock      pin every package anew, for each Python: constraints.txt, tests/lowest.txt"
	@echo "make matrix    every test on each of PYTHONS with the locked, lowest, newest packages"
	@echo "make clean     remove what tests and tools left behind (the environment: rm -r $(VENV))"

course: $(STAMP)
	@$(RUN) vaelab data fetch pancreas || echo "Going on without these data." >&2
	@$(RUN) vaelab course

test: $(STAMP)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(ONE_THREAD) $(RUN) pytest $(TESTS) --nbval --nbval-cell-timeout=120 \
	    -n $(WORKERS) --dist loadfile

parity:
	@$(MAKE) test VENV=$(BUILD)/parity EXTRAS=dev,parity TESTS="tests/parity tests/test_benchmarks.py"

# The .py is the master. It is touched at the end since JupyterLab refuses a pair whose .py is older.
lessons: $(STAMP)
	@for lesson in $(LESSONS); do \
	    echo "$$lesson"; \
	    $(RUN) jupytext --quiet --update --to ipynb "$$lesson" && \
	    $(ONE_THREAD) $(RUN) nbconvert --log-level=WARN --to notebook --inplace --execute \
	        --ExecutePreprocessor.kernel_name=python3 --ExecutePreprocessor.record_timing=False \
	        "$${lesson%.py}.ipynb" && \
	    $(RUN) nbconvert --log-level=WARN --to notebook --inplace --coalesce-streams \
	        "$${lesson%.py}.ipynb" && \
	    touch "$$lesson" || exit 1; \
	done
	@$(VENV)/bin/python tests/readme_picture.py
	@$(RUN) vaelab release

format: $(STAMP)
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

bench: $(STAMP)
	@$(VENV)/bin/python -W ignore -c 'import scvi' 2>/dev/null || \
	    $(RUN) pip install -c $(PINS) -e ".[dev,parity]"
	$(ONE_THREAD) $(VENV)/bin/python tests/benchmarks/scvi_tools.py $(BENCH)

# One version of torch for everybody, so that seeds give the same numbers.
RESOLVE = echo "torch==$(TORCH)" | $(BUILD)/lock/bin/uv pip compile pyproject.toml --quiet --universal \
	--python-version 3.11 --constraint - --upgrade --no-annotate \
	--custom-compile-command "make lock"

lock:
	@$(PYTHON) -m venv $(BUILD)/lock && $(BUILD)/lock/bin/pip install --quiet uv
	$(RESOLVE) --all-extras --no-emit-package vaelab --output-file constraints.txt
	$(RESOLVE) --extra dev --resolution lowest-direct --output-file tests/lowest.txt

matrix: $(STAMP)
	@$(VENV)/bin/python tests/matrix.py --torch $(TORCH) $(PYTHONS)

clean:
	rm -rf .pytest_cache .ruff_cache build dist
	find vaelab tests course conftest.py -name __pycache__ -prune -exec rm -rf {} +
	find course -name .ipynb_checkpoints -prune -exec rm -rf {} +

# ---------------------------------------------------------------------------- the environment

# The stamp holds the folder that it was made in: a repository that was moved, or an interpreter
# that no longer runs, is seen here, and set up again.
SET_UP_IN := $(shell $(VENV)/bin/python -c 'print(open("$(STAMP)").read().strip())' 2>/dev/null)
ifneq ($(SET_UP_IN),$(CURDIR))
.PHONY: $(STAMP)
endif

$(STAMP): pyproject.toml $(PINS)
	@if test -e $(BEGUN) || ! $(RUN) pip --version >/dev/null 2>&1; then $(MAKE) -s venv; fi
	@touch $(BEGUN)
	@$(RUN) pip install -c $(PINS) -e ".[$(EXTRAS)]" || { rm -f $(BEGUN); exit 1; }
	@$(RUN) ipykernel install --sys-prefix >/dev/null
	@cp $(PINS) $(VENV)/.pins
	@echo "$(CURDIR)" >$@ && rm $(BEGUN)

# From nothing: also where a set-up was killed half-way.
venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "vaelab needs Python 3.11 or newer, and $(PYTHON) is not one:" \
	        "name another with make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) can't make environments: install its venv package" \
	        "(on Debian and Ubuntu: sudo apt install python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
