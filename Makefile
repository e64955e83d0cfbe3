# Needs only Python 3.11 or newer and make: every target sets up its own virtual environment first.
#   make demo    train, export, index, serve and query on the spot (about a minute after set-up)
#   make test    the whole test suite, except the long runs that have commands of their own; a process for each of at
#                most four cores, as each may hold a training run's memory
#   make check   ruff and mypy
#   make docs    the documentation as a site, build/site/index.html, from docs/ and what reference/ generates
#   make notebooks  generate the notebooks of examples/ from its scripts
#   make proto   generate imagekin/v1 and imagekin/kserve from protos/
#   make client  generate the sync client from the async one
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A stamp for each set of extras: set-up runs again when what is installed would change.
DEMO_STAMP := $(VENV)/.installed-demo
DEV_STAMP := $(VENV)/.installed-dev

.PHONY: demo test check docs notebooks proto client clean

demo: $(DEMO_STAMP)
	$(BIN)/imagekin demo

test: $(DEV_STAMP)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DEV_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

notebooks: $(DEV_STAMP)
	$(BIN)/python -m reference.notebooks

proto: $(DEV_STAMP)
	$(BIN)/python protos/generate.py
	$(BIN)/python protos/openapi.py

client: $(DEV_STAMP)
	$(BIN)/python client/generate_sync.py

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(DEMO_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,train]'
	touch $@

$(DEV_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,train,dev,docs]'
	touch $@
