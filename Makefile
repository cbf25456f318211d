# Everything is set up from nothing: only Python 3.11 or newer is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVE := $(VENV)/.serve-installed
DEV := $(VENV)/.dev-installed

.PHONY: demo test lint clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(SERVE): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(DEV): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[train,export,dev]"
	touch $@ $(SERVE)

demo: $(SERVE) ## Sample parts, a served verdict and an HTML report, without a GPU
	$(BIN)/python -m examples.demo --out demo

test: $(DEV) lint ## All checks and tests
	$(BIN)/python -m pytest

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy auroraedge service engine_build calib benchmarks
	$(BIN)/python -m scripts.generate_protos --check

clean:
	rm -rf $(VENV) demo build dist *.egg-info
