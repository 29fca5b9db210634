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

# Two processes with one thread each: with more threads they slow each other down many times.
# numba also sets torch's number of threads, through the OpenMP that both use.
ONE_THREAD = OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1

# `make matrix`, `make lock` and the measurements write here; git ignores it.
BUILD = build
PYTHONS ?= python3.11 python3.12 python3.13
TORCH = 2.13.0

.PHONY: help course test parity lessons slides stick site pdf format bench portable lock matrix clean venv
help:
	@echo "make course    set up, get the data, and open the course in JupyterLab"
	@echo "make test      set up, and run every test"
	@echo "make parity    compare our models with scvi-tools, in an environment of its own"
	@echo "make lessons   run course/*.py again into their notebooks (LESSONS=course/01_x.py: one)"
	@echo "make slides    make slides and answers of the lessons, for teachers: build/slides/"
	@echo "make stick     a folder with course, site, data and wheels, for a room without a network"
	@echo "make site      build the site, to read without installing: build/site/html/index.html"
	@echo "make pdf       print each lesson of the site to build/site/pdf"
	@echo "make format    format the code"
	@echo "make bench     compare time, speed and memory with scvi-tools (BENCH=--quick: a trial)"
	@echo "make portable  run lessons as on other processors (LESSONS=course/01_x.py: one)"
	@echo "make lock      pin every package again, for each Python: constraints.txt, tests/lowest.txt"
	@echo "make matrix    run every test on each of PYTHONS with locked, lowest and newest packages"
	@echo "make clean     remove files of tests and tools (for the environment: rm -r $(VENV))"

course: $(STAMP)
	@$(RUN) vaelab data fetch pancreas || echo "The data are not available now; the course opens without them." >&2
	@$(RUN) vaelab course

test: $(STAMP)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(ONE_THREAD) $(RUN) pytest $(TESTS) --nbval --nbval-cell-timeout=120 \
	    -n $(WORKERS) --dist loadfile

parity:
	@$(MAKE) test VENV=$(BUILD)/parity EXTRAS=dev,parity TESTS="tests/parity tests/test_benchmarks.py"

# The .py is the master. It is touched last, because JupyterLab refuses a pair whose .py is older.
lessons: $(STAMP)
	@for lesson in $(LESSONS); do \
	    echo "$$lesson"; \
	    $(RUN) jupytext --quiet --update --to ipynb "$$lesson" && \
	    $(ONE_THREAD) $(RUN) nbconvert --log-level=WARN --to notebook --inplace --execute \
	        --ExecutePreprocessor.kernel_name=python3 --ExecutePreprocessor.record_timing=False \
	        --ExecutePreprocessor.store_widget_state=False \
	        "$${lesson%.py}.ipynb" && \
	    $(RUN) nbconvert --log-level=WARN --to notebook --inplace --coalesce-streams \
	        "$${lesson%.py}.ipynb" && \
	    touch "$$lesson" || exit 1; \
	done
	@$(VENV)/bin/python tests/readme_picture.py
	@$(RUN) vaelab release

slides: $(STAMP)
	@$(RUN) vaelab slides

# For example make stick STICK="--platform linux windows"; its Python is that of this environment.
stick: $(STAMP) slides site
	@$(VENV)/bin/python tests/stick.py $(STICK)

format: $(STAMP)
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

bench: $(STAMP)
	@$(VENV)/bin/python -W ignore -c 'import scvi' 2>/dev/null || \
	    $(RUN) pip install -c $(PINS) -e ".[dev,parity]"
	$(ONE_THREAD) $(VENV)/bin/python tests/benchmarks/scvi_tools.py $(BENCH)

# It chooses kernels and threads itself. With LESSONS, only these lessons run, without the tests.
portable: $(STAMP)
	$(VENV)/bin/python tests/portable.py $(PORTABLE) \
	    $(if $(filter command line environment,$(origin LESSONS)),$(LESSONS))

# From the notebooks as they are; it asks nothing of the network, and nor do its pages.
site: $(STAMP)
	@$(VENV)/bin/python -c 'import myst_nb, playwright' 2>/dev/null || \
	    $(RUN) pip install -c $(PINS) -e ".[dev,site]"
	@$(VENV)/bin/python course/site/prepare.py $(BUILD)/site/source
	@$(RUN) sphinx -q -W -b html $(BUILD)/site/source $(BUILD)/site/html
	@echo "The site is $(BUILD)/site/html/index.html"

pdf: site
	@$(VENV)/bin/python course/site/pdf.py $(BUILD)/site/html $(BUILD)/site/pdf

# Everybody gets one version of torch, so that a seed gives the same numbers.
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

# The stamp holds the folder in which it was made. So a repository that was moved, or an interpreter
# that no longer runs, is noticed here, and the environment is made again.
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

# `make stick` puts wheels there. With them pip asks no network. (pip splits a path with blanks.)
ifneq ($(wildcard wheels),)
export PIP_NO_INDEX = 1
export PIP_FIND_LINKS = wheels
endif

# Start from nothing, also if an earlier set-up was killed.
venv:
	@test ! -e wheels/python || test "`cat wheels/python`" = \
	    "`$(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null`" || { \
	    v=`cat wheels/python`; echo "The wheels in this folder are for Python $$v, but $(PYTHON) is" \
	        "another one or missing. Install Python $$v, and name it: make PYTHON=python$$v ..." >&2; \
	    exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "vaelab needs Python 3.11 or newer, but $(PYTHON) is older or missing:" \
	        "name another with make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) cannot make environments. Install its venv package" \
	        "(on Debian and Ubuntu: sudo apt install python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
