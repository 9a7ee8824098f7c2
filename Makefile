# Every target installs what it needs into .venv, so each works first in a fresh clone. `make help` lists them.
#
# pip finds torch as it is set up on this machine. Where that means gigabytes of CUDA, name an index that has a CPU
# build in PIP_EXTRA_INDEX_URL before the first target.

PYTHON ?= python3
PORT   ?= 5006

VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
# one thread a worker; with bytecode, for the many processes that tests start
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest
SOURCE := mpviz tests notebooks docs

.DEFAULT_GOAL := help
.PHONY: help setup dashboard lab notebooks docs test check bench browser clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/.lab  ## install mpviz with its notebook and dashboard into .venv

dashboard: $(VENV)/.lab  ## serve the dashboard on http://localhost:5006 (PORT=... for another port)
	$(BIN)/mpviz dashboard --port $(PORT)

lab: $(VENV)/.lab  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

notebooks: $(VENV)/.lab  ## run all notebooks at their full settings into runs/notebooks
	MPVIZ_FULL=1 $(BIN)/python -m nbconvert --to notebook --execute --ExecutePreprocessor.timeout=-1 \
	    --output-dir runs/notebooks notebooks/*.ipynb

docs: $(VENV)/.docs  ## build the documentation into site/
	$(BIN)/mkdocs build --strict

test: $(VENV)/.test browser  ## run every test, those in the browser included
	@# Without xdist's order the long file of the notebooks does not begin last.
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.test  ## lint, import contracts, types and the quick tests: a minute or two
	$(BIN)/ruff check $(SOURCE)
	$(BIN)/ruff format --check $(SOURCE)
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(PYTEST) -n 2 --dist loadfile -m "not browser and not slow"

bench: $(VENV)/.test browser  ## measure speeds on this machine and print them
	$(BIN)/python tests/benchmarks/interactive.py
	$(BIN)/python tests/benchmarks/slider_step.py
	$(BIN)/python tests/benchmarks/slider_pixels.py
	$(BIN)/python tests/benchmarks/sparsity_table.py
	$(BIN)/python tests/benchmarks/analyze_speed.py
	$(BIN)/python tests/benchmarks/recovery_overhead.py
	$(BIN)/python tests/benchmarks/two_four.py --networks fashion-vit fashion-resnet
	$(BIN)/python tests/benchmarks/readme_tables.py

clean:  ## remove the environment and all caches
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find $(SOURCE) \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +

# Debian's python3 comes without ensurepip, and its error message is easy to miss between others.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "mpviz needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	         "Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	    echo "$(PYTHON) cannot make a virtual environment: it has no ensurepip." \
	         "On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.lab: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing mpviz into $(VENV): some minutes the first time"
	$(PIP) install -c constraints.txt -e '.[lab,train]'
	@touch $@

$(VENV)/.test: $(VENV)/.lab
	$(PIP) install -c constraints.txt -e '.[lab,train,test]'
	@touch $@

$(VENV)/.docs: $(VENV)/.lab
	$(PIP) install -c constraints.txt -e '.[lab,train,docs]'
	@touch $@

browser:
	@.ci/browser
