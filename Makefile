# make quickstart   install, then the study of configs/quickstart.yaml
# make test         install, then the tests that end within minutes
# make test-slow    the tests that take longer: faults, several processes
# make test-cluster launch files on hosts of this machine (root, Linux; Debian: openssh-server rsync iproute2 netcat-openbsd)
# make test-vllm    vLLM's answers beside the default backend's, on a CPU, in an environment of its own
# make gpu-kit      pack what a GPU machine without a network lacks into .kit
# make gpu-run      on a GPU machine: see that all works there, and measure it (with .kit, nothing else is needed)
# make check        lint, format, types

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
# Files of tests side by side, more than there are cores: a test often waits for processes that start one after another.
LANES ?= -n 3 --dist loadfile --no-loadscope-reorder
INSTALLED := $(VENV)/installed
# Quiet, also of what setuptools has to say about an editable package.
INSTALL := PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --constraint constraints.txt
VLLM := .venv-vllm

# Where it is set, every process that a test starts compiles the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart install test test-slow test-cluster test-vllm gpu-kit gpu-run check clean

quickstart: $(INSTALLED)
	$(BIN)/arc-ray study configs/quickstart.yaml

install: $(INSTALLED)

# The pip that comes with Python takes a minute longer, but will do; it would compile on one core only. torch comes first
# and alone: asked for by another package, pip would take its largest build. Files for other Pythons do not compile.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip || true
	$(INSTALL) --no-compile torch
	$(INSTALL) --no-compile --editable '.[dev]'
	$(BIN)/python -W ignore -m compileall -qq -j 0 $(VENV)/lib || true
	touch $@

test: $(INSTALLED)
	$(BIN)/pytest $(LANES)

test-slow: $(INSTALLED)
	$(BIN)/pytest -m slow $(LANES)

test-cluster: $(INSTALLED)
	$(INSTALL) --editable '.[dev,cluster-tests]'
	$(BIN)/pytest -m cluster

# vLLM pins its torch and transformers; without what it says it needs, pip takes what is listed and no more.
$(VLLM)/installed: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --constraint constraints-vllm.txt torch
	$(VLLM)/bin/pip install --quiet --no-deps --requirement constraints-vllm.txt --editable .
	touch $@

test-vllm: $(VLLM)/installed
	$(VLLM)/bin/pytest -m vllm tests/decode/test_vllm.py

gpu-kit: $(INSTALLED)
	$(BIN)/python tests/gpu/kit.py make

# With a kit the machine's own Python is taken, which has torch; else what is installed here.
gpu-run: $(if $(wildcard .kit),,$(INSTALLED))
	$(if $(wildcard .kit),python3,$(BIN)/python) tests/gpu/run.py

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) $(VLLM)
