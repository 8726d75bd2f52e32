# make quickstart   install, then the study of configs/quickstart.yaml
# make test         install, then the tests that end within minutes
# make test-slow    the tests that take longer: faults, several processes
# make check        lint, format, types

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: quickstart install test test-slow check clean

quickstart: $(INSTALLED)
	$(BIN)/arc-ray study configs/quickstart.yaml

install: $(INSTALLED)

# torch comes first and alone: asked for by another package, pip would take its largest build.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

test: $(INSTALLED)
	$(BIN)/pytest

test-slow: $(INSTALLED)
	$(BIN)/pytest -m slow

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV)
