# make quickstart   install, then the study of configs/quickstart.yaml
# make test         install, then the tests that end within minutes
# make test-slow    the tests that take longer: faults, several processes
# make test-cluster launch files on hosts of this machine (root, Linux; Debian: openssh-server rsync iproute2 netcat-openbsd)
# make check        lint, format, types

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: quickstart install test test-slow test-cluster check clean

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

test-cluster: $(INSTALLED)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,cluster-tests]'
	$(BIN)/pytest -m cluster

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV)
