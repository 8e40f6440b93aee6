# emcd: every command a person or a pipeline needs. `make help` lists them.
SHELL  := /bin/bash
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet

.DEFAULT_GOAL := help
.PHONY: help install dev run smoke stop test test-fast test-deep lint types bench bench-quick soak fuzz contracts vectors clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

install: $(RUN_STAMP)  ## set up .venv with the pinned packages and emcd itself

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "emcd needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): $(BIN)/python requirements.lock setup.cfg pyproject.toml
	@echo "installing the pinned packages (about half a minute) ..."
	$(PIP) install --no-deps --require-hashes -r requirements.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

dev: $(DEV_STAMP)  ## the same, with everything the tests need

$(DEV_STAMP): $(RUN_STAMP) requirements-dev.lock
	$(PIP) install --no-deps --require-hashes -r requirements-dev.lock
	@touch $@

run: $(RUN_STAMP)  ## the whole network in one process, until Ctrl-C
	$(BIN)/emcd devnet run

smoke: $(RUN_STAMP)  ## the same, unattended, until a claim is confirmed on chain
	$(BIN)/emcd devnet smoke

stop: $(RUN_STAMP)  ## stop a devnet that is running in the background
	$(BIN)/emcd devnet stop

test: $(DEV_STAMP)  ## lint, types, import rules and every test
	$(MAKE) --no-print-directory lint types
	$(BIN)/python -m pytest -m "not deep"

test-fast: $(DEV_STAMP)  ## unit and property tests only
	$(BIN)/python -m pytest tests/unit tests/property -m "not deep" -x

test-deep: $(DEV_STAMP)  ## what takes longer than a pipeline should
	$(BIN)/python -m pytest -m deep

lint: $(DEV_STAMP)  ## ruff and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(DEV_STAMP)  ## mypy --strict
	$(BIN)/mypy

bench: $(DEV_STAMP)  ## the gateway beside nginx, LiteLLM and Portkey, in minutes; to bench-results.json
	$(BIN)/python -m tests.bench.run --out bench-results.json

bench-quick: $(DEV_STAMP)  ## a look in a minute: without the others, in short windows
	$(BIN)/python -m tests.bench.run --quick --out bench-results.json

soak: $(DEV_STAMP)  ## a hub under load for MINUTES (10): memory, books, nothing lost
	$(BIN)/python -m tests.bench.run --only soak --minutes $(or $(MINUTES),10) --out soak-results.json

fuzz: $(DEV_STAMP)  ## requests, mutated, against the HTTP parser for MINUTES (10)
	PYTHONPATH=. $(BIN)/python tests/fuzz/fuzz_http_parser.py --seconds $$((60 * $(or $(MINUTES),10)))

contracts: $(DEV_STAMP)  ## compile the contracts anew into emcd/chain/contracts/artifacts
	$(BIN)/python -m emcd.chain.contracts.compile

vectors: $(RUN_STAMP)  ## recompute every conformance vector
	$(BIN)/emcd vectors tests/vectors/*.json

clean:  ## remove what was built; keeps .devnet
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
