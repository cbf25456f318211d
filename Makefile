# Everything is set up from nothing: only Python 3.11 or newer is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVE := $(VENV)/.serve-installed
DEV := $(VENV)/.dev-installed
TOOLS := $(VENV)/.tools-installed
TRITON := .venv-triton/.installed
# Modules are compiled when they are first imported: most of torch's never are.
PIP := --quiet --disable-pip-version-check --no-compile

.PHONY: demo test unit browser processes lint site clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(SERVE): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install $(PIP) -e .
	touch $@

$(DEV): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install $(PIP) -e ".[train,export,kernels,rtx,dev]"
	touch $@ $(SERVE)

$(TOOLS): tests/debian-packages.txt | $(BIN)/python
	scripts/install_test_tools.sh
	touch $@

# A client of the Open Inference Protocol; it pins another protobuf than ours.
$(TRITON): tests/triton-requirements.txt
	$(PYTHON) -m venv .venv-triton
	.venv-triton/bin/python -m pip install $(PIP) -r $<
	touch $@

demo: $(SERVE) ## Sample parts, a served verdict and an HTML report, without a GPU
	$(BIN)/python -m examples.demo --out demo

test: ## All checks and tests
	$(MAKE) --jobs 3 $(DEV) $(TOOLS) $(TRITON)
	$(MAKE) --jobs 2 lint site
	$(MAKE) unit
	$(MAKE) --jobs 2 --output-sync=target processes browser

# Two processes of one thread each, the tests of one file in one process.
unit: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/unit

browser: $(DEV) $(TOOLS)
	$(BIN)/python -m pytest tests/browser

# Of servers, clusters and devices: they start processes of their own and watch the clock.
processes: $(DEV) $(TOOLS) $(TRITON)
	$(BIN)/python -m pytest --ignore tests/unit --ignore tests/browser

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy auroraedge service engine_build calib benchmarks kernels
	$(BIN)/python -m scripts.generate_protos --check
	$(BIN)/python -m scripts.check_api

site: $(DEV) ## The documentation as a web site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict --site-dir build/site

clean:
	rm -rf $(VENV) .venv-triton demo build dist *.egg-info
